"""Twins of the normalizations."""

import numpy as np

from flowlab.claims.twins.twin import SEEDS, Instance, Timed, twin
from flowlab.layers.normalization import BatchNorm, GroupNorm, LayerNorm, RMSNorm

_IMAGES = ((32, 16, 32, 32), (16, 64, 16, 16))
_TOKENS = ((16, 32, 128), (8, 128, 256))


def along_features(layer, x, a):
    """(features,) as it is multiplied with x."""
    last = isinstance(layer, (LayerNorm, RMSNorm)) or getattr(layer, "channels_last", False)
    return a if last else a.reshape(-1, *[1] * (x.ndim - 2))


def statistics(jax, layer, x, p):
    """(shape, μ, 1/σ) of a normalization, for x in that shape."""
    shape = x.shape
    if isinstance(layer, BatchNorm) and not layer.training:
        mean, variance = (along_features(layer, x, p[name]) for name in ("mean", "variance"))
        return shape, mean, jax.lax.rsqrt(variance + layer.eps)
    if isinstance(layer, BatchNorm):
        features = x.ndim - 1 if layer.channels_last else 1
        axes = tuple(k for k in range(x.ndim) if k != features)
    elif isinstance(layer, GroupNorm):
        shape, axes = (len(x), layer.groups, -1), 2
    else:
        axes = -1
    grouped = x.reshape(shape)
    centred = not isinstance(layer, RMSNorm) and getattr(layer, "centred", True)
    mean = grouped.mean(axes, keepdims=True) if centred else 0.0
    square = ((grouped - mean) ** 2).mean(axes, keepdims=True)
    return shape, mean, jax.lax.rsqrt(square + layer.eps)


def _in_jax(jax, layer, x, p):
    shape, mean, inverse = statistics(jax, layer, x, p)
    y = ((x.reshape(shape) - mean) * inverse).reshape(x.shape)
    y = along_features(layer, x, p["gain"]) * y
    return y + along_features(layer, x, p["bias"]) if "bias" in p else y


def _batch_norm(torch, layer, x, p):
    z = x.movedim(-1, 1) if layer.channels_last else x
    given = (p.get("mean"), p.get("variance"), p["gain"], p["bias"])
    y = torch.nn.functional.batch_norm(z, *given, layer.training, eps=layer.eps)
    return y.movedim(1, -1) if layer.channels_last else y


def _group_norm(torch, layer, x, p):
    if layer.centred:
        normalize = torch.nn.functional.group_norm
        return normalize(x, layer.groups, p["gain"], p["bias"], layer.eps)
    grouped = x.reshape(len(x), layer.groups, -1)
    y = torch.nn.functional.rms_norm(grouped, grouped.shape[-1:], eps=layer.eps)
    return along_features(layer, x, p["gain"]) * y.reshape(x.shape)


def _layer_norms(torch, layer, x, p):
    gain, bias = (p[name].view(len(x), *[1] * (x.dim() - 2), -1) for name in ("gain", "bias"))
    normalized = torch.nn.functional.layer_norm(x, x.shape[-1:], eps=layer.eps)
    return torch.addcmul(bias, normalized, gain)


def _rms_norms(torch, layer, x, p):
    gain = p["gain"].view(len(x), *[1] * (x.dim() - 2), -1)
    return torch.nn.functional.rms_norm(x, x.shape[-1:], eps=layer.eps) * gain


twin(
    BatchNorm,
    jax=_in_jax,
    torch=_batch_norm,
    small={
        "batch_norm": Instance(BatchNorm(), (4, 3, 2)),
        "batch_norm (eval)": Instance(
            BatchNorm(training=False),
            (4, 3),
            {
                "mean": np.linspace(-1, 1, 3 * SEEDS).reshape(SEEDS, 3),
                "variance": np.linspace(0.5, 2, 3 * SEEDS).reshape(SEEDS, 3),
            },
        ),
        "batch_norm (channels last)": Instance(BatchNorm(channels_last=True), (3, 5, 6)),
    },
    timed={"batch norm": Timed(lambda shape: BatchNorm(), _IMAGES, (2, 16, 4, 4))},
)
twin(
    LayerNorm,
    jax=_in_jax,
    torch=lambda torch, layer, x, p: torch.nn.functional.layer_norm(
        x, x.shape[-1:], p["gain"], p["bias"], layer.eps
    ),
    ensemble=_layer_norms,
    small={"layer_norm": Instance(LayerNorm(), (4, 3))},
    timed={"layer norm": Timed(lambda shape: LayerNorm(), _TOKENS, (2, 3, 8))},
)
twin(
    RMSNorm,
    jax=_in_jax,
    torch=lambda torch, layer, x, p: torch.nn.functional.rms_norm(
        x, x.shape[-1:], p["gain"], layer.eps
    ),
    ensemble=_rms_norms,
    small={"rms_norm": Instance(RMSNorm(), (4, 3))},
    timed={"rms norm": Timed(lambda shape: RMSNorm(), _TOKENS, (2, 3, 8))},
)
twin(
    GroupNorm,
    jax=_in_jax,
    torch=_group_norm,
    small={
        "group_norm": Instance(GroupNorm(2), (4, 4, 3)),
        "group_norm (not centred)": Instance(GroupNorm(2, centred=False), (4, 4, 3)),
    },
    timed={"group norm": Timed(lambda shape: GroupNorm(8), _IMAGES, (2, 16, 4, 4))},
)
