"""What a network is: blocks in a row, one for each counted layer."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from flowlab.errors import InputError
from flowlab.layer import Chain, Layer, Parameter, Shape, primitives
from flowlab.networks.describe import described, words
from flowlab.settings import AXES, NETWORKS, Settings

_OWN = "own"


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

    A net of one's own is ``Network([block, ...], name="bottleneck")``; the name is the column
    ``network`` of its tables. Raises InputError for blocks that are no layers, for another number
    of ``residual`` than of blocks, and for the name of one of the settings' networks.
    """

    blocks: tuple[Layer, ...]
    residual: tuple[bool, ...] = ()
    a: float = 1.0
    s: float = 1.0
    tokens: bool = False
    steps: bool = False
    name: str = _OWN

    def __post_init__(self):
        if isinstance(self.blocks, Layer):
            raise InputError("blocks of a network must be a list of layers; got one layer")
        blocks = tuple(self.blocks)
        residual = tuple(self.residual) or (False,) * len(blocks)
        for block in blocks:
            if not isinstance(block, Layer):
                raise InputError(f"blocks of a network must be layers; got {block!r}")
        if not blocks or len(residual) != len(blocks):
            raise InputError(
                "blocks of a network must be at least one, with residual for each; "
                f"got {len(blocks)} and {len(residual)}"
            )
        if not (isinstance(self.name, str) and self.name.strip()) or self.name in NETWORKS:
            raise InputError(f"name of a network must be one of its own; got {self.name!r}")
        object.__setattr__(self, "blocks", blocks)
        object.__setattr__(self, "residual", residual)

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
        """A digest of the blocks, as :mod:`flowlab.networks.describe` describes them, and the name.

        Equal for equal networks, in any process. Raises InputError for what has no description.
        """
        known = {block: described(block) for block in dict.fromkeys(self.blocks)}
        made_of = repr(([known[block] for block in self.blocks], self.residual, self.a, self.s))
        if self.name != _OWN:
            made_of += self.name
        return hashlib.sha256(made_of.encode()).hexdigest()[:16]

    def run(self, settings: Settings) -> str:
        """The name of the run in which this network stands in place of the settings' own."""
        return hashlib.sha256(f"{settings.run()} {self.digest()}".encode()).hexdigest()[:16]

    def resolved(self, settings: Settings) -> dict:
        """That run's settings, with what the network is made of in place of its architecture's."""
        absent = {axis.key for axis in AXES if axis.of_architecture}
        plain = {key: value for key, value in settings.resolved().items() if key not in absent}
        blocks = [(what, len(list(same))) for what, same in groupby(map(words, self.blocks))]
        made_of = {
            "name": self.name,
            "digest": self.digest(),
            "blocks": [f"{count} x {what}" if count > 1 else what for what, count in blocks],
        }
        return plain | {"network": made_of, "depth": len(self.blocks)}


def _by_primitive(parameters) -> Iterator[dict[str, Parameter]]:
    """Each primitive's own parameters, in forward order, of a nest of them."""
    if isinstance(parameters, dict):
        yield parameters
    else:
        for inner in parameters:
            yield from _by_primitive(inner)
