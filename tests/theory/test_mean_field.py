"""Maps of variance, gradient and correlation against closed forms, tables and quadrature."""

import numpy as np
import pytest
from scipy import integrate

from flowlab import theory
from flowlab.errors import InputError
from flowlab.theory.moments import Sites, homogeneous_correlation


@pytest.mark.parametrize(
    "sigma_b2, sigma_w2",
    [(1e-4, 1.08603), (0.01, 1.42421), (0.05, 1.76096), (0.1, 1.98607), (0.3, 2.50513)],
)
def test_critical_line_of_tanh(sigma_b2, sigma_w2):
    low, high = (
        theory.chi("tanh", theory.q_fixed_point("tanh", w, sigma_b2), w) - 1
        for w in (sigma_w2 - 1e-5, sigma_w2 + 1e-5)
    )
    assert low < 0 < high


@pytest.mark.parametrize(
    "sigma_w2, q, chi",
    [(1.0, 0.1936, 0.7590), (1.5, 0.4180, 0.9386), (2.5, 1.0640, 1.1335)],
)
def test_phases_of_tanh(sigma_w2, q, chi):
    fixed = theory.q_fixed_point("tanh", sigma_w2, 0.05)
    assert fixed == pytest.approx(q, abs=6e-5)
    assert theory.chi("tanh", fixed, sigma_w2) == pytest.approx(chi, abs=6e-5)


@pytest.mark.parametrize("sigma_w2, layers", [(1.0, 3.63), (1.5, 15.8), (2.5, 11.8)])
def test_correlation_depth_of_tanh(sigma_w2, layers):
    found = theory.correlation_depth("tanh", sigma_w2, 0.05)
    assert found == pytest.approx(layers, rel=5e-3)


