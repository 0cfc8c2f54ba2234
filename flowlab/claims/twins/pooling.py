"""Twins of the layers that pool or reshape."""

import numpy as np

from flowlab.claims.twins.twin import Instance, Timed, twin
from flowlab.layers.pooling import AvgPool2d, Flatten, GlobalAveragePool, MaxPool2d, TokenMean
from flowlab.layers.recurrent import LastStep

_IMAGES = ((32, 16, 32, 32), (16, 64, 16, 16))
_TOKENS = (3, 5, 6)


def _windows(jax, layer, x, start, reduce):
    size, stride = layer.kernel_size, layer.stride
    window, steps = (1, 1, size, size), (1, 1, stride, stride)
    return jax.lax.reduce_window(x, start, reduce, window, steps, "VALID")


def _average(jax, layer, x, p):
    k = layer.kernel_size
    if layer.stride != k:
        return _windows(jax, layer, x, 0.0, jax.lax.add) / k**2
    n, c, h, w = x.shape
    tiles = x[:, :, : h // k * k, : w // k * k]
    return tiles.reshape(n, c, h // k, k, w // k, k).mean((3, 5))


def _timed(layer):
    return Timed(lambda shape: layer, _IMAGES, (2, 8, 4, 4))


twin(
    MaxPool2d,
    jax=lambda jax, layer, x, p: _windows(jax, layer, x, -np.inf, jax.lax.max),
    torch=lambda torch, layer, x, p: torch.nn.functional.max_pool2d(
        x, layer.kernel_size, layer.stride
    ),
    small={"max_pool2d": Instance(MaxPool2d(3, stride=2), (2, 3, 6, 7))},
    timed={"max pool": _timed(MaxPool2d(2))},
)
twin(
    AvgPool2d,
    jax=_average,
    torch=lambda torch, layer, x, p: torch.nn.functional.avg_pool2d(
        x, layer.kernel_size, layer.stride
    ),
    small={"avg_pool2d": Instance(AvgPool2d(2), (2, 3, 5, 4))},
    timed={"average pool": _timed(AvgPool2d(2))},
)
twin(
    GlobalAveragePool,
    jax=lambda jax, layer, x, p: x.mean(tuple(range(2, x.ndim))),
    torch=lambda torch, layer, x, p: x.mean(tuple(range(2, x.dim()))),
    small={"global_average_pool": Instance(GlobalAveragePool(), (2, 3, 4, 5))},
    timed={"global pool": _timed(GlobalAveragePool())},
)
twin(
    Flatten,
    jax=lambda jax, layer, x, p: x.reshape(len(x), -1),
    torch=lambda torch, layer, x, p: torch.flatten(x, 1),
    small={"flatten": Instance(Flatten(), (2, 3, 4, 5))},
)
twin(
    TokenMean,
    jax=lambda jax, layer, x, p: x.mean(1),
    torch=lambda torch, layer, x, p: torch.mean(x, 1),
    small={"token_mean": Instance(TokenMean(), _TOKENS)},
)
twin(
    LastStep,
    jax=lambda jax, layer, x, p: x[:, -1],
    torch=lambda torch, layer, x, p: x.select(1, -1),
    small={"last_step": Instance(LastStep(), _TOKENS)},
)
