"""A network rewritten by a rule: each of its primitives is kept or gives way to another layer.

A rule is a function of a primitive and its place: a Jacobian replaced by the identity, values
rounded to a number format, a probe put in behind a layer are rules of a few lines,

    def rounded(primitive, place):
        return Chain([primitive, Round()]) if isinstance(primitive, Activation) else primitive

Composites rebuild themselves around what has changed (``rebuilt(children)``); what has not is the
same object as before.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple

from flowlab.layer import Layer, Primitive, primitives
from flowlab.networks.network import Network


class Place(NamedTuple):
    """A primitive's layer, counted from 1, and its name there, as `operations` numbers it."""

    layer: int
    op: str

    def __str__(self) -> str:
        return f"{self.layer}.{self.op}"


Rule = Callable[[Primitive, Place], Layer]


def rewrite(network: Network, rule: Rule) -> Network:
    """The network with every primitive replaced by ``rule(primitive, place)``.

    Layers that are one object remain one where the rule returns one object for them, so that their
    passes are still recorded once. A network of which nothing changes has the same digest.
    """
    made: dict[tuple, Layer] = {}
    blocks = []
    for number, block in enumerate(network.blocks, 1):
        places = (Place(number, op) for op in operations(block))
        blocks.append(_rewritten(block, places, rule, made))
    return dataclasses.replace(network, blocks=tuple(blocks))


def operations(block: Layer) -> list[str]:
    """Names of a block's primitives in forward order, numbered where they repeat."""
    names = [layer.name for layer in primitives(block)]
    return [
        f"{name}_{names[: k + 1].count(name)}" if names.count(name) > 1 else name
        for k, name in enumerate(names)
    ]


def _rewritten(layer: Layer, places: Iterator[Place], rule: Rule, made: dict) -> Layer:
    """``layer`` after the rule; ``made`` holds the composites built so far."""
    if not layer.children:
        return rule(layer, next(places))
    children = tuple(_rewritten(child, places, rule, made) for child in layer.children)
    if children == layer.children:  # layers are equal where they are the same object
        return layer
    if (layer, children) not in made:
        made[layer, children] = layer.rebuilt(children)
    return made[layer, children]
