"""Every layer that networks use, written naturally in JAX: one network, no ensemble, no exponents.

A layer's parameters are nested as flowlab declares them.
"""

import jax
import jax.numpy as jnp
import numpy as np

from flowlab.layer import Chain
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
    PositionalEncoding,
    Recurrent,
    Residual,
    RMSNorm,
    Scale,
    ScaledDotProductAttention,
    SoftmaxCrossEntropy,
    SquaredError,
    TokenMean,
)

jax.config.update("jax_enable_x64", True)

ACTIVATIONS = {
    "identity": lambda z: z,
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "erf": jax.scipy.special.erf,
    "gelu": lambda z: jax.nn.gelu(z, approximate=False),
    "silu": jax.nn.silu,
    "selu": jax.nn.selu,
    "elu": jax.nn.elu,
    "softplus": jax.nn.softplus,
}


def untapped(layer, place, a):
    return a


def in_jax(layer, x, p, tap=untapped):
    """A layer of flowlab, by its type, as a function of one network in JAX.

    ``tap(layer, place, a)`` is given each primitive's input ``x`` and output ``y``, and of a
    recurrence also zeros to be added to its states, ``h``, and its inputs' part of the
    preactivations, ``z``; the pass goes on with what it returns.
    """
    match layer:
        case Chain():
            for one, own in zip(layer.layers, p, strict=True):
                x = in_jax(one, x, own, tap)
            return x
        case Residual():
            return layer.s * (x + layer.a * in_jax(layer.branch, x, p, tap))
        case Fork():
            branches = zip(layer.branches, p, strict=True)
            return jnp.stack([in_jax(one, x, own, tap) for one, own in branches], axis=1)
    x = tap(layer, "x", x)
    if isinstance(layer, (Recurrent, LSTM, GRU)):
        return tap(layer, "y", recurrence(layer, x, p, tap))
    return tap(layer, "y", primitive(layer, x, p))


