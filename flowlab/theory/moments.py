"""Gaussian moments of an activation: E f(u) and E f(u) g(v) for u, v ~ N(0, q) of correlation c.

One-point moments are integrated by the trapezoid rule in t = log|z| on each half-line. The
integrand is analytic in a strip of half-width pi/4, so that the error of step 0.15 is about 1e-14,
whatever the kink at zero and whatever the scale sqrt(q) at which the activation bends.
Two-point moments of the homogeneous activations are closed forms (Cho & Saul 2009, the arc-cosine
kernels); the others have two forms, an accurate quadrature in polar coordinates and a fast
expansion in Hermite polynomials (Mehler).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np

from flowlab.numerics.blas import kept
from flowlab.theory.activations import Activation

_STEP = 0.15
_T = np.arange(-24.0, 2.5, _STEP)
_HALF = np.exp(_T)
_HALF_WEIGHTS = _STEP * _HALF
# Below the first node f is constant: the rest of the geometric series goes to that node.
_HALF_WEIGHTS[0] /= -np.expm1(-_STEP)
NODES = np.concatenate([-_HALF[::-1], _HALF])
WEIGHTS = np.concatenate([_HALF_WEIGHTS[::-1], _HALF_WEIGHTS]) * np.exp(-(NODES**2) / 2)
WEIGHTS /= WEIGHTS.sum()

_TERMS = 48
_ORDERS = np.arange(_TERMS)
_LOWEST, _HIGHEST = np.log(1e-40), np.log(1e16)
_CHUNK = 128
_GRID = 0.1
# log q of what is exactly zero: finite, and below whatever a net of any depth brings about.
NO_SIGNAL = -1e12
_GAUSS_NODES, _GAUSS_WEIGHTS = np.polynomial.hermite_e.hermegauss(5)
_GAUSS_WEIGHTS = _GAUSS_WEIGHTS / _GAUSS_WEIGHTS.sum()
_RATIOS = ("phi2_tilt", "mu1_tilt", "f1", "m1", "x1")


def _hermite(terms: int) -> np.ndarray:
    """Orthonormal Hermite polynomials at the nodes, (nodes, terms)."""
    table = np.empty((terms, NODES.size))
    table[0], table[1] = 1.0, NODES
    for n in range(1, terms - 1):
        table[n + 1] = (NODES * table[n] - np.sqrt(n) * table[n - 1]) / np.sqrt(n + 1)
    return table.T


_HERMITE = _hermite(_TERMS) * WEIGHTS[:, None]
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
    return np.minimum(np.maximum(log_q, _LOWEST), _HIGHEST)


def _beyond(log_q):
    """How far log q lies below and above that range, both signed."""
    return np.minimum(log_q - _LOWEST, 0), np.maximum(log_q - _HIGHEST, 0)


def log_phi2(activation: Activation, log_q: float) -> float:
    """log E phi(u)^2; any log q, however far from zero."""
    if activation.homogeneous:
        return log_q + np.log((1 + activation.negative_slope**2) / 2)
    if _LOWEST <= log_q <= _HIGHEST:
        values = activation.phi(math.exp(log_q / 2) * NODES)
        return math.log(np.dot(values * values, WEIGHTS))
    values = activation.phi(np.exp(clip_log_q(log_q) / 2) * NODES)
    return float(np.log((values * values) @ WEIGHTS) + _power(activation, *_beyond(log_q)))


def mean_derivative_power(activation: Activation, log_q: float, power: int = 2) -> float:
    """E phi'(u)^power; any log q."""
    if activation.homogeneous:
        return (1 + activation.negative_slope**power) / 2
    values = activation.derivative(np.exp(clip_log_q(log_q) / 2) * NODES)
    _, above = _beyond(log_q)
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


