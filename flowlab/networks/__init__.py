"""Networks built from settings: one module for each family of architectures."""

from flowlab.layer import Shape
from flowlab.networks import feedforward, recurrent, transformer
from flowlab.networks.network import Network
from flowlab.settings import Settings

__all__ = ["Network", "build", "example_shape", "features"]

_FAMILIES = {
    **{"mlp": feedforward, "cnn": feedforward, "resnet": feedforward},
    **{"rnn": recurrent, "lstm": recurrent, "gru": recurrent},
    "transformer": transformer,
}


def build(settings: Settings, outputs: int | None = None) -> Network:
    """The network that ``settings`` describe, ending in ``outputs`` units (default: the width)."""
    return _FAMILIES[settings.network.name].build(settings, outputs)


def features(settings: Settings) -> int:
    """How many features an example of gaussian data has, unless the data settings say."""
    return _FAMILIES[settings.network.name].features(settings)


def example_shape(settings: Settings, features: int) -> Shape:
    """One example's axes, as the first block takes it, of ``features`` numbers in a row.

    Raises InputError where the network cannot take so many.
    """
    return _FAMILIES[settings.network.name].example_shape(settings, features)
