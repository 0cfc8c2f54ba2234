"""Infinite width: variance, correlation and gradient maps, their fixed points and depth scales.

Poole et al. 2016 ("Exponential expressivity...") and Schoenholz et al. 2017 ("Deep information
propagation"). Conventions: z = phi(z_prev) W + b, sigma_w2 = fan_in Var(W), sigma_b2 = Var(b),
q = E z^2 of a coordinate, c the correlation of two examples' preactivations.
"""

from typing import NamedTuple

import numpy as np
from scipy.special import expit

from flowlab.errors import InputError
from flowlab.theory.activations import Activation, get_activation
from flowlab.theory.moments import (
    Sites,
    homogeneous_correlation,
    homogeneous_pairs,
    log_phi2,
    mean_derivative_power,
    two_point,
)

_AT_CRITICALITY = 1e-12


def _log(x):
    with np.errstate(divide="ignore"):
        return np.log(x)


def _exp(x):
    with np.errstate(over="ignore"):
        return float(np.exp(x))


def _check(sigma_w2, sigma_b2=0.0, q=1.0):
    for name, value in (("sigma_w2", sigma_w2), ("sigma_b2", sigma_b2), ("q", q)):
        if not value >= 0:
            raise InputError(f"{name} must be at least 0; got {value}")


def log_q_map(activation: Activation, log_q: float, sigma_w2: float, sigma_b2: float) -> float:
    """log of `q_map` from log q: no overflow and no underflow."""
    return float(np.logaddexp(_log(sigma_w2) + log_phi2(activation, log_q), _log(sigma_b2)))


def q_map(activation: str | Activation, q: float, sigma_w2: float, sigma_b2: float = 0.0) -> float:
    """The next layer's variance, sigma_w2 E phi(sqrt(q) z)^2 + sigma_b2 (Poole et al., eq. 3)."""
    _check(sigma_w2, sigma_b2, q)
    return _exp(log_q_map(get_activation(activation), _log(q), sigma_w2, sigma_b2))


def chi(activation: str | Activation, q: float, sigma_w2: float) -> float:
    """Gradient rate E||delta_l||^2 / E||delta_{l+1}||^2 = sigma_w2 E phi'(sqrt(q) z)^2."""
    _check(sigma_w2, q=q)
    return sigma_w2 * mean_derivative_power(get_activation(activation), _log(q))


def log_q_trajectory(
    activation: Activation, log_q: float, sigma_w2: float, sigma_b2: float, depth: int
) -> np.ndarray:
    """log q_1 .. log q_depth from log q_1, (depth,)."""
    trajectory = np.empty(depth)
    for layer in range(depth):
        trajectory[layer] = log_q
        following = log_q_map(activation, log_q, sigma_w2, sigma_b2)
        if abs(following - log_q) < 1e-14:
            trajectory[layer:] = log_q
            break
        log_q = following
    return trajectory


def q_trajectory(
    activation: str | Activation, q: float, sigma_w2: float, sigma_b2: float, depth: int
) -> np.ndarray:
    """Variances q_1 .. q_depth starting from q_1 = q, (depth,); may reach 0 or inf at extremes."""
    _check(sigma_w2, sigma_b2, q)
    act = get_activation(activation)
    with np.errstate(over="ignore"):
        return np.exp(log_q_trajectory(act, _log(q), sigma_w2, sigma_b2, depth))


def q_fixed_point(
    activation: str | Activation, sigma_w2: float, sigma_b2: float = 0.0, start: float = 1.0
) -> float:
    """Limit of the variance map from ``start``: 0 where it dies out, inf where it diverges.

    Where the map is the identity (He ReLU without bias) every q is a fixed point: ``start``.
    """
    _check(sigma_w2, sigma_b2, start)
    act = get_activation(activation)
    if act.homogeneous:
        rate = sigma_w2 * (1 + act.negative_slope**2) / 2
        if abs(rate - 1) < _AT_CRITICALITY:
            return start if sigma_b2 == 0 else np.inf
        if rate < 1:
            return sigma_b2 / (1 - rate)
        return np.inf if start > 0 or sigma_b2 > 0 else 0.0

    def growth(log_q):
        return log_q_map(act, log_q, sigma_w2, sigma_b2) - log_q

    # The map increases, so iterates move monotonically to the first zero of its growth.
    here = float(_log(start)) if start > 0 else np.log(1e-30)
    first = growth(here)
    if abs(first) < _AT_CRITICALITY and sigma_b2 > 0:
        return start
    direction = np.sign(first)
    while abs(here) < 70:
        there = here + 0.1 * direction
        if growth(there) * direction < -_AT_CRITICALITY:
            return _exp(_root(growth, here, there, xtol=1e-15, rtol=1e-14))
        here = there
    return np.inf if direction > 0 else 0.0


