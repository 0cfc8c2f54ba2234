"""Elementary functions without branches or library calls, so that LLVM turns loops into SIMD.

Each is accurate to a few units in the last place of the type it computes in (tests compare with
multiple-precision values). Numba's cache does not see edits here from other files: run ``make
clean`` after a change.
"""

import math

import numpy as np

from flowlab.kernel import jit

_LOG2_E = 1.0 / math.log(2.0)
_LN2_HIGH = float.fromhex("0x1.62e42fee00000p-1")
_LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
# Adding 1.5 * 2^52 rounds a double to an integer and leaves that integer in the low bits.
_ROUND = 1.5 * 2.0**52
_ROUND_BITS = int(np.float64(_ROUND).view(np.int64))
_E = tuple(1.0 / math.factorial(k) for k in range(14))
_ARTANH = tuple(1.0 / (2 * k + 1) for k in range(17))
_ERFCX = (
    1.2375126308378275,
    -0.14024059858554697,
    0.0035854154854644293,
    0.0822767384901452,
    -0.10880393014174886,
    0.09230432116037748,
    -0.05869339858963677,
    0.028362277418956406,
    -0.009746579558029276,
    0.0017556258528952954,
    0.0002937136655913448,
    -0.0002901540805408417,
    5.164909889268241e-05,
    2.238423915508223e-05,
    -1.1444146237700524e-05,
    -9.73559896736775e-07,
    1.751637648849062e-06,
    -5.7218230603224086e-08,
    -2.5866850716155884e-07,
    2.3263508708859124e-08,
    3.8675334242222354e-08,
    -3.744210080962018e-09,
    -5.1739902140113095e-09,
    3.1114333809799254e-10,
    4.2514714447963895e-10,
)


@jit
def exp(x):
    """e^x in float64: e^x = 2^k e^r with |r| <= ln(2)/2 and a Taylor polynomial for e^r."""
    x = min(max(x, -1300.0), 1300.0) if x == x else x
    shifted = x * _LOG2_E + _ROUND
    k = np.float64(shifted).view(np.int64) - _ROUND_BITS
    n = shifted - _ROUND
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    p = _E[13]
    p = p * r + _E[12]
    p = p * r + _E[11]
    p = p * r + _E[10]
    p = p * r + _E[9]
    p = p * r + _E[8]
    p = p * r + _E[7]
    p = p * r + _E[6]
    p = p * r + _E[5]
    p = p * r + _E[4]
    p = p * r + _E[3]
    p = p * r + _E[2]
    p = p * r + 1.0
    p = p * r + 1.0
    # 2^k in two factors, so that subnormal results and overflow come out right.
    half = k >> 1
    first = np.int64((half + 1023) << 52).view(np.float64)
    second = np.int64((k - half + 1023) << 52).view(np.float64)
    return p * first * second


@jit
def _expm1_parts(x):
    """(k, m) with e^x = 2^k (1 + m) and m = e^r - 1 in full relative accuracy, -700 <= x <= 710."""
    shifted = x * _LOG2_E + _ROUND
    k = np.float64(shifted).view(np.int64) - _ROUND_BITS
    n = shifted - _ROUND
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    p = _E[13]
    p = p * r + _E[12]
    p = p * r + _E[11]
    p = p * r + _E[10]
    p = p * r + _E[9]
    p = p * r + _E[8]
    p = p * r + _E[7]
    p = p * r + _E[6]
    p = p * r + _E[5]
    p = p * r + _E[4]
    p = p * r + _E[3]
    p = p * r + _E[2]
    return k, (p * r + 1.0) * r


@jit
def _half_expm1(x):
    """(e^x - 1)/2 for -700 <= x <= 710, as 2^(k-1) (e^r - 1) + (2^(k-1) - 1/2)."""
    k, m = _expm1_parts(x)
    scale = np.int64((k + 1022) << 52).view(np.float64)
    return (scale - 0.5) + m * scale


@jit
def expm1(x):
    """e^x - 1 in float64, accurate near zero."""
    return 2.0 * _half_expm1(min(max(x, -700.0), 710.0) if x == x else x)


