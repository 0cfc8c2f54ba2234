"""Twins of the convolutions."""

from flowlab.claims.twins.twin import Instance, Timed, twin
from flowlab.layers.convolution import Conv1d, Conv2d

_STRIDED = {"stride": 2, "padding": 2, "dilation": 2, "groups": 2}


def _in_jax(jax, layer, x, p):
    axes = x.ndim - 2
    ends = [(layer.padding, layer.padding)] * axes
    if layer.padding_mode == "circular":
        x = jax.numpy.pad(x, [(0, 0), (0, 0), *ends], mode="wrap")
        ends = [(0, 0)] * axes
    y = jax.lax.conv_general_dilated(
        x,
        p["W"],
        [layer.stride] * axes,
        ends,
        rhs_dilation=[layer.dilation] * axes,
        feature_group_count=layer.groups,
    )
    return y + p["b"].reshape(-1, *[1] * axes)


def _in_torch(torch, layer, x, p):
    F, axes, padding = torch.nn.functional, x.dim() - 2, layer.padding
    if layer.padding_mode == "circular":
        x, padding = F.pad(x, [padding] * (2 * axes), mode="circular"), 0
    convolve = F.conv1d if axes == 1 else F.conv2d
    return convolve(x, p["W"], p["b"], layer.stride, padding, layer.dilation, layer.groups)


twin(
    Conv1d,
    jax=_in_jax,
    torch=_in_torch,
    small={"conv1d": Instance(Conv1d(4, 3, **_STRIDED), (3, 4, 7))},
    timed={
        "conv1d": Timed(
            lambda shape: Conv1d(shape[1], 3, padding=1), ((32, 16, 256), (32, 64, 128)), (2, 8, 6)
        )
    },
)
twin(
    Conv2d,
    jax=_in_jax,
    torch=_in_torch,
    small={
        "conv2d": Instance(Conv2d(4, 3, **_STRIDED), (3, 4, 7, 6)),
        "conv2d (circular)": Instance(
            Conv2d(4, 3, padding=2, padding_mode="circular"), (3, 2, 5, 4)
        ),
    },
    timed={
        "conv2d": Timed(
            lambda shape: Conv2d(shape[1], 3, padding=1),
            ((32, 16, 32, 32), (16, 64, 16, 16)),
            (2, 8, 4, 4),
        )
    },
)