def c_map(
    activation: str | Activation, c: float, q: float, sigma_w2: float, sigma_b2: float = 0.0
) -> float:
    """The next layer's correlation of two examples, both of variance q (Poole et al., eq. 4-5)."""
    _check(sigma_w2, sigma_b2, q)
    act = get_activation(activation)
    log_own = log_phi2(act, _log(q))
    if act.homogeneous:
        overlap = homogeneous_correlation(act.negative_slope, np.clip(c, -1.0, 1.0))
    else:
        overlap = two_point(act, act.phi, q, c) / two_point(act, act.phi, q, 1.0)
    weight = expit(_log(sigma_w2) + log_own - _log(sigma_b2)) if sigma_b2 > 0 else 1.0
    return float(weight * overlap + 1 - weight)


def chi_c(activation: str | Activation, c: float, q: float, sigma_w2: float) -> float:
    """sigma_w2 E phi'(u) phi'(v) at correlation c: the rate of the deltas' overlap."""
    _check(sigma_w2, q=q)
    act = get_activation(activation)
    if act.homogeneous:
        overlap = homogeneous_pairs(act.negative_slope, np.clip(c, -1.0, 1.0))[0]
        return float(sigma_w2 * overlap * (1 + act.negative_slope**2) / 2)
    return sigma_w2 * two_point(act, act.derivative, q, c)


def c_fixed_point(activation: str | Activation, sigma_w2: float, sigma_b2: float = 0.0) -> float:
    """Stable correlation at the variance's fixed point: 1 in the ordered phase, below 1 if chaotic.

    At most 1 and at least 0. Linear nets without bias keep any correlation: 1 by convention.
    """
    act = get_activation(activation)
    q = q_fixed_point(act, sigma_w2, sigma_b2)
    if act.homogeneous or not np.isfinite(q) or chi(act, q, sigma_w2) <= 1 + 1e-9:
        return 1.0

    def drift(c):
        return c_map(act, c, q, sigma_w2, sigma_b2) - c

    if drift(0.0) <= 1e-14:
        return 0.0
    gap = 0.5
    while drift(1 - gap) > 0:
        gap /= 4
        if gap < 1e-9:
            return 1.0
    return _root(drift, 0.0, 1 - gap, xtol=1e-15)


class DepthScales(NamedTuple):
    """Depths over which a variance, a correlation and a gradient relax: e-folding, in layers.

    ``inf`` at criticality; ``xi_grad`` is negative where gradients explode.
    """

    xi_q: float
    xi_c: float
    xi_grad: float


def depth_scales(
    activation: str | Activation, sigma_w2: float, sigma_b2: float = 0.0
) -> DepthScales:
    """Schoenholz et al. 2017, eq. 9-11, at the fixed point reached from q = 1.

    1/xi_q = -log(chi_1 + sigma_w2 E phi phi''), 1/xi_c = -log chi_c(c*), 1/xi_grad = -log chi_1.
    """
    act = get_activation(activation)
    q = q_fixed_point(act, sigma_w2, sigma_b2)
    if np.isinf(q):
        site, q = Sites(act, np.array([700.0])), 1e16
    else:
        site = Sites(act, np.array([max(float(_log(q)), -700.0)]))
    rate = sigma_w2 * float(site.mu1[0])
    # d q'/d q by Stein's lemma: the slope of log E phi^2 times q'/q without the bias.
    if q > 0:
        slope = float(site.phi2_slope[0]) * sigma_w2 * np.exp(float(site.log_phi2[0]) - _log(q))
    else:
        slope = rate
    return DepthScales(
        *(
            _scale(x)
            for x in (slope, chi_c(act, c_fixed_point(act, sigma_w2, sigma_b2), q, sigma_w2), rate)
        )
    )


def _scale(rate: float) -> float:
    log_rate = float(_log(rate))
    return np.inf if abs(log_rate) < _AT_CRITICALITY else -1 / log_rate


def critical_sigma_w2(activation: str | Activation, sigma_b2: float = 0.0) -> float:
    """The sigma_w2 at which chi = 1 at the fixed point of q, given sigma_b2; nan if there is none.

    For a homogeneous activation chi does not depend on q: 2/(1 + slope^2) for every bias. Without
    bias and with phi(0) = 0 it is the one at q = 0, 1/phi'(0)^2.
    """
    _check(1.0, sigma_b2)
    act = get_activation(activation)

    def excess(log_q):
        mean_d2 = mean_derivative_power(act, log_q)
        return np.exp(log_q) - np.exp(log_phi2(act, log_q)) / mean_d2 - sigma_b2

    if act.homogeneous or (sigma_b2 == 0 and act.vanishes_at_zero):
        return 1 / mean_derivative_power(act, -100.0)
    grid = np.linspace(np.log(1e-10), np.log(1e6), 200)
    signs = np.sign([excess(x) for x in grid])
    turns = np.flatnonzero(signs[:-1] * signs[1:] < 0)
    if turns.size == 0:
        return np.nan
    log_q = _root(excess, grid[turns[0]], grid[turns[0] + 1], xtol=1e-14)
    return 1 / mean_derivative_power(act, log_q)


def _root(function, low, high, **tolerances) -> float:
    # Imported at first use: it would be a fifth of the start-up of runs that never need it.
    from scipy.optimize import brentq

    return brentq(function, low, high, **tolerances)
