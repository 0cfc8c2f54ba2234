"""Each layer's forward and backward against PyTorch and JAX: the same work, the same threads.

An ensemble of networks in float32 passes one layer forward and the cotangents of its input and
parameters back. flowlab's threads take equal parts of the ensemble, one BLAS thread each. PyTorch
runs eagerly in every way a skilled user might, on all networks at once or one after another, with
threads inside its operations or with a part of the ensemble for each; JAX compiles all networks by
``vmap`` or one after another. The fastest form of each peer counts.

A timed call makes many passes, and threads that work on parts of the ensemble, flowlab's or
PyTorch's, make all of theirs without waiting for one another: a measurement, too, gives each thread
its part once and not layer by layer, and waking a thread takes longer than a small layer. The
results of a pass are dropped before the next, so that every library finds its memory warm.
"""

import importlib.util
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain, pairwise, repeat

import numpy as np
import pandas as pd
import scipy.linalg.cython_blas  # noqa: F401  loaded early, so that its threads can be limited
from threadpoolctl import ThreadpoolController

from experiments.benchmarks.timing import race
from flowlab.errors import unknown
from flowlab.layer import Layer, Workspace, leaves, map_leaves
from flowlab.layers import (
    GRU,
    LSTM,
    Activation,
    AvgPool2d,
    BatchNorm,
    Conv1d,
    Conv2d,
    GlobalAveragePool,
    GroupNorm,
    LayerNorm,
    Linear,
    MaxPool2d,
    MultiHeadAttention,
    PositionalEncoding,
    Recurrent,
    RMSNorm,
    ScaledDotProductAttention,
    TokenEmbedding,
)

OURS = "flowlab"
HEADS, GROUPS, VOCABULARY = 4, 8, 1000
EPS = 1e-5
_LONG_ENOUGH = 0.01  # seconds that a timed call takes at least


@dataclass(frozen=True)
class Case:
    """A layer to be timed and its inputs' shapes for one network.

    ``layer`` makes it for a shape. The names of what a peer does are those of methods of
    :class:`Torch`, on all networks (``batched``) or on one (``single``), and of :class:`Jax`.
    """

    layer: Callable[..., Layer]
    shapes: tuple[tuple[int, ...], ...]
    batched: str | None
    single: str | None
    jax: str


_ROWS, _TOKENS = ((128, 128), (128, 1024)), ((16, 32, 128), (8, 128, 256))
_IMAGES, _SIGNALS = ((32, 16, 32, 32), (16, 64, 16, 16)), ((32, 16, 256), (32, 64, 128))
_SEQUENCES = ((32, 32, 64), (64, 64, 128))


def _activation(name: str) -> Case:
    return Case(lambda shape: Activation(name), _ROWS, name, None, name)


