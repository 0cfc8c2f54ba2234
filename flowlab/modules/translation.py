"""The laboratory's layers as PyTorch modules that hold given parameters.

Each class of layers has one function that makes its module: PyTorch's own where its mathematics is
the same, otherwise a *formula*, a module whose forward pass is a function of this file. Matrices
are transposed on the way, (inputs, outputs) here and (outputs, inputs) there.

Modules are made on PyTorch's device "meta", so that none draws numbers of its own, and then filled.
"""

from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from flowlab.errors import InputError
from flowlab.kernel import Kernel
from flowlab.layer import Chain, Layer, Nest, Shape
from flowlab.layers import (
    GRU,
    LSTM,
    Activation,
    AvgPool2d,
    BatchNorm,
    Conv1d,
    Conv2d,
    Flatten,
    Fork,
    GlobalAveragePool,
    GroupNorm,
    LastStep,
    LayerNorm,
    Linear,
    MaxPool2d,
    MultiHeadAttention,
    PositionalEncoding,
    Recurrent,
    Residual,
    RMSNorm,
    Scale,
    ScaledDotProductAttention,
    TokenEmbedding,
    TokenMean,
)
from flowlab.layers.activation import ACTIVATIONS, LEAKY_SLOPE, REGISTERED_ACTIVATIONS
from flowlab.layers.embedding import sinusoids
from flowlab.networks.rewrite import operations

if TYPE_CHECKING:
    from torch import nn


def translated(block: Layer, shape: Shape, parameters: Nest) -> "nn.Sequential":
    """A block as a ``torch.nn.Sequential`` of its operations, for inputs of ``shape``.

    ``parameters`` is the nest of one network's arrays that the block declares. Operations have the
    names that :func:`flowlab.networks.rewrite.operations` gives them; chains within chains are
    passed in a row, a residual sum holds its ``branch`` and a fork its branches. Raises InputError
    for what has no form in PyTorch.
    """
    import torch

    with torch.device("meta"):
        return _in_a_row(torch, [(block, parameters)], shape, iter(operations(block)))


# --- composites -----------------------------------------------------------------------------------


def _in_a_row(torch, layers: list[tuple[Layer, Nest]], shape: Shape, names: Iterator[str]):
    """Layers with their parameters, one after another; ``names`` are those of primitives."""
    made = torch.nn.Sequential()
    spliced = [each for layer, own in layers for each in _spliced(layer, own)]
    composites = [layer.name for layer, _ in spliced if layer.children]
    met = []
    for layer, own in spliced:
        if layer.children:
            met.append(layer.name)
            number = f"_{met.count(layer.name)}" if composites.count(layer.name) > 1 else ""
            name = layer.name + number
        else:
            name = next(names)
        _add(made, name, _translated(torch, layer, own, shape, names))
        shape = layer.declare(shape).output
    return made


def _spliced(layer: Layer, parameters: Nest) -> Iterator[tuple[Layer, Nest]]:
    """The layers of chains within chains, each with its parameters."""
    if type(layer) not in (Chain, MultiHeadAttention):
        yield layer, parameters
        return
    for child, own in zip(layer.children, parameters, strict=True):
        yield from _spliced(child, own)


def _translated(torch, layer: Layer, parameters: Nest, shape: Shape, names: Iterator[str]):
    if type(layer) is Residual:
        branch = _in_a_row(torch, [(layer.branch, parameters)], shape, names)
        return _formula()("Residual", _residual, branch=branch, a=layer.a, s=layer.s)
    if type(layer) is Fork:
        fork = _formula()("Fork", _fork)
        for k, each in enumerate(zip(layer.branches, parameters, strict=True), 1):
            row = _in_a_row(torch, [each], shape, names)
            (name, branch), *_ = (
                [*row.named_children()] if len(row) == 1 else [(f"branch_{k}", row)]
            )
            _add(fork, name, branch)
        return fork
    if type(layer) not in TRANSLATIONS:
        raise InputError(
            f"a layer must be one that has a form in PyTorch; got {type(layer).__name__}"
        )
    data = [n for n, p in layer.declare(shape).parameters.items() if p.role == "target"]
    if data:
        raise InputError(f"{layer.name} must be without data of its own; got {', '.join(data)}")
    return TRANSLATIONS[type(layer)](torch, layer, shape, parameters)


