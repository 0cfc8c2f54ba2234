"""Theory of a user's convolutions: the network of the laboratory that they are, if they are one."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from flowlab import settings
from flowlab.errors import InputError
from flowlab.modules.chains import Draw, MapInChain
from flowlab.modules.feeding import first_of, inputs_of
from flowlab.prediction import predict
from flowlab.schema import DELTA

_SHAPE = "theory knows convolutions of odd kernels that keep channels and size, at stride 1"


def of_images(
    batch: Any, links: Sequence[MapInChain], maps: Sequence[nn.Module], draw: Draw
) -> pd.DataFrame | str:
    """Theory's δ by map for the batch, or one sentence that says which assumption fails.

    The network is that of ``network=cnn``: convolutions, and a linear read-out of the mean over
    positions or none.
    """
    *convolutions, last = maps
    if not isinstance(last, nn.Linear):
        convolutions = list(maps)
    elif not links[-1].pooled:
        return "theory knows a read-out of the mean over positions; got one of the whole image"
    if not all(isinstance(one, nn.Conv2d) for one in convolutions):
        return "theory knows convolutions with one read-out; got linear maps before the last"
    width, kernel = convolutions[0].out_channels, convolutions[0].kernel_size
    padding = {"zeros": "zeros", "circular": "circular"}.get(convolutions[0].padding_mode)
    if padding is None or not all(_alike(one, convolutions[0]) for one in convolutions):
        return f"{_SHAPE}; got others"
    if draw.orthogonal or not draw.scheme:
        return "theory of convolutions knows the laboratory's independent draws; got others"
    x = first_of(inputs_of(batch)).detach().double().cpu().numpy()
    readout = len(convolutions) < len(maps)
    classes = last.out_features if readout else 2
    try:
        given = settings.make(
            network={
                **{"name": "cnn", "kernel_size": kernel[0], "padding": padding},
                "channels": convolutions[0].in_channels,
            },
            init=draw.scheme,
            data=settings.data.arrays(
                x.reshape(len(x), -1), np.arange(len(x)) % classes, standardise=False
            ),
            depth=len(maps),
            width=width,
            activation=links[0].activation,
            batch_size=len(x),
            seeds=1,
            upstream="loss" if readout else "gaussian",
        )
        found = predict(given)
    except InputError as error:
        return f"theory of convolutions: {error}"
    because = found["silent_because"].dropna()
    if len(because):
        return because.iloc[0]
    by_layer = found.dropna(subset=DELTA).drop_duplicates("layer", keep="last")
    return by_layer.set_index("layer").reindex(range(1, len(maps) + 1)).reset_index()


def _alike(one: nn.Conv2d, first: nn.Conv2d) -> bool:
    """Whether a convolution keeps the image's size and, but for the first, its channels."""
    size = one.kernel_size[0]
    same = one is first or one.in_channels == one.out_channels == first.out_channels
    return same and (
        one.kernel_size == (size, size) == first.kernel_size
        and size % 2 == 1
        and one.padding in ((size // 2, size // 2), "same")
        and one.stride == one.dilation == (1, 1)
        and one.groups == 1
        and one.padding_mode == first.padding_mode
    )
