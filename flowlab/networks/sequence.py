"""What networks of sequences share: how data become steps, and normalization of tokens."""

from flowlab.errors import InputError
from flowlab.layer import Layer, Shape
from flowlab.layers import BatchNorm, LayerNorm, RMSNorm
from flowlab.settings import Settings


def features(settings: Settings) -> int:
    """Steps times the width."""
    return settings.network.steps * settings.width


def example_shape(settings: Settings, features: int) -> Shape:
    """(steps, features of a step): an image's rows, or its pixels where steps are as many.

    InputError where the steps do not divide the features.
    """
    steps = settings.network.steps
    if features % steps:
        raise InputError(f"network.steps must divide the data's {features} features; got {steps}")
    return (steps, features // steps)


def normalization(settings: Settings) -> list[Layer]:
    """None or one, over the features of each token; batch norm over examples and tokens."""
    kinds = {"batch": BatchNorm(channels_last=True), "layer": LayerNorm(), "rms": RMSNorm()}
    return [] if settings.norm == "none" else [kinds[settings.norm]]
