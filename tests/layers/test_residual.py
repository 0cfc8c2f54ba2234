"""Residual nets, down to their loss, against JAX and PyTorch."""

import numpy as np
import pytest

from flowlab.layer import Chain
from flowlab.layers import (
    Activation,
    Linear,
    Residual,
    Scale,
    SoftmaxCrossEntropy,
    SquaredError,
)

SEEDS, BATCH, INPUTS, WIDTH, CLASSES = 2, 6, 4, 5, 3
LABEL = np.random.default_rng(5).integers(0, CLASSES, (SEEDS, BATCH))
TARGET = np.random.default_rng(6).standard_normal((SEEDS, BATCH, CLASSES))
ZERO = np.zeros(SEEDS, int)


def block(branch):
    return [Linear(WIDTH), Activation("relu"), branch, Linear(CLASSES)]


NETS = {
    "plain": [
        Linear(WIDTH),
        Activation("tanh"),
        Linear(WIDTH),
        Activation("gelu"),
        Linear(CLASSES),
    ],
    "residual": block(Residual(Chain([Linear(WIDTH), Activation("silu")]))),
    "scaled": block(Residual(Chain([Linear(7), Activation("selu"), Linear(WIDTH)]), 0.3, 0.5**0.5)),
    "rezero": block(Residual(Chain([Activation("softplus"), Linear(WIDTH), Scale()]), a=-1.5)),
    "nested": block(Residual(Chain([Residual(Linear(WIDTH), 0.1), Activation("erf")]), s=0.9)),
}
LOSSES = {
    "softmax_cross_entropy": (SoftmaxCrossEntropy, {"label": LABEL}),
    "squared_error": (SquaredError, {"target": TARGET}),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", NETS)
def test_against_frameworks(apart, name, loss, reduction):
    kind, data = LOSSES[loss]
    net = Chain([*NETS[name], kind(reduction)])
    at = len(NETS[name])
    data = {f"{at}.{key}": value for key, value in {**data, "exponent": ZERO}.items()}
    assert apart(net, (BATCH, INPUTS), data) < 1e-12
