"""Moments of an activation at many variances at once, as functions of log q.

Fields over examples and positions ask for thousands of variances in every layer: cubic splines
between quadratures (`moments`) at a step of 1/8 in log q are right to 1e-6, and homogeneous
activations have closed forms.
"""

import numpy as np
from scipy.interpolate import CubicSpline

from flowlab.numerics.blas import kept
from flowlab.theory.activations import Activation
from flowlab.theory.moments import Sites, clip_log_q

_STEP = 0.125


class OnePoint:
    """log E phi(u)^2 and E phi'(u)^2 for u ~ N(0, q); log q of any shape, -inf for q = 0."""

    def __init__(self, activation: Activation):
        self.activation = activation
        self.at_zero = np.abs(activation.phi(np.zeros(1)))[0], activation.derivative(np.zeros(1))[0]
        if not activation.homogeneous:
            low, high = clip_log_q(np.array([-np.inf, np.inf]))
            grid = np.append(np.arange(low, high, _STEP), high)
            sites = Sites(activation, grid)
            self._grid = low, high
            every = np.column_stack([sites.log_phi2, np.log(sites.mu1), sites.m1])
            self._one = CubicSpline(grid, every)
            self._series = CubicSpline(grid, sites._series[sites._row][:, [0, 1, 3]])

    def __call__(self, log_q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(log E phi^2, log E phi'^2), each shaped like ``log_q``."""
        log_q = np.asarray(log_q, dtype=float)
        act = self.activation
        if act.homogeneous:
            factor = np.log((1 + act.negative_slope**2) / 2)
            phi2, mu1 = log_q + factor, np.full_like(log_q, factor)
        else:
            low, high = self._grid
            inside = np.clip(log_q, low, high)
            below, above = np.minimum(log_q - low, 0), np.maximum(log_q - high, 0)
            # Beyond the range of quadrature the activation is a power law.
            found = self._one(inside)
            phi2 = found[..., 0] + (below if act.vanishes_at_zero else 0.0)
            phi2 = phi2 + (0.0 if act.bounded else above)
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
        return self._series(np.clip(log_q, *self._grid))

    def m1(self, log_q: np.ndarray) -> np.ndarray:
        """E phi'^4/(E phi'^2)^2."""
        slope = self.activation.negative_slope
        if slope is not None:
            return np.full_like(log_q, 2 * (1 + slope**4) / (1 + slope**2) ** 2)
        return self._one(np.clip(log_q, *self._grid))[..., 2]


@kept(maxsize=32)
def one_point(activation: Activation) -> OnePoint:
    """The activation's `OnePoint`, its splines made once."""
    return OnePoint(activation)