def two_point(activation: Activation, f: Callable, q: float, c: float) -> float:
    """E f(u) f(v) by quadrature in polar coordinates; f may have a kink at zero.

    Both u and v are linear in the radius, and in the angle the kinks are the lines u = 0 and
    v = 0: three panels (the reflection that exchanges u and v halves the circle).
    """
    scale = np.exp(clip_log_q(np.log(q)) / 2) if q > 0 else np.exp(_LOWEST / 2)
    angle = np.arccos(np.clip(c, -1.0, 1.0))
    edges = np.array([angle / 2, np.pi / 2, np.pi / 2 + angle, np.pi + angle / 2])
    x, w = np.polynomial.legendre.leggauss(48)
    half = np.diff(edges)[:, None] / 2
    theta = (edges[:-1, None] + half * (x + 1)).ravel()
    theta_weights = (half * w).ravel() / np.pi
    radius_weights = _HALF_WEIGHTS * _HALF * np.exp(-(_HALF**2) / 2)
    radius = scale * _HALF
    u = np.cos(theta)[:, None] * radius
    v = np.cos(theta - angle)[:, None] * radius
    return float(theta_weights @ (f(u) * f(v)) @ radius_weights)


@dataclass(frozen=True)
class Moments:
    """One-point moments at preactivation variances, each of their shape; see `Curves.at`.

    ``log_phi2`` log E phi^2 with ``phi2_slope``, ``phi2_curvature`` its first two derivatives with
    respect to log q; ``log_mu1``, ``mu1_slope``, ``mu1_curvature`` those of log E phi'^2; the rest
    as of `Sites`.
    """

    log_phi2: np.ndarray
    phi2_slope: np.ndarray
    phi2_curvature: np.ndarray
    log_mu1: np.ndarray
    mu1_slope: np.ndarray
    mu1_curvature: np.ndarray
    phi2_tilt: np.ndarray
    mu1_tilt: np.ndarray
    f1: np.ndarray
    m1: np.ndarray
    x1: np.ndarray

    def parts(self):
        return (getattr(self, field.name) for field in fields(self))


