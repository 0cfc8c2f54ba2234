"""Elementary functions without branches or library calls, so that LLVM turns loops into SIMD.

One formula serves float32 and float64: it computes in its argument's type, with that type's
constants, to a few units in the last place, subnormal results to one or two units (tests compare
with wider types).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numba import njit
from numba.extending import overload

from flowlab.kernel import OPTIONS

_OPTIONS = {**OPTIONS, "fastmath": {"contract"}, "forceinline": True}
_jit = njit(**_OPTIONS)
_IN_KERNELS = {**_OPTIONS, "no_cpython_wrapper": True}


# --- what depends on the type ---------------------------------------------------------------------


def _by_type(single: Callable, double: Callable) -> Callable:
    """A function for use inside kernels that is ``single`` for 32 bits and ``double`` for 64."""

    def function(x):
        return single(x) if x.itemsize == 4 else double(x)

    overload(function, jit_options=_IN_KERNELS)(lambda x: single if x.bitwidth == 32 else double)
    return function


def _polynomial(single: tuple[float, ...], double: tuple[float, ...]) -> Callable:
    """The polynomial with these coefficients, the constant first, by Horner's scheme."""

    def horner(coefficients, real):
        terms = tuple(map(real, coefficients))
        text = f"c[{len(terms) - 1}]"
        for k in reversed(range(len(terms) - 1)):
            text = f"({text} * x + c[{k}])"
        return eval(f"lambda x: {text}", {"c": terms})

    return _by_type(horner(single, np.float32), horner(double, np.float64))


class _Format(NamedTuple):
    """What the formulas below need to know of a floating-point type."""

    log2_e: float
    ln2_high: float  # so short that its products with exponents are exact
    ln2_low: float
    round: float  # to whole numbers: added to one it leaves its sum with the bias in the low bits
    coarse: float  # added and subtracted it leaves of x <= gaussian_limit what has an exact square
    limit: float  # where half the exponent is the bias: its power of two comes out as 0
    gaussian_limit: float  # its square is beyond twice that
    deep: float  # e^-deep/2 is still normal
    highest: float  # e^highest is infinite, e^highest/2 is not


_LOG2_E, _LN2 = 1.0 / math.log(2.0), math.log(2.0)
_HIGH = float.fromhex("0x1.62ep-1"), float.fromhex("0x1.62e42fee00000p-1")
_LOW = _LN2 - _HIGH[0], float.fromhex("0x1.a39ef35793c76p-33")
_ROUND = 1.5 * 2.0**23 + 127, 1.5 * 2.0**52 + 1023
_LIMITS = (176.1, 19.0, 86.0, 89.0), (1418.3, 54.0, 700.0, 710.0)
_SINGLE = _Format(
    *map(np.float32, (_LOG2_E, _HIGH[0], _LOW[0], _ROUND[0], 1.5 * 2.0**16, *_LIMITS[0]))
)
_DOUBLE = _Format(_LOG2_E, _HIGH[1], _LOW[1], _ROUND[1], 1.5 * 2.0**32, *_LIMITS[1])
_format = _by_type(lambda x: _SINGLE, lambda x: _DOUBLE)
# The number whose exponent is the low bits of x. Numba knows ``view`` of NumPy's scalars alone.
_with_exponent = _by_type(
    lambda x: np.int32(np.float32(x).view(np.int32) << np.int32(23)).view(np.float32),
    lambda x: np.int64(np.float64(x).view(np.int64) << 52).view(np.float64),
)

# The polynomials for float32 are least maximum fits (Lawson's reweighted least squares) to
# relative errors below 1.5e-8, a quarter of a rounding; those for float64 are series.

# (e^r - 1 - r)/r^2 on |r| <= ln(2)/2, for float64 Taylor's.
_exp_tail = _polynomial(
    (0.5, 0.16666537523269653, 0.041666265577077866, 0.008367239497601986, 0.0013947582338005304),
    tuple(1.0 / math.factorial(k) for k in range(2, 14)),
)
# (artanh(s)/s - 1)/s^2 in s^2 <= 1/9, for float64 Taylor's.
_artanh_tail = _polynomial(
    (0.3333320617675781, 0.20010849833488464, 0.13999569416046143, 0.14012232422828674),
    tuple(1.0 / (2 * k + 1) for k in range(1, 17)),
)
# (x + 3) erfcx(x) in u = (x - 3)/(x + 3), x >= 0, for float64 the Chebyshev series up to u^24.
_ERFCX_CENTRE = 3.0
_scaled_erfcx = _polynomial(
    (
        *(1.0740069150924683, -0.8833943009376526, 0.5902284383773804, -0.3104710578918457),
        *(0.11952856928110123, -0.02680409885942936, -0.0012215548194944859),
        *(0.0029765963554382324, -0.000520531611982733, -0.0002123822196153924),
        7.300329161807895e-05,
    ),
    (
        *(1.0740069070883398, -0.8833944531698835, 0.5902283571041024, -0.3104672619005828),
        *(0.11952776128726794, -0.026827234624061495, -0.0012124166268536161),
        *(0.003034061996169926, -0.0005483096942890099, -0.000276777814703227),
        *(0.00010756149520007623, 3.0398054111246963e-05, -1.7470577973771975e-05),
        *(-4.749034282554021e-06, 2.7653889652749324e-06, 9.988263672511265e-07),
        *(-4.079488476331032e-07, -2.338631549037018e-07, 4.605062410216002e-08),
        *(5.11884259897973e-08, -9.770072513977841e-10, -8.695930470518457e-09),
        *(-9.801836616437262e-10, 8.11402666537712e-10, 1.6453365484873454e-10),
    ),
)


@_jit
def like(x, value):
    """The value in the type of x: a literal would turn float32 into float64."""
    return type(x)(value)


