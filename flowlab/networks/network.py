"""What a network is: blocks in a row, one for each counted layer."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from flowlab.layer import Chain, Layer, Parameter, Shape, primitives

_PLAIN = (bool, int, float, str, tuple, type(None))


@dataclass(frozen=True)
class CountedLayer:
    """A layer of a network: its number from 1, its block and the shape of the block's input.

    ``operations`` are the block's primitives with their own parameters by name, in forward order;
    equal blocks with inputs of equal shape share them.
    """

    layer: int
    block: Layer
    shape: Shape
    operations: tuple[tuple[Layer, dict[str, Parameter]], ...]

    @property
    def output(self) -> Shape:
        return self.block.declare(self.shape).output


@dataclass(frozen=True)
class Network:
    """``blocks[l-1]`` is layer l, nearest the input first; ``residual`` says which carry a skip.

    Blocks hold no arrays, so equal layers are one object. ``a`` and ``s`` are the residual blocks'
    factors, x -> s(x + a f(x)). Blocks of a net of ``tokens`` pass (batch, tokens, features); a net
    with ``steps`` is recurrent, its blocks chains that begin with the recurrent layer.
    """

    blocks: tuple[Layer, ...]
    residual: tuple[bool, ...]
    a: float = 1.0
    s: float = 1.0
    tokens: bool = False
    steps: bool = False

    @property
    def chain(self) -> Chain:
        """The whole network as one layer."""
        return Chain(self.blocks, name="network")

    def walk(self, shape: Shape) -> Iterator[CountedLayer]:
        """Every layer, first to last, for a batch of ``shape``; nothing is allocated."""
        operations: dict[tuple, tuple] = {}
        for number, block in enumerate(self.blocks, 1):
            declared = block.declare(shape)
            if (block, shape) not in operations:
                own = _by_primitive(declared.parameters)
                operations[block, shape] = tuple(zip(primitives(block), own, strict=True))
            yield CountedLayer(number, block, shape, operations[block, shape])
            shape = declared.output

    def digest(self) -> str:
        """A name for the blocks: their classes, their plain attributes and what they are made of.

        Equal for equal networks, in any process; blind to what a layer's code does.
        """
        blocks = [_described(block) for block in self.blocks]
        made_of = repr((blocks, self.residual, self.a, self.s))
        return hashlib.sha256(made_of.encode()).hexdigest()[:16]


def _by_primitive(parameters) -> Iterator[dict[str, Parameter]]:
    """Each primitive's own parameters, in forward order, of a nest of them."""
    if isinstance(parameters, dict):
        yield parameters
    else:
        for inner in parameters:
            yield from _by_primitive(inner)


def _described(layer: Layer) -> tuple:
    own = sorted(
        (name, value)
        for name, value in vars(layer).items()
        if isinstance(value, _PLAIN) and name != "children" and not _holds_layers(value)
    )
    kind = f"{type(layer).__module__}.{type(layer).__qualname__}"
    return kind, layer.name, own, [_described(child) for child in layer.children]


def _holds_layers(value) -> bool:
    return isinstance(value, tuple) and any(isinstance(item, Layer) for item in value)
