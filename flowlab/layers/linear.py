"""The linear layer Y = XW + b and its adjoint, the transpose."""

import math

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


@kernel("(n,i),(n,o)->(two)", reassociate=True)
def _example_squares(x, dy, out, scale_x, scale_dy):
    weight = bias = 0.0
    for n in range(x.shape[0]):
        xx = dd = 0.0
        for i in range(x.shape[1]):
            v = scale_x * x[n, i]
            xx += v * v
        for o in range(dy.shape[1]):
            v = scale_dy * dy[n, o]
            dd += v * v
        weight += xx * dd
        bias += dd
    out[0], out[1] = weight, bias


_squares = _example_squares.single


@kernel("(n,i),(n,o)->(two)")
def linear_example_norms(x, dy, out):
    _squares(x, dy, out, 1.0, 1.0)
    e_x = e_dy = 0
    if not (1e-280 < out[0] < 1e280 and 1e-280 < out[1] < 1e280):
        # Squares left float64's range, or the arrays are zero or not finite.
        e_x = min(max(math.frexp(np.abs(x).max())[1], -1000), 1000)
        e_dy = min(max(math.frexp(np.abs(dy).max())[1], -1000), 1000)
        _squares(x, dy, out, math.ldexp(1.0, -e_x), math.ldexp(1.0, -e_dy))
    out[0] = 0.5 * np.log2(out[0]) + e_x + e_dy
    out[1] = 0.5 * np.log2(out[1]) + e_dy


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
    example_norms = linear_example_norms  # of x_n dy_nᵀ and of dy_n

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
