"""Gaussian moments of an activation: E f(u) and E f(u) g(v) for u, v ~ N(0, q) of correlation c.

One-point moments are integrated by the trapezoid rule in t = log|z| on each half-line. The
integrand is analytic in a strip of half-width pi/4, so that the error of step 0.15 is about 1e-14,
whatever the kink at zero and whatever the scale sqrt(q) at which the activation bends.
Two-point moments of the homogeneous activations are closed forms (Cho & Saul 2009, the arc-cosine
kernels), those of the others an expansion in orthonormal Hermite polynomials,
f(sqrt(q) z) = sum_n a_n He_n(z), so that E f(u) g(v) = sum_n a_n b_n c^n (Mehler).
"""

import math

import numpy as np

from flowlab.theory.activations import ActivationFunction

_STEP = 0.15
_T = np.arange(-24.0, 2.5, _STEP)
_HALF = np.exp(_T)
_HALF_WEIGHTS = _STEP * _HALF
# Below the first node f is constant: the rest of the geometric series goes to that node.
_HALF_WEIGHTS[0] /= -np.expm1(-_STEP)
NODES = np.concatenate([-_HALF[::-1], _HALF])
WEIGHTS = np.concatenate([_HALF_WEIGHTS[::-1], _HALF_WEIGHTS]) * np.exp(-(NODES**2) / 2)
WEIGHTS /= WEIGHTS.sum()

TERMS = 48
ORDERS = np.arange(TERMS)
LOWEST, HIGHEST = np.log(1e-40), np.log(1e16)
CHUNK = 128
# log q of what is exactly zero: finite, and below whatever a net of any depth brings about.
NO_SIGNAL = -1e12


def _hermite(terms: int) -> np.ndarray:
    """Orthonormal Hermite polynomials at the nodes, (nodes, terms)."""
    table = np.empty((terms, NODES.size))
    table[0], table[1] = 1.0, NODES
    for n in range(1, terms - 1):
        table[n + 1] = (NODES * table[n] - np.sqrt(n) * table[n - 1]) / np.sqrt(n + 1)
    return table.T


_HERMITE = _hermite(TERMS) * WEIGHTS[:, None]
# f -> E f, its first and second derivative with respect to log q, and E z f.
_DERIVATIVES = np.stack(
    [
        WEIGHTS,
        WEIGHTS * (NODES**2 - 1) / 2,
        WEIGHTS * ((NODES**2 - 1) ** 2 / 4 - NODES**2 / 2),
        WEIGHTS * NODES,
    ],
    axis=1,
)


def clip_log_q(log_q):
    """log q in the range where quadrature is exact; beyond it the activation is a power law."""
    return np.minimum(np.maximum(log_q, LOWEST), HIGHEST)


def beyond(log_q):
    """How far log q lies below and above that range, both signed."""
    return np.minimum(log_q - LOWEST, 0), np.maximum(log_q - HIGHEST, 0)


def log_phi2(activation: ActivationFunction, log_q: float) -> float:
    """log E phi(u)^2; any log q, however far from zero."""
    if activation.homogeneous:
        return log_q + np.log((1 + activation.negative_slope**2) / 2)
    if LOWEST <= log_q <= HIGHEST:
        values = activation.phi(math.exp(log_q / 2) * NODES)
        return math.log(np.dot(values * values, WEIGHTS))
    values = activation.phi(np.exp(clip_log_q(log_q) / 2) * NODES)
    return float(np.log((values * values) @ WEIGHTS) + power_law(activation, *beyond(log_q)))


def mean_derivative_power(activation: ActivationFunction, log_q: float, power: int = 2) -> float:
    """E phi'(u)^power; any log q."""
    if activation.homogeneous:
        return (1 + activation.negative_slope**power) / 2
    values = activation.derivative(np.exp(clip_log_q(log_q) / 2) * NODES)
    _, above = beyond(log_q)
    return float(values**power @ WEIGHTS) * (np.exp(-above / 2) if activation.bounded else 1.0)


