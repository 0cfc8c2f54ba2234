"""Gradient flow through convolutional nets of stride 1: z_{l+1} = conv(phi(z_l)) + b.

sigma_w2 = k^d c_in Var(W) for kernels of k^d positions. With many channels the preactivations at
every position are Gaussian and a convolution acts on their variance as an average over the window,

    q_{l+1} = sigma_w2 A E phi(z_l)^2 + sigma_b2,    v_l = sigma_w2 E phi'(z_l)^2 A' v_{l+1},

q and v fields over positions, v the squared cotangent summed over channels, A = 1/k^d where an
input position lies in an output's window. With circular padding A conserves a constant field: the
map and chi of a fully-connected net of fan-in k^d c_in (Xiao et al. 2018, "Dynamical isometry and
a mean field theory of CNNs"). Zero padding loses at the border what windows hold outside: for
homogeneous activations the profile is a power of A, and the rate's loss tends to A's top
eigenvalue, a product over dimensions; for k = 3 of (1 + 2 cos(pi/(n+1)))/3, because A is then a
path's adjacency matrix plus the identity, over three.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from flowlab.errors import InputError
from flowlab.theory.activations import ActivationFunction, get_activation
from flowlab.theory.field_moments import one_point


def averaging(size: int, kernel: int, padding: int) -> np.ndarray:
    """A along one dimension, (size + 2 padding - kernel + 1, size): 1/kernel inside the window.

    Row i reads positions i - padding .. i - padding + kernel - 1. Raises `InputError` where no
    window fits.
    """
    outputs = size + 2 * padding - kernel + 1
    if min(size, kernel, outputs) < 1 or padding < 0:
        raise InputError(
            "size, kernel and size + 2 padding - kernel + 1 must be at least 1 and padding at least"
            f" 0; got size={size}, kernel={kernel}, padding={padding}"
        )
    offset = np.arange(size) - np.arange(outputs)[:, None] + padding
    return ((offset >= 0) & (offset < kernel)) / kernel


def border_rate(shape: tuple[int, ...], kernel: int) -> float:
    """What the border leaves of the rate per layer, deep in a zero-padded net: A's top eigenvalue.

    shape: positions per dimension; kernel odd, padding (kernel - 1)/2. Forward and backward alike,
    for homogeneous activations without bias: rate = border_rate * chi.
    """
    if kernel % 2 == 0:
        raise InputError(f"kernel must be odd to keep the shape; got {kernel}")
    tops = [np.linalg.eigvalsh(averaging(n, kernel, (kernel - 1) // 2))[-1] for n in shape]
    return float(np.prod(tops))


def border_rates(side: int, kernel: int) -> pd.DataFrame:
    """Of square images in a critical net, in decades of the norm per layer: columns padding, rate.

    Zeros lose at the border in every layer, deep in the net; circular padding loses nothing.
    Raises InputError for an even kernel.
    """
    lost = np.log10(border_rate((side, side), kernel)) / 2
    return pd.DataFrame({"padding": ["circular", "zeros"], "rate": [0.0, lost]})


def _along(matrices, field, first=0):
    """Apply one matrix to each dimension of a field, from axis ``first`` on."""
    for axis, matrix in enumerate(matrices, first):
        field = np.moveaxis(np.tensordot(matrix, field, axes=(1, axis)), 0, axis)
    return field


@dataclass(frozen=True)
class FieldFlow:
    """Fields over examples and positions in a net of L layers.

    log_q: (..., positions), log E z_L^2; log_delta: likewise, log E delta_1^2 over its mean;
    log_top: mean over examples and positions of what phi and
    a norm before it leave of a cotangent at z_L, as a log (0 unless ``pooled``); log_rate:
    (L - 1,), of the squared cotangents of a batch, its mean over batches; share and forward_share:
    (L - 1,), what part of it and of z_{l+1}'s variance the branches carry (1 in a plain net);
    reads: for z_2 .. z_L and every map (log of the mean variance that phi reads, share of phi W in
    the map's output).
    """

    log_q: np.ndarray
    log_top: float
    log_rate: np.ndarray
    share: np.ndarray
    forward_share: np.ndarray
    reads: list[list[tuple[float, float]]]
    log_delta: np.ndarray


def field_flow(
    activation: str | ActivationFunction,
    layers: list[list[tuple[float, float]]],
    *,
    input_q: np.ndarray,
    averages: list[np.ndarray],
    eps: float | None = None,
    floor: float = 0.0,
    pooled: bool = False,
    residual: bool = False,
    branch_scale: float = 1.0,
    output_scale: float = 1.0,
) -> FieldFlow:
    """Variances and cotangents position by position, plain or across skips, at infinite width.

    z_1 = conv(x), then z_l = conv(phi(z_{l-1})), or with ``residual`` z_l = s (z_{l-1} + a f) whose
    branch f is one or more maps conv(phi(.)). layers: (sigma_w2, sigma_b2) of each map of each
    layer; input_q: (batches, batch, positions), E x^2 of every example by itself, as a map that
    bends is not the map of a mean; averages: the matrix A of every dimension (`averaging`;
    circulant for circular padding). With ``eps`` a norm stands before every phi: it divides an
    example by its mean square over channels and positions plus eps (layer and RMS norm of images;
    what their projection takes is O(1) of channels times positions). floor: what every position
    has of that mean square at least; the mean over channels that layer norm takes off leaves 1/c.
    delta_l is the cotangent of z_l; at the top its square is the same everywhere or, if ``pooled``,
    phi(z_L)'s is. A branch of Gaussian maps is independent of what it is added to: squares add.
    """
    moments = one_point(get_activation(activation))
    adjoint = [a.T for a in averages]
    first = input_q.ndim - len(averages)
    every = tuple(range(input_q.ndim))
    positions, members = tuple(range(first, input_q.ndim)), tuple(range(1, input_q.ndim))

    def window(log_field):
        top = log_field.max()
        top = top if np.isfinite(top) else 0.0
        return top + np.log(_along(averages, np.exp(log_field - top), first))

    def read(log_field):
        """log E phi^2, the log of phi's and the norm's factor backward, and of the variance."""
        divisor = 0.0
        if eps is not None:
            mean = _log_mean(log_field, positions)
            divisor = np.logaddexp(mean, np.log(eps))
            log_field = np.logaddexp(log_field, mean + np.log(floor))
        log_phi2, log_mu1 = moments(log_field - divisor)
        return log_phi2, log_mu1 - divisor, float(_log_mean(log_field - divisor, every).mean())

    with np.errstate(divide="ignore"):
        (w2, b2), *_ = layers[0]
        log_q = np.logaddexp(np.log(w2) + window(np.log(input_q)), np.log(b2))
        log_a2, log_s2 = 2 * np.log(branch_scale), 2 * np.log(output_scale)
        slopes, reads, forward = [], [], []
        for maps in layers[1:]:
            log_f, mine, seen = log_q, [], []
            for w2, b2 in maps:
                log_phi2, log_slope, mean = read(log_f)
                mine.append(np.log(w2) + log_slope)
                log_f = np.log(w2) + window(log_phi2)
                alone = float(_log_mean(log_f, every).mean())
                log_f = np.logaddexp(log_f, np.log(b2))
                total = float(_log_mean(log_f, every).mean())
                seen.append((mean, float(np.exp(alone - total)) if total > -np.inf else 1.0))
            slopes.append(mine)
            reads.append(seen)
            part = 1.0
            if residual:
                log_sum = np.logaddexp(log_q, log_a2 + log_f)
                part = float(np.exp(log_a2 + total - _log_mean(log_sum, every).mean()))
                log_f = log_sum + log_s2
            forward.append(part)
            log_q = log_f
        log_delta, log_top = np.zeros_like(log_q), 0.0
        if pooled:
            _, log_delta, _ = read(log_q)
            log_top = float(_log_mean(log_delta, members).mean())
        log_delta = log_delta - _log_mean(log_delta, members)
        log_rate, shares = [], []
        for mine in reversed(slopes):
            log_field = log_delta
            for log_slope in reversed(mine):
                top = log_field.max()
                top = top if np.isfinite(top) else 0.0
                pulled = np.maximum(_along(adjoint, np.exp(log_field - top), first), 0.0)
                log_field = log_slope + top + np.log(pulled)
            share = 1.0
            if residual:
                log_branch = log_a2 + log_field
                log_field = np.logaddexp(log_delta, log_branch)
                share = np.exp(_log_mean(log_branch, members) - _log_mean(log_field, members))
                log_field = log_field + log_s2
            rate = _log_mean(log_field, members)
            log_delta = log_field - rate
            log_rate.append(rate.mean())
            shares.append(np.mean(share))
    return FieldFlow(
        log_q,
        log_top,
        *(np.array(of[::-1]) for of in (log_rate, shares)),
        np.array(forward),
        reads,
        log_delta,
    )


def _log_mean(log_field, axes):
    """log of the mean over ``axes``, which are kept."""
    top = log_field.max(axis=axes, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    return top + np.log(np.exp(log_field - top).mean(axis=axes, keepdims=True))