def _add(module, name: str, child) -> None:
    if hasattr(module, name) or "." in name or not name:
        raise InputError(f"name of an operation must be free in a PyTorch module; got {name!r}")
    module.add_module(name, child)


def _residual(own, x):
    return own.s * (x + own.a * own.branch(x))


def _fork(own, x):
    import torch

    return torch.stack([branch(x) for branch in own.children()], dim=1)


# --- modules --------------------------------------------------------------------------------------


@cache
def _formula():
    """The class of modules y = function(module, x); what else they hold are their attributes."""
    import torch

    class Formula(torch.nn.Module):
        def __init__(self, name: str, function: Callable, **held: Any):
            super().__init__()
            self.name, self.function = name, function
            self.constants = [key for key, value in held.items() if np.isscalar(value)]
            for key, value in held.items():
                setattr(self, key, value)

        def forward(self, *given):
            return self.function(self, *given)

        def _get_name(self):
            return self.name

        def extra_repr(self):
            return ", ".join(f"{key}={getattr(self, key)}" for key in self.constants)

    return Formula


def _tensor(torch, array: np.ndarray):
    return torch.from_numpy(np.array(array, order="C"))


def _parameter(torch, array: np.ndarray):
    return torch.nn.Parameter(_tensor(torch, array))


def _filled(torch, module, **arrays: np.ndarray):
    """A module with these as its parameters; none may be left out."""
    module.load_state_dict({k: _tensor(torch, a) for k, a in arrays.items()}, assign=True)
    return module


def _linear(torch, layer: Linear, shape, p):
    return _filled(torch, torch.nn.Linear(*p["W"].shape), weight=p["W"].T, bias=p["b"])


def _convolution(torch, layer: Conv1d | Conv2d, shape, p):
    circular = layer.padding_mode == "circular"
    if circular and layer.padding > min(shape[2:]):
        raise InputError(
            f"{layer.name}: circular padding must be at most the input's length for PyTorch, "
            f"{min(shape[2:])}; got {layer.padding}"
        )
    kind = torch.nn.Conv1d if type(layer) is Conv1d else torch.nn.Conv2d
    options = (layer.stride, layer.padding, layer.dilation, layer.groups)
    made = kind(
        *(shape[1], layer.features, layer.kernel_size, *options), padding_mode=layer.padding_mode
    )
    return _filled(torch, made, weight=p["W"], bias=p["b"])


def _batch_norm(torch, layer: BatchNorm, shape, p):
    """Always by the batch's own statistics, as in training."""
    nn, axes = torch.nn, len(shape)
    if layer.channels_last:
        kind = nn.BatchNorm1d
    elif axes <= 5:
        kind = {4: nn.BatchNorm2d, 5: nn.BatchNorm3d}.get(axes, nn.BatchNorm1d)
    else:
        raise InputError(f"batch_norm must have at most 5 axes for PyTorch; got {axes}")
    made = kind(len(p["gain"]), eps=layer.eps, track_running_stats=False)
    made = _filled(torch, made, weight=p["gain"], bias=p["bias"])
    if layer.channels_last and axes > 2:
        return _formula()("BatchNormOfTokens", _of_tokens, norm=made)
    return made


def _of_tokens(own, x):
    return own.norm(x.flatten(0, -2)).reshape(x.shape)


def _layer_norm(torch, layer: LayerNorm, shape, p):
    made = torch.nn.LayerNorm(shape[-1], eps=layer.eps)
    return _filled(torch, made, weight=p["gain"], bias=p["bias"])