# --- exponentials ---------------------------------------------------------------------------------


@_jit
def _reduced(x, less):
    """(n, r, p) with e^(x - less) = 2^n e^r, |r| <= ln(2)/2 and e^r - 1 = (p + 1) r."""
    c = _format(x)
    n = ((x - less) * c.log2_e + c.round) - c.round
    r = ((x - n * c.ln2_high) - less) - n * c.ln2_low
    return n, r, _exp_tail(r) * r


@_jit
def _power(n):
    """2^n for a whole number n, where that is normal."""
    return _with_exponent(n + _format(n).round)


@_jit
def _exp(x, less, factor):
    """e^(x - less) factor, where less is far below 1."""
    c = _format(x)
    x = -c.limit if x < -c.limit else x  # a comparison with NaN fails, and NaN passes
    x = c.limit if x > c.limit else x
    n, r, p = _reduced(x, less)
    # 2^n in two factors, so that subnormal results and overflow come out right.
    half = (like(x, 0.5) * n + c.round) - c.round
    p = (p + like(x, 1)) * r + like(x, 1)
    return factor * p * _power(half) * _power(n - half)


@_jit
def exp(x):
    """e^x = 2^n e^r."""
    return _exp(x, like(x, 0), like(x, 1))


@_jit
def exp_times(x, factor):
    """e^x factor, rounded once where e^x is subnormal."""
    return _exp(x, like(x, 0), factor)


@_jit
def gaussian_times(x, square, factor):
    """e^(-square x^2) factor for a square of 1/2 or 1.

    With an exact square and the rest apart, since the exponent's rounding grows with x^2.
    """
    c = _format(x)
    x, square = clipped(x), like(x, square)
    upper = (x + c.coarse) - c.coarse
    return _exp(-square * upper * upper, square * (x - upper) * (x + upper), factor)


@_jit
def clipped(x):
    """|x|, at most a number where e^(-x^2/2) is 0."""
    c = _format(x)
    x = abs(x)
    return c.gaussian_limit if x > c.gaussian_limit else x


@_jit
def _half_expm1(x):
    """(e^x - 1)/2 for -deep <= x <= highest, as 2^(n-1) (e^r - 1) + (2^(n-1) - 1/2)."""
    n, r, p = _reduced(x, like(x, 0))
    scale = _power(n - like(x, 1))
    return (scale - like(x, 0.5)) + (p + like(x, 1)) * r * scale


@_jit
def expm1(x):
    """e^x - 1, accurate near zero."""
    c = _format(x)
    x = -c.deep if x < -c.deep else x
    x = c.highest if x > c.highest else x
    return like(x, 2) * _half_expm1(x)


# --- sigmoid functions ----------------------------------------------------------------------------


@_jit
def _minus_twice(x):
    """-2|x|, at least -deep."""
    c = _format(x)
    y = like(x, -2) * abs(x)
    return -c.deep if y < -c.deep else y


@_jit
def tanh(x):
    """tanh x = -(e^y - 1)/(e^y + 1) with y = -2|x|, so that nothing cancels."""
    h = _half_expm1(_minus_twice(x))
    return math.copysign(h / (like(x, 1) + h), x)


@_jit
def tanh_and_slope(x):
    """(tanh x, 1 - tanh^2 x), relatively right to a few ulp; a slope below 4 e^-deep is 0.

    That is 2e-37 in float32 and 4e-304 in float64.
    """
    y = _minus_twice(x)
    four = like(x, 4) if y > -_format(x).deep else like(x, 0)
    n, r, p = _reduced(y, like(x, 0))
    scale = _power(n)
    moved = (p + like(x, 1)) * r * scale
    less = (scale - like(x, 1)) + moved
    w = like(x, 1) / (like(x, 2) + less)
    return math.copysign(less * w, x), four * (scale + moved) * w * w


@_jit
def sech2_times(x, factor):
    """(1 - tanh^2 x) factor, with full relative accuracy in the tails."""
    y = like(x, -2) * abs(x)
    w = like(x, 2) / (like(x, 1) + exp(y))
    return exp_times(y, factor * w) * w


@_jit
def sigmoid_times(x, factor):
    """factor/(1 + e^-x), with full relative accuracy in both tails."""
    y = -abs(x)
    w = like(x, 1) / (like(x, 1) + exp(y))
    return (factor if x >= 0 else exp_times(y, factor)) * w


@_jit
def sigmoid(x):
    """1/(1 + e^-x), with full relative accuracy in both tails."""
    return sigmoid_times(x, like(x, 1))


@_jit
def sigmoid_slope_times(x, factor):
    """The sigmoid's derivative times factor, with full relative accuracy in the tails."""
    y = -abs(x)
    w = like(x, 1) / (like(x, 1) + exp(y))
    return exp_times(y, factor) * w * w


# --- others ---------------------------------------------------------------------------------------


@_jit
def log1p(x):
    """log(1 + x) for 0 <= x <= 1: the series of 2 artanh(s/2) with s/2 = x/(2 + x) <= 1/3."""
    s = x / (like(x, 1) + like(x, 0.5) * x)
    q = like(x, 0.25) * s * s
    return s * q * _artanh_tail(q) + s


@_jit
def erfcx(x):
    """e^(x^2) (1 - erf x) for x >= 0.

    Its product with x + 3 is a polynomial in (x - 3)/(x + 3), which is between -1 and 1 (as in
    Shepherd and Laframboise 1981, "Chebyshev approximation of (1 + 2x) exp(x^2) erfc x in
    0 <= x < inf"): one division.
    """
    inverse = like(x, 1) / (x + like(x, _ERFCX_CENTRE))
    return _scaled_erfcx(like(x, 1) - like(x, 2 * _ERFCX_CENTRE) * inverse) * inverse
