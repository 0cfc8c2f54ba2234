"""Twins of attention and of multi-head attention."""

import numpy as np

from flowlab.claims.twins.linear import mapped
from flowlab.claims.twins.twin import Instance, Timed, twin
from flowlab.layers.attention import MultiHeadAttention, ScaledDotProductAttention

_BATCH, _TOKENS, _WIDTH = 3, 5, 6
# Keys that are padding, of each network's examples: the last tokens of some.
HIDDEN = (np.arange(_TOKENS) >= np.array([[5, 3, 4], [2, 5, 1]])[..., None]).astype(int)
_BOTH = {"causal": True, "masked": True}
_HEADS = 4  # of what is timed


def _seen(np, layer, tokens, p):
    """Which keys a query sees, (batch, 1, queries, keys), or None where it is all of them."""
    seen = np.tril(np.ones((tokens, tokens), dtype=bool)) if layer.causal else None
    if layer.masked:
        open_ = (p["hidden"] == 0)[:, None, None, :]
        seen = open_ if seen is None else seen & open_
    return seen


def _split(layer, a):
    return a.reshape(*a.shape[:2], layer.heads, -1)


def probabilities(jax, layer, q, k, p):
    """Of queries and keys (n, T, d): (n, heads, T, T)."""
    q, k = _split(layer, q), _split(layer, k)
    logits = jax.numpy.einsum("nqhe,nkhe->nhqk", q, k)
    logits *= q.shape[-1] ** -0.5 if layer.scale is None else layer.scale
    seen = _seen(jax.numpy, layer, q.shape[1], p)
    return jax.nn.softmax(logits if seen is None else jax.numpy.where(seen, logits, -jax.numpy.inf))


def _attend_in_jax(jax, layer, q, k, v, p):
    weights = probabilities(jax, layer, q, k, p)
    return jax.numpy.einsum("nhqk,nkhe->nqhe", weights, _split(layer, v)).reshape(v.shape)


def _attend_in_torch(torch, layer, q, k, v, p):
    q, k, v = (_split(layer, a).transpose(1, 2) for a in (q, k, v))
    attend = torch.nn.functional.scaled_dot_product_attention
    seen = _seen(torch, layer, q.shape[2], p)
    return attend(q, k, v, attn_mask=seen, scale=layer.scale).transpose(1, 2).flatten(-2)


def _multi_head_in_jax(jax, layer, x, p):
    maps, own, last = p
    y = _attend_in_jax(jax, layer.layers[1], *(x @ m["W"] + m["b"] for m in maps), own)
    return y @ last["W"] + last["b"]


def _multi_head_in_torch(torch, layer, x, p):
    linear = torch.nn.functional.linear
    maps, own, last = p
    q, k, v = (linear(x, m["W"].mT, m["b"]) for m in maps)
    y = _attend_in_torch(torch, layer.layers[1], q, k, v, own)
    return linear(y, last["W"].mT, last["b"])


def _multi_head_at_once(torch, layer, x, p):
    maps, own, last = p
    q, k, v = (mapped(torch, x, m).flatten(0, 1) for m in maps)
    masks = {name: a.flatten(0, 1) for name, a in own.items()}
    y = _attend_in_torch(torch, layer.layers[1], q, k, v, masks)
    return mapped(torch, y.view(x.shape), last)


twin(
    ScaledDotProductAttention,
    jax=lambda jax, layer, x, p: _attend_in_jax(jax, layer, x[:, 0], x[:, 1], x[:, 2], p),
    torch=lambda torch, layer, x, p: _attend_in_torch(torch, layer, *x.unbind(1), p),
    small={
        "attention": Instance(ScaledDotProductAttention(2), (_BATCH, 3, _TOKENS, _WIDTH)),
        "attention (causal, masked)": Instance(
            ScaledDotProductAttention(3, **_BOTH), (_BATCH, 3, _TOKENS, _WIDTH), {"hidden": HIDDEN}
        ),
    },
    timed={
        "attention core": Timed(
            lambda shape: ScaledDotProductAttention(_HEADS),
            ((8, 3, 64, 128), (4, 3, 256, 128)),
            (2, 3, 4, 8),
        )
    },
)
twin(
    MultiHeadAttention,
    jax=_multi_head_in_jax,
    torch=_multi_head_in_torch,
    ensemble=_multi_head_at_once,
    small={
        "multi_head_attention": Instance(MultiHeadAttention(_WIDTH, 2), (_BATCH, _TOKENS, _WIDTH)),
        "multi_head_attention (causal, masked)": Instance(
            MultiHeadAttention(_WIDTH, 3, **_BOTH), (_BATCH, _TOKENS, _WIDTH), {"1.hidden": HIDDEN}
        ),
    },
    timed={
        "multi-head attention": Timed(
            lambda shape: MultiHeadAttention(shape[-1], _HEADS),
            ((8, 64, 128), (4, 256, 128)),
            (2, 4, 8),
        )
    },
)
