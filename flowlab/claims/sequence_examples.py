"""Small instances of the layers of sequences, with the same map in JAX and in PyTorch.

They join S2 and S15 as those of ``examples`` do.
"""

from collections.abc import Callable

import numpy as np

from flowlab.claims.examples import example
from flowlab.layer import Shape
from flowlab.layers import (
    GRU,
    LSTM,
    Activation,
    BatchNorm,
    Fork,
    LastStep,
    Linear,
    MultiHeadAttention,
    PositionalEncoding,
    Recurrent,
    ScaledDotProductAttention,
    TokenEmbedding,
    TokenMean,
)
from flowlab.layers.recurrent import Recurrence

_BATCH, _TOKENS, _WIDTH = 3, 5, 6
_SEQUENCE = (_BATCH, _TOKENS, _WIDTH)
# Keys that are padding, of each network's examples: the last tokens of some.
_HIDDEN = (np.arange(_TOKENS) >= np.array([[5, 3, 4], [2, 5, 1]])[..., None]).astype(int)

example(
    "linear on tokens",
    Linear(4),
    _SEQUENCE,
    jax=lambda jax, x, p: x @ p["W"] + p["b"],
    torch=lambda torch, x, p: torch.nn.functional.linear(x, p["W"].T, p["b"]),
)
example(
    "batch_norm (channels last)",
    BatchNorm(channels_last=True),
    _SEQUENCE,
    jax=lambda jax, x, p: p["gain"] * jax.nn.standardize(x, axis=(0, 1), epsilon=1e-5) + p["bias"],
    torch=lambda torch, x, p: (
        torch.nn.functional.batch_norm(x.mT, None, None, p["gain"], p["bias"], training=True).mT
    ),
)
example(
    "fork",
    Fork([Linear(_WIDTH), Activation("tanh")]),
    _SEQUENCE,
    jax=lambda jax, x, p: jax.numpy.stack([x @ p["0.W"] + p["0.b"], jax.numpy.tanh(x)], 1),
    torch=lambda torch, x, p: torch.stack(
        [torch.nn.functional.linear(x, p["0.W"].T, p["0.b"]), torch.tanh(x)], 1
    ),
)
example(
    "last_step",
    LastStep(),
    _SEQUENCE,
    jax=lambda jax, x, p: x[:, -1],
    torch=lambda torch, x, p: x.select(1, -1),
)
example(
    "token_mean",
    TokenMean(),
    _SEQUENCE,
    jax=lambda jax, x, p: x.mean(1),
    torch=lambda torch, x, p: torch.mean(x, 1),
)
example(
    "token_embedding",
    TokenEmbedding(3, 2),
    (2, 4),
    # Whole numbers that differences do not move to another token.
    inputs=np.array([[[0, 1, 1, 0], [1, 0, 0, 0]], [[0, 0, 0, 1], [1, 1, 0, 1]]], float),
    jax=lambda jax, x, p: jax.numpy.take(p["W"], x.astype(int), axis=0),
    torch=lambda torch, x, p: torch.nn.functional.embedding(x.long(), p["W"]),
)
example(
    "positional_encoding",
    PositionalEncoding(_TOKENS + 1),
    _SEQUENCE,
    jax=lambda jax, x, p: x + jax.lax.slice_in_dim(p["P"], 0, _TOKENS),
    torch=lambda torch, x, p: x + p["P"].narrow(0, 0, _TOKENS),
)


