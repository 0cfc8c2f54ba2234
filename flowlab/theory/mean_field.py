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
from flowlab.theory.moments import Sites, log_phi2, mean_derivative_power

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


def correlation_depth(
    activation: str | ActivationFunction, sigma_w2: float, sigma_b2: float = 0.0
) -> float:
    """xi_c, the layers over which the correlation of two inputs comes e times nearer its limit c*.

    xi_c = 1/|log(sigma_w2 E phi'(u) phi'(v))| at q* and c* (Schoenholz et al. 2017, section 3),
    where c* is 1 in the ordered phase, so that xi_c is the gradient's depth scale there; inf where
    the phases meet. Raises InputError where the variance has no finite fixed point above 0.
    """
    act = get_activation(activation)
    q = q_fixed_point(act, sigma_w2, sigma_b2)
    if not 0 < q < np.inf:
        raise InputError(
            f"the variance of {act.name} must have a finite fixed point above 0; got {q:g} at "
            f"sigma_w2={sigma_w2:g}, sigma_b2={sigma_b2:g}"
        )
    rate = chi(act, q, sigma_w2)
    if rate > 1:
        site = Sites(act, np.log([q]))
        variance = (q - sigma_b2) / q  # of c = 1, where the map's fixed point is 1

        def growth(c):
            return variance * site.phi_correlation(0, c) + sigma_b2 / q - c

        near = 1 - 1e-6
        # The map is convex: below 1 it meets the diagonal once, but for odd phi without bias at 0.
        if growth(near) < 0:
            c = _root(growth, 0.0, near, xtol=1e-14) if growth(0.0) > 0 else 0.0
            rate = sigma_w2 * float(site.pairs(np.array([c]))[0][0] * site.mu1[0])
    size = abs(float(np.log(rate)))
    return 1 / size if size > _AT_CRITICALITY else np.inf


def _root(function, low, high, **tolerances) -> float:
    # Imported at first use: it would be a fifth of the start-up of runs that never need it.
    from scipy.optimize import brentq

    return brentq(function, low, high, **tolerances)
