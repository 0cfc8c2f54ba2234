"""Networks: chains of blocks built from settings, one block for each counted layer."""

import math
from dataclasses import dataclass

from flowlab.layer import Chain, Layer
from flowlab.layers import Activation, Linear, Residual, Scale
from flowlab.settings import Settings


@dataclass(frozen=True)
class Network:
    """``blocks[l-1]`` is layer l, nearest the input first; ``residual`` says which carry a skip.

    Blocks hold no arrays, so equal layers are one object.
    """

    blocks: tuple[Layer, ...]
    residual: tuple[bool, ...]
    a: float = 1.0
    s: float = 1.0

    @property
    def chain(self) -> Chain:
        """The whole network as one layer."""
        return Chain(self.blocks, name="network")


def build(settings: Settings, outputs: int | None = None) -> Network:
    """The network that ``settings`` describe, ending in ``outputs`` units (default: the width).

    Layer 1 maps the data to the width; the last of ``depth`` layers is linear. Without a skip,
    layer l < depth is linear then activation. With one, the layers in between are pre-activation
    blocks x -> s(x + a f(x)) whose branch f ends in a linear map, and a read-out (present when
    ``outputs`` is given) is activation then linear.
    """
    width, activation = settings.width, Activation(settings.activation)
    last = Linear(outputs or width)
    if settings.skip == "none":
        hidden = Chain([Linear(width), activation], name="layer")
        blocks = (hidden,) * (settings.depth - 1) + (last,)
        return Network(blocks, (False,) * len(blocks))
    if settings.depth == 1:
        return Network((last,), (False,))
    readout = () if outputs is None else (Chain([activation, last], name="read-out"),)
    count = settings.depth - 1 - len(readout)
    a, s = branch_scaling(settings, count)
    block = Residual(branch(settings, count), a, s)
    blocks = (Linear(width), *(block,) * count, *readout)
    residual = (False, *(True,) * count, *(False for _ in readout))
    return Network(blocks, residual, a, s)


def branch_scaling(settings: Settings, count: int) -> tuple[float, float]:
    """(a, s) of x -> s(x + a f(x)) for a net of ``count`` residual blocks."""
    if settings.skip == "mix":
        return 1.0, math.sqrt(0.5)
    if settings.skip == "scaled":
        power = 0.5 if settings.network.branch_scale == "inverse_sqrt_depth" else 1.0
        return max(count, 1) ** -power, 1.0
    return 1.0, 1.0


def branch(settings: Settings, count: int) -> Chain:
    """The residual branch: activation and linear map, once or twice.

    Fixup (Zhang et al. 2019) divides the first of m = 2 maps by L^(1/(2m-2)) and starts the last at
    zero; ReZero (Bachlechner et al. 2020) ends in a learned factor that starts at zero.
    """
    fixup = settings.skip == "fixup"
    factors = [1.0] * settings.branch_maps
    if fixup:
        factors = [max(count, 1) ** -0.5, 0.0]
    layers: list[Layer] = []
    for factor in factors:
        layers += [Activation(settings.activation), Linear(settings.width, factor)]
    if settings.skip == "rezero":
        layers.append(Scale())
    return Chain(layers, name="branch")
