"""Convolutional nets without normalization, plain or residual.

The rate is `flowlab.theory.convolution.field_flow`'s: with circular padding that of a
fully-connected net of fan-in k^2 c, with zeros less by what the border loses. A convolution of
delta-orthogonal weights is a fully-connected net whose batch is examples and positions.

What finite width adds is `circular_steps`' where that is derived: plain nets of homogeneous
activations without biases, Gaussian weights (with zero padding, as if it were circular). Elsewhere
it is a fully-connected net's of as many channels on a batch of examples and positions. That is
right for delta-orthogonal weights; for others it leaves out that windows mix positions, and half of
it is granted as theory's error and no spread is given. The level under a loss takes all positions
of a read-out's input as equal, as they become with depth. Silent: identity weights.
"""

import math

import numpy as np
import pandas as pd

from flowlab import theory
from flowlab.prediction.curve import IDENTITY, SHALLOW, by_operation, curve
from flowlab.prediction.inputs import TO_LOG10, Run, moments
from flowlab.theory.activations import get_activation
from flowlab.theory.convolution import averaging, circular_steps, field_flow
from flowlab.theory.moments import Sites


def predict(run: Run) -> pd.DataFrame | str:
    """delta at every layer."""
    settings, network = run.settings, run.network
    convolutions = settings.depth - (run.outputs is not None)
    if convolutions < 1:
        return SHALLOW
    if run.initializer.identity:
        return IDENTITY
    x = run.inputs()
    input_q = np.square(x).mean(axis=(0, 1, 2))
    positions = input_q.size
    residual = settings.skip != "none"
    flow = field_flow(
        settings.activation,
        [run.maps(layer) for layer in range(convolutions)],
        input_q=input_q,
        averages=averages(run, input_q.shape),
        pooled=run.outputs is not None,
        residual=residual,
        branch_scale=0.0 if settings.skip == "rezero" else network.a,
        output_scale=network.s,
    )
    log_rate = flow.log_rate
    if run.outputs is None:
        level, *of_top, alpha, _ = run.top(positions)
    else:
        ((sigma_w2, sigma_b2),) = run.maps(-1)
        log_phi2 = Sites(get_activation(settings.activation), flow.log_q[-1].ravel()).log_phi2
        log_q = np.logaddexp(math.log(sigma_w2) + log_phi2.max(), math.log(sigma_b2 or 1e-300))
        level, *of_top, alpha, _ = run.top(1, log_q)
        log_rate = np.append(log_rate, math.log(sigma_w2 * flow.top_slope / positions))
    drift, variance, error = _finite_width(run, x, convolutions, alpha)
    if run.outputs is not None:
        drift, variance = np.append(drift, 0.0), np.append(variance, 0.0)
    table = curve(
        run,
        top=level,
        log_rate=log_rate,
        drift=drift,
        variance=variance,
        of_top=tuple(of_top),
        error=error,
    )
    return by_operation(table, run)


def _finite_width(run: Run, x: np.ndarray, convolutions: int, alpha: float):
    """Mean and variance of every step beyond its rate, and the error of the mean."""
    settings, initializer = run.settings, run.initializer
    act = get_activation(settings.activation)
    batch, positions = x.shape[1], math.prod(x.shape[3:])
    q, c = moments(np.moveaxis(x, 2, -1).reshape(len(x), -1, x.shape[2]))
    if convolutions < 2:
        return np.zeros(0), np.zeros(0), 0.0
    plain = settings.skip == "none" and act.homogeneous and run.unbiased
    if plain and not initializer.orthogonal:
        size = settings.network.kernel_size
        # Behind a pooling the cotangents of two positions are equal, those of two examples not.
        pooled = ((positions - 1) + (batch - 1) * positions * alpha) / (batch * positions - 1)
        steps = circular_steps(
            act,
            convolutions,
            shape=(batch, *x.shape[3:]),
            kernel=(1, *(size for _ in x.shape[3:])),
            channels=settings.width,
            input_c=c,
            common=None if settings.upstream == "gaussian" else pooled if run.outputs else 1.0,
        )
        return *steps, 0.0
    channels = [x.shape[2]] + [settings.width] * (convolutions - 1)
    plain_maps = [run.undivided(layer) for layer in range(convolutions)]
    same = theory.predict(
        fan_in=channels,
        fan_out=[settings.width] * convolutions,
        sigma_w2=[w2 for w2, _ in plain_maps],
        sigma_b2=[b2 for _, b2 in plain_maps],
        activation=act,
        skip=settings.skip,
        branch_scale=run.network.a,
        branch_maps=settings.branch_maps,
        orthogonal=initializer.delta,
        batch_size=batch * positions,
        upstream="ones" if settings.upstream == "ones" else "gaussian",
        input_q=q,
        input_c=c,
    )
    drift = same["delta_log10_norm"] - same["delta_log10_norm_infinite"]
    drift = -np.diff(drift) / TO_LOG10
    variance = -np.diff(np.square(same["delta_log10_norm_sd"])) / TO_LOG10**2
    if initializer.delta:
        return drift, variance, 0.0
    return drift, np.full_like(variance, math.nan), 0.5 * abs(float(drift.mean()))


def averages(run: Run, shape) -> list[np.ndarray]:
    """Each dimension's matrix A: of delta-orthogonal kernels the centre alone reads."""
    size = run.settings.network.kernel_size
    if run.initializer.delta:
        return [np.eye(n) for n in shape]
    if run.settings.network.padding == "zeros":
        return [averaging(n, size, size // 2) for n in shape]
    return [_circular(n, size) for n in shape]


def _circular(n: int, size: int) -> np.ndarray:
    matrix = np.zeros((n, n))
    for offset in range(size):
        matrix[np.arange(n), (np.arange(n) + offset - size // 2) % n] += 1 / size
    return matrix
