"""The pass of an ensemble of plain ReLU nets in JAX, in all ways a skilled user might write it.

A net is drawn and passed under one ``jit``; its norms of h, δ, dX, dW and db are (depth, 5). Layers
are unrolled, which compiles anew for each depth, or scanned; nets go by ``vmap`` or one by one.
"""

import math
from collections.abc import Callable
from functools import partial

HE = math.sqrt(2)  # the gain
UNROLLED, SCANNED = "jax unrolled, vmap", "jax scan, vmap"


def forms(width: int, seeds: int, depth: int, batch: int, gram: bool) -> dict[str, Callable]:
    """Every form by its name, a function of the gain, He's by default.

    ``gram`` adds those which take ‖dW‖ from Gram matrices.
    """
    import jax

    keys = list(jax.random.split(jax.random.key(0), seeds))
    passes = {"scan": scanned, "unrolled": unrolled}
    if gram:
        passes |= {"scan, Gram": partial(scanned, weight_norm=by_gram)}
        passes |= {"unrolled, Gram": partial(unrolled, weight_norm=by_gram)}
    found = {}
    for name, function in passes.items():
        own = partial(drawn, width, depth, batch, function)
        at_once = jax.jit(jax.vmap(own, (0, None)))
        found[f"jax {name}, vmap"] = partial(_at_once, at_once, keys)
        found[f"jax {name}, net by net"] = partial(_one_by_one, jax.jit(own), keys)
    return found


def _at_once(compiled, keys, gain=HE):
    import jax.numpy as jnp

    return compiled(jnp.stack(keys), gain).block_until_ready()


def _one_by_one(compiled, keys, gain=HE):
    return [compiled(key, gain).block_until_ready() for key in keys]


def drawn(width: int, depth: int, batch: int, function, key, gain):
    """``function(W, x, d)`` of a drawn net, W (depth, w, w) of deviation gain/√w, x, d (B, w)."""
    import jax

    kw, kx, kd = jax.random.split(key, 3)
    W = jax.random.normal(kw, (depth, width, width)) * (gain / math.sqrt(width))
    return function(W, *(jax.random.normal(k, (batch, width)) for k in (kx, kd)))


def norm(a):
    import jax.numpy as jnp

    return jnp.sqrt(jnp.sum(a * a))


def by_product(h, delta):
    """‖dW‖ of dW = HᵀD."""
    return norm(h.T @ delta)


def by_gram(h, delta):
    """‖dW‖ by ‖HᵀD‖² = Σ (HHᵀ)∘(DDᵀ)."""
    import jax.numpy as jnp

    return jnp.sqrt(jnp.maximum(jnp.sum((h @ h.T) * (delta @ delta.T)), 0))


def _pulled(h, y, delta, w, weight_norm):
    """(dX, the layer's norms)."""
    import jax.numpy as jnp

    dx = delta @ w.T
    own = [norm(y), norm(delta), norm(dx), weight_norm(h, delta), norm(delta.sum(0))]
    return dx, jnp.stack(own)


def unrolled(W, x, dy, weight_norm=by_product):
    """Layer after layer, written out."""
    import jax.numpy as jnp

    hs, last = [x], len(W) - 1
    for index in range(len(W)):
        z = hs[-1] @ W[index]
        hs.append(jnp.maximum(z, 0) if index < last else z)
    out = []
    for index in reversed(range(len(W))):
        delta = jnp.where(hs[index + 1] > 0, dy, 0) if index < last else dy
        dy, own = _pulled(hs[index], hs[index + 1], delta, W[index], weight_norm)
        out.append(own)
    return jnp.stack(out[::-1])


def scanned(W, x, dy, weight_norm=by_product):
    """Hidden layers by ``lax.scan``, the last by itself."""
    import jax
    import jax.numpy as jnp

    def forward(h, w):
        y = jnp.maximum(h @ w, 0)
        return y, (h, y)

    def backward(dy, layer):
        w, h, y = layer
        return _pulled(h, y, jnp.where(y > 0, dy, 0), w, weight_norm)

    h, (hs, ys) = jax.lax.scan(forward, x, W[:-1])
    dy, own = _pulled(h, h @ W[-1], dy, W[-1], weight_norm)
    _, found = jax.lax.scan(backward, dy, (W[:-1], hs, ys), reverse=True)
    return jnp.concatenate([found, own[None]])
