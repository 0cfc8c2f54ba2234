"""An activation's moments over fields: at many variances at once, and between sites that differ.

Fields over examples and positions ask for thousands of variances in every layer: cubic splines
between quadratures (`moments`) at a step of 1/8 in log q are right to 1e-6, and homogeneous
activations have closed forms. Between two sites of unlike variance
E f(u_i) f(u_j) = sum_n a_n(q_i) a_n(q_j) c_ij^n (Mehler), where what lies beyond the last term kept
goes to that term.
"""

import numpy as np

from flowlab.numerics.blas import kept
from flowlab.theory.activations import ActivationFunction
from flowlab.theory.moments import (
    HIGHEST,
    LOWEST,
    Sites,
    beyond,
    clip_log_q,
    homogeneous_correlation,
    homogeneous_pairs,
    power_law,
)

_STEP = 0.125


class OnePoint:
    """log E phi(u)^2 and E phi'(u)^2 for u ~ N(0, q); log q of any shape, -inf for q = 0."""

    def __init__(self, activation: ActivationFunction):
        self.activation = activation
        self.at_zero = np.abs(activation.phi(np.zeros(1)))[0], activation.derivative(np.zeros(1))[0]
        if not activation.homogeneous:
            from scipy.interpolate import CubicSpline  # a third of the time of importing flowlab

            grid = np.append(np.arange(LOWEST, HIGHEST, _STEP), HIGHEST)
            sites = Sites(activation, grid)
            every = np.column_stack([sites.log_phi2, np.log(sites.mu1), sites.m1])
            self._one = CubicSpline(grid, every)
            self._series = CubicSpline(grid, sites.series[:, [0, 1, 3]])

    def __call__(self, log_q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(log E phi^2, log E phi'^2), each shaped like ``log_q``."""
        log_q = np.asarray(log_q, dtype=float)
        act = self.activation
        if act.homogeneous:
            factor = np.log((1 + act.negative_slope**2) / 2)
            phi2, mu1 = log_q + factor, np.full_like(log_q, factor)
        else:
            below, above = beyond(log_q)
            found = self._one(clip_log_q(log_q))
            phi2 = found[..., 0] + power_law(act, below, above)
            mu1 = found[..., 1] - (above / 2 if act.bounded else 0.0)
        if np.isneginf(log_q).any():
            with np.errstate(divide="ignore"):
                value, slope = 2 * np.log(np.abs(self.at_zero))
            phi2, mu1 = (
                np.where(np.isneginf(log_q), at, found)
                for at, found in ((value, phi2), (slope, mu1))
            )
        return phi2, mu1

    def series(self, log_q: np.ndarray) -> np.ndarray:
        """Hermite coefficients (..., 3, terms) of phi, phi' and phi'^2, over r.m.s. and mean.

        Of activations that are not homogeneous.
        """
        return self._series(clip_log_q(log_q))

    def m1(self, log_q: np.ndarray) -> np.ndarray:
        """E phi'^4/(E phi'^2)^2."""
        slope = self.activation.negative_slope
        if slope is not None:
            return np.full_like(log_q, 2 * (1 + slope**4) / (1 + slope**2) ** 2)
        return self._one(clip_log_q(log_q))[..., 2]


@kept(maxsize=32)
def one_point(activation: ActivationFunction) -> OnePoint:
    """The activation's `OnePoint`, its splines made once."""
    return OnePoint(activation)


class Pairs:
    """Two-point functions over sites of log variance ``log_q`` (n,).

    Each takes correlations c (..., n, n) and returns the same shape, over the one-point means'
    geometric mean: c = 1 at sites of equal variance gives 1. ``log_phi2``, ``log_mu1`` (n,): the
    logs of E phi^2 and E phi'^2; ``m1`` (n,): E phi'^4/(E phi'^2)^2.
    """

    def __init__(self, activation: ActivationFunction, log_q: np.ndarray):
        self._slope = activation.negative_slope
        moments = one_point(activation)
        self.log_phi2, self.log_mu1 = moments(log_q)
        if self._slope is None:
            self._values, self._slopes, self._squares = np.moveaxis(moments.series(log_q), 1, 0)
        self.m1 = moments.m1(log_q)

    def values(self, c: np.ndarray) -> np.ndarray:
        """E phi phi."""
        if self._slope is not None:
            return homogeneous_correlation(self._slope, c)
        return _mehler(self._values, c)

    def slopes(self, c: np.ndarray) -> np.ndarray:
        """E phi' phi'."""
        if self._slope is not None:
            return homogeneous_pairs(self._slope, c)[0]
        return _mehler(self._slopes, c)

    def overlaps(self, c: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """E phi' phi' and E phi'^2 phi'^2 over the means, and (n,) E phi'^4/(E phi'^2)^2."""
        if self._slope is not None:
            h, m, _, _ = homogeneous_pairs(self._slope, c)
            return h, m, self.m1
        return self.slopes(c), _mehler(self._squares, c, self.m1), self.m1

    def tilts(self, c: np.ndarray) -> np.ndarray:
        """E z phi' z phi' with z = u/sqrt(q), over E phi'^2: not 1 at c = 1."""
        if self._slope is not None:
            return homogeneous_correlation(self._slope, c)
        d = self._slopes
        n = np.arange(d.shape[1])
        up = np.zeros_like(d)
        up[:, :-1] += np.sqrt(n[1:]) * d[:, 1:]
        up[:, 1:] += np.sqrt(n[1:]) * d[:, :-1]
        return _mehler(up, c, None)


def _mehler(a, c, total=1.0):
    """sum_n a_n a_n' c^n, by Horner's rule from the last term on; total: what sum_n a_n^2 is.

    Terms that stay below 1e-4 at all sites are left out, their squares below 1e-8.
    """
    known = np.square(a).sum(1)
    rest = np.sqrt(np.maximum((known if total is None else total) - known, 0.0))
    last = np.flatnonzero(np.abs(a).max(0) > 1e-4)
    a = a[:, : last[-1] + 1] if len(last) else a[:, :1]
    total = rest[:, None] * rest * np.ones_like(c)
    for column in a.T[::-1]:
        total = total * c + column[:, None] * column
    return total
