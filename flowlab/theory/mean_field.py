"""Infinite width: variance and gradient maps, fixed points, and the plane of their phases.

Poole et al. 2016 ("Exponential expressivity...") and Schoenholz et al. 2017 ("Deep information
propagation"). Conventions: z = phi(z_prev) W + b, sigma_w2 = fan_in Var(W), sigma_b2 = Var(b),
q = E z^2 of a coordinate.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from flowlab.errors import InputError
from flowlab.theory.activations import ActivationFunction, get_activation
from flowlab.theory.moments import log_phi2, mean_derivative_power

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


def log_q_map(
    activation: ActivationFunction, log_q: float, sigma_w2: float, sigma_b2: float
) -> float:
    """log of `q_map` from log q: no overflow and no underflow."""
    return float(np.logaddexp(_log(sigma_w2) + log_phi2(activation, log_q), _log(sigma_b2)))


def q_map(
    activation: str | ActivationFunction, q: float, sigma_w2: float, sigma_b2: float = 0.0
) -> float:
    """The next layer's variance, sigma_w2 E phi(sqrt(q) z)^2 + sigma_b2 (Poole et al., eq. 3)."""
    _check(sigma_w2, sigma_b2, q)
    return _exp(log_q_map(get_activation(activation), _log(q), sigma_w2, sigma_b2))


def chi(activation: str | ActivationFunction, q: float, sigma_w2: float) -> float:
    """Gradient rate E||delta_l||^2 / E||delta_{l+1}||^2 = sigma_w2 E phi'(sqrt(q) z)^2."""
    _check(sigma_w2, q=q)
    return sigma_w2 * mean_derivative_power(get_activation(activation), _log(q))


def log_q_trajectory(
    activation: ActivationFunction, log_q: float, sigma_w2: float, sigma_b2: float, depth: int
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
    activation: str | ActivationFunction, q: float, sigma_w2: float, sigma_b2: float, depth: int
) -> np.ndarray:
    """Variances q_1 .. q_depth starting from q_1 = q, (depth,); may reach 0 or inf at extremes."""
    _check(sigma_w2, sigma_b2, q)
    act = get_activation(activation)
    with np.errstate(over="ignore"):
        return np.exp(log_q_trajectory(act, _log(q), sigma_w2, sigma_b2, depth))


def q_fixed_point(
    activation: str | ActivationFunction, sigma_w2: float, sigma_b2: float = 0.0, start: float = 1.0
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


def phase_plane(
    activation: str, sigma_w2: Sequence[float], sigma_b2: Sequence[float]
) -> pd.DataFrame:
    """chi at the variance's fixed point over a grid: columns sigma_w2, sigma_b2, chi.

    Below 1 the phase is ordered and gradients vanish, above 1 it is chaotic and they explode
    (Poole et al. 2016); the gradient's depth scale is 1/|log chi| layers (Schoenholz et al. 2017).
    Raises InputError for an unknown activation or a negative variance.
    """
    rows = [
        (w, b, chi(activation, q_fixed_point(activation, w, b), w))
        for b in sigma_b2
        for w in sigma_w2
    ]
    return pd.DataFrame(rows, columns=["sigma_w2", "sigma_b2", "chi"])


def _root(function, low, high, **tolerances) -> float:
    # Imported at first use: it would be a fifth of the start-up of runs that never need it.
    from scipy.optimize import brentq

    return brentq(function, low, high, **tolerances)
