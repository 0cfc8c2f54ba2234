"""Recurrent networks: layers over the whole sequence, read at the last step."""

from flowlab.layer import Chain
from flowlab.layers import GRU, LSTM, LastStep, Linear, Recurrent
from flowlab.networks.network import Network
from flowlab.networks.sequence import example_shape, features, normalization
from flowlab.settings import Settings

__all__ = ["build", "example_shape", "features"]


def build(settings: Settings, outputs: int | None) -> Network:
    """``depth - 1`` recurrent layers, each followed by a normalization, and a linear read-out."""
    network = settings.network
    shared = {
        "recurrent": network.recurrent,
        "radius": network.radius,
        "truncation": network.truncation,
    }
    if network.name == "rnn":
        layer = Recurrent(settings.width, settings.activation, **shared)
    elif network.name == "lstm":
        layer = LSTM(settings.width, forget_bias=network.forget_bias, **shared)
    else:
        layer = GRU(settings.width, **shared)
    block = Chain([layer, *normalization(settings)], name="recurrent")
    readout = Chain([LastStep(), Linear(outputs or settings.width)], name="read-out")
    blocks = (*(block,) * (settings.depth - 1), readout)
    return Network(blocks, (False,) * len(blocks), steps=True)
