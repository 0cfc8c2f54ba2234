"""The laboratory's layers as PyTorch modules that hold given parameters.

Each class of layers has one function that makes its module: PyTorch's own where its mathematics is
the same, otherwise one of :mod:`flowlab.modules.forms`. Matrices are transposed on the way,
(inputs, outputs) here and (outputs, inputs) there.

Modules are made on PyTorch's device "meta", so that none draws numbers of its own, and then filled.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import nn

from flowlab.errors import InputError
from flowlab.layer import Arrays, Chain, Layer, Nest, Shape
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
from flowlab.layers.activation import LEAKY_SLOPE, REGISTERED_ACTIVATIONS
from flowlab.layers.embedding import sinusoids
from flowlab.modules.forms import (
    AddedPositions,
    AtLastStep,
    BatchNormOfTokens,
    Branches,
    DotProductAttention,
    EmbeddingOfFloats,
    Erf,
    GroupRMSNorm,
    LearnedScale,
    LinearRNN,
    MeanOver,
    RegisteredActivation,
    ResidualSum,
    States,
)
from flowlab.networks.rewrite import operations


def translated(block: Layer, shape: Shape, parameters: Nest) -> nn.Sequential:
    """A block as a row of its operations, for inputs of ``shape``.

    ``parameters`` is the nest of one network's arrays that the block declares. Operations have the
    names that :func:`flowlab.networks.rewrite.operations` gives them; chains within chains are
    spliced, a residual sum holds its ``branch`` and a fork its branches. Raises InputError for what
    has no form in PyTorch.
    """
    with torch.device("meta"):
        return _in_a_row(block, shape, parameters, iter(operations(block)))


# --- composites -----------------------------------------------------------------------------------


def _in_a_row(layer: Layer, shape: Shape, parameters: Nest, names: Iterator[str]) -> nn.Sequential:
    """A layer or the layers of a chain; ``names`` are those of the block's primitives to come."""
    row, layers = nn.Sequential(), [*_spliced(layer, parameters)]
    composites = [each.name for each, _ in layers if each.children]
    met = []
    for each, own in layers:
        if each.children:
            met.append(each.name)
            repeated = composites.count(each.name) > 1
            name = f"{each.name}_{met.count(each.name)}" if repeated else each.name
        else:
            name = next(names)
        _add(row, name, _module(each, shape, own, names))
        shape = each.declare(shape).output
    return row


def _spliced(layer: Layer, parameters: Nest) -> Iterator[tuple[Layer, Nest]]:
    """The layers of chains within chains, each with its parameters."""
    if type(layer) not in (Chain, MultiHeadAttention):
        yield layer, parameters
        return
    for child, own in zip(layer.children, parameters, strict=True):
        yield from _spliced(child, own)


def _module(layer: Layer, shape: Shape, parameters: Nest, names: Iterator[str]) -> nn.Module:
    if type(layer) is Residual:
        branch = _in_a_row(layer.branch, shape, parameters, names)
        return ResidualSum(branch, layer.a, layer.s)
    if type(layer) is Fork:
        branches = Branches()
        for k, (child, own) in enumerate(zip(layer.branches, parameters, strict=True), 1):
            row = _in_a_row(child, shape, own, names)
            name, branch = next(row.named_children()) if len(row) == 1 else (f"branch_{k}", row)
            _add(branches, name, branch)
        return branches
    if type(layer) not in TRANSLATIONS:
        raise InputError(
            f"a layer must be one that has a form in PyTorch; got {type(layer).__name__}"
        )
    data = [n for n, p in layer.declare(shape).parameters.items() if p.role == "target"]
    if data:
        raise InputError(f"{layer.name} must be without data of its own; got {', '.join(data)}")
    module, state = TRANSLATIONS[type(layer)](layer, shape, parameters)
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in state.items()}
    module.load_state_dict(tensors, assign=True)  # all of them, or it raises
    return module


def _add(module: nn.Module, name: str, child: nn.Module) -> None:
    if hasattr(module, name) or "." in name or not name:
        raise InputError(f"name of an operation must be free in a PyTorch module; got {name!r}")
    module.add_module(name, child)


# --- primitives -----------------------------------------------------------------------------------

Translation = tuple[nn.Module, Arrays]  # a module, and what its state_dict is to be


def _linear(layer: Linear, shape: Shape, p: Arrays) -> Translation:
    return nn.Linear(*p["W"].shape), {"weight": p["W"].T, "bias": p["b"]}


def _convolution(layer: Conv1d | Conv2d, shape: Shape, p: Arrays) -> Translation:
    if layer.padding_mode == "circular" and layer.padding > min(shape[2:]):
        raise InputError(
            f"{layer.name}: circular padding must be at most the input's length for PyTorch, "
            f"{min(shape[2:])}; got {layer.padding}"
        )
    kind = nn.Conv1d if type(layer) is Conv1d else nn.Conv2d
    module = kind(
        *(shape[1], layer.features, layer.kernel_size, layer.stride, layer.padding),
        *(layer.dilation, layer.groups),
        padding_mode=layer.padding_mode,
    )
    return module, {"weight": p["W"], "bias": p["b"]}


def _batch_norm(layer: BatchNorm, shape: Shape, p: Arrays) -> Translation:
    if len(shape) > 5 and not layer.channels_last:
        raise InputError(f"batch_norm must have at most 5 axes for PyTorch; got {len(shape)}")
    kind = {4: nn.BatchNorm2d, 5: nn.BatchNorm3d}.get(len(shape), nn.BatchNorm1d)
    kind = BatchNormOfTokens if layer.channels_last else kind
    # Always by the batch's own statistics, as in training.
    module = kind(len(p["gain"]), eps=layer.eps, track_running_stats=False)
    return module, {"weight": p["gain"], "bias": p["bias"]}


