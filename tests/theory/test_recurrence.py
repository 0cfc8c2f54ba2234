"""Rates through time against matrices and cells in plain NumPy."""

import numpy as np
import pytest

from flowlab.errors import InputError
from flowlab.theory import chi, get_activation
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


@pytest.mark.parametrize("activation, g2, noise", [("tanh", 2.0, 0.1), ("relu", 1.2, 0.5)])
def test_untied_rate_holds_for_few_steps(activation, g2, noise):
    """Tied weights, N = 256, six steps: mean log rate per step within 4 SE + 2/N."""
    act, rng, n, seeds = get_activation(activation), np.random.default_rng(3), 256, 30
    rates = []
    for _ in range(seeds):
        w = rng.standard_normal((n, n)) * np.sqrt(g2 / n)
        h, slopes = np.zeros(n), []
        for _ in range(40):
            z = h @ w + np.sqrt(noise) * rng.standard_normal(n)
            h = act.phi(z)
            slopes.append(act.derivative(z))
        d = rng.standard_normal(n)
        start = np.sum(d**2)
        for slope in slopes[-6:]:
            d = (d @ w.T) * slope
        rates.append(np.log(np.sum(d**2) / start) / 6)
    error = np.mean(rates) - np.log(rc.untied_rate(activation, g2, noise))
    assert abs(error) < 4 * np.std(rates) / np.sqrt(seeds) + 3 / n


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


def test_gated_rate_matches_a_cell():
    """One step of h' = u h + (1 - u) tanh(h W), u = sigmoid(b + h U), all paths: 4 SE + 2/N."""
    rng, n, seeds = np.random.default_rng(6), 300, 30
    sigma_w2, gate_w2, bias, q = 1.5, 2.0, 0.7, 0.8
    rates = []
    for _ in range(seeds):
        h = np.sqrt(q) * rng.standard_normal(n)
        w, v = rng.standard_normal((2, n, n)) / np.sqrt(n)
        w, v = np.sqrt(sigma_w2) * w, np.sqrt(gate_w2) * v
        u, c = 1 / (1 + np.exp(-bias - h @ v)), np.tanh(h @ w)
        d = rng.standard_normal(n)
        back = d * u + (d * (1 - u) * (1 - c**2)) @ w.T + (d * (h - c) * u * (1 - u)) @ v.T
        rates.append(np.sum(back**2) / np.sum(d**2))
    z = q * sigma_w2
    gap = q + np.mean(np.tanh(np.sqrt(z) * np.random.default_rng(7).standard_normal(10**6)) ** 2)
    expected = rc.gated_rate(
        bias, gate_w2 * q, chi("tanh", z, sigma_w2), gate_sigma_w2=gate_w2, gap=gap
    )
    assert abs(np.mean(rates) - expected) < 4 * np.std(rates) / np.sqrt(seeds) + 2 / n
    # Each of the three paths is visible at that resolution.
    assert gate_w2 * gap * 0.04 > 5 * np.std(rates) / np.sqrt(seeds)


def test_constant_gate():
    assert rc.gated_rate(np.log(3.0), 0.0, 0.5) == pytest.approx(0.75**2 + 0.25**2 * 0.5)


@pytest.mark.parametrize("bias, variance", [(1.0, 0.5), (-2.0, 4.0), (6.0, 0.0)])
def test_gate_path_matches_draws(bias, variance):
    rng, steps = np.random.default_rng(8), 5
    gates = 1 / (1 + np.exp(-bias - np.sqrt(variance) * rng.standard_normal((steps, 400_000))))
    path = rc.gate_path(bias, variance, steps)
    for value, draws in (
        (np.exp(path.fresh), np.prod(gates**2, axis=0)),
        (np.exp(path.frozen), gates[0] ** (2 * steps)),
        (path.typical, 2 * np.log(gates).sum(0)),
    ):
        slack = 1e-9 * abs(value)
        assert abs(draws.mean() - value) < 4 * draws.std() / np.sqrt(draws.size) + slack
    assert path.typical <= path.fresh <= path.frozen + 1e-12


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: rc.gate_path(1.0, -1.0, 3), "variance must be at least 0; got -1.0"),
        (lambda: rc.gate_path(1.0, 1.0, -3), "steps must be at least 0; got -3"),
        (lambda: rc.gaussian_late_log_rate(0), "width must be at least 1; got 0"),
        (lambda: rc.gaussian_late_log_rate(5, 0.0), "g2 must be above 0; got 0.0"),
        (lambda: rc.rate_bound(np.eye(2), "tahn"), "did you mean tanh"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(InputError, match=message):
        call()
