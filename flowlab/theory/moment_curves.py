"""An activation's moments as functions of log q, exact enough for any use and tabulated once.

Recursions over the layers of fully-connected nets read few variances in each, and with them
derivatives and averages over a Gaussian law of log q. Fields over thousands of positions have
cheaper functions of their own (`field_moments`).
"""

import math
from dataclasses import dataclass, fields

import numpy as np

from flowlab.numerics.blas import kept
from flowlab.theory.activations import ActivationFunction
from flowlab.theory.moments import (
    CHUNK,
    HIGHEST,
    LOWEST,
    NO_SIGNAL,
    ORDERS,
    TERMS,
    Sites,
    beyond,
    clip_log_q,
    homogeneous_pairs,
    integrals,
    power_law,
)

_GRID = 0.1
_GAUSS_NODES, _GAUSS_WEIGHTS = np.polynomial.hermite_e.hermegauss(5)
_GAUSS_WEIGHTS = _GAUSS_WEIGHTS / _GAUSS_WEIGHTS.sum()
_RATIOS = ("phi2_tilt", "mu1_tilt", "f1", "m1", "x1")


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

    def __init__(self, activation: ActivationFunction):
        self.activation = activation
        if activation.homogeneous:
            self._fixed = Sites(activation, np.zeros(1))
            return
        log_q = np.arange(LOWEST, HIGHEST + _GRID, _GRID)
        chunks = [integrals(activation, log_q[i : i + CHUNK]) for i in range(0, len(log_q), CHUNK)]
        phi2, mu1, ratios, self._series = (np.concatenate(c) for c in zip(*chunks, strict=True))
        pieces = [_quintic(*_log_derivatives(moments)) for moments in (phi2, mu1)]
        self._pieces = np.stack(pieces, axis=1)  # (6, 2, intervals)
        tilts = [(moments[:, 3] / moments[:, 0])[:, None] for moments in (phi2, mu1)]
        self._ratios = np.ascontiguousarray(np.concatenate([*tilts, ratios], axis=1).T)

    def _place(self, log_q):
        place = (clip_log_q(log_q) - LOWEST) / _GRID
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
        below, above = beyond(log_q)
        value[0] += power_law(self.activation, below, above)
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
        powers, last = c**ORDERS, c**TERMS

        def pair(f, g, total):
            products = f * g
            return float(products @ powers + (float(total[0]) - products.sum()) * last)

        return pair(d, d, [1.0]), pair(d2, d2, m.m1), pair(p2, p2, m.f1), pair(d2, p2, m.x1)

    def phi_correlation(self, log_q: float, c: float) -> float:
        """E phi(u) phi(v) / E phi^2 for u, v of correlation c."""
        if self.activation.homogeneous:
            return self._fixed.phi_correlation(0, c)
        squares = self._interpolated(log_q)[0] ** 2
        return float(squares @ c**ORDERS + (1 - squares.sum()) * c**TERMS)

    def _interpolated(self, log_q):
        interval, s = self._place(np.float64(log_q))
        return self._series[interval] * (1 - s) + self._series[interval + 1] * s


@kept(maxsize=32)
def curves(activation: ActivationFunction) -> Curves:
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
