"""Gradient flow through batch, layer and RMS normalization (gain 1, shift 0, epsilon 0).

The rate is the factor of the squared norm of dLoss/dz per layer going backward.

**Batch norm.** Plain net z = h W, u = BN(z), h' = phi(u). Where the examples of a batch are
exchangeable, a unit's B preactivations are N(0, v G) after centring, G = I - 11'/B: so u is uniform
on the sphere of radius sqrt(B) in the B - 1 dimensions orthogonal to 1, and independent of
sigma^2 = v chi^2_{B-1}/B. Let E_k be means over that sphere, a and b two examples. Then

    v = sigma_w^2 (E phi_a^2 - E phi_a phi_b),    E 1/sigma^2 = B / (v (B - 3)).

Backward, the cotangents g = dz_next W^T of a unit are N(0, p G), since batch norm's pullback
dz = (I - 11'/B - u u'/B)(phi'(u) g)/sigma leaves nothing along 1. Taking the trace,

    rate = B/((B-1)(B-3)) T(G)/(E phi_a^2 - E phi_a phi_b),
    T(M) = E tr[(I - 11'/B - u u'/B) phi' M phi'].

ReLU gives [B - 2 + kappa_0(c) + kappa_1(c)]/[(B-3)(1 - kappa_1(c))], c = -1/(B-1), and the
identity (B-2)/(B-3): Yang et al. (2019), "A mean field theory of batch normalization".

**Layer and RMS norm.** Plain net z = h W, u = norm(z), h' = phi(u), one example. u is uniform on a
sphere, independent of the scale of z, and the next z sees h through ||h|| alone: the steps of
log ||dz||^2 are independent, log A - log C - log S with A = ||dz sigma||^2 /(next squared norm),
C = ||h||^2/d and S = sigma^2 over its mean. The norm's pullback makes <dz, z> = 0, so that
g = dz_next W^T has no component along h. To first order in 1/d this gives `norm_step`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import digamma, gammaln, polygamma

from flowlab.errors import InputError, unknown
from flowlab.numerics.blas import kept
from flowlab.theory.activations import ActivationFunction, get_activation
from flowlab.theory.moments import NODES, WEIGHTS, kappa0, kappa1

NORMS = ("layer_norm", "rms_norm")


@dataclass(frozen=True)
class BatchMoments:
    """What a batch-normalized activation does, per unit of sigma_w^2.

    centred: E phi_a^2 - E phi_a phi_b; spread: T(G)/(B-1); mean: T(11'/B)/(B-1).
    """

    centred: float
    spread: float
    mean: float


def _check_batch(batch: int) -> None:
    if batch < 4:
        raise InputError(f"batch must be at least 4 (the mean rate is infinite below); got {batch}")


@kept(maxsize=256)
def batch_moments(activation: ActivationFunction, batch: int) -> BatchMoments:
    """By quadrature in polar coordinates over the plane of two examples.

    Their law is elliptical, of correlation -1/(B-1) and radius sqrt(B-1) sin x, where x has density
    (B-3) sin x cos^{B-4} x: the projection of the sphere in B - 1 dimensions on two.
    """
    angle = np.arccos(-1 / (batch - 1))
    x, w = np.polynomial.legendre.leggauss(64)
    top = min(np.pi / 2, 9 / np.sqrt(batch - 1))
    radial = top * (x + 1) / 2
    radius = np.sqrt(batch - 1) * np.sin(radial)
    radius_weights = w * np.sin(radial) * np.cos(radial) ** (batch - 4)
    radius_weights /= radius_weights.sum()
    # The kinks, at u = 0 and v = 0, are the panels' edges.
    edges = np.sort(np.array([-1, 1, -1, 1]) * np.pi / 2 + np.array([0, 0, angle, angle]))
    edges = np.append(edges, edges[0] + 2 * np.pi)
    half = np.diff(edges)[:, None] / 2
    theta = (edges[:-1, None] + half * (x + 1)).ravel()
    theta_weights = (half * w).ravel() / (2 * np.pi)
    u, v = (np.cos(t)[:, None] * radius for t in (theta, theta - angle))

    def mean(values):
        return float(theta_weights @ values @ radius_weights)

    p, d, d_other = activation.phi(u), activation.derivative(u), activation.derivative(v)
    own = (1 - 1 / batch) * mean(d * d) - mean(u * u * d * d) / batch
    pair = (batch - 1) / batch * (mean(d * d_other) + mean(u * v * d * d_other))
    return BatchMoments(
        centred=mean(p * p) - mean(p * activation.phi(v)),
        spread=own + pair / (batch - 1),
        mean=(own - pair) / (batch - 1),
    )


def batch_norm_rate(activation: str | ActivationFunction, batch: int) -> float:
    """Rate of a plain net with batch norm, E||dz_l||^2 / E||dz_{l+1}||^2 (Yang et al. 2019).

    Independent of sigma_w; infinite width, exchangeable examples. Identity and ReLU in closed form,
    others by quadrature. At width N the mean log of simulated nets lies off by `batch_norm_error`.
    Raises `InputError` for batch < 4, where the rate is infinite.
    """
    _check_batch(batch)
    act = get_activation(activation)
    if act.negative_slope == 1:
        return (batch - 2) / (batch - 3)
    if act.negative_slope == 0:
        c = -1 / (batch - 1)
        kernel = kappa1(c)
        return float((batch - 2 + kappa0(c) + kernel) / ((batch - 3) * (1 - kernel)))
    moments = batch_moments(act, batch)
    return batch * moments.spread / ((batch - 3) * moments.centred)


def batch_norm_rates(activations: Sequence[str], batch_sizes: Sequence[int]) -> pd.DataFrame:
    """`batch_norm_rate` in decades of the norm per layer: columns activation, batch_size, rate.

    Batches below 4, where the mean rate is infinite, are left out. Raises InputError for an unknown
    activation.
    """
    rows = [
        (activation, batch, math.log10(batch_norm_rate(activation, batch)) / 2)
        for activation in activations
        for batch in batch_sizes
        if batch >= 4
    ]
    return pd.DataFrame(rows, columns=["activation", "batch_size", "rate"])


def batch_norm_error(activation: str | ActivationFunction, batch: int, width: int) -> float:
    """How far the mean log of a net of that width may lie from the log of `batch_norm_rate`.

    The batch's Gram matrix drifts at finite width, which raises the mean log by up to 0.1 B/N of
    simulated nets with identity, 0.06 B/N with tanh and 0.03 B/N with ReLU; others are taken as
    tanh. Below B = 6 the mean over units of 1/sigma^2 has infinite variance, and the mean log lies
    lower: at B = 4 its tail of index 3/2 makes that c/sqrt N, and ReLU nets show c = 1.6 (0.08 at
    N = 400, 0.21 at N = 64). The coefficients are measured, not derived.
    """
    drift = {1.0: 0.1, 0.0: 0.03}.get(get_activation(activation).negative_slope, 0.06)
    return drift * batch / width + 2.0 * (batch < 6) / math.sqrt(width)


def norm_step(activation: str | ActivationFunction, norm: str, width: int) -> tuple[float, float]:
    """Mean and variance of one example's step of log ||dz||^2 less the log of its rate.

    The rate is E phi'(z)^2 / E phi(z)^2 with z ~ N(0, 1), whatever sigma_w, and 1 for homogeneous
    activations. norm: ``layer_norm`` or ``rms_norm``; width: d, the number of normalized units.
    Steps are independent over layers. Exact for RMS norm with identity or ReLU (given two active
    units), for layer norm with identity; else first order in 1/d. In RMS norm the identity's step
    is log(chi^2_{d-1}/chi^2_d), independent, and ReLU's log(chi^2_{K-1}/(b chi^2_d)) with K active
    units and b ~ Beta(K/2, (d-K)/2): variance 4/d and 8/d.
    Raises `InputError` for an unknown norm or width < 4.
    """
    if norm not in NORMS:
        raise unknown("norm", norm, NORMS)
    if width < 4:
        raise InputError(f"width must be at least 4; got {width}")
    act = get_activation(activation)
    centred = norm == "layer_norm"
    if act.negative_slope == 1:
        back, forth = (width - 1 - centred) / 2, (width - centred) / 2
        return (
            float(digamma(back) - digamma(forth)),
            float(polygamma(1, back) + polygamma(1, forth)),
        )
    if act.negative_slope == 0 and not centred:
        return _relu_rms_step(width)
    z = NODES
    p, d = act.phi(z), act.derivative(z)

    def mean(f):
        return float(f @ WEIGHTS)

    mu, phi2 = mean(d * d), mean(p * p)
    a, c = d * d / mu, p * p / phi2

    def covariance(f, g):
        """n Cov of the means of f and g over a normalized vector of n entries."""
        square = z * z - 1
        value = mean(f * g) - mean(f) * mean(g) - mean(f * square) * mean(g * square) / 2
        return value - centred * mean(f * z) * mean(g * z)

    fourth = z**4 - 6 * z**2 + 3
    # E f(u) on the sphere is E f(z) - E f He_4 /(4 n).
    marginal = -(mean(a * fourth) - mean(c * fourth)) / 4
    # Lost along h, along u and, in layer norm, along 1.
    lost = mean(a * c) + (mean(z * z * d * d) - mean(z * p * d) ** 2 / phi2) / mu
    if centred:
        lost += 1 - mean(p * d) ** 2 / (phi2 * mu)
    noise = 2 * mean(a * a)
    shift = marginal - lost - (noise + covariance(a, a)) / 2 + covariance(c, c) / 2
    scale_mean = 2.0 if centred else 1.0
    variance = noise + covariance(a - c, a - c) + 2
    # sigma^2 is normalized by sigma_w^2 ||h||^2: in layer norm it holds d - 1 squares over d.
    return (shift + scale_mean) / width, variance / width


def _relu_rms_step(width):
    k = np.arange(2, width + 1)
    log_weight = -gammaln(k + 1) - gammaln(width - k + 1)
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    step = digamma((k - 1) / 2) - digamma(k / 2)
    mean = weight @ step
    # polygamma(1, d/2) of the Beta variable's log cancels that of the scale's.
    spread = polygamma(1, (k - 1) / 2) + polygamma(1, k / 2)
    return float(mean), float(weight @ (spread + (step - mean) ** 2))


@dataclass(frozen=True)
class Growth:
    """Forward variance and backward rate of a residual net with batch norm over L blocks.

    variance: (L + 1,) v_0 .. v_L, v_l the variance that block l's norm divides by; rate: (L,), the
    factor of the squared cotangent across block l, from x_{l+1} to x_l; common: the
    share of ||delta_0||^2 that is equal for all examples.
    """

    variance: np.ndarray
    rate: np.ndarray
    common: float


def _variances(start, gain, scale, depth):
    """v_{l+1} = scale (v_l + gain), (depth + 1,)."""
    if not start > 0:
        raise InputError(f"start must be above 0; got {start}")
    if depth < 1:
        raise InputError(f"depth must be at least 1; got {depth}")
    variance = np.empty(depth + 1)
    variance[0] = start
    for layer in range(depth):
        variance[layer + 1] = scale * (variance[layer] + gain)
    return variance


def pre_batch_norm(
    activation: str | ActivationFunction,
    batch: int,
    sigma_w2: float,
    depth: int,
    *,
    start: float = 1.0,
    branch_scale: float = 1.0,
    output_scale: float = 1.0,
    common: float | None = None,
    branch_maps: int = 1,
) -> Growth:
    """x -> s (x + a phi(BN(x)) W): the variance over the batch and the backward rate.

    v_l is a unit's variance over the batch orthogonal to 1 (B/(B-1) times batch norm's own mean
    sigma^2). Cotangents split into the part along 1, which the skip alone carries back, and the
    rest: rate of the whole squared norm. common: the share of ||delta_L||^2 along 1, default 1/B
    (iid cotangents). At s = 1 the squared norm grows as L^rho with rho = `batch_norm_rate`.
    branch_maps: 2 for phi(BN(phi(BN(x)) W_1)) W, whose W_1 drops out and whose exponent is rho^2.
    Raises `InputError` for batch < 4, start <= 0, depth < 1.
    """
    _check_batch(batch)
    moments = batch_moments(get_activation(activation), batch)
    s2, a2 = output_scale**2, branch_scale**2 * sigma_w2
    variance = _variances(start, a2 * moments.centred, s2, depth)
    inverse = a2 * batch / (variance[:-1] * (batch - 3))
    along = 1 / batch if common is None else common
    # Squared norms of the two parts; the pullback of G spreads over B - 1 dimensions.
    spread, rate = 1 - along, np.empty(depth)
    # The inner norm of two: a plain layer's rate but that its input may have a part along 1.
    inner = batch / ((batch - 3) * moments.centred)
    for layer in reversed(range(depth)):
        pulled = moments.spread * spread + (batch - 1) * moments.mean * along
        if branch_maps == 2:
            pulled *= inner * moments.spread
        following = spread + inverse[layer] * pulled
        total = following + along
        rate[layer] = s2 * total
        spread, along = following / total, along / total
    return Growth(variance, rate, along)
