"""The laboratory's networks in PyTorch: whole tables against norms taken there by autograd."""

import copy
import inspect
import math
import re
from functools import partial

import numpy as np
import pytest

import flowlab
from flowlab import layers
from flowlab.layer import Chain, Primitive, Workspace
from flowlab.layers import (
    AvgPool2d,
    BatchNorm,
    Conv1d,
    Conv2d,
    Flatten,
    Fork,
    GroupNorm,
    Linear,
    MaxPool2d,
    MultiHeadAttention,
    PositionalEncoding,
    Residual,
    RMSNorm,
    ScaledDotProductAttention,
    TokenEmbedding,
    TokenMean,
)
from flowlab.layers.activation import ACTIVATIONS, REGISTERED_ACTIVATIONS
from flowlab.layers.loss import Loss
from flowlab.measurement.norms import Norms
from flowlab.modules import torch_needed as needed
from flowlab.modules.laboratory import batch_of, to_torch
from flowlab.modules.translation import TRANSLATIONS
from flowlab.networks import Network
from flowlab.registration import register_activation
from flowlab.settings import NORMALIZATIONS, SKIPS

torch = pytest.importorskip("torch")
TOLERANCES = {"float64": 1e-9, "float32": 1e-4}
COLUMNS = ["activation", "delta", "dX", "dW", "db", "dgain", "dbias"]
SMALL = {"width": 6, "batch_size": 5, "seeds": 2, "seed": 4, "init": "torch_default"}