@pytest.mark.parametrize("sigma_w2, sigma_b2", [(2.0, 0.05), (3.5, 0.0), (3.5, 0.3), (1.2, 0.3)])
def test_correlations_come_nearer_their_limit_at_the_rate_of_that_depth(sigma_w2, sigma_b2):
    """The map of correlations itself, by Gauss-Hermite quadrature in two dimensions."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()
    q = theory.q_fixed_point("tanh", sigma_w2, sigma_b2)

    def following(c):
        u = np.tanh(np.sqrt(q) * nodes)
        v = np.tanh(np.sqrt(q) * (c * nodes[:, None] + np.sqrt(1 - c**2) * nodes))
        return (sigma_w2 * (weights * u) @ v @ weights + sigma_b2) / q

    c = [0.6]
    while len(c) < 1500:
        c.append(min(following(c[-1]), 1.0))
    gaps = np.abs(np.array(c) - c[-1])
    (at,) = np.nonzero((gaps < 1e-5) & (gaps > 1e-9))
    rate = (gaps[at[-1]] / gaps[at[0]]) ** (1 / (at[-1] - at[0]))
    assert -1 / np.log(rate) == pytest.approx(
        theory.correlation_depth("tanh", sigma_w2, sigma_b2), rel=2e-3
    )


def test_the_correlation_depth_diverges_where_the_phases_meet():
    depths = [theory.correlation_depth("tanh", w, 0.05) for w in (1.74, 1.76096, 1.78)]
    assert depths[1] > 1e4 > 300 > max(depths[0], depths[2])
    assert theory.correlation_depth("relu", 2.0) == np.inf
    for sigma_w2, q in ((3.0, "inf"), (0.0, "0")):
        with pytest.raises(InputError, match=f"finite fixed point above 0; got {q} at sigma_w2"):
            theory.correlation_depth("relu", sigma_w2)


@pytest.mark.parametrize(
    "activation, sigma_w2, chi",
    [
        ("identity", 1, 1),
        ("identity", 2, 2),
        ("relu", 1, 0.5),
        ("relu", 2, 1),
        ("relu", 1 / 3, 0.1667),
        (theory.leaky_relu(0.2), 1, 0.52),
        (theory.leaky_relu(0.2), 2, 1.04),
        ("tanh", 1, 1),
        ("tanh", 2, 1.1055),
        ("tanh", 25 / 9, 1.2098),
        ("tanh", 1 / 3, 0.3333),
        ("sigmoid", 1, 0.0557),
        ("sigmoid", 2, 0.1010),
        ("sigmoid", 1 / 3, 0.0200),
        ("selu", 1, 1.0716),
        ("selu", 1 / 3, 0.699),
        ("erf", 1, 1.0169),
        ("erf", 2, 1.1974),
        ("erf", 1 / 3, 0.424),
    ],
)
def test_chi_at_the_fixed_point(activation, sigma_w2, chi):
    q = theory.q_fixed_point(activation, sigma_w2)
    assert theory.chi(activation, q, sigma_w2) == pytest.approx(
        chi, abs=5.1e-4 if chi < 1 else 6e-5
    )


def test_fixed_points_that_are_zero_infinite_or_everywhere():
    assert theory.q_fixed_point("selu", 1) == pytest.approx(1, rel=1e-9)
    assert theory.q_fixed_point("tanh", 25 / 9) == pytest.approx(1.178, abs=6e-4)
    assert theory.q_fixed_point("tanh", 1) == 0
    assert theory.q_fixed_point("gelu", 2) == 0
    assert theory.q_fixed_point("selu", 2) == np.inf
    assert theory.q_fixed_point("relu", 2, start=3.0) == 3.0
    assert theory.q_fixed_point("relu", 1, 0.3) == pytest.approx(0.6)


@pytest.mark.parametrize("q", [1e-12, 0.3, 1.0, 40.0, 1e6])
@pytest.mark.parametrize("c", [-0.6, 0.0, 0.5, 0.99])
def test_erf_matches_its_closed_forms(q, c):
    kernel = 2 / np.pi * np.arcsin(2 * q * c / (1 + 2 * q))
    own = 2 / np.pi * np.arcsin(2 * q / (1 + 2 * q))
    assert theory.q_map("erf", q, 1.3, 0.0) == pytest.approx(1.3 * own, rel=1e-10)
    assert theory.chi("erf", q, 1.3) == pytest.approx(
        1.3 * 4 / np.pi / np.sqrt(1 + 4 * q), rel=1e-10
    )
    if q <= 1 and c < 0.9:  # where the expansion in Hermite polynomials has converged
        site = Sites(theory.get_activation("erf"), np.log([q]))
        assert site.phi_correlation(0, c) == pytest.approx(kernel / own, rel=1e-8, abs=1e-12)
        slopes = 4 / np.pi / np.sqrt((1 + 2 * q) ** 2 - 4 * (q * c) ** 2)
        pairs = site.pairs(np.array([c]))[0] * site.mu1
        assert pairs == pytest.approx(slopes, rel=1e-8)


@pytest.mark.parametrize("name", sorted(theory.ACTIVATIONS))
def test_moments_match_adaptive_quadrature(name):
    act, q = theory.get_activation(name), 1.7

    def mean(f):
        def integrand(z):
            return float(f(np.float64(np.sqrt(q) * z))) ** 2 * np.exp(-z * z / 2)

        halves = [
            integrate.quad(integrand, *ends, epsabs=0, epsrel=1e-12)
            for ends in ((-14, -1e-300), (1e-300, 14))
        ]
        return sum(half[0] for half in halves) / np.sqrt(2 * np.pi)

    assert theory.q_map(name, q, 1.0) == pytest.approx(mean(act.phi), rel=1e-10)
    assert theory.chi(name, q, 1.0) == pytest.approx(mean(act.derivative), rel=1e-10)


@pytest.mark.parametrize("name", sorted(theory.ACTIVATIONS))
def test_derivatives_match_finite_differences(name):
    act = theory.get_activation(name)
    u = np.linspace(-4, 4, 41) + 0.013
    slope = (act.phi(u + 1e-6) - act.phi(u - 1e-6)) / 2e-6
    np.testing.assert_allclose(act.derivative(u), slope, rtol=1e-7, atol=1e-9)


def test_tanh_limits_of_small_and_large_variance():
    assert theory.q_map("tanh", 1e-4, 1.0) == pytest.approx(1e-4 - 2e-8, rel=1e-6)
    assert theory.chi("tanh", 1e-4, 1.0) == pytest.approx(1 - 2e-4, rel=1e-6)
    assert theory.chi("tanh", 1e8, 1.0) == pytest.approx(4 / 3 / np.sqrt(2 * np.pi * 1e8), rel=1e-6)
    assert theory.q_map("tanh", 1e-300, 0.5) == pytest.approx(5e-301, rel=1e-9)
    assert theory.q_map("gelu", 1e300, 1.0) == pytest.approx(5e299, rel=1e-9)


def test_xavier_tanh_is_a_power_law():
    q = theory.q_trajectory("tanh", 1.0, 1.0, 0.0, 1000)
    assert 2000 * q[-1] == pytest.approx(1, abs=0.01)
    assert 1000 * np.prod([theory.chi("tanh", x, 1.0) for x in q[:-1]]) == pytest.approx(
        0.71, abs=0.01
    )


def test_relu_correlation_tends_to_one_as_a_power_law():
    c = 0.0
    for _ in range(5000):
        c = float(homogeneous_correlation(0.0, c))
    assert (1 - c) * 5000**2 == pytest.approx(9 * np.pi**2 / 2, rel=0.02)
