"""Activations over the whole range, tails included: float64 by closed forms, float32 by SciPy."""

import numpy as np
import pytest
from scipy import special

from flowlab.layer import Workspace
from flowlab.layers import ACTIVATIONS, Activation
from tests.support import naive
from tests.support.passes import run as one_pass

_MAGNITUDES = [
    np.geomspace(1e-45, 1e-3, 300),
    np.geomspace(1e-3, 110, 20000),
    np.linspace(0, 20, 8001),
]
_UP = np.concatenate(_MAGNITUDES).astype(np.float32)
POINTS = np.concatenate([-_UP, _UP])


def _gelu_slope(z):
    """Φ + z φ with e^(-z^2/2) taken out, so that float64 loses nothing in the tail."""
    a = np.abs(z)
    tail = np.exp(-z * z / 2) * (special.erfcx(a / 2**0.5) / 2 - a / (2 * np.pi) ** 0.5)
    return np.where(z > 0, 1 - tail, tail)


ORACLES = naive.ACTIVATIONS | {
    "gelu": (lambda z: z * special.ndtr(z), _gelu_slope),
    "erf": (special.erf, naive.ACTIVATIONS["erf"][1]),
}
# Units in the last place: of the value, and of the slope.
BOUNDS = {
    **dict.fromkeys(("identity", "relu", "leaky_relu"), (1, 1)),
    **{"tanh": (3, 5), "sigmoid": (3, 5), "erf": (2, 4), "gelu": (8, 8), "silu": (4, 8)},
    **{"selu": (4, 3), "elu": (3, 2), "softplus": (4, 4)},
}


def run(name, z, dy):
    layer, workspace = Activation(name), Workspace()
    y, tape = layer.forward(z[None], {}, workspace)
    return y[0], layer.pullback(dy[None], tape, workspace)[0][0]


def units(exact, least=0.0):
    """float32's last place of numbers, or of a least size where terms of that size cancel."""
    sizes = np.maximum(np.abs(exact), least).astype(np.float32)
    return np.maximum(np.spacing(sizes).astype(float), 2.0**-149)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_float32_within_a_few_ulp(name):
    y, dz = run(name, POINTS, np.ones_like(POINTS))
    assert y.dtype == dz.dtype == np.float32
    phi, slope = ORACLES[name]
    value, slope = phi(POINTS.astype(float)), slope(POINTS.astype(float))
    assert np.all(np.abs(y - value) <= BOUNDS[name][0] * units(value))
    # The slopes of GELU and SiLU have a zero of their own.
    cancels = (POINTS > -3) & (POINTS < -0.25) & (name in ("gelu", "silu"))
    assert np.all(np.abs(dz - slope) <= BOUNDS[name][1] * units(slope, np.where(cancels, 1, 0)))


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "gelu", "silu", "elu", "selu", "softplus"])
def test_a_large_cotangent_brings_back_a_vanishing_slope(name):
    """Slopes below float32's range count, as far as their product with the cotangent has bits."""
    z = np.linspace(-14, -13.2, 50) if name == "gelu" else np.linspace(-100, -90, 50)
    z = (z / 2 if name == "tanh" else z).astype(np.float32)
    _, dz = run(name, z, np.full_like(z, 2.0**60))
    exact = 2.0**60 * ORACLES[name][1](z.astype(float))
    assert np.all(np.abs(dz - exact) <= 8 * units(exact))


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("real", [np.float32, np.float64])
def test_nan_and_infinity(name, real):
    z = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30], real)
    y, dz = run(name, z, np.ones_like(z))
    assert np.isnan(y[0]) and np.isfinite(y[3:]).all() and np.isfinite(dz[3:]).all()
    bounded = name in ("tanh", "sigmoid", "erf")
    assert y[1] == (1 if bounded else np.inf)
    if name in ("gelu", "silu"):
        assert np.isnan(y[2])


def test_far_beyond_the_range_large_cotangents_find_zero():
    z, dy = np.float32([-1e4, -300, -180]), np.float32([1e33, -1e33, 1e33])
    for name in ("tanh", "sigmoid", "gelu", "silu", "elu", "selu", "softplus", "erf"):
        assert not run(name, z, dy)[1].any()
    assert not run("silu", np.float32([-1e38, -1e3]), np.ones(2, np.float32))[0].any()


# --- float64 ---

# Where φ or φ' runs into a zero of its own (GELU's slope near -0.75, say), the error is of the
# size of the terms that cancel; everywhere else it is a few units in the last place.
DOUBLE = np.concatenate(
    [sign * np.geomspace(1e-300, 700, 400) for sign in (1, -1)]
    + [np.array([0.0, -0.0, 1e-12, -1e-12, 30, -30]), np.linspace(-40, 40, 801)]
)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_float64_everywhere(name):
    """Values and slopes are relatively right from 1e-300 to 700, in both tails."""
    phi, slope = naive.ACTIVATIONS[name]
    z = DOUBLE[None, None]
    with np.errstate(under="ignore"):
        expected, expected_slope = phi(DOUBLE), slope(DOUBLE)
    y, dz, _ = one_pass(Activation(name), z, {}, np.ones_like(z))
    tail = np.abs(DOUBLE) ** 2 if name in ("gelu", "erf") else np.abs(DOUBLE)
    # A relative error of one rounding in the exponent is |exponent| roundings of the result.
    rounding = 8 * np.finfo(float).eps * (1 + np.minimum(tail, 750))
    scale = np.abs(expected_slope)
    if name in ("gelu", "silu"):
        near = (DOUBLE > -3) & (DOUBLE < -0.5)
        scale = np.where(near, 1.0, scale)
    tiny = np.finfo(float).tiny
    assert np.all(np.abs(y[0, 0] - expected) <= rounding * np.abs(expected) + tiny)
    assert np.all(np.abs(dz[0, 0] - expected_slope) <= rounding * scale + tiny)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_nan_is_nan(name):
    z = np.array([[[np.nan, 1.0]]])
    y, _, _ = one_pass(Activation(name), z, {}, np.ones_like(z))
    assert np.isnan(y[0, 0, 0]) and np.isfinite(y[0, 0, 1])


def test_slope_at_the_kink():
    """φ'(0) = 0 for ReLU and 0.01 for leaky ReLU, PyTorch's convention."""
    zero, one = np.zeros((1, 1, 2)), np.ones((1, 1, 2))
    assert np.all(one_pass(Activation("relu"), zero, {}, one)[1] == 0)
    assert np.all(one_pass(Activation("leaky_relu"), zero, {}, one)[1] == 0.01)