@pytest.fixture(autouse=True)
def one_thread():
    """Waking a second thread takes longer than these networks."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# --- norms in PyTorch -----------------------------------------------------------------------------


class Stepped(torch.nn.Module):
    """A recurrence of PyTorch step by step.

    Every step has zeros as further inputs, each of which enters one preactivation, so that they
    receive its cotangent.
    """

    def __init__(self, rnn):
        super().__init__()
        self.rnn, self.steps = rnn, []
        cell = getattr(rnn, "mode", "LINEAR").lower()
        self.cell = linear if cell == "linear" else partial(cell_of, getattr(torch, cell))

    def forward(self, x, state=None):
        rnn = self.rnn
        gates, h = rnn.weight_hh_l0.shape
        one = torch.eye(gates, dtype=x.dtype)
        weights = [torch.cat([rnn.weight_ih_l0, one], 1), rnn.weight_hh_l0]
        weights += [rnn.bias_ih_l0, rnn.bias_hh_l0]
        if state is None:
            state = torch.zeros(1, len(x), h, dtype=x.dtype)
            state = (state, state) if getattr(rnn, "mode", "") == "LSTM" else state
        found = []
        for now in x.unbind(1):
            further = torch.zeros(len(x), gates, dtype=x.dtype, requires_grad=True)
            y, state = self.cell(torch.cat([now, further], 1)[:, None], state, weights)
            on = state[0] if isinstance(state, tuple) else state
            y.retain_grad()
            on.retain_grad()
            self.steps.append((further, y, on))
            found.append(y)
        return torch.cat(found, 1), state

    def norms(self):
        """(of the states, of ∂L/∂z, of ∂L/∂h), one for each step, as log10."""
        for further, y, on in self.steps:
            left = torch.zeros_like(y) if on.grad is None else on.grad.reshape(y.shape)
            yield size(y), size(further.grad), size(y.grad + left)


def cell_of(function, x, state, weights):
    # Biases, one layer, no dropout, training, one direction, the batch first.
    y, *state = function(x, state, weights, True, 1, 0.0, True, False, True)
    return y, tuple(state) if len(state) > 1 else state[0]


def linear(x, h, weights):
    W_ih, W_hh, b_ih, b_hh = weights
    y = x @ W_ih.T + b_ih + h.reshape(len(x), 1, -1) @ W_hh.T + b_hh
    return y, y.reshape(h.shape).clone()


def size(tensor):
    """log10 of the Frobenius norm."""
    with np.errstate(divide="ignore"):
        return float(np.log10(np.linalg.norm(tensor.detach().double().numpy())))


def tap(taps, path, module):
    """What a module receives and returns, beside its path; both then keep their gradients.

    The module receives a copy, whose gradient is what comes through this module alone.
    """

    def before(module, given):
        (x,) = given
        x = x.clone() if x.requires_grad else x.detach().clone().requires_grad_()
        x.retain_grad()
        taps[path] = [x]
        return (x,)

    def after(module, given, y):
        y.retain_grad()
        taps[path].append(y)

    return module.register_forward_pre_hook(before), module.register_forward_hook(after)


def by_torch(net, batch):
    """Norms by (layer, op) and column as in the table, states by layer, and the output."""
    x, y, loss = batch
    recurrent = {}
    for path, module in list(net.named_modules()):
        if path.endswith(".rnn"):
            recurrent[path.removesuffix(".rnn")] = stepped = Stepped(module)
            net.get_submodule(path.removesuffix(".rnn")).rnn = stepped
    modules = {path: m for path, m in net.named_modules() if path and ".rnn" not in path}
    taps, hooks = {}, []
    for path, module in modules.items():
        hooks += tap(taps, path, module)
    net.zero_grad()
    output = net(x)
    loss(output, y).backward()
    rows = {}
    for path, module in modules.items():
        if "." not in path:
            continue
        layer, *_, op = path.removeprefix("layer_").split(".")
        gradients = {
            name.rpartition(".")[2]: size(p.grad)
            for name, p in module.named_parameters()
            if p.grad is not None
        }
        given, returned = (t.grad for t in taps[path])
        dX = {"dX": -math.inf if given is None else size(given)}
        if path in recurrent:
            delta = joined([z for _, z, _ in recurrent[path].norms()])
            for suffix, more in (("ih", dX), ("hh", {})):
                of = (gradients[f"{kind}_{suffix}_l0"] for kind in ("weight", "bias"))
                dW, db = of
                rows[int(layer), f"{op}_{suffix}"] = {"delta": delta, "dW": dW, "db": db, **more}
        elif "norm" in op:
            rows[int(layer), op] = dX | renamed(gradients, weight="dgain", bias="dbias")
        else:
            own = renamed(gradients, weight="dW", bias="db")
            rows[int(layer), op] = dX | own | ({"delta": size(returned)} if own else {})
    outputs = {int(path[6:]): taps[path][1] for path in modules if "." not in path}
    states = {int(path.split(".")[0][6:]): list(s.norms()) for path, s in recurrent.items()}
    for path, stepped in recurrent.items():
        net.get_submodule(path).rnn = stepped.rnn
    for hook in hooks:
        hook.remove()
    return rows, outputs, states, output.detach()


def renamed(gradients, **names):
    return {names[name]: norm for name, norm in gradients.items() if name in names}


def joined(log10_norms):
    """Of the whole, from its parts."""
    return math.log10(math.hypot(*(10.0**norm for norm in log10_norms)))


def compared(settings, seed=None, net=None, **more):
    """(the largest relative difference of a norm, how many norms were compared).

    Norms that flowlab gives up as lost are to be rounding errors in PyTorch, too.
    """
    seed = settings.seed + 1 if seed is None else seed
    net = net or to_torch(settings, seed, **more)
    rows, outputs, states, _ = by_torch(net, batch_of(settings, seed, **more))
    table = flowlab.measure(settings, **more)
    table = table[table["seed"] == seed]
    worst, count = 0.0, 0

    def meet(ours, theirs):
        nonlocal worst, count
        count += 1
        same = ours == theirs
        worst = max(worst, 0.0 if same else abs(math.expm1((ours - theirs) * math.log(10))))
        assert not math.isnan(worst), (ours, theirs)

    whole = table[table["time"].isna()]
    for (layer, op), row in whole.set_index(["layer", "op"]).iterrows():
        theirs = dict(rows[layer, op])
        if op == list(whole[whole["layer"] == layer]["op"])[-1]:
            theirs["activation"] = size(outputs[layer])
            if any(name.startswith("residual") for name, _ in net[layer - 1].named_children()):
                theirs["delta"] = size(outputs[layer].grad)
        given = {c for c in COLUMNS if not math.isnan(row[f"{c}_log10_norm"])}
        assert given <= theirs.keys(), (layer, op)
        for column in theirs.keys() - given:
            assert row["status"] == "lost", (layer, op, column)
            rounding = np.finfo(settings.dtype).eps * settings.batch_size * 100
            incoming = size(outputs[layer].grad) if "delta" not in theirs else theirs["delta"]
            assert theirs[column] < incoming + math.log10(rounding), (layer, op, column)
        for column in given:
            meet(row[f"{column}_log10_norm"], theirs[column])
    timed = table[table["time"].notna()]
    names = ["activation_log10_norm", "delta_log10_norm", "state_cotangent_log10_norm"]
    for (layer, time), row in timed.set_index(["layer", "time"]).iterrows():
        for name, theirs in zip(names, states[layer][time - 1], strict=True):
            meet(row[name], theirs)
    return worst, count


# --- settings -------------------------------------------------------------------------------------

CNN, RESNET = {"network": "cnn", "depth": 4}, {"network": "resnet", "depth": 4}
TOKENS = {"network": "transformer", "depth": 4, "width": 8}
BUILT_IN = [name for name in ACTIVATIONS if name not in REGISTERED_ACTIVATIONS]


def network(name, **options):
    return {"network": {"name": name, **options}}


CASES = {
    **{f"mlp, {a}": {"depth": 5, "activation": a} for a in BUILT_IN},
    **{
        f"mlp, {skip}, {norm}": {"depth": 5, "skip": skip, "norm": norm, "activation": "tanh"}
        for skip in SKIPS
        for norm in NORMALIZATIONS
    },
    **{f"cnn, {s}": CNN | {"skip": s, "activation": "gelu"} for s in SKIPS},
    **{f"cnn, {n}": CNN | {"norm": n} for n in NORMALIZATIONS},
    **{f"resnet, {n}": RESNET | {"norm": n} for n in NORMALIZATIONS},
    **{f"transformer, {s}": TOKENS | {"skip": s} for s in SKIPS},
    **{
        f"transformer, {p}, {n}": TOKENS | {"norm": n} | network("transformer", placement=p)
        for p in ("pre", "post")
        for n in NORMALIZATIONS
    },
    **{
        f"{name}, {norm}": {"network": name, "depth": 3, "norm": norm}
        for name in ("rnn", "lstm", "gru")
        for norm in NORMALIZATIONS
    },
    **{
        f"{name}, truncated": network(name, truncation=3, steps=8) | {"depth": 3}
        for name in ("rnn", "lstm", "gru")
    },
    "rnn, relu": {"network": "rnn", "depth": 3, "activation": "relu"},
    "rnn, identity": network("rnn", truncation=5) | {"depth": 3, "activation": "identity"},
    "rnn, orthogonal": network("rnn", recurrent="orthogonal", radius=0.9),
    "rnn, diagonal": network("rnn", recurrent="identity", radius=0.9),
    "gru, orthogonal": network("gru", recurrent="orthogonal", radius=1.1),
    "lstm, forget bias": network("lstm", forget_bias=1.5, recurrent="lecun", steps=16),
    "two maps": {"depth": 4, "skip": "identity", "norm": "rms"} | network("mlp", branch_maps=2),
    "one map": RESNET | network("resnet", branch_maps=1),
    "inverse depth": {"depth": 5, "skip": "scaled"} | network("mlp", branch_scale="inverse_depth"),
    "circular": CNN | network("cnn", padding="circular", kernel_size=5),
    "circular resnet": RESNET | network("resnet", padding="circular"),
    "channels": CNN | network("cnn", channels=4),
    "gaussian images": CNN | {"data": "gaussian"} | network("cnn", image=5),
    "causal": TOKENS | network("transformer", causal=True, heads=2, steps=16),
    "inverse": TOKENS | network("transformer", logit_scale="inverse", heads=2, expansion=2),
    "tokens, relu": TOKENS | {"activation": "relu", "norm": "batch"},
    "ones": {"depth": 4, "upstream": "ones", "reduction": "sum"},
    "gaussian": {"depth": 4, "upstream": "gaussian", "data": "gaussian"},
    "gaussian, residual": {"depth": 4, "upstream": "gaussian", "skip": "identity"},
    "gaussian, cnn": CNN | {"upstream": "gaussian"},
    "gaussian, transformer": TOKENS | {"upstream": "gaussian"},
    "gaussian, gru": {"network": "gru", "upstream": "gaussian"},
    "squared error": {"depth": 4, "loss": "squared_error"},
    "squared error, sum": {"depth": 4, "loss": "squared_error", "reduction": "sum"},
    "cross-entropy, sum": {"depth": 4, "reduction": "sum"},
    "one layer": {"depth": 1},
    **{
        f"cnn, {init}": CNN | {"init": init}
        for init in ("delta_orthogonal", "orthogonal", "identity", "xavier")
    },
    **{
        f"mlp, {init}": {"depth": 4, "init": init}
        for init in ("orthogonal", "identity", "he_uniform", "literal")
    },
    "biases": {"depth": 4, "init": {"name": "normal", "sigma_w": 1.5, "sigma_b": 0.3}},
}
# Large enough inputs of batch norm's eps to show in what is compared.


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("case", CASES)
def test_a_table_is_that_of_torch(case, dtype):
    settings = flowlab.make(**SMALL | CASES[case], dtype=dtype)
    worst, count = compared(settings)
    print(f"WORST {dtype} {case}: {worst:.1e} of {count}")
    assert count >= 5 * settings.depth - 1
    assert worst < TOLERANCES[dtype]
