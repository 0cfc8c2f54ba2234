"""Elementary functions in both types against NumPy's long double over the whole range."""

import numpy as np
import pytest
from numba import njit
from scipy import special

from flowlab.numerics.elementary import (
    erfcx,
    exp,
    exp_times,
    expm1,
    gaussian_times,
    log1p,
    sech2_times,
    sigmoid,
    sigmoid_slope_times,
    sigmoid_times,
    tanh,
    tanh_and_slope,
)

LONG = np.longdouble
# 64 bits of mantissa resolve a double's last place; where long double is double, NumPy's own
# error of an ulp is added.
ALLOWANCE = 0 if np.finfo(LONG).nmant > 60 else 2
MAGNITUDES = np.concatenate([np.geomspace(5e-324, 1e-3, 300), np.geomspace(1e-3, 760, 6000)])
POINTS = np.concatenate([-MAGNITUDES, MAGNITUDES, np.linspace(-2, 2, 4001)])
_single = POINTS[(np.abs(POINTS) < 120)].astype(np.float32)
_subnormal = np.geomspace(1e-45, 1e-37, 200).astype(np.float32)
ALL = {np.float64: POINTS, np.float32: np.concatenate([_single, _subnormal, -_subnormal])}
both = pytest.mark.parametrize("real", ALL)


def _exp(x):
    return np.exp(x)


def _sech2(x):
    e = np.exp(-2 * np.abs(x))
    return 4 * e / (1 + e) ** 2


def _sigmoid(x):
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, e) / (1 + e)


def _sigmoid_slope(x):
    e = np.exp(-np.abs(x))
    return e / (1 + e) ** 2


# oracle, bound in ulp, values at -inf and inf
FUNCTIONS = {
    "exp": (_exp, 2, 0.0, np.inf),
    "tanh": (np.tanh, 4, -1.0, 1.0),
    "sech2": (_sech2, 5, 0.0, 0.0),
    "sigmoid": (_sigmoid, 4, 0.0, 1.0),
    "sigmoid_slope": (_sigmoid_slope, 5, 0.0, 0.0),
    "expm1": (np.expm1, 8, -1.0, np.inf),
}


@njit
def all_of(x):
    out = np.empty((6, x.size), x.dtype)
    one = x.dtype.type(1)
    for i in range(x.size):
        v = x[i]
        out[0, i], out[1, i], out[2, i] = exp(v), tanh(v), sech2_times(v, one)
        out[3, i], out[4, i], out[5, i] = sigmoid(v), sigmoid_slope_times(v, one), expm1(v)
    return out


def mapped(name, x):
    return all_of(x)[list(FUNCTIONS).index(name)]


def ulps(received, exact):
    """The error in units of the last place of the received type."""
    kept = received.dtype.type
    with np.errstate(over="ignore", under="ignore"):
        expected = exact.astype(kept)
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(received[~finite], expected[~finite])
    unit = np.maximum(np.spacing(np.abs(expected[finite])), np.finfo(kept).smallest_subnormal)
    return np.abs(received[finite].astype(LONG) - exact[finite]) / unit.astype(LONG)


@both
@pytest.mark.parametrize("name", FUNCTIONS)
def test_within_a_few_ulp(name, real):
    oracle, bound, _, _ = FUNCTIONS[name]
    with np.errstate(over="ignore", under="ignore"):
        exact = oracle(ALL[real].astype(LONG))
    received = mapped(name, ALL[real])
    assert received.dtype == real
    assert ulps(received, exact).max() <= bound + ALLOWANCE


@both
@pytest.mark.parametrize("name", FUNCTIONS)
def test_infinities_zero_and_nan(name, real):
    oracle, _, at_minus, at_plus = FUNCTIONS[name]
    points = np.array([-np.inf, np.inf, 0, -0.0, np.nan], real)
    low, high, zero, minus_zero, nan = mapped(name, points)
    assert (low, high) == (at_minus, at_plus)
    assert zero == minus_zero == oracle(np.float64(0))
    assert np.isnan(nan)


