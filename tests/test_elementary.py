"""Elementary functions against NumPy's long double over the whole range."""

import numpy as np
import pytest
from numba import njit

from flowlab.elementary import exp, expm1, sech2, sigmoid, sigmoid_slope, tanh

LONG = np.longdouble
# 64 bits of mantissa resolve a double's last place; where long double is double, NumPy's own
# error of an ulp is added.
ALLOWANCE = 0 if np.finfo(LONG).nmant > 60 else 2
MAGNITUDES = np.concatenate([np.geomspace(5e-324, 1e-3, 300), np.geomspace(1e-3, 760, 6000)])
POINTS = np.concatenate([-MAGNITUDES, MAGNITUDES, np.linspace(-2, 2, 4001)])


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
    out = np.empty((6, x.size))
    for i in range(x.size):
        v = x[i]
        out[0, i], out[1, i], out[2, i] = exp(v), tanh(v), sech2(v)
        out[3, i], out[4, i], out[5, i] = sigmoid(v), sigmoid_slope(v), expm1(v)
    return out


def mapped(name, x):
    return all_of(x)[list(FUNCTIONS).index(name)]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_within_a_few_ulp(name):
    oracle, ulps, _, _ = FUNCTIONS[name]
    with np.errstate(over="ignore", under="ignore"):
        exact = oracle(POINTS.astype(LONG))
        expected = exact.astype(np.float64)
    received = mapped(name, POINTS)
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(received[~finite], expected[~finite])
    ulp = np.maximum(np.spacing(np.abs(expected[finite])), 2.0**-1074)
    error = np.abs(received[finite].astype(LONG) - exact[finite]) / ulp
    assert error.max() <= ulps + ALLOWANCE


@pytest.mark.parametrize("name", FUNCTIONS)
def test_infinities_zero_and_nan(name):
    oracle, _, at_minus, at_plus = FUNCTIONS[name]
    low, high, zero, minus_zero, nan = mapped(name, np.array([-np.inf, np.inf, 0, -0.0, np.nan]))
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


def test_odd_and_even():
    x = POINTS[POINTS > 0]
    np.testing.assert_array_equal(mapped("tanh", x), -mapped("tanh", -x))
    for name in ("sech2", "sigmoid_slope"):
        np.testing.assert_array_equal(mapped(name, x), mapped(name, -x))
