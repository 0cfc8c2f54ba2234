"""Initial parameters: variances, distributions, orthogonality, and what is refused."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from flowlab.errors import InputError
from flowlab.initializers import SCHEMES, Initializer, InitSettings
from flowlab.layer import Parameter

FAN_IN, FAN_OUT, SEEDS = 40, 90, 20


def draw(settings, role="weight", factor=1.0, fan_in=FAN_IN, fan_out=FAN_OUT, dtype=np.float64):
    shape = (fan_out,) if role == "bias" else (fan_in, fan_out)
    out = np.full((SEEDS, *shape), np.nan, dtype)
    parameter = Parameter(shape, fan_in, fan_out, role, factor)
    Initializer(settings).draw(parameter, np.arange(SEEDS), 1, 0, out)
    return out


def assert_variance(x, expected, kurtosis):
    """Var within 4 standard errors; the sample variance's is Var sqrt((kurtosis - 1) / n)."""
    error = 4 * expected * math.sqrt((kurtosis - 1) / x.size)
    assert abs(np.mean(x**2) - expected) < error
    assert abs(np.mean(x)) < 4 * math.sqrt(expected / x.size)


# (scheme, settings) -> variance, from the papers' formulas
VARIANCES = [
    ("lecun", {}, 1 / FAN_IN),
    ("lecun_uniform", {}, 1 / FAN_IN),
    ("xavier", {}, 2 / (FAN_IN + FAN_OUT)),
    ("xavier_uniform", {}, 2 / (FAN_IN + FAN_OUT)),
    ("he", {}, 2 / FAN_IN),
    ("he_uniform", {}, 2 / FAN_IN),
    ("torch_default", {}, 1 / (3 * FAN_IN)),
    ("normal", {"sigma_w": 1.7}, 1.7**2 / FAN_IN),
    ("literal", {}, 1 / math.sqrt(FAN_IN)),
    ("literal", {"mode": "fan_out"}, 1 / math.sqrt(FAN_OUT)),
    ("literal", {"mode": "fan_avg"}, 1 / math.sqrt(FAN_IN + FAN_OUT)),
    ("he", {"mode": "fan_out"}, 2 / FAN_OUT),
    ("he", {"mode": "fan_avg"}, 4 / (FAN_IN + FAN_OUT)),
    ("lecun_uniform", {"mode": "fan_out"}, 1 / FAN_OUT),
    ("he", {"gain": 0.5}, 0.5 / FAN_IN),
    ("xavier_uniform", {"gain": 5 / 3}, 25 / 9 * 2 / (FAN_IN + FAN_OUT)),
]


@pytest.mark.parametrize("name, settings, expected", VARIANCES)
def test_variance(name, settings, expected):
    x = draw(InitSettings(name, **settings))
    uniform = SCHEMES[name].distribution == "uniform"
    assert_variance(x, expected, 9 / 5 if uniform else 3)
    initializer = Initializer(InitSettings(name, **settings))
    assert initializer.weight_variance(FAN_IN, FAN_OUT) == pytest.approx(expected, rel=1e-14)
    sample = x.ravel()[:20_000] / math.sqrt(expected)
    law = stats.uniform(-math.sqrt(3), 2 * math.sqrt(3)) if uniform else stats.norm
    assert stats.kstest(sample, law.cdf).pvalue > 1e-4


@pytest.mark.parametrize("fans", [(40, 90), (90, 40), (50, 50), (1, 3)])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_orthogonal(fans, dtype):
    gain, (rows, columns) = 1.3, fans
    W = draw(InitSettings("orthogonal", gain), fan_in=rows, fan_out=columns, dtype=dtype)
    for w in W.astype(np.float64):
        gram = w.T @ w if rows >= columns else w @ w.T
        np.testing.assert_allclose(gram, gain**2 * np.eye(len(gram)), atol=40 * np.finfo(dtype).eps)
    expected = Initializer(InitSettings("orthogonal", gain)).weight_variance(rows, columns)
    assert np.mean(W**2.0) == pytest.approx(expected, rel=1e-6)


def test_orthogonal_is_haar():
    """A QR without the sign of R's diagonal has a biased trace; Haar's has mean 0, variance 1."""
    W = np.empty((4000, 3, 3))
    Initializer(InitSettings("orthogonal")).draw(Parameter((3, 3), 3, 3), np.arange(4000), 1, 0, W)
    trace = np.trace(W, axis1=1, axis2=2)
    assert abs(trace.mean()) < 4 / math.sqrt(4000)
    assert abs(np.mean(trace**2) - 1) < 4 * math.sqrt(2 / 4000)


