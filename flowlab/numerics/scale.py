"""Norms and arrays beside a power of two: what survives any depth.

Backpropagation is linear in the cotangent, so multiplying it by a power of two changes no bit of
its mantissa. Each network of an ensemble carries an integer exponent beside its cotangent (and
beside its activations where the chain is positively homogeneous), and norms are kept as logarithms.
"""

import math

import numpy as np

from flowlab.kernel import jit, kernel

LOG10_2 = math.log10(2.0)
# Rescale once the root mean square leaves 2^±16: float32 keeps entries 2^-110 below it.
_COMFORT = 16


@kernel("(...)->()", reassociate=True)
def _log2_norm(x, out):
    x = x.reshape(x.size)
    total = 0.0
    for i in range(x.size):
        v = np.float64(x[i])
        total += v * v
    if 1e-280 < total < 1e280:
        out[0] = 0.5 * np.log2(total)
        return
    # Squares left float64's range, or the array is zero or not finite: scale by the largest entry.
    top = 0.0
    for i in range(x.size):
        v = abs(np.float64(x[i]))
        if np.isnan(v):
            out[0] = np.nan
            return
        top = max(top, v)
    if top == 0.0 or np.isinf(top):
        out[0] = np.log2(top)
        return
    shift = math.frexp(top)[1]
    total = 0.0
    for i in range(x.size):
        v = math.ldexp(np.float64(x[i]), -shift)
        total += v * v
    out[0] = 0.5 * np.log2(total) + shift


log2_norm_single = _log2_norm.single


@kernel("(a),(b)->(two)")
def _log2_norms_of_two(a, b, out):
    log2_norm_single(a, out[0:1])
    log2_norm_single(b, out[1:2])


@kernel("(a),(b),(c)->(three)")
def _log2_norms_of_three(a, b, c, out):
    log2_norm_single(a, out[0:1])
    log2_norm_single(b, out[1:2])
    log2_norm_single(c, out[2:3])


@kernel("(a),(b),(c),(d)->(four)")
def _log2_norms_of_four(a, b, c, d, out):
    log2_norm_single(a, out[0:1])
    log2_norm_single(b, out[1:2])
    log2_norm_single(c, out[2:3])
    log2_norm_single(d, out[3:4])


def log2_norm(x: np.ndarray) -> np.ndarray:
    """log2 of the Frobenius norm of each network's array: (seeds, ...) -> (seeds,), float64.

    Accumulated in float64 and scaled where squares would leave its range: -inf is an exact zero,
    +inf and NaN mean that the array holds such values.
    """
    out = np.empty(x.shape[0])
    _log2_norm.run(x if x.ndim > 1 else x.reshape(-1, 1), out)
    return out


def log2_norms(*arrays: np.ndarray) -> np.ndarray:
    """``log2_norm`` of two or more arrays, (seeds, arrays): in one pass of up to four."""
    out = np.empty((len(arrays[0]), len(arrays)))
    if len(arrays) > 4:
        return np.stack([log2_norm(array) for array in arrays], axis=1)
    together = (_log2_norms_of_two, _log2_norms_of_three, _log2_norms_of_four)[len(arrays) - 2]
    together.run(*(x if x.ndim > 1 else x.reshape(-1, 1) for x in arrays), out)
    return out


@jit
def exponent(a):
    """The binary exponent of an array's largest |element|, within ±1000; 0 for zeros and beyond.

    For use inside kernels: scaled down by it, squares stay within the float range.
    """
    largest = 0.0
    for value in a.reshape(a.size):
        largest = max(largest, abs(value))
    return min(max(math.frexp(largest)[1], -1000), 1000) if 0 < largest < math.inf else 0


@kernel("()->(...)")
def _shift(exponent, x, sign):
    x = x.reshape(x.size)
    if exponent != 0:
        factor = math.ldexp(1.0, min(max(sign * exponent, -1000), 1000))
        for i in range(x.size):
            x[i] = factor * x[i]


def shift(x: np.ndarray, exponent: np.ndarray, sign: int = 1) -> None:
    """Multiply each network's array by 2^(sign exponent), in place; beyond ±1000 it saturates."""
    _shift.run(exponent, x if x.ndim > 1 else x.reshape(-1, 1), sign)


@kernel("(),(...)->(...)")
def _shifted(exponent, x, y, sign):
    x, y = x.reshape(x.size), y.reshape(y.size)
    factor = math.ldexp(1.0, min(max(sign * exponent, -1000), 1000))
    for i in range(x.size):
        y[i] = factor * x[i]


def shifted(x: np.ndarray, exponent: np.ndarray, out: np.ndarray, sign: int = 1) -> None:
    """Write what :func:`shift` would make of ``x`` to ``out``."""
    x, out = (a if a.ndim > 1 else a.reshape(-1, 1) for a in (x, out))
    _shifted.run(exponent, x, out, sign)


@kernel("(),()->(...),()")
def _renormalise(log2_norm, exponent, x, moved, comfort):
    rms = log2_norm - 0.5 * np.log2(x.size)
    moved[0] = exponent
    if np.isfinite(rms) and abs(rms) > comfort:
        k = np.int64(math.floor(rms))
        moved[0] = exponent + k
        x = x.reshape(x.size)
        factor = math.ldexp(1.0, min(max(-k, -1000), 1000))
        for i in range(x.size):
            x[i] = factor * x[i]


def renormalise(
    x: np.ndarray,
    log2_norms: np.ndarray,
    exponent: np.ndarray | None = None,
    comfort: float | None = None,
) -> np.ndarray:
    """Bring arrays whose root mean square left 2^±``comfort`` (16) back to about 1, in place.

    Returns ``exponent`` (seeds,) (by default 0) raised such that old x 2^exponent is new x
    2^returned; zero and non-finite arrays are left alone.
    """
    moved = np.empty(len(x), np.int64)
    exponent = np.zeros(len(x), np.int64) if exponent is None else exponent
    _renormalise.run(log2_norms, exponent, x, moved, float(comfort or _COMFORT))
    return moved
