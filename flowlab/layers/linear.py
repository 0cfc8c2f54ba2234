"""The linear layer Y = XW + b and its adjoint, the transpose."""

import math

import numpy as np

from flowlab.errors import InputError
from flowlab.kernel import ShapeError, jit, kernel
from flowlab.layer import Declaration, Measured, Parameter, Primitive
from flowlab.numerics.scale import exponent, log2_norm_single


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


# Rows of a tile of XXᵀ and DDᵀ: four of its float32 arrays fit a core's first cache.
TILE = 64
# Where ‖dW‖² is a smaller share of Σ‖g_n‖², its terms cancel, and dW itself is made.
_CANCELS = 1e-2


def _by_pairs(n: int, i: int, o: int) -> bool:
    """Is ‖XᵀD‖ sooner had from XXᵀ and DDᵀ than from XᵀD?"""
    tiles = -(-n // TILE)
    return 1.3 * n * n * (i + o) * (tiles + 1) / (2 * tiles) < n * i * o


@kernel("(n,i),(n,o)->(),(tile),(tile)", reassociate=True)
def sum_over_pairs(x, dy, out, tile_x, tile_dy):
    """Σ (x_n · x_m)(d_n · d_m) over all pairs, which is ‖XᵀD‖²."""
    total = 0.0
    for first in range(0, x.shape[0], TILE):
        rows = min(TILE, x.shape[0] - first)
        for second in range(first, x.shape[0], TILE):
            columns = min(TILE, x.shape[0] - second)
            u = tile_x[: rows * columns].reshape(rows, columns)
            v = tile_dy[: rows * columns].reshape(rows, columns)
            np.dot(x[first : first + rows], x[second : second + columns].T, u)
            np.dot(dy[first : first + rows], dy[second : second + columns].T, v)
            _product(u, v, out)
            total += out[0] if first == second else 2 * out[0]
    out[0] = total


@kernel("(n,i),(n,o),(n,i)->(five),(o)", reassociate=True)
def _row_sums(x, dy, dx, out, db):
    """‖X‖², ‖dY‖², ‖dX‖² and Σ ‖x_n‖² ‖d_n‖², and db with its ‖db‖²."""
    of_x = of_dy = of_dx = of_examples = 0.0
    db[:] = 0
    for n in range(x.shape[0]):
        xx = dd = 0.0
        for o in range(dy.shape[1]):
            v = np.float64(dy[n, o])
            db[o] += dy[n, o]
            dd += v * v
        for i in range(x.shape[1]):
            v, w = np.float64(x[n, i]), np.float64(dx[n, i])
            xx += v * v
            of_dx += w * w
        of_x += xx
        of_dy += dd
        of_examples += xx * dd
    of_db = 0.0
    for o in range(db.size):
        of_db += np.float64(db[o]) * db[o]
    out[0], out[1], out[2], out[3], out[4] = of_x, of_dy, of_dx, of_examples, of_db


_rows_of, _rows_examples = _row_sums.single, rows_example_norms.single


@kernel("(n,o),(i,o)->(n,i)")
def input_cotangent(dy, W, dx):
    np.dot(dy, W.T, dx)


@kernel("(n,i),(n,o),(n,i),()->(four),(two),(i,o),(o),(five)")
def linear_norms(x, dy, dx, over_pairs, norms, examples, dW, db, sums, summed, made):
    """log2 norms of dY, dX, dW and db, and those of the examples' own gradients.

    ``over_pairs`` is ‖dW‖² if it was ``summed``; dW is made where it is needed and was not
    ``made`` yet.
    """
    _rows_of(x, dy, dx, sums, db)
    of_x, of_dy, of_dx, of_examples, of_db = sums[0], sums[1], sums[2], sums[3], sums[4]
    of_dW = 0.0
    if summed and min(of_x, of_dy) > 1e-30 and max(of_x, of_dy) < 1e30:
        of_dW = over_pairs  # of products within the range of float32
    if not of_dW > _CANCELS * of_examples:
        if not made:
            np.dot(x.T, dy, dW)
        made = True
        _product(dW, dW, sums[:1])
        of_dW = sums[0]
    lowest = min(of_dy, of_dx, of_dW, of_db, of_examples)
    highest = max(of_dy, of_dx, of_dW, of_db, of_examples)
    if lowest > 1e-280 and highest < 1e280:
        norms[0], norms[1] = 0.5 * np.log2(of_dy), 0.5 * np.log2(of_dx)
        norms[2], norms[3] = 0.5 * np.log2(of_dW), 0.5 * np.log2(of_db)
        examples[0], examples[1] = 0.5 * np.log2(of_examples), norms[0]
        return
    # Squares left float64's range, or an array is zero or not finite.
    if not made:
        np.dot(x.T, dy, dW)
    for k in range(4):  # one call, so that it is compiled once
        a = dW.reshape(dW.size) if k == 2 else db
        if k < 2:
            a = dx.reshape(dx.size) if k else dy.reshape(dy.size)
        log2_norm_single(a, norms[k : k + 1])
    _rows_examples(x, dy, examples)


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

    def pull_measured(self, dy, tape, dx, workspace):
        if dy.ndim != 3:
            return None
        input_cotangent.run(dy, tape["W"], dx)
        scratch = [workspace.take(tape[name].shape, dy.dtype) for name in ("W", "b")]
        measured = self._norms(tape["x"], dy, dx, *scratch, made=False)
        for array in scratch:
            workspace.give(array)
        return measured

    def measured(self, tape, dy, dx, gradients):
        if dy.ndim != 3:
            return super().measured(tape, dy, dx, gradients)
        return self._norms(tape["x"], dy, dx, *gradients.values(), made=True)

    def _norms(self, x, dy, dx, dW, db, made):
        """Where the batch is small beside the width, ‖dW‖ comes from XXᵀ and DDᵀ."""
        seeds, n, i = x.shape
        norms, examples, sums = (np.empty((seeds, k)) for k in (4, 2, 5))
        over_pairs, summed = np.empty(seeds), _by_pairs(n, i, dy.shape[2])
        if summed:
            tiles = [np.empty((seeds, min(n, TILE) ** 2), x.dtype) for _ in range(2)]
            sum_over_pairs.run(x, dy, over_pairs, *tiles)
        linear_norms.run(x, dy, dx, over_pairs, norms, examples, dW, db, sums, summed, made)
        return Measured(norms, examples, (), ())

    def terms(self, tape, dy):
        if dy.ndim == 3:
            return None, None  # an example is one term
        out = np.empty((len(dy), 2))
        rows_example_norms.run(*(a.reshape(len(a), -1, a.shape[-1]) for a in (tape["x"], dy)), out)
        return None, out
