"""Feed-forward networks, plain or residual: of linear maps (mlp), of convolutions (cnn, resnet)."""

import math

from flowlab.errors import InputError
from flowlab.layer import Chain, Layer, Shape
from flowlab.layers import (
    Activation,
    BatchNorm,
    Conv2d,
    GlobalAveragePool,
    GroupNorm,
    LayerNorm,
    Linear,
    Residual,
    RMSNorm,
    Scale,
)
from flowlab.networks.network import Network
from flowlab.settings import Settings


def build(settings: Settings, outputs: int | None) -> Network:
    """The chain of ``depth`` counted layers.

    Layer 1 maps the data to the width; the last layer is linear. Without a skip, layer l < depth is
    map, normalization, activation. With one, the layers in between are pre-activation blocks
    x -> s(x + a f(x)) whose branch f is normalization, activation, map, once or twice, and a
    read-out (present when ``outputs`` is given) is normalization, activation, linear. Before a
    read-out, images are averaged over positions.
    """
    first, *normalized = _map(settings), *_normalization(settings)
    activation = Activation(settings.activation)
    pool = [GlobalAveragePool()] if _images(settings) else []
    last = first if outputs is None else _chain([*pool, Linear(outputs)], "read-out")
    if settings.skip == "none":
        hidden = Chain([first, *normalized, activation], name="layer")
        blocks = (hidden,) * (settings.depth - 1) + (last,)
        return Network(blocks, (False,) * len(blocks))
    if settings.depth == 1:
        return Network((last,), (False,))
    readout = ()
    if outputs is not None:
        readout = (Chain([*normalized, activation, *pool, Linear(outputs)], name="read-out"),)
    count = settings.depth - 1 - len(readout)
    a, s = branch_scaling(settings, count)
    block = Residual(branch(settings, count), a, s)
    blocks = (first, *(block,) * count, *readout)
    residual = (False, *(True,) * count, *(False for _ in readout))
    return Network(blocks, residual, a, s)


def features(settings: Settings) -> int:
    """The width, or channels times positions."""
    if not _images(settings):
        return settings.width
    return (settings.network.channels or settings.width) * settings.network.image**2


def example_shape(settings: Settings, features: int) -> Shape:
    """(features,), or (channels, side, side); InputError for images that are not square."""
    if not _images(settings):
        return (features,)
    gaussian = settings.data.name == "gaussian"
    channels = settings.network.channels or (settings.width if gaussian else 1)
    side = math.isqrt(features // channels)
    if channels * side**2 != features:
        raise InputError(
            f"network={settings.network.name} needs square images, data with "
            f"channels x side x side features; got {features} features for {channels} channels"
        )
    return (channels, side, side)


def _images(settings: Settings) -> bool:
    return settings.network.name != "mlp"


def _map(settings: Settings, factor: float = 1.0) -> Layer:
    """A map to the width that keeps an image's size."""
    if not _images(settings):
        return Linear(settings.width, factor)
    size = settings.network.kernel_size
    same = {"padding": size // 2, "padding_mode": settings.network.padding}
    return Conv2d(settings.width, size, **same, factor=factor)


def _normalization(settings: Settings) -> list[Layer]:
    """None or one; of an image's channels, layer and RMS norm take all with their positions."""
    match settings.norm:
        case "none":
            return []
        case "batch":
            return [BatchNorm()]
        case norm if _images(settings):
            return [GroupNorm(1, centred=norm == "layer")]
        case norm:
            return [LayerNorm() if norm == "layer" else RMSNorm()]


def branch_scaling(settings: Settings, count: int) -> tuple[float, float]:
    """(a, s) of x -> s(x + a f(x)) for a net of ``count`` residual blocks."""
    if settings.skip == "mix":
        return 1.0, math.sqrt(0.5)
    if settings.skip == "scaled":
        power = 0.5 if settings.network.branch_scale == "inverse_sqrt_depth" else 1.0
        return max(count, 1) ** -power, 1.0
    return 1.0, 1.0


def branch(settings: Settings, count: int) -> Chain:
    """The residual branch: normalization, activation and map, once or twice.

    Fixup (Zhang et al. 2019) divides the first of m = 2 maps by L^(1/(2m-2)) and starts the last at
    zero; ReZero (Bachlechner et al. 2020) ends in a learned factor that starts at zero.
    """
    fixup = settings.skip == "fixup"
    factors = [1.0] * settings.branch_maps
    if fixup:
        factors = [max(count, 1) ** -0.5, 0.0]
    layers: list[Layer] = []
    for factor in factors:
        layers += [
            *_normalization(settings),
            Activation(settings.activation),
            _map(settings, factor),
        ]
    if settings.skip == "rezero":
        layers.append(Scale())
    return Chain(layers, name="branch")


def _chain(layers: list[Layer], name: str) -> Layer:
    return layers[0] if len(layers) == 1 else Chain(layers, name=name)