def kappa0(c):
    """Derivative of `kappa1`: 1 - arccos(c)/pi (Cho & Saul 2009, degree 0)."""
    return 1 - np.arccos(c) / np.pi


def kappa1(c):
    """Correlation map of ReLU: [sqrt(1-c^2) + c (pi - arccos c)]/pi (Cho & Saul 2009, degree 1)."""
    c = np.asarray(c, dtype=float)
    return (np.sqrt((1 - c) * (1 + c)) + c * (np.pi - np.arccos(c))) / np.pi


def _kappa2(c):
    """2 E relu(u)^2 relu(v)^2 at q = 1 (Cho & Saul 2009, degree 2): 3 at c = 1."""
    angle = np.arccos(c)
    return (3 * np.sqrt((1 - c) * (1 + c)) * c + (np.pi - angle) * (1 + 2 * c * c)) / np.pi


class Sites:
    """Moments of one activation at many preactivation variances at once.

    log_q: (sites,) log of the variance of u. Attributes, each (sites,):
    ``log_phi2`` log E phi^2 with ``phi2_slope``, ``phi2_curvature`` its first two derivatives with
    respect to log q; ``mu1`` E phi'^2 with ``mu1_slope``, ``mu1_curvature`` those of its log;
    ``phi2_tilt`` E z phi^2 / E phi^2 and ``mu1_tilt`` E z phi'^2 / E phi'^2, z = u/sqrt(q);
    ``f1`` E phi^4 / (E phi^2)^2; ``m1`` E phi'^4 / (E phi'^2)^2; ``x1`` E phi^2 phi'^2 over both
    means. `phi_correlation` and `pairs` are the two-point versions.
    """

    def __init__(self, activation: ActivationFunction, log_q: np.ndarray):
        self.slope = activation.negative_slope
        log_q = np.asarray(log_q, dtype=float)
        if self.slope is None:
            self._integrate(activation, log_q)
        else:
            one, zero = np.ones_like(log_q), np.zeros_like(log_q)
            self.mu1 = one * (1 + self.slope**2) / 2
            self.log_phi2 = log_q + np.log(self.mu1)
            self.phi2_slope, self.phi2_curvature = one, zero
            self.mu1_slope, self.mu1_curvature = zero, zero
            self.m1 = one * 2 * (1 + self.slope**4) / (1 + self.slope**2) ** 2
            self.f1, self.x1 = 3 * self.m1, self.m1
            self.mu1_tilt = one * 2 * (1 - self.slope**2) / (1 + self.slope**2) / np.sqrt(2 * np.pi)
            self.phi2_tilt = 2 * self.mu1_tilt

    def _integrate(self, activation, log_q):
        unique, self._row = np.unique(clip_log_q(log_q), return_inverse=True)
        chunks = [
            integrals(activation, unique[i : i + CHUNK]) for i in range(0, unique.size, CHUNK)
        ]
        phi2, mu1, ratios, self._series = (
            np.concatenate(part) for part in zip(*chunks, strict=True)
        )
        # One row per distinct variance so far: spread them over the sites.
        phi2, mu1, ratios = phi2[self._row].T, mu1[self._row].T, ratios[self._row].T
        below, above = beyond(log_q)
        self.log_phi2 = np.log(phi2[0]) + power_law(activation, below, above)
        self.mu1 = mu1[0] * (np.exp(-above / 2) if activation.bounded else 1.0)
        self.phi2_slope, self.mu1_slope = phi2[1] / phi2[0], mu1[1] / mu1[0]
        self.phi2_curvature = phi2[2] / phi2[0] - self.phi2_slope**2
        self.mu1_curvature = mu1[2] / mu1[0] - self.mu1_slope**2
        self.phi2_tilt, self.mu1_tilt = phi2[3] / phi2[0], mu1[3] / mu1[0]
        self.f1, self.m1, self.x1 = ratios
        self._phi_squares = self._series[:, 0] ** 2

    @property
    def series(self) -> np.ndarray:
        """Hermite coefficients (sites, 4, terms) of phi, phi', phi^2 and phi'^2, over r.m.s. or
        mean; of activations that are not homogeneous."""
        return self._series[self._row]

    def phi_correlation(self, site: int, c: float) -> float:
        """E phi(u) phi(v) / E phi^2 at one site, for u, v of correlation c."""
        if self.slope is not None:
            # The same as `homogeneous_correlation`, which is slow on single numbers.
            kernel = math.sqrt((1 - c) * (1 + c)) + c * (math.pi - math.acos(c))
            top = 2 * self.slope * c + (1 - self.slope) ** 2 * kernel / math.pi
            return top / (1 + self.slope**2)
        squares = self._phi_squares[self._row[site]]
        return float(squares @ c**ORDERS + (1 - squares.sum()) * c**TERMS)

    def pairs(self, c: np.ndarray):
        """Two-point moments over the one-point means, at correlations c (sites,), each (sites,).

        Returns E phi'(u) phi'(v), E phi'(u)^2 phi'(v)^2, E phi(u)^2 phi(v)^2 and
        E phi'(u)^2 phi(v)^2.
        """
        if self.slope is not None:
            return homogeneous_pairs(self.slope, c)
        powers = c[:, None] ** ORDERS
        last = c**TERMS
        _, d, p2, d2 = self.series.transpose(1, 0, 2)

        def pair(f, g, total):
            products = f * g
            return (products * powers).sum(1) + (total - products.sum(1)) * last

        return pair(d, d, 1.0), pair(d2, d2, self.m1), pair(p2, p2, self.f1), pair(d2, p2, self.x1)