def test_subnormal_results_and_overflow():
    x = np.array([-745.0, -744.4400719213812, -708.5, -745.2, 709.78271289338397, 709.8, 1e300])
    with np.errstate(over="ignore", under="ignore"):
        expected = np.exp(x)
    received = mapped("exp", x)
    assert expected[0] == 5e-324 and expected[3] == 0
    subnormal = slice(0, 4)
    assert np.all(np.abs(received[subnormal] - expected[subnormal]) <= 2 * 5e-324)
    np.testing.assert_allclose(received[4:], expected[4:], rtol=4e-16)


def test_subnormal_results_and_overflow_in_float32():
    x = np.array([-103.9, -103.0, -88.5, -104.1, 88.72283, 88.7229, 1e30], np.float32)
    with np.errstate(over="ignore", under="ignore"):
        expected = np.exp(x.astype(float)).astype(np.float32)
    received = mapped("exp", x)
    assert expected[0] == np.float32(1e-45) and expected[3] == 0 and np.isinf(expected[5])
    assert np.all(np.abs(received[:4] - expected[:4]) <= np.float32(1e-45))
    np.testing.assert_allclose(received[4:], expected[4:], rtol=2e-7)


@both
def test_odd_and_even(real):
    x = ALL[real][ALL[real] > 0]
    np.testing.assert_array_equal(mapped("tanh", x), -mapped("tanh", -x))
    for name in ("sech2", "sigmoid_slope"):
        np.testing.assert_array_equal(mapped(name, x), mapped(name, -x))


@njit
def products_of(x, factor):
    """Where the first factor alone is subnormal."""
    out = np.empty((5, x.size), x.dtype)
    for i in range(x.size):
        v = x[i]
        out[0, i], out[1, i] = exp_times(v, factor), sech2_times(v, factor)
        out[2, i], out[3, i] = sigmoid_times(v, factor), sigmoid_slope_times(v, factor)
        out[4, i] = gaussian_times(np.sqrt(-v), 1.0, factor)
    return out


@pytest.mark.parametrize("real, low, factor", [(np.float32, -100, 2.0**60), (float, -740, 2.0**80)])
def test_products_in_far_tails_keep_their_accuracy(real, low, factor):
    """2^60 e^x keeps the bits that e^x by itself would lose."""
    x = np.linspace(low, low + 20, 801).astype(real)
    exact = LONG(factor) * np.exp(x.astype(LONG))
    root = np.sqrt(-x).astype(LONG)
    received = products_of(x, real(factor))
    others = products_of(x / real(2), real(factor))
    for got, bound in ((received[0], 2), (received[2], 3), (received[3], 4)):
        assert ulps(got, exact).max() <= bound + ALLOWANCE
    assert ulps(others[1], 4 * exact).max() <= 5 + ALLOWANCE
    assert ulps(received[4], LONG(factor) * np.exp(-root * root)).max() <= 3 + ALLOWANCE


@njit
def others_of(x):
    out = np.empty((4, x.size), x.dtype)
    for i in range(x.size):
        out[0, i], out[1, i] = erfcx(x[i]), log1p(min(x[i], x.dtype.type(1)))
        out[2, i], out[3, i] = tanh_and_slope(x[i])
    return out


@both
def test_functions_of_positive_numbers(real):
    x = ALL[real][ALL[real] > 0]
    scaled, logarithm, value, slope = others_of(x)
    wide = x.astype(LONG)
    # SciPy's own error is within 8 units of float64.
    own = 8 if real is np.float64 else 0
    assert ulps(scaled, special.erfcx(x.astype(float)).astype(LONG)).max() <= 6 + own
    assert ulps(logarithm, np.log1p(np.minimum(wide, 1))).max() <= 3 + ALLOWANCE
    assert ulps(value, np.tanh(wide)).max() <= 4 + ALLOWANCE
    deep = 43 if real is np.float32 else 350
    shallow = x < deep
    assert ulps(slope[shallow], _sech2(wide)[shallow]).max() <= 6 + ALLOWANCE
    assert np.all(slope[~shallow] == 0)
