"""What a network is: blocks in a row, one for each counted layer."""

from dataclasses import dataclass

from flowlab.layer import Chain, Layer


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