def _sinusoids(xp):
    """Vaswani et al. 2017, section 3.5, of ``_WIDTH`` features."""
    places = xp.arange(_TOKENS)[:, None]
    angles = places * 10000.0 ** (-2 * xp.arange(_WIDTH // 2) / _WIDTH)
    return xp.stack([xp.sin(angles), xp.cos(angles)], -1).reshape(_TOKENS, _WIDTH)


example(
    "positional_encoding (sinusoidal)",
    PositionalEncoding(_TOKENS, "sinusoidal"),
    _SEQUENCE,
    jax=lambda jax, x, p: x + _sinusoids(jax.numpy),
    torch=lambda torch, x, p: x + torch.from_numpy(_sinusoids(np)),
)


def _seen(xp, p, path: str, masked: bool, causal: bool):
    """Which keys a query sees, (batch, 1, queries, keys)."""
    everything = xp.ones((_BATCH, 1, _TOKENS, _TOKENS), dtype=bool)
    seen = xp.tril(everything) if causal else everything
    return seen & (p[path] == 0)[:, None, None, :] if masked else seen


def _attend(jax, maps, heads, seen):
    """``jax.nn.dot_product_attention`` in float64, where that has float32 logits."""
    q, k, v = (a.reshape(_BATCH, _TOKENS, heads, -1) for a in maps)
    logits = jax.numpy.einsum("nqhe,nkhe->nhqk", q, k) / (_WIDTH // heads) ** 0.5
    weights = jax.nn.softmax(logits, where=seen)
    return jax.numpy.einsum("nhqk,nkhe->nqhe", weights, v).reshape(_SEQUENCE)


def _attention(name: str, heads: int, **options) -> None:
    masked, causal = (options.get(key, False) for key in ("masked", "causal"))

    def in_jax(jax, x, p):
        seen = _seen(jax.numpy, p, "hidden", masked, causal)
        return _attend(jax, [x[:, i] for i in range(3)], heads, seen)

    def in_torch(torch, x, p):
        attend = torch.nn.functional.scaled_dot_product_attention
        q, k, v = (x[:, i].reshape(_BATCH, _TOKENS, heads, -1).transpose(1, 2) for i in range(3))
        seen = _seen(torch, p, "hidden", masked, causal)
        return attend(q, k, v, attn_mask=seen).transpose(1, 2).reshape(_SEQUENCE)

    layer, shape = ScaledDotProductAttention(heads, **options), (_BATCH, 3, _TOKENS, _WIDTH)
    data = {"hidden": _HIDDEN} if masked else None
    example(name, layer, shape, jax=in_jax, torch=in_torch, data=data)


def _multi_head(name: str, heads: int, **options) -> None:
    masked, causal = (options.get(key, False) for key in ("masked", "causal"))

    def in_jax(jax, x, p):
        maps = [x @ p[f"0.{i}.W"] + p[f"0.{i}.b"] for i in range(3)]
        seen = _seen(jax.numpy, p, "1.hidden", masked, causal)
        return _attend(jax, maps, heads, seen) @ p["2.W"] + p["2.b"]

    def in_torch(torch, x, p):
        seen = _seen(torch, p, "1.hidden", masked, causal).repeat_interleave(heads, 0)
        y, _ = torch.nn.functional.multi_head_attention_forward(
            *[x.transpose(0, 1)] * 3,
            *(_WIDTH, heads),
            torch.cat([p[f"0.{i}.W"].T for i in range(3)]),
            torch.cat([p[f"0.{i}.b"] for i in range(3)]),
            *(None, None, False, 0.0),
            *(p["2.W"].T, p["2.b"]),
            attn_mask=~seen.reshape(_BATCH * heads, _TOKENS, _TOKENS),
        )
        return y.transpose(0, 1)

    layer = MultiHeadAttention(_WIDTH, heads, **options)
    data = {"1.hidden": _HIDDEN} if masked else None
    example(name, layer, _SEQUENCE, jax=in_jax, torch=in_torch, data=data)


_attention("attention", 2)
_attention("attention (causal, masked)", 3, causal=True, masked=True)
_multi_head("multi_head_attention", 2)
_multi_head("multi_head_attention (causal, masked)", 3, causal=True, masked=True)


def _recurrence(name: str, layer: Recurrence, shape: Shape, step: Callable) -> None:
    """``step(jax, u, v, h, c)`` is (h, c) after a step, u and v the products with x and h."""
    names = ("W_ih", "W_hh", "b_ih", "b_hh")

    def in_jax(jax, x, p):
        def one(carry, x):
            u, v = x @ p["W_ih"] + p["b_ih"], carry[0] @ p["W_hh"] + p["b_hh"]
            carry = step(jax, u, v, *carry)
            return carry, carry[0]

        zero = jax.numpy.zeros((shape[0], layer.features))
        return jax.lax.scan(one, (zero, zero), x.swapaxes(0, 1))[1].swapaxes(0, 1)

    def in_torch(torch, x, p):
        kind = {"recurrent": "RNN", "lstm": "LSTM", "gru": "GRU"}[layer.name]
        options = {"nonlinearity": layer.activation} if kind == "RNN" else {}
        module = getattr(torch.nn, kind)(shape[2], layer.features, batch_first=True, **options)
        theirs = [f"{kind}_{rest}_l0" for kind, rest in _TORCH]
        values = {t: p[ours].t() for t, ours in zip(theirs, names, strict=True)}
        if bias := getattr(layer, "forget_bias", 0.0):  # PyTorch's own starts at 0
            at = torch.arange(4 * layer.features) // layer.features == 1
            values["bias_ih_l0"] = values["bias_ih_l0"] + bias * at
        return torch.func.functional_call(module.double(), values, (x,))[0]

    example(name, layer, shape, jax=in_jax, torch=in_torch)


_TORCH = (("weight", "ih"), ("weight", "hh"), ("bias", "ih"), ("bias", "hh"))


def _lstm(jax, u, v, h, c):
    i, f, g, o = jax.numpy.split(u + v, 4, axis=1)
    c = jax.nn.sigmoid(f + 1.0) * c + jax.nn.sigmoid(i) * jax.numpy.tanh(g)
    return jax.nn.sigmoid(o) * jax.numpy.tanh(c), c


def _gru(jax, u, v, h, c):
    (r, z, n), (vr, vz, vn) = jax.numpy.split(u, 3, axis=1), jax.numpy.split(v, 3, axis=1)
    z, n = jax.nn.sigmoid(z + vz), jax.numpy.tanh(n + jax.nn.sigmoid(r + vr) * vn)
    return (1 - z) * n + z * h, c


_STEPS = (_BATCH, 4, 2)
_recurrence("rnn", Recurrent(3), _STEPS, lambda jax, u, v, h, c: (jax.numpy.tanh(u + v), c))
_recurrence(
    "rnn (relu)", Recurrent(3, "relu"), _STEPS, lambda jax, u, v, h, c: (jax.nn.relu(u + v), c)
)
_recurrence("lstm", LSTM(3, forget_bias=1.0), _STEPS, _lstm)
_recurrence("gru", GRU(3), _STEPS, _gru)