def _rms_norm(torch, layer: RMSNorm, shape, p):
    return _filled(torch, torch.nn.RMSNorm(shape[-1], eps=layer.eps), weight=p["gain"])


def _group_norm(torch, layer: GroupNorm, shape, p):
    if layer.centred:
        made = torch.nn.GroupNorm(layer.groups, shape[1], eps=layer.eps)
        return _filled(torch, made, weight=p["gain"], bias=p["bias"])
    weight = _parameter(torch, p["gain"])
    return _formula()("GroupRMSNorm", _group_rms, groups=layer.groups, eps=layer.eps, weight=weight)


def _group_rms(own, x):
    groups = x.reshape(x.shape[0], own.groups, -1)
    inverse = (groups.square().mean(-1, keepdim=True) + own.eps).rsqrt()
    return (groups * inverse).reshape(x.shape) * own.weight.view(-1, *[1] * (x.ndim - 2))


def _activation(torch, layer: Activation, shape, p):
    if layer.name in REGISTERED_ACTIVATIONS:
        return _formula()(layer.name, _by_kernels(torch, *ACTIVATIONS[layer.name]))
    nn = torch.nn
    return {
        "identity": nn.Identity,
        "relu": nn.ReLU,
        "leaky_relu": lambda: nn.LeakyReLU(LEAKY_SLOPE),
        "tanh": nn.Tanh,
        "sigmoid": nn.Sigmoid,
        "erf": lambda: _formula()("Erf", lambda own, z: torch.erf(z)),
        "gelu": nn.GELU,
        "silu": nn.SiLU,
        "selu": nn.SELU,
        "elu": nn.ELU,
        # From 20 on PyTorch would take the identity, which float64 can see.
        "softplus": lambda: nn.Softplus(threshold=40.0),
    }[layer.name]()


def _by_kernels(torch, forward: Kernel, pullback: Kernel):
    """A registered activation: a user's functions of numbers are compiled and know no tensors."""

    def run(kernel, *tensors):
        arrays = [np.ascontiguousarray(t.detach().cpu().numpy())[None] for t in tensors]
        out = np.empty_like(arrays[0])
        kernel.run(*arrays, out)
        return torch.from_numpy(out[0]).to(tensors[0].device)

    class Registered(torch.autograd.Function):
        @staticmethod
        def forward(context, z):
            context.save_for_backward(z)
            return run(forward, z)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(context, dy):
            return run(pullback, *context.saved_tensors, dy)

    return lambda own, z: Registered.apply(z)


def _max_pool(torch, layer: MaxPool2d, shape, p):
    return torch.nn.MaxPool2d(layer.kernel_size, layer.stride)


def _average_pool(torch, layer: AvgPool2d, shape, p):
    return torch.nn.AvgPool2d(layer.kernel_size, layer.stride)


def _global_average_pool(torch, layer: GlobalAveragePool, shape, p):
    return _formula()("GlobalAveragePool", lambda own, x: x.flatten(2).mean(2))


def _token_mean(torch, layer: TokenMean, shape, p):
    return _formula()("TokenMean", lambda own, x: x.mean(1))


def _flatten(torch, layer: Flatten, shape, p):
    return torch.nn.Flatten()


def _scale(torch, layer: Scale, shape, p):
    weight = _parameter(torch, p["alpha"])
    return _formula()("Scale", lambda own, x: own.weight * x, weight=weight)


def _token_embedding(torch, layer: TokenEmbedding, shape, p):
    weight = _parameter(torch, p["W"])
    return _formula()("TokenEmbedding", _embedding, weight=weight)


def _embedding(own, x):
    import torch

    return torch.nn.functional.embedding((x + 0.5).floor().long(), own.weight)


def _positional_encoding(torch, layer: PositionalEncoding, shape, p):
    made = _formula()("PositionalEncoding", _positions)
    if layer.kind == "learned":
        made.weight = _parameter(torch, p["P"])
    else:
        made.register_buffer("weight", _tensor(torch, sinusoids(*shape[1:])))
    return made


