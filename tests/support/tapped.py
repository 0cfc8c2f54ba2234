"""A network of flowlab as a function of JAX in which every value within it can be read or moved."""

from functools import partial

import jax
import jax.numpy as jnp

from flowlab.claims.twins import TWINS, in_jax, twin_of
from flowlab.layer import Chain
from flowlab.layers.recurrent import Recurrence


def tapped(layer, x, p, tap):
    """y of one network by the layers' twins.

    ``tap(layer, place, a)`` is given each primitive's input ``x`` and output ``y``, and of a
    recurrence also zeros to be added to its inputs' part of the preactivations, ``z``, and to its
    states, ``h``; the pass goes on with what it returns.
    """
    if layer.children:
        # A chain that PyTorch has a name for is tapped within, as any other.
        twin = TWINS[Chain] if isinstance(layer, Chain) else twin_of(layer)
        return twin.jax(jax, layer, x, p, partial(tapped, tap=tap))
    x = tap(layer, "x", x)
    if isinstance(layer, Recurrence):
        drive = tap(layer, "z", jnp.zeros((*x.shape[:2], p["W_ih"].shape[1])))
        added = tap(layer, "h", jnp.zeros((*x.shape[:2], layer.features)))
        return tap(layer, "y", twin_of(layer).jax(jax, layer, x, p, drive, added))
    return tap(layer, "y", in_jax(layer, x, p))