class Curves:
    """The moments of `Sites` as functions of log q, tabulated once for each activation.

    Both logs are piecewise quintic through values and two derivatives (error about 1e-10), the
    ratios piecewise linear (1e-3); beyond the range of quadrature phi is a power law. Many layers
    and examples read them, where integrals would take most of a prediction's time.
    """

    def __init__(self, activation: Activation):
        self.activation = activation
        if activation.homogeneous:
            self._fixed = Sites(activation, np.zeros(1))
            return
        log_q = np.arange(_LOWEST, _HIGHEST + _GRID, _GRID)
        chunks = [
            _integrals(activation, log_q[i : i + _CHUNK]) for i in range(0, len(log_q), _CHUNK)
        ]
        phi2, mu1, ratios, self._series = (np.concatenate(c) for c in zip(*chunks, strict=True))
        pieces = [_quintic(*_log_derivatives(moments)) for moments in (phi2, mu1)]
        self._pieces = np.stack(pieces, axis=1)  # (6, 2, intervals)
        tilts = [(moments[:, 3] / moments[:, 0])[:, None] for moments in (phi2, mu1)]
        self._ratios = np.ascontiguousarray(np.concatenate([*tilts, ratios], axis=1).T)

    def _place(self, log_q):
        place = (clip_log_q(log_q) - _LOWEST) / _GRID
        interval = np.minimum(place.astype(np.intp), self._pieces.shape[2] - 1)
        return interval, place - interval

    def logs(self, log_q: np.ndarray, derivatives: int = 0) -> list[np.ndarray]:
        """log E phi^2 and log E phi'^2, (2, *shape), then as many of their derivatives."""
        log_q = np.asarray(log_q, dtype=float)
        if self.activation.homogeneous:
            slope = self.activation.negative_slope
            level = math.log((1 + slope**2) / 2)
            at_zero = 2 * math.log(slope) if slope else -math.inf
            mu1 = np.where(log_q <= NO_SIGNAL / 2, at_zero, level)
            zero, one = np.zeros_like(log_q), np.ones_like(log_q)
            return [np.stack([log_q + level, mu1]), np.stack([one, zero]), np.stack([zero, zero])][
                : 1 + derivatives
            ]
        interval, s = self._place(log_q)
        a = self._pieces[:, :, interval]
        value = a[0] + s * (a[1] + s * (a[2] + s * (a[3] + s * (a[4] + s * a[5]))))
        below, above = _beyond(log_q)
        value[0] += _power(self.activation, below, above)
        if self.activation.bounded:
            value[1] -= above / 2
        found = [value]
        if derivatives > 0:
            first = a[1] + s * (2 * a[2] + s * (3 * a[3] + s * (4 * a[4] + s * 5 * a[5])))
            found.append(first / _GRID)
        if derivatives > 1:
            second = 2 * a[2] + s * (6 * a[3] + s * (12 * a[4] + s * 20 * a[5]))
            found.append(second / _GRID**2)
        return found

    def at(self, log_q: np.ndarray, variance: np.ndarray) -> Moments:
        """Moments where log q is Gaussian of mean ``log_q`` and that variance, both (n,).

        Logs and their derivatives are means over that law; the ratios are those at its mean.
        """
        if self.activation.homogeneous:
            value, first, second = self.logs(log_q, 2)
            one, fixed = np.ones_like(value[0]), self._fixed
            ratios = [float(getattr(fixed, name)[0]) * one for name in _RATIOS]
        else:
            spread = np.sqrt(np.maximum(variance, 0.0))
            value, first, second = (
                np.einsum("k,fkn->fn", _GAUSS_WEIGHTS, part)
                for part in self.logs(log_q + _GAUSS_NODES[:, None] * spread, 2)
            )
            interval, s = self._place(log_q)
            low, high = self._ratios[:, interval], self._ratios[:, interval + 1]
            ratios = low + s * (high - low)
        logs = (value[0], first[0], second[0], value[1], first[1], second[1])
        return Moments(*logs, *ratios)

    def pairs(self, log_q: float, c: float) -> tuple[float, ...]:
        """What `Sites.pairs` returns, of one pair of correlation c."""
        if self.activation.homogeneous:
            return tuple(map(float, homogeneous_pairs(self.activation.negative_slope, c)))
        _, d, p2, d2 = self._interpolated(log_q)
        m = self.at(np.array([log_q]), np.zeros(1))
        powers, last = c**_ORDERS, c**_TERMS

        def pair(f, g, total):
            products = f * g
            return float(products @ powers + (float(total[0]) - products.sum()) * last)

        return pair(d, d, [1.0]), pair(d2, d2, m.m1), pair(p2, p2, m.f1), pair(d2, p2, m.x1)

    def phi_correlation(self, log_q: float, c: float) -> float:
        """E phi(u) phi(v) / E phi^2 for u, v of correlation c."""
        if self.activation.homogeneous:
            return self._fixed.phi_correlation(0, c)
        squares = self._interpolated(log_q)[0] ** 2
        return float(squares @ c**_ORDERS + (1 - squares.sum()) * c**_TERMS)

    def _interpolated(self, log_q):
        interval, s = self._place(np.float64(log_q))
        return self._series[interval] * (1 - s) + self._series[interval + 1] * s


@kept(maxsize=32)
def curves(activation: Activation) -> Curves:
    """The activation's `Curves`: about 20 ms the first time."""
    return Curves(activation)


def _log_derivatives(moments):
    """log of a moment, its first and its second derivative with respect to log q."""
    value, first, second = moments[:, 0], moments[:, 1], moments[:, 2]
    slope = first / value
    return np.log(value), slope, second / value - slope**2


def _quintic(value, slope, curvature):
    """Coefficients (6, intervals) in s = 0 .. 1 of each interval's quintic Hermite polynomial."""
    start, end = slice(None, -1), slice(1, None)
    slope, curvature = slope * _GRID, curvature * _GRID**2
    a, b, c = value[start], slope[start], curvature[start] / 2
    gap = value[end] - a - b - c
    steep = slope[end] - b - 2 * c
    bent = curvature[end] - 2 * c
    return np.stack(
        [
            a,
            b,
            c,
            10 * gap - 4 * steep + bent / 2,
            -15 * gap + 7 * steep - bent,
            6 * gap - 3 * steep + bent / 2,
        ]
    )


