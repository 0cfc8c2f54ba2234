"""Transformers: attention and a token-wise MLP, each a residual branch, over embedded tokens."""

from flowlab.errors import InputError
from flowlab.layer import Chain, Layer
from flowlab.layers import (
    Activation,
    Linear,
    MultiHeadAttention,
    PositionalEncoding,
    Residual,
    Scale,
    TokenMean,
)
from flowlab.networks.feedforward import branch_scaling
from flowlab.networks.network import Network
from flowlab.networks.sequence import example_shape, features, normalization
from flowlab.settings import Settings

__all__ = ["build", "example_shape", "features"]


def build(settings: Settings, outputs: int | None) -> Network:
    """The chain of ``depth`` counted layers: an embedding, blocks, and a read-out with ``outputs``.

    The embedding is a linear map of each step's features and a position's code. A block is
    attention, then an MLP; with ``placement=pre`` a normalization stands first in each branch, with
    ``post`` behind each sum. Every branch counts in the L of ``skip=scaled`` and ``fixup``. The
    read-out averages the tokens, behind a last normalization where they are placed first.
    """
    network = settings.network
    if settings.width % network.heads:
        raise InputError(
            f"network.heads must divide the width {settings.width}; got {network.heads}"
        )
    if outputs is not None and settings.depth < 2:
        raise InputError(
            "depth must be at least 2 for network=transformer with upstream=loss; "
            f"got {settings.depth}"
        )
    pre = network.placement == "pre"
    last = normalization(settings) if pre else []
    readout = ()
    if outputs is not None:
        readout = (Chain([*last, TokenMean(), Linear(outputs)], name="read-out"),)
    count = settings.depth - 1 - len(readout)
    a, s = branch_scaling(settings, 2 * count)
    attention, mlp = _attention(settings, 2 * count), _mlp(settings, 2 * count)
    parts: list[Layer] = []
    for branch in (attention, mlp):
        around = normalization(settings)
        layers = [*(around if pre else []), *branch]
        if settings.skip == "rezero":
            layers.append(Scale())
        inner = Chain(layers, name="branch")
        parts.append(inner if settings.skip == "none" else Residual(inner, a, s))
        parts += [] if pre else around
    block = Chain(parts, name="transformer")
    embedding = Chain(
        [Linear(settings.width, name="embedding"), PositionalEncoding(network.steps)],
        name="embedding",
    )
    blocks = (embedding, *(block,) * count, *readout)
    skips = settings.skip != "none"
    residual = (False, *(skips,) * count, *(False for _ in readout))
    return Network(blocks, residual, a, s, tokens=True)


def _attention(settings: Settings, count: int) -> list[Layer]:
    """Multi-head self-attention; under fixup its values and its output are the two maps."""
    network = settings.network
    scale = settings.width // network.heads
    scale = 1.0 / (scale if network.logit_scale == "inverse" else scale**0.5)
    factors = _factors(settings, count)
    return [
        MultiHeadAttention(settings.width, network.heads, network.causal, scale, factors=factors)
    ]


def _mlp(settings: Settings, count: int) -> list[Layer]:
    inner, outer = _factors(settings, count)
    wide = settings.network.expansion * settings.width
    return [
        Linear(wide, inner, name="mlp_in"),
        Activation(settings.activation),
        Linear(settings.width, outer, name="mlp_out"),
    ]


def _factors(settings: Settings, count: int) -> tuple[float, float]:
    """Of a branch's two maps: Zhang et al. 2019, with L = ``count`` branches."""
    return (max(count, 1) ** -0.5, 0.0) if settings.skip == "fixup" else (1.0, 1.0)
