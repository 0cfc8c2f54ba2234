"""The linear layer Y = XW + b and its adjoint, the transpose."""

import math

import numpy as np

from flowlab.errors import InputError
from flowlab.kernel import ShapeError, jit, kernel
from flowlab.layer import Declaration, Parameter, Primitive
from flowlab.numerics.scale import exponent


@jit
def _rows(x):
    """(n, ..., features) as (rows, features): every position is a row."""
    return x.reshape(x.size // x.shape[-1], x.shape[-1])


@kernel("(n,...,i),(i,o),(o)->(n,...,o)")
def linear_forward(x, W, b, y):
    x, y = _rows(x), _rows(y)
    np.dot(x, W, y)
    for n in range(y.shape[0]):
        for o in range(y.shape[1]):
            y[n, o] += b[o]


@kernel("(n,...,i),(i,o),(n,...,o)->(n,...,i),(i,o),(o)")
def linear_pullback(x, W, dy, dx, dW, db):
    x, dy, dx = _rows(x), _rows(dy), _rows(dx)
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


@jit
def _scale(x, out, scale):
    for a in range(x.shape[0]):
        for b in range(x.shape[1]):
            out[a, b] = scale * x[a, b]


@kernel("(t,o)->()", reassociate=True)
def _column_sums(d, out, sums):
    sums[:] = 0
    for t in range(d.shape[0]):
        for o in range(d.shape[1]):
            sums[o] += d[t, o]
    out[0] = 0.0
    for o in range(sums.size):
        out[0] += sums[o] * sums[o]


@kernel("(a,b),(a,b)->()", reassociate=True)
def _inner(u, v, out):
    total = 0.0
    for a in range(u.shape[0]):
        for b in range(u.shape[1]):
            total += np.float64(u[a, b]) * v[a, b]
    out[0] = total


_sums, _product = _column_sums.single, _inner.single


@kernel("(n,t,i),(n,t,o)->(two)")
def tokens_example_norms(x, dy, out):
    """‖g_n‖² of g_n = X_nᵀ D_n: from g_n itself, or as Σ (x_t · x_t')(d_t · d_t') over t, t'.

    The second form costs t²(i + o) instead of t i o, but loses digits where g_n is small beside
    ‖X_n‖‖D_n‖. It is taken in float64 where it is cheaper so, and given up where it cancels.
    """
    (tokens, i), o = x.shape[1:], dy.shape[2]
    e_x, e_dy = exponent(x), exponent(dy)
    down_x, down_dy = math.ldexp(1.0, -e_x), math.ldexp(1.0, -e_dy)
    by_pairs = 2 * tokens * (i + o) < i * o
    weight = bias = 0.0
    one, sums = np.empty(1), np.empty(o)
    a, d = np.empty((tokens, i), x.dtype), np.empty((tokens, o), x.dtype)
    g = np.empty((i, o), x.dtype)
    if by_pairs:
        wide_a, wide_d = np.empty((tokens, i)), np.empty((tokens, o))
        pairs_a, pairs_d = np.empty((tokens, tokens)), np.empty((tokens, tokens))
    for n in range(x.shape[0]):
        _scale(x[n], a, down_x)
        _scale(dy[n], d, down_dy)
        _sums(d, one, sums)
        bias += one[0]
        if by_pairs:
            wide_a[:], wide_d[:] = a, d
            np.dot(wide_a, wide_a.T, pairs_a)
            np.dot(wide_d, wide_d.T, pairs_d)
            _product(pairs_a, pairs_d, one)
            if one[0] > 1e-4 * np.trace(pairs_a) * np.trace(pairs_d):
                weight += one[0]
                continue
        np.dot(a.T, d, g)
        _product(g, g, one)
        weight += one[0]
    out[0] = 0.5 * np.log2(weight) + e_x + e_dy
    out[1] = 0.5 * np.log2(bias) + e_dy


@kernel("(n,i),(n,o)->(two)")
def rows_example_norms(x, dy, out):
    _squares(x, dy, out, 1.0, 1.0)
    e_x = e_dy = 0
    if not (1e-280 < out[0] < 1e280 and 1e-280 < out[1] < 1e280):
        # Squares left float64's range, or the arrays are zero or not finite.
        e_x, e_dy = exponent(x), exponent(dy)
        _squares(x, dy, out, math.ldexp(1.0, -e_x), math.ldexp(1.0, -e_dy))
    out[0] = 0.5 * np.log2(out[0]) + e_x + e_dy
    out[1] = 0.5 * np.log2(out[1]) + e_dy


class ExampleNorms:
    """log2 √Σ_n ‖g_n‖² of W and b, with tokens of g_n = Σ_t x_nt dy_ntᵀ."""

    def run(self, x, dy, out):
        """Without checks, for X (seeds, n, ..., i) and dY (seeds, n, ..., o)."""
        if x.ndim == 3:
            rows_example_norms.run(x, dy, out)
        else:
            x, dy = (a.reshape(*a.shape[:2], -1, a.shape[-1]) for a in (x, dy))
            tokens_example_norms.run(x, dy, out)


class Linear(Primitive):
    """Y = XW + b with X (n, i), W (i, o), b (o); dX = dY Wᵀ, dW = Xᵀ dY, db = Σ_n dY.

    With more axes, X (n, ..., i), the map acts on the last and all positions share W and b; dW and
    db then sum over them too. ``factor`` scales the initial weights (0 starts a branch at zero, as
    in Fixup); ``name`` is the layer's in tables.

    Raises InputError for ``features`` below 1, ShapeError for an input with fewer than two axes.
    """

    name = "linear"
    homogeneous = True
    trainable = True
    forward_kernel, pullback_kernel = linear_forward, linear_pullback
    pullback_reads = ("x", "W")
    example_norms = ExampleNorms()

    def __init__(self, features: int, factor: float = 1.0, name: str | None = None):
        self.features, self.factor, self.name = features, factor, name or self.name
        if features < 1:
            raise InputError(f"{self.name}: features must be at least 1; got {features}")

    def shapes(self, shape):
        if len(shape) < 2:
            raise ShapeError(
                f"{self.name}: input must have axes (batch, ..., features); got shape {shape}"
            )
        i, o = shape[-1], self.features
        return Declaration(
            output=(*shape[:-1], o),
            parameters={
                "W": Parameter((i, o), fan_in=i, fan_out=o, factor=self.factor),
                "b": Parameter((o,), fan_in=i, fan_out=o, role="bias", factor=self.factor),
            },
        )

    def terms(self, tape, dy):
        if dy.ndim == 3:
            return None, None  # an example is one term
        out = np.empty((len(dy), 2))
        rows_example_norms.run(*(a.reshape(len(a), -1, a.shape[-1]) for a in (tape["x"], dy)), out)
        return None, out
