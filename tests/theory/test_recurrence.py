"""Rates through time against matrices in plain NumPy."""

import numpy as np
import pytest

from flowlab.errors import InputError
from flowlab.theory import get_activation
from flowlab.theory import recurrence as rc


def test_spectral_radius_and_norm_of_known_matrices():
    shear = np.array([[0.5, 3.0], [0.0, -0.7]])
    turn = 2 * np.array([[0.6, -0.8], [0.8, 0.6]])
    both = np.stack([shear, turn])
    np.testing.assert_allclose(rc.spectral_radius(both), [0.7, 2.0])
    np.testing.assert_allclose(
        rc.largest_singular_value(both) ** 2,
        [np.linalg.eigvalsh(shear @ shear.T)[-1], 4.0],
    )
    np.testing.assert_allclose(rc.late_log_rate(both), 2 * np.log([0.7, 2.0]))
    assert rc.late_log_rate(np.zeros((3, 3))) == -np.inf


@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_late_rate_of_powers(scale):
    """Linear, and tanh of small signals under a contracting W: slope of 400 late steps."""
    rng, n = np.random.default_rng(0), 24
    w = rng.standard_normal((n, n)) * 0.6 / np.sqrt(n)
    h, slopes = scale * rng.standard_normal(n), []
    for _ in range(600):
        h = h @ w if scale == 1 else np.tanh(h @ w)
        slopes.append(1.0 if scale == 1 else 1 - h**2)
    d, log = rng.standard_normal(n), 0.0
    for step, slope in enumerate(reversed(slopes)):
        d = (d * slope) @ w.T
        norm = np.linalg.norm(d)
        d /= norm
        log += 2 * np.log(norm) if step >= 200 else 0.0
    assert log / 400 == pytest.approx(rc.late_log_rate(w), abs=0.01)


@pytest.mark.parametrize("width, draws", [(16, 1500), (48, 300), (128, 60)])
def test_gaussian_late_rate_matches_draws(width, draws):
    """Within 4 SE + 1/N of the mean of 2 log rho, the mean lying above."""
    w = np.random.default_rng(1).standard_normal((draws, width, width)) / np.sqrt(width)
    late = rc.late_log_rate(w)
    excess = late.mean() - rc.gaussian_late_log_rate(width)
    assert abs(excess - 1 / width) < 4 * late.std() / np.sqrt(draws) + 0.3 / width
    shift = rc.gaussian_late_log_rate(width, 2.0) - rc.gaussian_late_log_rate(width)
    assert shift == pytest.approx(np.log(2))


def test_gaussian_late_rate_is_the_mean_of_its_law():
    """The complex matrix's largest modulus is the largest of N Gamma(k) (Kostlan): law G.

    Under F = G^{1/2} the mean is that of its quantiles weighted by dF/dG = 1/(2 sqrt G).
    """
    rng, n = np.random.default_rng(2), 30
    largest = rng.gamma(np.arange(1, n + 1), size=(40_000, n)).max(1)
    log_x = np.sort(np.log(largest / n))
    law = (np.arange(log_x.size) + 0.5) / log_x.size
    expected = np.mean(log_x / (2 * np.sqrt(law)))
    assert rc.gaussian_late_log_rate(n) == pytest.approx(expected, abs=5e-3)


def test_orthogonal_and_identity_recurrences_keep_the_norm():
    rng = np.random.default_rng(4)
    q, _ = np.linalg.qr(rng.standard_normal((20, 20)))
    assert rc.late_log_rate(q) == pytest.approx(0, abs=1e-12)
    assert rc.rate_bound(q, "tanh") == pytest.approx(1)
    assert rc.rate_bound(np.eye(4), "relu") == 1
    d = rng.standard_normal(20)
    assert np.linalg.norm(d @ np.linalg.matrix_power(q, 300)) == pytest.approx(np.linalg.norm(d))


@pytest.mark.parametrize(
    "activation, slope",
    [("tanh", 1), ("sigmoid", 0.25), ("relu", 1), ("erf", 2 / np.sqrt(np.pi)), ("softplus", 1)],
)
def test_no_step_beats_pascanus_bound(activation, slope):
    act, rng = get_activation(activation), np.random.default_rng(5)
    w = rng.standard_normal((6, 9, 9))
    assert rc.largest_slope(activation) == pytest.approx(slope)
    bound = rc.rate_bound(w, activation)
    z, d = rng.standard_normal((2, 500, 6, 1, 9))
    pulled = np.sum(((d * act.derivative(z)) @ w) ** 2, axis=(2, 3))
    assert np.all(pulled / np.sum(d**2, axis=(2, 3)) <= bound)
    left = np.linalg.svd(w[0])[0]
    best = np.sum((slope * left[:, 0] @ w[0]) ** 2)
    assert best == pytest.approx(bound[0])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: rc.gaussian_late_log_rate(0), "width must be at least 1; got 0"),
        (lambda: rc.gaussian_late_log_rate(5, 0.0), "g2 must be above 0; got 0.0"),
        (lambda: rc.rate_bound(np.eye(2), "tahn"), "did you mean tanh"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(InputError, match=message):
        call()