def _layer_norm(layer: LayerNorm, shape: Shape, p: Arrays) -> Translation:
    return nn.LayerNorm(shape[-1], eps=layer.eps), {"weight": p["gain"], "bias": p["bias"]}


def _rms_norm(layer: RMSNorm, shape: Shape, p: Arrays) -> Translation:
    return nn.RMSNorm(shape[-1], eps=layer.eps), {"weight": p["gain"]}


def _group_norm(layer: GroupNorm, shape: Shape, p: Arrays) -> Translation:
    kind, bias = (nn.GroupNorm, {"bias": p["bias"]}) if layer.centred else (GroupRMSNorm, {})
    return kind(layer.groups, shape[1], eps=layer.eps), {"weight": p["gain"], **bias}


_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "identity": nn.Identity,
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(LEAKY_SLOPE),
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "erf": Erf,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "selu": nn.SELU,
    "elu": nn.ELU,
    # From 20 on PyTorch would take the identity, which is not yet the same in float64.
    "softplus": lambda: nn.Softplus(threshold=40.0),
}


def _activation(layer: Activation, shape: Shape, p: Arrays) -> Translation:
    if layer.name in REGISTERED_ACTIVATIONS:
        return RegisteredActivation(layer.name), {}
    return _ACTIVATIONS[layer.name](), {}


def _scale(layer: Scale, shape: Shape, p: Arrays) -> Translation:
    return LearnedScale(), {"weight": p["alpha"]}


def _token_embedding(layer: TokenEmbedding, shape: Shape, p: Arrays) -> Translation:
    return EmbeddingOfFloats(*p["W"].shape), {"weight": p["W"]}


def _positional_encoding(layer: PositionalEncoding, shape: Shape, p: Arrays) -> Translation:
    table = p["P"] if layer.trainable else sinusoids(*shape[1:])
    return AddedPositions(*table.shape, learned=layer.trainable), {"weight": table}


def _attention(layer: ScaledDotProductAttention, shape: Shape, p: Arrays) -> Translation:
    return DotProductAttention(layer.heads, layer.causal, layer.scale), {}


def _max_pool(layer: MaxPool2d, shape: Shape, p: Arrays) -> Translation:
    return nn.MaxPool2d(layer.kernel_size, layer.stride), {}


def _average_pool(layer: AvgPool2d, shape: Shape, p: Arrays) -> Translation:
    return nn.AvgPool2d(layer.kernel_size, layer.stride), {}


def _mean_over_positions(layer: GlobalAveragePool, shape: Shape, p: Arrays) -> Translation:
    return MeanOver(range(2, len(shape))), {}


def _mean_over_tokens(layer: TokenMean, shape: Shape, p: Arrays) -> Translation:
    return MeanOver([1]), {}


def _flatten(layer: Flatten, shape: Shape, p: Arrays) -> Translation:
    return nn.Flatten(), {}


def _last_step(layer: LastStep, shape: Shape, p: Arrays) -> Translation:
    return AtLastStep(), {}


def _recurrence(rnn: nn.Module, layer: Recurrent | LSTM | GRU, p: Arrays) -> Translation:
    state = {
        "rnn.weight_ih_l0": p["W_ih"].T,
        "rnn.weight_hh_l0": p["W_hh"].T,
        "rnn.bias_ih_l0": p["b_ih"],
        "rnn.bias_hh_l0": p["b_hh"],
    }
    return States(rnn, layer.truncation), state


def _rnn(layer: Recurrent, shape: Shape, p: Arrays) -> Translation:
    sizes = shape[2], layer.features
    if layer.activation == "identity":
        return _recurrence(LinearRNN(*sizes), layer, p)
    rnn = nn.RNN(*sizes, nonlinearity=layer.activation, batch_first=True)
    return _recurrence(rnn, layer, p)


def _lstm(layer: LSTM, shape: Shape, p: Arrays) -> Translation:
    """The forget bias, which PyTorch does not have, becomes part of the input's bias."""
    b_ih = p["b_ih"].copy()
    b_ih[layer.features : 2 * layer.features] += layer.forget_bias
    rnn = nn.LSTM(shape[2], layer.features, batch_first=True)
    return _recurrence(rnn, layer, p | {"b_ih": b_ih})


def _gru(layer: GRU, shape: Shape, p: Arrays) -> Translation:
    return _recurrence(nn.GRU(shape[2], layer.features, batch_first=True), layer, p)


# (layer, shape of its input, its parameters) -> module and its state.
TRANSLATIONS: dict[type[Layer], Callable[..., Translation]] = {
    Activation: _activation,
    AvgPool2d: _average_pool,
    BatchNorm: _batch_norm,
    Conv1d: _convolution,
    Conv2d: _convolution,
    Flatten: _flatten,
    GRU: _gru,
    GlobalAveragePool: _mean_over_positions,
    GroupNorm: _group_norm,
    LSTM: _lstm,
    LastStep: _last_step,
    LayerNorm: _layer_norm,
    Linear: _linear,
    MaxPool2d: _max_pool,
    PositionalEncoding: _positional_encoding,
    RMSNorm: _rms_norm,
    Recurrent: _rnn,
    Scale: _scale,
    ScaledDotProductAttention: _attention,
    TokenEmbedding: _token_embedding,
    TokenMean: _mean_over_tokens,
}
