"""Norms and powers of two where squares, or the numbers themselves, leave the float range."""

import math

import numpy as np
import pytest

from flowlab.numerics import scale


def entries(value, n=100, dtype=np.float64):
    return np.full((1, 10, n // 10), value, dtype)


@pytest.mark.parametrize("value", [1e-200, 1e-160, 1e-150, 1e-3, 1.0, 1e150, 1e160, 1e200, 1e300])
def test_norm_of_equal_entries(value):
    """The norm of 100 equal entries is 10 of them, however small or large."""
    exact = math.log2(value) + math.log2(10)
    assert scale.log2_norm(entries(value))[0] == pytest.approx(exact, rel=1e-15, abs=1e-15)


@pytest.mark.parametrize("value", [5e-324, 1e-320, 2.0**-1074 * 12345])
def test_norm_of_subnormals(value):
    mantissa, exponent = math.frexp(value)
    exact = math.log2(mantissa) + exponent + math.log2(10)
    assert scale.log2_norm(entries(value))[0] == pytest.approx(exact, rel=1e-15)


@pytest.mark.parametrize("value", [1e-45, 1e-30, 3e38])
def test_norm_in_float32(value):
    x = entries(value, dtype=np.float32)
    exact = math.log2(float(np.float32(value))) + math.log2(10)
    assert scale.log2_norm(x)[0] == pytest.approx(exact, rel=1e-15)


@pytest.mark.parametrize("power", [-1000, -600, 0, 400, 1000])
def test_norm_of_unequal_entries(power):
    """3, 4 and 12 at any power of two have the norm 13."""
    x = np.ldexp(np.array([[3.0, -4.0, 12.0]]), power)
    assert scale.log2_norm(x)[0] == pytest.approx(math.log2(13) + power, rel=1e-15)


def test_norm_over_the_whole_range_at_once():
    x = np.array([[1e-300, 1e300, 5e-324], [1e-300, 5e-324, 0.0]])
    np.testing.assert_allclose(scale.log2_norm(x), np.log2([1e300, 1e-300]), rtol=1e-15)


def test_norm_of_zero_infinity_and_nan():
    x = np.array([[0.0, 0.0], [-0.0, 0.0], [np.inf, 1.0], [-np.inf, 0.0], [np.nan, 1.0]])
    expected = [-np.inf, -np.inf, np.inf, np.inf, np.nan]
    np.testing.assert_array_equal(scale.log2_norm(x), expected)
    both = np.array([[np.inf, np.nan], [np.nan, np.inf]])
    assert np.all(np.isnan(scale.log2_norm(both)))


def test_norm_of_one_number_for_each_network():
    np.testing.assert_array_equal(scale.log2_norm(np.array([8.0, -0.5])), [3.0, -1.0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_shift_is_exact(dtype):
    x = np.random.default_rng(0).standard_normal((4, 3, 5)).astype(dtype)
    exponent = np.array([0, 7, -20, 60])
    shifted = x.copy()
    scale.shift(shifted, exponent)
    np.testing.assert_array_equal(shifted, np.ldexp(x, exponent[:, None, None]))
    scale.shift(shifted, -exponent)
    np.testing.assert_array_equal(shifted, x)


def test_shift_of_one_number_for_each_network():
    x = np.array([1.0, 3.0])
    scale.shift(x, np.array([2, -1]))
    np.testing.assert_array_equal(x, [4.0, 1.5])


@pytest.mark.parametrize("dtype, powers", [(np.float64, (-900, -17, 0, 20, 900)),
                                           (np.float32, (-100, -17, 0, 20, 100))])  # fmt: skip
def test_renormalise_is_exact_and_lands_near_one(dtype, powers):
    random = np.random.default_rng(1).standard_normal((len(powers), 6, 7)).astype(dtype)
    x = np.ldexp(random, np.array(powers)[:, None, None])
    before = x.copy()
    exponent = scale.renormalise(x, scale.log2_norm(x))
    np.testing.assert_array_equal(np.ldexp(x, exponent[:, None, None]), before)
    rms = np.sqrt(np.mean(x.astype(np.float64) ** 2, axis=(1, 2)))
    assert np.all((rms >= 2.0**-16) & (rms <= 2.0**16))
    far = np.abs(powers) > 17
    assert np.all((rms[far] >= 1) & (rms[far] < 2))
    assert np.all(exponent[np.array(powers) == 0] == 0)


def test_renormalise_leaves_zero_and_nonfinite_alone():
    x = np.array([[0.0, 0.0], [np.inf, 1e-300], [np.nan, 1e300], [1e-200, 1e-200]])
    before = x.copy()
    exponent = scale.renormalise(x, scale.log2_norm(x))
    np.testing.assert_array_equal(exponent[:3], 0)
    np.testing.assert_array_equal(x[:3], before[:3])
    assert exponent[3] != 0