def primitive(layer, x, p):
    match layer:
        case Linear():
            return x @ p["W"] + p["b"]
        case Activation():
            return ACTIVATIONS[layer.name](x)
        case Scale():
            return p["alpha"] * x
        case Conv1d() | Conv2d():
            return convolution(layer, x, p)
        case BatchNorm() | LayerNorm() | RMSNorm() | GroupNorm():
            mean, deviation = statistics(layer, x, p)
            bias = p.get("bias", jnp.zeros_like(p["gain"]))
            gain, bias = (along_features(layer, x, a) for a in (p["gain"], bias))
            return gain * (x - mean) / deviation + bias
        case ScaledDotProductAttention():
            A = attention(layer, x, p)
            v = heads(layer, x[:, 2])
            y = jnp.einsum("nhqk,nkhe->nqhe", A, v)
            return y.reshape(x[:, 2].shape)
        case PositionalEncoding(kind="learned"):
            return x + p["P"][: x.shape[1]]
        case PositionalEncoding():
            d = x.shape[2]
            rates = 10000.0 ** (-2 * (np.arange(d) // 2) / d)
            angles = np.arange(x.shape[1])[:, None] * rates
            return x + np.where(np.arange(d) % 2, np.cos(angles), np.sin(angles))
        case MaxPool2d():
            return pooled(layer, x, -jnp.inf, jax.lax.max)
        case AvgPool2d():
            return pooled(layer, x, 0.0, jax.lax.add) / layer.kernel_size**2
        case GlobalAveragePool():
            return x.reshape(*x.shape[:2], -1).mean(2)
        case TokenMean():
            return x.mean(1)
        case Flatten():
            return x.reshape(len(x), -1)
        case LastStep():
            return x[:, -1]
        case SoftmaxCrossEntropy():
            picked = jnp.take_along_axis(jax.nn.log_softmax(x), p["label"][:, None], 1)
            return -(picked.mean() if layer.reduction == "mean" else picked.sum())
        case SquaredError():
            square = (x - p["target"]) ** 2
            return square.mean() if layer.reduction == "mean" else square.sum()
    raise TypeError(f"no {type(layer).__name__} in JAX")


def convolution(layer, x, p):
    axes = x.ndim - 2
    mode = {"zeros": "constant", "circular": "wrap"}[layer.padding_mode]
    x = jnp.pad(x, [(0, 0), (0, 0), *[(layer.padding, layer.padding)] * axes], mode=mode)
    y = jax.lax.conv_general_dilated(
        x,
        p["W"],
        window_strides=[layer.stride] * axes,
        padding="VALID",
        rhs_dilation=[layer.dilation] * axes,
        feature_group_count=layer.groups,
    )
    return y + p["b"].reshape(-1, *[1] * axes)


def pooled(layer, x, start, reduce):
    size, stride = layer.kernel_size, layer.stride
    return jax.lax.reduce_window(
        x, start, reduce, (1, 1, size, size), (1, 1, stride, stride), "VALID"
    )


def along_features(layer, x, a):
    """(features,) as it is multiplied with x."""
    last = isinstance(layer, (LayerNorm, RMSNorm)) or layer.channels_last
    return a if last else a.reshape(-1, *[1] * (x.ndim - 2))


def statistics(layer, x, p):
    """(μ, σ) of a normalization, shaped to be subtracted from and divided into x."""
    match layer:
        case BatchNorm(training=False):
            mean, variance = (along_features(layer, x, p[k]) for k in ("mean", "variance"))
            return mean, jnp.sqrt(variance + layer.eps)
        case BatchNorm():
            features = x.ndim - 1 if layer.channels_last else 1
            axes, grouped = tuple(k for k in range(x.ndim) if k != features), x
        case GroupNorm():
            grouped = x.reshape(len(x), layer.groups, -1)
            axes = 2
        case _:
            axes, grouped = -1, x
    centred = not isinstance(layer, RMSNorm) and getattr(layer, "centred", True)
    mean = grouped.mean(axes, keepdims=True) if centred else jnp.zeros(())
    deviation = jnp.sqrt(((grouped - mean) ** 2).mean(axes, keepdims=True) + layer.eps)
    if isinstance(layer, GroupNorm):  # one for each channel
        shape = (len(x), layer.groups, x.shape[1] // layer.groups)
        mean, deviation = (
            jnp.broadcast_to(a, shape).reshape(*x.shape[:2], *[1] * (x.ndim - 2))
            for a in (mean, deviation)
        )
    return mean, deviation


def heads(layer, x):
    return x.reshape(*x.shape[:2], layer.heads, -1)


def attention(layer, x, p):
    """Probabilities (n, heads, T, T) of the queries and keys in x (n, 3, T, d)."""
    q, k = heads(layer, x[:, 0]), heads(layer, x[:, 1])
    scale = q.shape[-1] ** -0.5 if layer.scale is None else layer.scale
    tokens = x.shape[2]
    sees = jnp.tril(jnp.ones((tokens, tokens), bool), 0 if layer.causal else tokens)
    if layer.masked:
        sees = sees & (p["hidden"] == 0)[:, None, None, :]
    return jax.nn.softmax(jnp.where(sees, scale * jnp.einsum("nqhe,nkhe->nhqk", q, k), -jnp.inf))


def recurrence(layer, x, p, tap=untapped):
    """States (n, T, h), step after step."""
    z = tap(layer, "z", x @ p["W_ih"] + p["b_ih"])
    added = tap(layer, "h", jnp.zeros((*x.shape[:2], layer.features)))
    state = cell = jnp.zeros((len(x), layer.features))
    states = []
    for t in range(x.shape[1]):
        if layer.truncation and t % layer.truncation == 0:
            state, cell = jax.lax.stop_gradient((state, cell))
        u, v = z[:, t], state @ p["W_hh"] + p["b_hh"]
        if isinstance(layer, LSTM):
            i, f, g, o = jnp.split(u + v, 4, axis=1)
            f = jax.nn.sigmoid(f + layer.forget_bias)
            cell = f * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
            state = jax.nn.sigmoid(o) * jnp.tanh(cell)
        elif isinstance(layer, GRU):
            (r, w, n), (vr, vw, vn) = jnp.split(u, 3, axis=1), jnp.split(v, 3, axis=1)
            w, n = jax.nn.sigmoid(w + vw), jnp.tanh(n + jax.nn.sigmoid(r + vr) * vn)
            state = (1 - w) * n + w * state
        else:
            state = ACTIVATIONS[layer.activation](u + v)
        state = state + added[:, t]
        states.append(state)
    return jnp.stack(states, axis=1)