CASES = {
    "linear": Case(lambda s: Linear(s[-1]), _ROWS, "linear", "linear_of_one", "linear"),
    "linear on tokens": Case(lambda s: Linear(s[-1]), _TOKENS, "linear", "linear_of_one", "linear"),
    **{name: _activation(name) for name in ("relu", "tanh", "sigmoid", "gelu", "silu")},
    "conv1d": Case(lambda s: Conv1d(s[1], 3, padding=1), _SIGNALS, "convs", "conv", "conv"),
    "conv2d": Case(lambda s: Conv2d(s[1], 3, padding=1), _IMAGES, "convs", "conv", "conv"),
    "max pool": Case(lambda s: MaxPool2d(2), _IMAGES, "max_pool", None, "max_pool"),
    "average pool": Case(lambda s: AvgPool2d(2), _IMAGES, "average_pool", None, "average_pool"),
    "global pool": Case(lambda s: GlobalAveragePool(), _IMAGES, "global_pool", None, "global_pool"),
    "batch norm": Case(lambda s: BatchNorm(eps=EPS), _IMAGES, None, "batch_norm", "batch_norm"),
    "layer norm": Case(
        lambda s: LayerNorm(eps=EPS), _TOKENS, "layer_norms", "layer_norm", "layer_norm"
    ),
    "rms norm": Case(lambda s: RMSNorm(eps=EPS), _TOKENS, "rms_norms", "rms_norm", "rms_norm"),
    "group norm": Case(lambda s: GroupNorm(GROUPS, EPS), _IMAGES, None, "group_norm", "group_norm"),
    "attention core": Case(
        lambda s: ScaledDotProductAttention(HEADS),
        ((8, 3, 64, 128), (4, 3, 256, 128)),
        *("attention", None, "attention"),
    ),
    "multi-head attention": Case(
        lambda s: MultiHeadAttention(s[-1], HEADS),
        ((8, 64, 128), (4, 256, 128)),
        *("multi_head", "multi_head_of_one", "multi_head"),
    ),
    "embedding": Case(
        lambda s: TokenEmbedding(VOCABULARY, 128),
        ((32, 64), (32, 256)),
        *("embeddings", "embedding", "embedding"),
    ),
    "positional": Case(
        lambda s: PositionalEncoding(s[1]), _TOKENS, "positional", None, "positional"
    ),
    "recurrent tanh": Case(
        lambda s: Recurrent(s[-1]), _SEQUENCES, "tanh_steps", "tanh_layer", "tanh_steps"
    ),
    "lstm": Case(lambda s: LSTM(s[-1]), _SEQUENCES, "lstm_steps", "lstm_layer", "lstm_steps"),
    "gru": Case(lambda s: GRU(s[-1]), _SEQUENCES, "gru_steps", "gru_layer", "gru_steps"),
}


