"""A layer's twin: the same map of one network in JAX and in PyTorch, and instances to try."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flowlab.layer import Layer, Shape

SEEDS = 2  # networks of the small instances
Form = Callable[[Any, Layer, Any, Any], Any]


@dataclass(frozen=True, eq=False)
class Instance:
    """A layer at the input shape of one network; ``data`` holds its targets, (SEEDS, ...), by path.

    ``inputs``, (SEEDS, *shape), replace normal ones where the layer does not take those.
    """

    layer: Layer
    shape: Shape
    data: dict[str, np.ndarray] = field(default_factory=dict)
    inputs: np.ndarray | None = None


@dataclass(frozen=True)
class Timed:
    """What the benchmark times: ``layer(shape)`` at the ``shapes`` of one network's input.

    At ``tiny`` tests compare what all forms give. Inputs are normal, or whole numbers below
    ``below``.
    """

    layer: Callable[[Shape], Layer]
    shapes: tuple[Shape, ...]
    tiny: Shape
    below: int = 0


@dataclass(frozen=True)
class Twin:
    """The map of a kind of layer, written in the frameworks' own functions.

    ``jax(jax, layer, x, p)`` and ``torch(torch, layer, x, p)`` give y of one network; ``p`` is
    nested as the layer declares it. ``ensemble(torch, layer, x, p)`` does all networks at once,
    along a leading axis, where PyTorch has a faster way than ``torch.vmap``; a layer without
    parameters needs none. The modules are handed in, so that neither is imported before use.

    ``small`` are the instances on which laws, claims and tests try the layer, by name; ``timed``
    are those of the benchmark.
    """

    kind: type[Layer]
    jax: Form
    torch: Form
    ensemble: Form | None = None
    small: dict[str, Instance] = field(default_factory=dict)
    timed: dict[str, Timed] = field(default_factory=dict)


TWINS: dict[type[Layer], Twin] = {}


def twin(kind: type[Layer], **fields) -> None:
    """Register the twin of a kind of layer; see :class:`Twin`."""
    TWINS[kind] = Twin(kind, **fields)


def composite(kind: type[Layer], form: Callable, **fields) -> None:
    """Register a composite by one form for both frameworks: ``form(np, inner, layer, x, p)``.

    ``np`` is ``jax.numpy`` or ``torch``; ``inner(child, x, p)`` gives y of a child. The twin's
    forms take another ``inner`` as their last argument.
    """

    def of_jax(jax, layer, x, p, inner=in_jax):
        return form(jax.numpy, inner, layer, x, p)

    def of_torch(torch, layer, x, p, inner=in_torch):
        return form(torch, inner, layer, x, p)

    twin(kind, jax=of_jax, torch=of_torch, **fields)


def twin_of(layer: Layer) -> Twin:
    """The twin of a layer's class or of the nearest above it; raises KeyError where none is."""
    for kind in type(layer).__mro__:
        if kind in TWINS:
            return TWINS[kind]
    raise KeyError(f"{type(layer).__name__} has no twin")


def in_jax(layer: Layer, x, p):
    """y of one network by the layer's twin in JAX."""
    import jax

    return twin_of(layer).jax(jax, layer, x, p)


def in_torch(layer: Layer, x, p):
    """y of one network by the layer's twin in PyTorch."""
    import torch

    return twin_of(layer).torch(torch, layer, x, p)


def instances() -> dict[str, Instance]:
    """All small instances by name."""
    return {name: one for twin in TWINS.values() for name, one in twin.small.items()}


def timed() -> dict[str, tuple[Twin, Timed]]:
    """All that the benchmark times, by name, each with its twin."""
    return {name: (twin, one) for twin in TWINS.values() for name, one in twin.timed.items()}
