"""The linear layer Y = XW + b and its adjoint, the transpose."""

import numpy as np

from flowlab.errors import InputError
from flowlab.kernel import ShapeError, kernel
from flowlab.layer import Declaration, Parameter, Primitive


@kernel("(n,i),(i,o),(o)->(n,o)")
def linear_forward(x, W, b, y):
    np.dot(x, W, y)
    for n in range(y.shape[0]):
        for o in range(y.shape[1]):
            y[n, o] += b[o]


@kernel("(n,i),(i,o),(n,o)->(n,i),(i,o),(o)")
def linear_pullback(x, W, dy, dx, dW, db):
    np.dot(dy, W.T, dx)
    np.dot(x.T, dy, dW)
    for o in range(db.size):
        db[o] = 0
    for n in range(dy.shape[0]):
        for o in range(db.size):
            db[o] += dy[n, o]


class Linear(Primitive):
    """Y = XW + b with X (n, i), W (i, o), b (o); dX = dY Wᵀ, dW = Xᵀ dY, db = Σ_n dY.

    Raises InputError for ``features`` below 1, ShapeError for an input that has not two axes.
    ``factor`` scales the initial weights (0 starts a branch at zero, as in Fixup).
    """

    name = "linear"
    homogeneous = True
    trainable = True
    forward_kernel, pullback_kernel = linear_forward, linear_pullback
    pullback_reads = ("x", "W")

    def __init__(self, features: int, factor: float = 1.0):
        if features < 1:
            raise InputError(f"linear: features must be at least 1; got {features}")
        self.features, self.factor = features, factor

    def shapes(self, shape):
        if len(shape) != 2:
            raise ShapeError(f"linear: input must have axes (batch, features); got shape {shape}")
        n, i = shape
        o = self.features
        return Declaration(
            output=(n, o),
            parameters={
                "W": Parameter((i, o), fan_in=i, fan_out=o, factor=self.factor),
                "b": Parameter((o,), fan_in=i, fan_out=o, role="bias", factor=self.factor),
            },
        )