def layers(only=tuple(CASES), seeds: int = 4, rounds: int = 5, threads: int = 2) -> pd.DataFrame:
    """A row per layer, input shape of one network, and peer that is installed.

    ``seconds`` is flowlab's median for a pass of the ensemble, ``ratio`` the median over rounds of
    the peer's time to flowlab's, ``low`` and ``high`` its extremes, ``peer`` the peer's fastest
    form. ``only`` names the layers. Raises InputError for a name that is not in CASES.
    """
    for name in only:
        if name not in CASES:
            raise unknown("only", name, CASES)
    rows = []
    blas = ThreadpoolController().select(user_api="blas")
    with blas.limit(limits=1), ThreadPoolExecutor(threads) as pool:
        for name in only:
            for shape in CASES[name].shapes:
                print(f" {name} {shape}", file=sys.stderr)
                rows += _rows(CASES[name], shape, seeds, rounds, threads, pool, layer=name)
    columns = ["layer", "size", "seconds", "peer", "ratio", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def _rows(case: Case, shape, seeds, rounds, threads, pool, **named) -> list[dict]:
    forms = forms_of(case, shape, seeds, threads, pool)
    repeats = _enough(forms[OURS])
    forms = {name: partial(form, repeats) for name, form in forms.items()}
    heats = race(forms, 3, OURS).set_index("form")
    peers = [heats[heats.index.str.startswith(peer)]["ratio"] for peer in ("torch", "jax")]
    fastest = [list(ratios.nsmallest(2).index) for ratios in peers if len(ratios)]
    final = {name: forms[name] for name in (OURS, *chain(*fastest))}
    found = race(final, rounds, OURS).set_index("form")
    named |= {"size": "x".join(map(str, shape)), "seconds": found.loc[OURS, "median_s"] / repeats}
    columns = {"ratio": "ratio", "ratio_low": "low", "ratio_high": "high"}
    ratios = found[[*columns]].rename(columns=columns)
    best = [ratios.loc[forms, "ratio"].idxmin() for forms in fastest]
    return [{**named, "peer": peer, **ratios.loc[peer]} for peer in best]


def _enough(form: Callable[[int], object]) -> int:
    """How many passes, a power of two, take long enough."""
    form(1)
    repeats, seconds = 1, 0.0
    while seconds < _LONG_ENOUGH:
        repeats *= 2
        begun = time.perf_counter()
        form(repeats)
        seconds = time.perf_counter() - begun
    return repeats


def report(table: pd.DataFrame) -> str:
    """Where flowlab is behind, in one sentence."""
    behind = table[table["ratio"] < 1].sort_values("ratio")
    if not len(behind):
        return "flowlab is behind nowhere."
    told = [f"{r.layer} {r.size} ({r.ratio:.2f} of {r.peer})" for r in behind.itertuples()]
    return f"flowlab is behind in {len(told)} of {len(table)} rows: {', '.join(told)}."


def forms_of(case: Case, shape, seeds: int, threads: int, pool) -> dict[str, Callable]:
    """Every way to do the work, as a function of the number of passes.

    A form works on all ``seeds`` networks, and gives a list over networks or parts of them: y, dx
    and the parameters' cotangents, as it has them, of the last pass.
    """
    layer, draw = case.layer(shape), np.random.default_rng(0)
    declared = layer.declare(shape)

    def normal(shape, scale=1.0):
        return (scale * draw.standard_normal((seeds, *shape))).astype(np.float32)

    if case.batched == "embeddings":
        x = draw.integers(0, VOCABULARY, (seeds, *shape)).astype(np.float32)
    else:
        x = normal(shape)
    p = map_leaves(lambda a: normal(a.shape, a.fan_in**-0.5), declared.parameters)
    dy = normal(declared.output)
    forms = {OURS: _flowlab(layer, x, p, dy, threads, pool)}
    if importlib.util.find_spec("torch"):
        forms |= _torch(case, x, dict(leaves(p)), dy, threads, pool)
    if importlib.util.find_spec("jax"):
        forms |= _jax(case, x, p, dy, threads)
    return forms


def _parts(seeds: int, threads: int) -> list[slice]:
    bounds = np.linspace(0, seeds, min(seeds, threads) + 1).astype(int)
    return [slice(a, b) for a, b in pairwise(bounds)]


def _passes(once, inputs, repeats):
    for _ in range(repeats - 1):
        once(inputs)
    return once(inputs)


def _flowlab(layer, x, p, dy, threads, pool):
    parts = [
        (x[part], map_leaves(lambda a, part=part: a[part], p), dy[part], Workspace())
        for part in _parts(len(x), threads)
    ]

    def run(part):
        x, p, dy, workspace = part
        y, tape = layer.forward(x, p, workspace)
        dx, gradients = layer.pullback(dy, tape, workspace)
        workspace.reset()
        return y, dx, [a for _, a in leaves(gradients)]

    return lambda repeats: list(pool.map(partial(_passes, run), parts, repeat(repeats)))


# --- PyTorch --------------------------------------------------------------------------------------


def _torch(case, x, p, dy, threads, pool) -> dict[str, Callable]:
    import torch

    does = Torch(torch)
    tokens = case.batched == "embeddings"

    def inputs(part):
        own = {name: torch.tensor(a[part]).requires_grad_() for name, a in p.items()}
        if tokens:
            return torch.tensor(x[part]).long(), own, torch.tensor(dy[part])
        return torch.tensor(x[part]).requires_grad_(), own, torch.tensor(dy[part])

    def work(function, intra_op):
        def run(inputs):
            torch.set_num_threads(intra_op)
            x, p, dy = inputs
            y = function(x, p)
            moving = [*([] if tokens else [x]), *p.values()]
            gradients = torch.autograd.grad(y, moving, dy)
            return y, *((None, gradients) if tokens else (gradients[0], gradients[1:]))

        return run

    def one_after_another(function, intra_op):
        return lambda several: [work(function, intra_op)(one) for one in several]

    everything = slice(None)
    halves = _parts(len(x), threads)
    forms = {}
    if case.batched:
        function = getattr(does, case.batched)
        whole, split = inputs(everything), [inputs(part) for part in halves]
        run, by_thread = work(function, threads), work(function, 1)
        forms["torch batched"] = lambda repeats: [_passes(run, whole, repeats)]
        forms["torch batched, threads over nets"] = lambda repeats: list(
            pool.map(partial(_passes, by_thread), split, repeat(repeats))
        )
    if case.single:
        function = getattr(does, case.single)
        nets = [inputs(s) for s in range(len(x))]
        parts = [nets[part] for part in halves]
        each, each_by_thread = (one_after_another(function, n) for n in (threads, 1))
        forms["torch net by net"] = partial(_passes, each, nets)
        forms["torch net by net, threads over nets"] = lambda repeats: list(
            chain.from_iterable(pool.map(partial(_passes, each_by_thread), parts, repeat(repeats)))
        )
    return forms


class Torch:
    """The layers in PyTorch; x and parameters p have a leading axis of networks in plural forms."""

    def __init__(self, torch):
        self.torch, self.F = torch, torch.nn.functional

    def __getattr__(self, name):  # activations, by PyTorch's own names
        return lambda x, p: getattr(self.F, name)(x)

    def linear(self, x, p):
        y = self.torch.baddbmm(p["b"][:, None], x.flatten(1, -2), p["W"])
        return y.view(x.shape)

    def linear_of_one(self, x, p):
        return self.F.linear(x, p["W"].mT, p["b"])

    def conv(self, x, p):
        convolution = self.F.conv1d if x.dim() == 3 else self.F.conv2d
        return convolution(x, p["W"], p["b"], padding=1)

    def convs(self, x, p):
        """The networks as groups of channels."""
        S, _, c = x.shape[:3]
        convolution = self.F.conv1d if x.dim() == 4 else self.F.conv2d
        x = x.transpose(0, 1).flatten(1, 2)
        y = convolution(x, p["W"].flatten(0, 1), p["b"].flatten(), padding=1, groups=S)
        return y.unflatten(1, (S, c)).transpose(0, 1)

    def max_pool(self, x, p):
        return self.F.max_pool2d(x.flatten(0, 1), 2).unflatten(0, x.shape[:2])

    def average_pool(self, x, p):
        return self.F.avg_pool2d(x.flatten(0, 1), 2).unflatten(0, x.shape[:2])

    def global_pool(self, x, p):
        return x.mean((-2, -1))

    def batch_norm(self, x, p):
        return self.F.batch_norm(x, None, None, p["gain"], p["bias"], training=True, eps=EPS)

    def layer_norm(self, x, p):
        return self.F.layer_norm(x, x.shape[-1:], p["gain"], p["bias"], EPS)

    def layer_norms(self, x, p):
        gain, bias = p["gain"][:, None, None], p["bias"][:, None, None]
        return self.torch.addcmul(bias, self.F.layer_norm(x, x.shape[-1:], eps=EPS), gain)

    def rms_norm(self, x, p):
        return self.F.rms_norm(x, x.shape[-1:], p["gain"], EPS)

    def rms_norms(self, x, p):
        return self.F.rms_norm(x, x.shape[-1:], eps=EPS) * p["gain"][:, None, None]

    def group_norm(self, x, p):
        return self.F.group_norm(x, GROUPS, p["gain"], p["bias"], EPS)

    def _attend(self, q, k, v):
        """Of q, k and v (n, T, d)."""
        q, k, v = (a.unflatten(-1, (HEADS, -1)).transpose(1, 2) for a in (q, k, v))
        return self.F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)

    def attention(self, x, p):
        return self._attend(*x.flatten(0, 1).unbind(1)).unflatten(0, x.shape[:2])

    def multi_head(self, x, p):
        def mapped(x, place):
            b, W = p[f"{place}.b"][:, None], p[f"{place}.W"]
            return self.torch.baddbmm(b, x.flatten(1, 2), W).view(x.shape)

        q, k, v = (mapped(x, f"0.{k}").flatten(0, 1) for k in range(3))
        return mapped(self._attend(q, k, v).view(x.shape), "2")

    def multi_head_of_one(self, x, p):
        maps = [(p[f"{place}.W"].mT, p[f"{place}.b"]) for place in ("0.0", "0.1", "0.2", "2")]
        q, k, v = (self.F.linear(x, W, b) for W, b in maps[:3])
        return self.F.linear(self._attend(q, k, v), *maps[3])

    def embedding(self, x, p):
        return self.F.embedding(x, p["W"])

    def embeddings(self, x, p):
        """The networks' tables as one."""
        first = VOCABULARY * self.torch.arange(len(x))[:, None, None]
        return self.F.embedding(x + first, p["W"].flatten(0, 1))

    def positional(self, x, p):
        return x + p["P"][:, None]

    def _layer(self, run, x, p, states):
        weights = [p["W_ih"].mT, p["W_hh"].mT, p["b_ih"], p["b_hh"]]
        start = [x.new_zeros(1, len(x), x.shape[2]) for _ in range(states)]
        start = start if states > 1 else start[0]
        # Biases, one layer, no dropout, training, one direction, the batch first.
        return run(x, start, weights, True, 1, 0.0, True, False, True)[0]

    def tanh_layer(self, x, p):
        return self._layer(self.torch.rnn_tanh, x, p, 1)

    def lstm_layer(self, x, p):
        return self._layer(self.torch.lstm, x, p, 2)

    def gru_layer(self, x, p):
        return self._layer(self.torch.gru, x, p, 1)

    def _of_inputs(self, x, p):
        """x W_ih + b_ih of all steps, (T, S, n, gates h)."""
        b, W = p["b_ih"][:, None], p["W_ih"]
        z = self.torch.baddbmm(b, x.flatten(1, 2), W).view(*x.shape[:3], -1)
        return z.permute(2, 0, 1, 3).unbind(0)

    def tanh_steps(self, x, p):
        b, h, states = p["b_hh"][:, None], x.new_zeros(x[:, :, 0].shape), []
        for z in self._of_inputs(x, p):
            h = self.torch.tanh(z + self.torch.baddbmm(b, h, p["W_hh"]))
            states.append(h)
        return self.torch.stack(states, 2)

    def lstm_steps(self, x, p):
        torch, b = self.torch, p["b_hh"][:, None]
        h = c = x.new_zeros(x[:, :, 0].shape)
        states = []
        for z in self._of_inputs(x, p):
            i, f, g, o = (z + torch.baddbmm(b, h, p["W_hh"])).chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            states.append(h)
        return torch.stack(states, 2)

    def gru_steps(self, x, p):
        torch, b = self.torch, p["b_hh"][:, None]
        h, states = x.new_zeros(x[:, :, 0].shape), []
        for z in self._of_inputs(x, p):
            (zr, zu, zn) = z.chunk(3, -1)
            mr, mu, mn = torch.baddbmm(b, h, p["W_hh"]).chunk(3, -1)
            n = torch.tanh(zn + torch.sigmoid(zr + mr) * mn)
            h = torch.lerp(n, h, torch.sigmoid(zu + mu))
            states.append(h)
        return torch.stack(states, 2)


