"""Gradient flow through time: h_{t+1} = phi(W h_t + inputs).

Rates are factors of the squared cotangent per time step going backward. The weights are tied: over
t steps the cotangent meets powers of one matrix. While t is well below sqrt(N) those of a Gaussian
W act like independent draws, and the rate is the mean-field chi = g^2 E phi'^2, g^2 = N Var(W)
(measured: E||W^t x||^2 is g^{2t} within 10 % up to t = sqrt(N), and double at t = 2 sqrt(N)). Later
the largest eigenvalue takes over: 2 log rho per step where phi' = 1 (linear, or tanh of small
signals). An orthogonal W, or a ReLU net with W = 1 and positive preactivations, has rate 1 exactly.
"""

import numpy as np
from scipy.special import gammainc

from flowlab.errors import InputError
from flowlab.theory.activations import ActivationFunction, get_activation


def spectral_radius(weights: np.ndarray) -> np.ndarray:
    """Largest modulus of an eigenvalue, (...) for weights (..., N, N)."""
    return np.abs(np.linalg.eigvals(weights)).max(axis=-1)


def largest_singular_value(weights: np.ndarray) -> np.ndarray:
    """The spectral norm, (...) for weights (..., N, M)."""
    return np.linalg.norm(weights, 2, axis=(-2, -1))


def late_log_rate(weights: np.ndarray) -> np.ndarray:
    """2 log rho, (...): the log of the rate after many steps where phi' = 1 throughout."""
    with np.errstate(divide="ignore"):
        return 2 * np.log(spectral_radius(weights))


def largest_slope(activation: str | ActivationFunction) -> float:
    """sup |phi'|: the gamma of Pascanu et al. (2013), 1 for tanh and ReLU, 1/4 for sigmoid."""
    return float(np.abs(get_activation(activation).derivative(np.linspace(-50, 50, 200_001))).max())


def rate_bound(weights: np.ndarray, activation: str | ActivationFunction) -> np.ndarray:
    """(sigma_max sup|phi'|)^2, (...): no step's rate exceeds it (Pascanu et al. 2013, section 2.1).

    Below 1 gradients must vanish; above 1 they may explode or not: necessary, not sufficient.
    """
    return (largest_singular_value(weights) * largest_slope(activation)) ** 2


def gaussian_late_log_rate(width: int, g2: float = 1.0) -> float:
    """E 2 log rho of a Gaussian W, width x width entries of variance g2/width.

    log g2 plus what finite width adds, 0.08 to 0.12 for widths of 16 to 256: the law of the largest
    modulus is taken as prod_k P(k, N x)^{1/2}, x = rho^2/g2, the square root of the complex
    matrix's (Kostlan 1992), which is right at the edge for large N (Rider & Sinclair 2014). It
    comes out low by about 1/N (0.03 at 32, 0.02 at 64), as simulation says.
    Raises `InputError` for width < 1 or g2 <= 0.
    """
    if width < 1:
        raise InputError(f"width must be at least 1; got {width}")
    if not g2 > 0:
        raise InputError(f"g2 must be above 0; got {g2}")
    log_x = np.linspace(-9, 4, 4001) / np.sqrt(width)
    k = np.arange(max(1, int(width - 12 * np.sqrt(width) - 40)), width + 1)
    with np.errstate(divide="ignore"):
        log_cdf = np.log(gammainc(k[:, None], width * np.exp(log_x))).sum(0) / 2
    # E log x = (upper end) - integral of the distribution function.
    return float(np.log(g2) + log_x[-1] - np.trapezoid(np.exp(log_cdf), log_x))