class Sites:
    """Moments of one activation at many preactivation variances at once.

    log_q: (sites,) log of the variance of u. Attributes, each (sites,):
    ``log_phi2`` log E phi^2 with ``phi2_slope``, ``phi2_curvature`` its first two derivatives with
    respect to log q; ``mu1`` E phi'^2 with ``mu1_slope``, ``mu1_curvature`` those of its log;
    ``phi2_tilt`` E z phi^2 / E phi^2 and ``mu1_tilt`` E z phi'^2 / E phi'^2, z = u/sqrt(q);
    ``f1`` E phi^4 / (E phi^2)^2; ``m1`` E phi'^4 / (E phi'^2)^2; ``x1`` E phi^2 phi'^2 over both
    means. `phi_correlation` and `pairs` are the two-point versions.
    """

    def __init__(self, activation: Activation, log_q: np.ndarray):
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
            _integrals(activation, unique[i : i + _CHUNK]) for i in range(0, unique.size, _CHUNK)
        ]
        phi2, mu1, ratios, self._series = (
            np.concatenate(part) for part in zip(*chunks, strict=True)
        )
        # One row per distinct variance so far: spread them over the sites.
        phi2, mu1, ratios = phi2[self._row].T, mu1[self._row].T, ratios[self._row].T
        below, above = _beyond(log_q)
        self.log_phi2 = np.log(phi2[0]) + _power(activation, below, above)
        self.mu1 = mu1[0] * (np.exp(-above / 2) if activation.bounded else 1.0)
        self.phi2_slope, self.mu1_slope = phi2[1] / phi2[0], mu1[1] / mu1[0]
        self.phi2_curvature = phi2[2] / phi2[0] - self.phi2_slope**2
        self.mu1_curvature = mu1[2] / mu1[0] - self.mu1_slope**2
        self.phi2_tilt, self.mu1_tilt = phi2[3] / phi2[0], mu1[3] / mu1[0]
        self.f1, self.m1, self.x1 = ratios
        self._phi_squares = self._series[:, 0] ** 2

    def phi_correlation(self, site: int, c: float) -> float:
        """E phi(u) phi(v) / E phi^2 at one site, for u, v of correlation c."""
        if self.slope is not None:
            # The same as `homogeneous_correlation`, which is slow on single numbers.
            kernel = math.sqrt((1 - c) * (1 + c)) + c * (math.pi - math.acos(c))
            top = 2 * self.slope * c + (1 - self.slope) ** 2 * kernel / math.pi
            return top / (1 + self.slope**2)
        squares = self._phi_squares[self._row[site]]
        return float(squares @ c**_ORDERS + (1 - squares.sum()) * c**_TERMS)

    def pairs(self, c: np.ndarray):
        """Two-point moments over the one-point means, at correlations c (sites,), each (sites,).

        Returns E phi'(u) phi'(v), E phi'(u)^2 phi'(v)^2, E phi(u)^2 phi(v)^2 and
        E phi'(u)^2 phi(v)^2.
        """
        if self.slope is not None:
            return homogeneous_pairs(self.slope, c)
        powers = c[:, None] ** _ORDERS
        last = c**_TERMS
        _, d, p2, d2 = self._series[self._row].transpose(1, 0, 2)

        def pair(f, g, total):
            products = f * g
            return (products * powers).sum(1) + (total - products.sum(1)) * last

        return pair(d, d, 1.0), pair(d2, d2, self.m1), pair(p2, p2, self.f1), pair(d2, p2, self.x1)


def _power(activation, below, above):
    """What E phi^2 gains beyond the range of quadrature, as a log."""
    low = np.where(activation.vanishes_at_zero, below, 0.0)
    return low + np.where(activation.bounded, 0.0, above)


def _integrals(activation, log_q):
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