# --- JAX ------------------------------------------------------------------------------------------


def _jax(case, x, p, dy, threads) -> dict[str, Callable]:
    os.environ.setdefault("NPROC", str(threads))  # of its pool, if it has not started
    import jax
    import jax.numpy as jnp

    function = getattr(Jax(jax), case.jax)

    def one(x, p, dy):
        y, pull = jax.vjp(function, x, p)
        return y, *pull(dy)

    x, p, dy = jax.tree.map(jnp.asarray, (x, p, dy))
    nets = [jax.tree.map(lambda a, s=s: a[s], (x, p, dy)) for s in range(len(x))]
    batched, single = jax.jit(jax.vmap(one)), jax.jit(one)

    def all_at_once(whole):
        return [jax.block_until_ready(batched(*whole))]

    def one_after_another(nets):
        return jax.block_until_ready([single(*net) for net in nets])

    return {
        "jax vmap": partial(_passes, all_at_once, (x, p, dy)),
        "jax net by net": partial(_passes, one_after_another, nets),
    }


class Jax:
    """The layers in JAX, for one network."""

    def __init__(self, jax):
        self.jax, self.np = jax, jax.numpy

    def __getattr__(self, name):
        if name == "tanh":
            return lambda x, p: self.np.tanh(x)
        options = {"approximate": False} if name == "gelu" else {}
        return lambda x, p: getattr(self.jax.nn, name)(x, **options)

    def linear(self, x, p):
        return x @ p["W"] + p["b"]

    def conv(self, x, p):
        axes = x.ndim - 2
        y = self.jax.lax.conv_general_dilated(x, p["W"], [1] * axes, [(1, 1)] * axes)
        return y + p["b"].reshape(-1, *[1] * axes)

    def max_pool(self, x, p):
        window = (1, 1, 2, 2)
        return self.jax.lax.reduce_window(x, -np.inf, self.jax.lax.max, window, window, "VALID")

    def average_pool(self, x, p):
        n, c, h, w = x.shape
        return x.reshape(n, c, h // 2, 2, w // 2, 2).mean((3, 5))

    def global_pool(self, x, p):
        return x.mean((-2, -1))

    def _standardized(self, x, axes):
        centred = x - x.mean(axes, keepdims=True)
        return centred * self.jax.lax.rsqrt((centred**2).mean(axes, keepdims=True) + EPS)

    def batch_norm(self, x, p):
        gain, bias = (p[name][:, None, None] for name in ("gain", "bias"))
        return gain * self._standardized(x, (0, 2, 3)) + bias

    def layer_norm(self, x, p):
        return p["gain"] * self._standardized(x, -1) + p["bias"]

    def rms_norm(self, x, p):
        return p["gain"] * x * self.jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + EPS)

    def group_norm(self, x, p):
        gain, bias = (p[name][:, None, None] for name in ("gain", "bias"))
        grouped = self._standardized(x.reshape(len(x), GROUPS, -1), -1)
        return gain * grouped.reshape(x.shape) + bias

    def _attend(self, q, k, v):
        q, k, v = (a.reshape(*a.shape[:2], HEADS, -1) for a in (q, k, v))
        y = self.jax.nn.dot_product_attention(q, k, v)
        return y.reshape(*y.shape[:2], -1)

    def attention(self, x, p):
        return self._attend(x[:, 0], x[:, 1], x[:, 2])

    def multi_head(self, x, p):
        maps, _, last = p
        return self.linear(self._attend(*(self.linear(x, own) for own in maps)), last)

    def embedding(self, x, p):
        return p["W"][x.astype(int)]

    def positional(self, x, p):
        return x + p["P"]

    def _scan(self, step, x, p, states):
        """The states of ``step`` from zero, each from (x_t W_ih + b_ih, h W_hh + b_hh, memory)."""
        z = (x @ p["W_ih"] + p["b_ih"]).swapaxes(0, 1)
        start = (self.np.zeros_like(x[:, 0]),) * states

        def one(state, z):
            state = step(z, state[0] @ p["W_hh"] + p["b_hh"], state)
            return state, state[0]

        return self.jax.lax.scan(one, start, z)[1].swapaxes(0, 1)

    def tanh_steps(self, x, p):
        return self._scan(lambda z, m, _: (self.np.tanh(z + m),), x, p, 1)

    def lstm_steps(self, x, p):
        sigmoid, tanh = self.jax.nn.sigmoid, self.np.tanh

        def step(z, m, state):
            i, f, g, o = self.np.split(z + m, 4, -1)
            c = sigmoid(f) * state[1] + sigmoid(i) * tanh(g)
            return sigmoid(o) * tanh(c), c

        return self._scan(step, x, p, 2)

    def gru_steps(self, x, p):
        sigmoid = self.jax.nn.sigmoid

        def step(z, m, state):
            (zr, zu, zn), (mr, mu, mn) = self.np.split(z, 3, -1), self.np.split(m, 3, -1)
            n, u = self.np.tanh(zn + sigmoid(zr + mr) * mn), sigmoid(zu + mu)
            return (n + u * (state[0] - n),)

        return self._scan(step, x, p, 1)