def _positions(own, x):
    return x + own.weight[: x.shape[1]].to(x.dtype)


def _attention(torch, layer: ScaledDotProductAttention, shape, p):
    options = {"heads": layer.heads, "causal": layer.causal}
    return _formula()("ScaledDotProductAttention", _attend, **options, scale=layer.scale)


def _attend(own, x):
    """Queries, keys and values (n, 3, T, d) to (n, T, d)."""
    import torch

    q, k, v = x.unflatten(-1, (own.heads, -1)).transpose(2, 3).unbind(1)
    attend = torch.nn.functional.scaled_dot_product_attention
    return attend(q, k, v, is_causal=own.causal, scale=own.scale).transpose(1, 2).flatten(2)


# --- recurrence -----------------------------------------------------------------------------------


def _recurrence(torch, layer: Recurrent | LSTM | GRU, shape, p):
    """PyTorch's own recurrence, ``rnn``; a forget bias is added to its input's bias."""
    b_ih = np.array(p["b_ih"])
    if type(layer) is LSTM:
        b_ih[layer.features : 2 * layer.features] += layer.forget_bias
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    arrays = dict(zip(names, (p["W_ih"].T, p["W_hh"].T, b_ih, p["b_hh"]), strict=True))
    name = {Recurrent: "RNN", LSTM: "LSTM", GRU: "GRU"}[type(layer)]
    if getattr(layer, "activation", None) == "identity":
        parameters = {key: _parameter(torch, array) for key, array in arrays.items()}
        rnn = _formula()("LinearRNN", _linear_recurrence, **parameters)
    else:
        kinks = {"nonlinearity": layer.activation} if name == "RNN" else {}
        rnn = getattr(torch.nn, name)(shape[2], layer.features, batch_first=True, **kinks)
        _filled(torch, rnn, **arrays)
    return _formula()(f"StatesOf{name}", _states, rnn=rnn, truncation=layer.truncation)


def _states(own, x):
    """The states of all steps; the gradient is cut after every ``truncation`` of them."""
    import torch

    found, state = [], None
    for piece in x.split(own.truncation or x.shape[1], dim=1):
        y, state = own.rnn(piece, state)
        state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
        found.append(y)
    return torch.cat(found, dim=1)


def _linear_recurrence(own, x, state=None):
    """(states of all steps, the last one) without a nonlinearity, which ``nn.RNN`` cannot be."""
    import torch

    linear = torch.nn.functional.linear
    z = linear(x, own.weight_ih_l0, own.bias_ih_l0)
    h = z.new_zeros(z.shape[0], z.shape[2]) if state is None else state
    found = []
    for now in z.unbind(1):
        h = now + linear(h, own.weight_hh_l0, own.bias_hh_l0)
        found.append(h)
    return torch.stack(found, dim=1), h


def _last_step(torch, layer: LastStep, shape, p):
    return _formula()("LastStep", lambda own, x: x[:, -1])


# (torch, layer, shape of its input, its parameters) -> module.
TRANSLATIONS: dict[type[Layer], Callable] = {
    Activation: _activation,
    AvgPool2d: _average_pool,
    BatchNorm: _batch_norm,
    Conv1d: _convolution,
    Conv2d: _convolution,
    Flatten: _flatten,
    GRU: _recurrence,
    GlobalAveragePool: _global_average_pool,
    GroupNorm: _group_norm,
    LSTM: _recurrence,
    LastStep: _last_step,
    LayerNorm: _layer_norm,
    Linear: _linear,
    MaxPool2d: _max_pool,
    PositionalEncoding: _positional_encoding,
    RMSNorm: _rms_norm,
    Recurrent: _recurrence,
    Scale: _scale,
    ScaledDotProductAttention: _attention,
    TokenEmbedding: _token_embedding,
    TokenMean: _token_mean,
}
