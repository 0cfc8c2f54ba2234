"""What a network is: blocks in a row, one for each counted layer."""

import hashlib
from dataclasses import dataclass

from flowlab.layer import Chain, Layer

_PLAIN = (bool, int, float, str, tuple, type(None))


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

    def digest(self) -> str:
        """A name for the blocks: their classes, their plain attributes and what they are made of.

        Equal for equal networks, in any process; blind to what a layer's code does.
        """
        blocks = [_described(block) for block in self.blocks]
        made_of = repr((blocks, self.residual, self.a, self.s))
        return hashlib.sha256(made_of.encode()).hexdigest()[:16]


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