def test_identity():
    """Ones times gain and factor on the diagonal; of a kernel, of each group at its centre."""
    expected = 1.5 * np.eye(FAN_IN, FAN_OUT)
    np.testing.assert_array_equal(
        draw(InitSettings("identity", 3.0), factor=0.5), np.broadcast_to(expected, (20, 40, 90))
    )
    W, initializer = np.full((2, 6, 2, 3, 3), np.nan), Initializer(InitSettings("identity"))
    initializer.draw(Parameter((6, 2, 3, 3), 18, 27), np.arange(2), 1, 0, W)
    np.testing.assert_array_equal(W[0, ..., 1, 1], np.concatenate([np.eye(3, 2)] * 2))
    W[..., 1, 1] = 0
    assert not W.any()


@pytest.mark.parametrize("name", ["orthogonal", "identity"])
def test_matrices_side_by_side(name):
    """A gated layer's weight is one matrix for each gate: as many as fan_out divides columns."""
    W, parameter = np.empty((3, 5, 12)), Parameter((5, 12), 5, 4)
    initializer = Initializer(InitSettings(name, 2.0))
    initializer.draw(parameter, np.arange(3), 1, 0, W)
    blocks = W.reshape(3, 5, 3, 4).swapaxes(1, 2)
    np.testing.assert_allclose(
        np.swapaxes(blocks, 2, 3) @ blocks, np.broadcast_to(4 * np.eye(4), (3, 3, 4, 4)), atol=1e-13
    )
    assert initializer.deviation(parameter) ** 2 == pytest.approx(np.mean(W**2), rel=1e-12)
    assert np.array_equal(blocks[:, 0], blocks[:, 1]) == (name == "identity")


@pytest.mark.parametrize("name", SCHEMES)
def test_a_parameters_own_scheme(name):
    """It is drawn as under a run of that scheme, times its factor, whatever the run's settings."""
    run, own = InitSettings("he", gain=3.0, mode="fan_out"), Parameter((6, 6), 6, 6, scheme=name)
    for role, factor in (("weight", 0.5), ("bias", 0.5)):
        parameter = replace(own, role=role, factor=factor)
        drawn, expected = np.empty((2, 6, 6)), np.empty((2, 6, 6))
        Initializer(run).draw(parameter, np.arange(2), 1, 0, drawn)
        plain = Initializer(InitSettings(name))
        plain.draw(replace(parameter, scheme=None), np.arange(2), 1, 0, expected)
        np.testing.assert_array_equal(drawn, expected)
        assert Initializer(run).deviation(parameter) == plain.deviation(
            replace(parameter, scheme=None)
        )


def test_biases():
    assert np.all(draw(InitSettings("he"), "bias") == 0)
    assert_variance(draw(InitSettings("he", sigma_b=0.3), "bias"), 0.09, 3)
    assert_variance(draw(InitSettings("he_uniform", sigma_b=0.3), "bias"), 0.09, 3)
    assert_variance(draw(InitSettings("orthogonal", sigma_b=0.3), "bias"), 0.09, 3)
    bias = draw(InitSettings("torch_default"), "bias")
    assert_variance(bias, 1 / (3 * FAN_IN), 9 / 5)
    assert np.abs(bias).max() < 1 / math.sqrt(FAN_IN)


def test_gain_leaves_biases_alone():
    np.testing.assert_array_equal(
        draw(InitSettings("he", gain=3.0, sigma_b=0.3), "bias"),
        draw(InitSettings("he", sigma_b=0.3), "bias"),
    )


@pytest.mark.parametrize("name", SCHEMES)
def test_factor_multiplies_what_is_drawn(name):
    np.testing.assert_allclose(
        draw(InitSettings(name), factor=0.25), 0.25 * draw(InitSettings(name)), rtol=1e-12
    )
    assert np.all(draw(InitSettings(name), factor=0.0) == 0)


def test_scale_parameters_start_at_zero():
    assert np.all(draw(InitSettings("he"), role="scale") == 0)


@pytest.mark.parametrize("name", SCHEMES)
def test_dtypes_agree(name):
    double, single = draw(InitSettings(name)), draw(InitSettings(name), dtype=np.float32)
    np.testing.assert_allclose(single, double, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"name": "hee"}, r"init must be one of .*; got hee; did you mean he\?"),
        ({"mode": "fan_on"}, r"init\.mode must be one of fan_in, fan_out, fan_avg; got fan_on;.*"),
        ({"name": "orthogonal", "mode": "fan_in"}, "init.mode does not apply to orthogonal; .*"),
        ({"gain": 0.0}, "init.gain must be a finite number above 0; got 0.0"),
        ({"gain": -1.0}, "init.gain must be a finite number above 0; got -1.0"),
        ({"gain": math.nan}, "init.gain must be a finite number above 0; got nan"),
        ({"name": "normal", "sigma_w": math.inf}, "init.sigma_w must be a finite .*; got inf"),
        ({"sigma_b": -0.1}, "init.sigma_b must be a finite number, at least 0; got -0.1"),
        ({"sigma_w": 2.0}, "init.sigma_w belongs to init=normal; got init=he"),
        ({"name": "torch_default", "sigma_b": 0.1}, "init.sigma_b does not apply to torch_def.*"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=rf"^{message}$"):
        Initializer(InitSettings(**settings))