@jit
def tanh(x):
    """tanh in float64, as -(e^y - 1)/(e^y + 1) with y = -2|x|, so that nothing cancels."""
    h = _half_expm1(-2.0 * min(abs(x), 350.0) if x == x else x)
    return math.copysign(h / (1.0 + h), x)


@jit
def tanh_and_slope(x):
    """(tanh x, 1 - tanh^2 x), relatively right to a few ulp; the slope below 1e-303 is constant."""
    k, m = _expm1_parts(-2.0 * min(abs(x), 350.0) if x == x else x)
    scale = np.int64((k + 1023) << 52).view(np.float64)
    moved = m * scale
    less = (scale - 1.0) + moved
    w = 1.0 / (2.0 + less)
    return math.copysign(less * w, x), 4.0 * (scale + moved) * w * w


@jit
def sech2(x):
    """1 - tanh^2 in float64, with full relative accuracy in the tails."""
    e = exp(-2.0 * abs(x))
    return 4.0 * e / ((1.0 + e) * (1.0 + e))


@jit
def sigmoid(x):
    """1/(1 + e^-x) in float64, with full relative accuracy in both tails."""
    e = exp(-abs(x))
    return (1.0 if x >= 0.0 else e) / (1.0 + e)


@jit
def sigmoid_slope(x):
    """The derivative of the sigmoid in float64, with full relative accuracy in the tails."""
    e = exp(-abs(x))
    return e / ((1.0 + e) * (1.0 + e))


@jit
def log1p(x):
    """log(1 + x) in float64 for 0 <= x <= 1: the series of 2 artanh s with s = x/(2 + x) <= 1/3."""
    s = x / (2.0 + x)
    q = s * s
    p = _ARTANH[16]
    p = p * q + _ARTANH[15]
    p = p * q + _ARTANH[14]
    p = p * q + _ARTANH[13]
    p = p * q + _ARTANH[12]
    p = p * q + _ARTANH[11]
    p = p * q + _ARTANH[10]
    p = p * q + _ARTANH[9]
    p = p * q + _ARTANH[8]
    p = p * q + _ARTANH[7]
    p = p * q + _ARTANH[6]
    p = p * q + _ARTANH[5]
    p = p * q + _ARTANH[4]
    p = p * q + _ARTANH[3]
    p = p * q + _ARTANH[2]
    p = p * q + _ARTANH[1]
    return 2.0 * (s * q * p + s)


@jit
def erfcx(x):
    """e^(x^2) (1 - erf x) in float64 for x >= 0.

    Its product with 1 + 2x is a polynomial in (x - 3.75)/(x + 3.75) (Shepherd and Laframboise 1981,
    "Chebyshev approximation of (1 + 2x) exp(x^2) erfc x in 0 <= x < inf").
    """
    u = 1.0 - 7.5 / (x + 3.75)
    p = _ERFCX[24]
    p = p * u + _ERFCX[23]
    p = p * u + _ERFCX[22]
    p = p * u + _ERFCX[21]
    p = p * u + _ERFCX[20]
    p = p * u + _ERFCX[19]
    p = p * u + _ERFCX[18]
    p = p * u + _ERFCX[17]
    p = p * u + _ERFCX[16]
    p = p * u + _ERFCX[15]
    p = p * u + _ERFCX[14]
    p = p * u + _ERFCX[13]
    p = p * u + _ERFCX[12]
    p = p * u + _ERFCX[11]
    p = p * u + _ERFCX[10]
    p = p * u + _ERFCX[9]
    p = p * u + _ERFCX[8]
    p = p * u + _ERFCX[7]
    p = p * u + _ERFCX[6]
    p = p * u + _ERFCX[5]
    p = p * u + _ERFCX[4]
    p = p * u + _ERFCX[3]
    p = p * u + _ERFCX[2]
    p = p * u + _ERFCX[1]
    p = p * u + _ERFCX[0]
    return p / (1.0 + 2.0 * x)
