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
def tanh(x):
    """tanh in float64: a Taylor series of x near zero, where 1 - e^(-2|x|) would cancel."""
    a = abs(x)
    e = exp(-2.0 * a)
    far = (1.0 - e) / (1.0 + e)
    s = min(a, 0.25) ** 2
    # Continued fraction x/(1 + x^2/(3 + x^2/(5 + ...))), exact to 1e-17 for |x| <= 0.25.
    near = a / (1.0 + s / (3.0 + s / (5.0 + s / (7.0 + s / (9.0 + s / 11.0)))))
    return math.copysign(near if a < 0.25 else far, x)


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
def expm1(x):
    """e^x - 1 in float64, accurate near zero."""
    t = tanh(0.5 * min(max(x, -1.0), 1.0))
    return 2.0 * t / (1.0 - t) if abs(x) < 1.0 else exp(x) - 1.0
