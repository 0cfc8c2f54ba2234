"""Small instances of every layer, with the same map in JAX and in PyTorch: what S2 and S15 try.

A layer joins by ``example(...)`` in any module of this folder.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from flowlab.layer import Chain, Layer, Shape
from flowlab.layers import (
    ACTIVATIONS,
    Activation,
    AvgPool2d,
    BatchNorm,
    Conv1d,
    Conv2d,
    Flatten,
    GlobalAveragePool,
    GroupNorm,
    LayerNorm,
    Linear,
    MaxPool2d,
    Residual,
    RMSNorm,
    Scale,
    SoftmaxCrossEntropy,
    SquaredError,
)

SEEDS = 2
_BATCH, _FEATURES = 4, 3


@dataclass(frozen=True)
class Example:
    """A layer at an input shape; ``data`` holds its targets, (SEEDS, ...), by path.

    ``inputs``, (SEEDS, *shape), replace normal ones where the layer does not take those.

    ``jax(jax, x, p)`` and ``torch(torch, x, p)`` are the same map of one network, written in the
    framework's own functions; ``p`` holds the parameters by path.
    """

    name: str
    layer: Layer
    shape: Shape
    jax: Callable[[Any, Any, dict], Any]
    torch: Callable[[Any, Any, dict], Any]
    data: dict[str, np.ndarray] = field(default_factory=dict)
    inputs: np.ndarray | None = None


EXAMPLES: dict[str, Example] = {}


def example(name: str, layer: Layer, shape: Shape, *, jax, torch, data=None, inputs=None) -> None:
    """Register an example; see :class:`Example`."""
    EXAMPLES[name] = Example(name, layer, shape, jax, torch, data or {}, inputs)


def _activation(name: str) -> None:
    def in_jax(jax, x, p):
        if name == "identity":
            return x
        if name in ("tanh", "erf"):
            return {"tanh": jax.numpy.tanh, "erf": jax.scipy.special.erf}[name](x)
        return jax.nn.gelu(x, approximate=False) if name == "gelu" else getattr(jax.nn, name)(x)

    def in_torch(torch, x, p):
        if name in ("tanh", "erf", "sigmoid"):
            return getattr(torch, name)(x)
        return x if name == "identity" else getattr(torch.nn.functional, name)(x)

    example(name, Activation(name), (_BATCH, _FEATURES), jax=in_jax, torch=in_torch)


for _name in ACTIVATIONS:
    _activation(_name)

example(
    "linear",
    Linear(5),
    (_BATCH, _FEATURES),
    jax=lambda jax, x, p: x @ p["W"] + p["b"],
    torch=lambda torch, x, p: torch.nn.functional.linear(x, p["W"].T, p["b"]),
)
example(
    "scale",
    Scale(),
    (_BATCH, _FEATURES),
    jax=lambda jax, x, p: p["alpha"] * x,
    torch=lambda torch, x, p: p["alpha"] * x,
)
example(
    "residual",
    Residual(Chain([Activation("silu"), Linear(_FEATURES)]), 0.3, 0.9),
    (_BATCH, _FEATURES),
    jax=lambda jax, x, p: 0.9 * (x + 0.3 * (jax.nn.silu(x) @ p["1.W"] + p["1.b"])),
    torch=lambda torch, x, p: 0.9 * (x + 0.3 * (torch.nn.functional.silu(x) @ p["1.W"] + p["1.b"])),
)
example(
    "softmax_cross_entropy",
    SoftmaxCrossEntropy(),
    (_BATCH, _FEATURES),
    data={"label": np.arange(8).reshape(SEEDS, _BATCH) % _FEATURES, "exponent": np.zeros(2, int)},
    jax=lambda jax, x, p: (
        -jax.numpy.take_along_axis(jax.nn.log_softmax(x), p["label"][:, None], 1).mean()
    ),
    torch=lambda torch, x, p: torch.nn.functional.cross_entropy(x, p["label"]),
)
example(
    "squared_error",
    SquaredError(),
    (_BATCH, _FEATURES),
    data={
        "target": np.linspace(-1, 1, 24).reshape(SEEDS, _BATCH, _FEATURES),
        "exponent": np.zeros(2, int),
    },
    jax=lambda jax, x, p: ((x - p["target"]) ** 2).mean(),
    torch=lambda torch, x, p: torch.nn.functional.mse_loss(x, p["target"]),
)


def _standardized(jax, x, axes, eps: float = 1e-5):
    mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    return (x - mean) / jax.numpy.sqrt(variance + eps)


example(
    "batch_norm",
    BatchNorm(),
    (_BATCH, _FEATURES, 2),
    jax=lambda jax, x, p: p["gain"][:, None] * _standardized(jax, x, (0, 2)) + p["bias"][:, None],
    torch=lambda torch, x, p: torch.nn.functional.batch_norm(
        x, None, None, p["gain"], p["bias"], training=True
    ),
)
example(
    "batch_norm (eval)",
    BatchNorm(training=False),
    (_BATCH, _FEATURES),
    data={
        "mean": np.linspace(-1, 1, 6).reshape(SEEDS, _FEATURES),
        "variance": np.linspace(0.5, 2, 6).reshape(SEEDS, _FEATURES),
    },
    jax=lambda jax, x, p: (
        p["gain"] * (x - p["mean"]) / jax.numpy.sqrt(p["variance"] + 1e-5) + p["bias"]
    ),
    torch=lambda torch, x, p: torch.nn.functional.batch_norm(
        x, p["mean"].detach(), p["variance"].detach(), p["gain"], p["bias"]
    ),
)
example(
    "layer_norm",
    LayerNorm(),
    (_BATCH, _FEATURES),
    jax=lambda jax, x, p: p["gain"] * _standardized(jax, x, -1) + p["bias"],
    torch=lambda torch, x, p: torch.nn.functional.layer_norm(x, (_FEATURES,), p["gain"], p["bias"]),
)
example(
    "rms_norm",
    RMSNorm(),
    (_BATCH, _FEATURES),
    jax=lambda jax, x, p: p["gain"] * x / jax.numpy.sqrt((x**2).mean(-1, keepdims=True) + 1e-5),
    torch=lambda torch, x, p: torch.nn.functional.rms_norm(x, (_FEATURES,), p["gain"], eps=1e-5),
)
example(
    "group_norm",
    GroupNorm(2),
    (_BATCH, 4, 3),
    jax=lambda jax, x, p: (
        p["gain"][:, None] * _standardized(jax, x.reshape(_BATCH, 2, 6), 2).reshape(x.shape)
        + p["bias"][:, None]
    ),
    torch=lambda torch, x, p: torch.nn.functional.group_norm(x, 2, p["gain"], p["bias"]),
)
example(
    "group_norm (not centred)",
    GroupNorm(2, centred=False),
    (_BATCH, 4, 3),
    jax=lambda jax, x, p: (
        p["gain"][:, None]
        * x
        * jax.lax.rsqrt((x.reshape(_BATCH, 2, 6) ** 2).mean(2) + 1e-5).repeat(2, 1)[..., None]
    ),
    torch=lambda torch, x, p: (
        torch.nn.functional.rms_norm(x.reshape(_BATCH, 2, 6), (6,), eps=1e-5).reshape(x.shape)
        * p["gain"][:, None]
    ),
)


def _convolution(name: str, layer: Conv1d | Conv2d, shape: Shape) -> None:
    circular = layer.padding_mode == "circular"
    ends = [(layer.padding, layer.padding)] * (len(shape) - 2)

    def in_jax(jax, x, p):
        x = jax.numpy.pad(x, [(0, 0), (0, 0), *ends], mode="wrap") if circular else x
        y = jax.lax.conv_general_dilated(
            x,
            p["W"],
            [layer.stride] * len(ends),
            "VALID" if circular else ends,
            rhs_dilation=[layer.dilation] * len(ends),
            feature_group_count=layer.groups,
        )
        return y + p["b"].reshape(-1, *[1] * len(ends))

    def in_torch(torch, x, p):
        F, padding = torch.nn.functional, layer.padding
        if circular:
            x, padding = F.pad(x, [padding] * (2 * len(ends)), mode="circular"), 0
        convolve = getattr(F, layer.name)
        return convolve(x, p["W"], p["b"], layer.stride, padding, layer.dilation, layer.groups)

    example(name, layer, shape, jax=in_jax, torch=in_torch)


_convolution("conv1d", Conv1d(4, 3, stride=2, padding=2, dilation=2, groups=2), (3, 4, 7))
_convolution("conv2d", Conv2d(4, 3, stride=2, padding=2, dilation=2, groups=2), (3, 4, 7, 6))
_convolution("conv2d (circular)", Conv2d(4, 3, padding=2, padding_mode="circular"), (3, 2, 5, 4))


def _reduced(jax, x, start, reduce, size, stride):
    return jax.lax.reduce_window(x, start, reduce, (1, 1, size, size), (1, 1, *stride), "VALID")


example(
    "max_pool2d",
    MaxPool2d(3, stride=2),
    (2, 3, 6, 7),
    jax=lambda jax, x, p: _reduced(jax, x, -np.inf, jax.lax.max, 3, (2, 2)),
    torch=lambda torch, x, p: torch.nn.functional.max_pool2d(x, 3, 2),
)
example(
    "avg_pool2d",
    AvgPool2d(2),
    (2, 3, 5, 4),
    jax=lambda jax, x, p: _reduced(jax, x, 0.0, jax.lax.add, 2, (2, 2)) / 4,
    torch=lambda torch, x, p: torch.nn.functional.avg_pool2d(x, 2),
)
example(
    "global_average_pool",
    GlobalAveragePool(),
    (2, 3, 4, 5),
    jax=lambda jax, x, p: x.mean((2, 3)),
    torch=lambda torch, x, p: torch.nn.functional.adaptive_avg_pool2d(x, 1)[:, :, 0, 0],
)
example(
    "flatten",
    Flatten(),
    (2, 3, 4, 5),
    jax=lambda jax, x, p: x.reshape(2, 60),
    torch=lambda torch, x, p: torch.flatten(x, 1),
)