def power_law(activation, below, above):
    """What E phi^2 gains beyond the range of quadrature, as a log."""
    low = np.where(activation.vanishes_at_zero, below, 0.0)
    return low + np.where(activation.bounded, 0.0, above)


def integrals(activation, log_q):
    u = np.exp(log_q / 2)[:, None] * NODES
    p, d = activation.phi(u), activation.derivative(u)
    p2, d2 = p * p, d * d
    phi2, mu1 = p2 @ _DERIVATIVES, d2 @ _DERIVATIVES
    p2, d2 = p2 / phi2[:, :1], d2 / mu1[:, :1]
    ratios = np.stack([(f * g) @ WEIGHTS for f, g in ((p2, p2), (d2, d2), (p2, d2))], axis=1)
    p, d = p / np.sqrt(phi2[:, :1]), d / np.sqrt(mu1[:, :1])
    series = np.stack([f @ _HERMITE for f in (p, d, p2, d2)], axis=1)
    return phi2, mu1, ratios, series


def homogeneous_correlation(slope: float, c):
    """E phi(u) phi(v) / E phi^2 for the homogeneous activation of that negative slope."""
    return (2 * slope * c + (1 - slope) ** 2 * kappa1(c)) / (1 + slope**2)


def homogeneous_pairs(slope: float, c):
    """What `Sites.pairs` returns, in closed form (phi = slope u + (1 - slope) relu)."""
    a2, kink = slope**2, (1 - slope**2) ** 2
    mean = (1 + a2) / 2
    d = (slope + (1 - slope) ** 2 * kappa0(c) / 2) / mean
    d2 = (a2 + kink * kappa0(c) / 2) / mean**2
    p2 = (a2 * (1 + 2 * c * c) + kink * _kappa2(c) / 2) / mean**2
    # E 1[u > 0] v^2 1[v > 0] is J/(2 pi) with J = pi - arccos c + c sqrt(1 - c^2).
    half = (np.pi - np.arccos(c) + c * np.sqrt((1 - c) * (1 + c))) / (2 * np.pi)
    return d, d2, p2, (a2 + kink * half) / mean**2
