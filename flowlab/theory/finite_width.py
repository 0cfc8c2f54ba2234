"""Finite width: how the log-norm of one net strays from the infinite-width curve.

Steps are of the log *squared* norm, normalised by its mean. For one example and Gaussian weights a
bias-free ReLU or linear net is an exact random walk (Hanin & Nica 2018); for the rest a step has
relative variance kappa/n and mean -kappa/(2n) to first order in 1/n.

A batch fluctuates less than an example. Let G be the Gram matrix of the deltas of the B examples,
D = phi'(z) with moments mu_k = E phi'^{2k}, and write one step backward through a layer of width n
in general form (identity weight i = 0 in a plain net, 1 across a skip, branch J of rate x):

    delta'_b = i delta_b + D_b * g_b,    g_b = delta_b W^T of covariance (x / mu_1 n) G.

W is Gaussian and taken independent of the forward pass, so the n coordinates of g are independent
and Gaussian moments give, at equal G_bb, with alpha = E G_bb'^2 / E G_bb G_b'b', forward
correlation c, h = E D_b D_b' / mu_1, m = E D_b^2 D_b'^2 / mu_1^2 and m_1 = mu_2 / mu_1^2,

    relative variance of tr G
        v = [4 i x (1/B + (1 - 1/B) h alpha)
             + x^2 ((3 m_1 - 1)/B + (1 - 1/B)(m - 1 + 2 m alpha))] / (n (i + x)^2)
    alpha' = [(i + x h)^2 alpha + (i x (2 + 2 h alpha) + x^2 (m (1 + 2 alpha) - h^2 alpha))/n]
             / [(i + x)^2 + (4 i x h alpha + x^2 (m - 1 + 2 m alpha))/n].

Alpha's denominator, the growth of E G_bb G_b'b', is what keeps it at most 1. Checks: B = 1 or
identical examples (h = alpha = 1, m = m_1) give v = kappa/n, kappa = 3 m_1 - 1; a linear plain net
gives v = (2/n)(1/B + (1 - 1/B) alpha); a linear branch (4 x + 2 x^2)/((1 + x)^2 n).
Orthogonal W conserves G under g, which removes (2/n)(1/B + (1 - 1/B) alpha) from v and its like
from alpha. For a branch of two maps the rates multiply and the relative variances add.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import digamma, gammaln, polygamma

from flowlab.errors import InputError
from flowlab.numerics.blas import kept
from flowlab.theory.activations import ActivationFunction, get_activation
from flowlab.theory.moments import mean_derivative_power


@kept(maxsize=1024)
def chi_square_step(n: float) -> tuple[float, float]:
    """Mean and variance of log(chi^2_n / n), the step of a linear Gaussian map (any real n > 0)."""
    return float(digamma(n / 2) + np.log(2 / n)), float(polygamma(1, n / 2))


@kept(maxsize=1024)
def he_relu_step(n: int) -> tuple[float, float]:
    """Mean and variance of log(2 chi^2_K / n), K ~ Binomial(n, 1/2) given K > 0 (Hanin & Nica)."""
    k = np.arange(1, n + 1)
    log_weight = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1) - n * np.log(2)
    weight = np.exp(log_weight)
    weight /= weight.sum()
    step = digamma(k / 2) + np.log(4 / n)
    mean = weight @ step
    return float(mean), float(weight @ ((step - mean) ** 2 + polygamma(1, k / 2)))


@kept(maxsize=1024)
def orthogonal_relu_step(n: int) -> tuple[float, float]:
    """Mean and variance of log(2 b), b ~ Beta(K/2, (n - K)/2), K ~ Binomial(n, 1/2) given K > 0.

    The K active units' share of an isotropic vector's square, whose length W keeps.
    """
    k = np.arange(1, n + 1)
    log_weight = -gammaln(k + 1) - gammaln(n - k + 1)
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    step = digamma(k / 2) - digamma(n / 2) + np.log(2)
    mean = weight @ step
    spread = polygamma(1, k / 2) - polygamma(1, n / 2)
    return float(mean), float(weight @ ((step - mean) ** 2 + spread))


def kappa(activation: str | ActivationFunction, q: float = 1.0, orthogonal: bool = False) -> float:
    """n times the relative variance of one example's squared gradient norm per layer.

    3 mu_2/mu_1^2 - 1 for Gaussian weights and 3 mu_2/mu_1^2 - 3 for orthogonal ones, with
    mu_k = E phi'(u)^{2k} at preactivation variance q.
    """
    act, log_q = get_activation(activation), np.log(q)
    m1 = mean_derivative_power(act, log_q, 4) / mean_derivative_power(act, log_q) ** 2
    return 3 * m1 - (3 if orthogonal else 1)


def step_mean_variance(
    activation: str | ActivationFunction, n: int, orthogonal: bool = False, q: float = 1.0
) -> tuple[float, float]:
    """Mean and variance of one layer's step of log ||delta||^2 - log chi, for one example.

    n is the fan-in of the layer crossed; q the preactivation variance (irrelevant for homogeneous
    activations). Exact for identity and ReLU under Gaussian weights, else first order in 1/n.
    Raises `InputError` for n < 1.
    """
    if n < 1:
        raise InputError(f"fan_in must be at least 1; got {n}")
    return exact_step(get_activation(activation), n, kappa(activation, q, orthogonal), orthogonal)


def exact_step(
    act: ActivationFunction, n: int, kappa_: float, orthogonal: bool
) -> tuple[float, float]:
    """The step of relative variance kappa/n, by its exact law where that is known."""
    if not orthogonal and act.negative_slope == 1:
        return chi_square_step(n)
    if not orthogonal and act.negative_slope == 0:
        return he_relu_step(n)
    if orthogonal and act.negative_slope == 0:
        return orthogonal_relu_step(n)
    return -kappa_ / (2 * n), kappa_ / n


@dataclass(frozen=True)
class BackwardMap:
    """What one map of a layer does to the Gram matrix of deltas: h, m, m_1 of the module's text.

    ``orthogonal`` is the share of the norm's fluctuation which the weights suppress: 0 for
    Gaussian, 1 for square orthogonal ones.
    """

    h: float
    m: float
    m1: float
    orthogonal: float = 0.0


def batch_step(
    maps: list[BackwardMap], share: float, width: int, batch_size: int, alpha: float
) -> tuple[float, float]:
    """Relative variance of tr G in one step backward, and alpha after it.

    maps: those of the branch, the last one first; share: x / (i + x), 1 in a plain net; alpha:
    mean squared cosine between two examples' deltas before the step. See the module's text.
    """
    diagonal, off = 1 / batch_size, 1 - 1 / batch_size
    h, own, cross, spread = 1.0, 0.0, 0.0, 0.0
    inner = alpha
    for map_ in maps:
        o = map_.orthogonal
        own += 3 * map_.m1 - 1 - 2 * o
        cross += map_.m * (1 + 2 * inner) - 1 - 2 * o * inner
        fluctuation = map_.m * (1 + 2 * inner) - map_.h**2 * (inner + o * (1 + inner))
        spread = map_.h**2 * spread + fluctuation
        inner *= map_.h**2
        h *= map_.h
    mixed, square = share * (1 - share), share**2
    variance = 4 * mixed * (diagonal + off * h * alpha) + square * (diagonal * own + off * cross)
    top = ((1 - share) + share * h) ** 2 * alpha
    top += (mixed * (2 + 2 * h * alpha) + square * spread) / width
    bottom = 1 + (4 * mixed * h * alpha + square * cross) / width
    # Of one unit two examples may never both be alive, and have no cosine.
    return variance / width, min(top / bottom, 1.0) if bottom > 0 else 0.0
