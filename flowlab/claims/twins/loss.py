"""Twins of the losses, of outputs whose exponent is 0."""

import numpy as np

from flowlab.claims.twins.twin import SEEDS, Instance, twin
from flowlab.layers.loss import SoftmaxCrossEntropy, SquaredError

_ROWS, _CLASSES = 4, 3
_EXPONENT = np.zeros(SEEDS, int)
_LABEL = np.arange(SEEDS * _ROWS).reshape(SEEDS, _ROWS) % _CLASSES
_TARGET = np.linspace(-1, 1, SEEDS * _ROWS * _CLASSES).reshape(SEEDS, _ROWS, _CLASSES)


def _reduced(layer, terms):
    return terms.mean() if layer.reduction == "mean" else terms.sum()


def _cross_entropy(jax, layer, x, p):
    picked = jax.numpy.take_along_axis(jax.nn.log_softmax(x), p["label"][:, None], 1)
    return _reduced(layer, -picked)


twin(
    SoftmaxCrossEntropy,
    jax=_cross_entropy,
    torch=lambda torch, layer, x, p: torch.nn.functional.cross_entropy(
        x, p["label"], reduction=layer.reduction
    ),
    small={
        "softmax_cross_entropy": Instance(
            SoftmaxCrossEntropy(), (_ROWS, _CLASSES), {"label": _LABEL, "exponent": _EXPONENT}
        )
    },
)
twin(
    SquaredError,
    jax=lambda jax, layer, x, p: _reduced(layer, (x - p["target"]) ** 2),
    torch=lambda torch, layer, x, p: torch.nn.functional.mse_loss(
        x, p["target"], reduction=layer.reduction
    ),
    small={
        "squared_error": Instance(
            SquaredError(), (_ROWS, _CLASSES), {"target": _TARGET, "exponent": _EXPONENT}
        )
    },
)
