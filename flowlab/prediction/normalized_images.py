"""Images with normalization, plain or residual: as `normalized` for one position, with the borders.

For batch norm a channel's batch is examples times positions, at the rate of B P. Deep down the
positions of an example may grow alike, which tends to the rate of B: half the distance is the
error. Layer and RMS norm divide an example by its mean over channels and positions. What zero
padding loses at the border they give back to homogeneous activations: A's top eigenvalue is a
factor of the rate and of the variance that it is divided by. What finite width adds is not derived:
as much as in a fully-connected net, either way, is the error.

Silent: identity weights; batch norm of fewer than 4 examples; with zero padding, whose variance
differs from place to place, batch norm, and the others of activations that bend.
"""

import math

import numpy as np
import pandas as pd

from flowlab.prediction.curve import FEW_EXAMPLES, IDENTITY, SHALLOW, by_operation, curve
from flowlab.prediction.images import averages
from flowlab.prediction.inputs import Run, moments
from flowlab.theory.activations import get_activation
from flowlab.theory.normalization import (
    batch_moments,
    norm_branch,
    norm_step,
    pre_batch_norm,
    pre_norm,
)


def predict(run: Run) -> pd.DataFrame | str:
    """delta at every layer."""
    settings, batch = run.settings, run.settings.batch_size
    if settings.depth < 2:
        return SHALLOW
    if run.initializer.identity:
        return IDENTITY
    if settings.norm == "batch" and batch < 4:
        return FEW_EXAMPLES
    border = settings.network.padding == "zeros" and not run.initializer.delta
    scales = settings.norm != "batch" and get_activation(settings.activation).homogeneous
    if border and not scales:
        return (
            f"the recursion takes all positions alike; zero padding with norm={settings.norm} and "
            f"activation={settings.activation} makes the border differ: network.padding=circular "
            "has a prediction"
        )
    x = run.inputs()
    positions = math.prod(x.shape[3:])
    q, c = moments(np.moveaxis(x, 2, -1).reshape(len(x), -1, x.shape[2]))
    kept = math.prod(a.sum(1).mean() for a in averages(run, x.shape[3:]))
    pooled = run.outputs is not None
    level, *of_top, _, common = run.top(1 if pooled else positions)
    if settings.norm == "batch":
        log_rate, alike = (
            _batch_norm(run, size, q * (1 - c), common, kept) for size in (batch * positions, batch)
        )
        error = 0.1 * batch / settings.width + 0.1 * (batch < 6)
        if settings.skip != "none":
            error *= float(np.mean(1 - np.exp(-np.abs(log_rate))))
        error += abs(float(np.mean(alike - log_rate))) / 2
    else:
        log_rate, share = _each_example(run, q, kept)
        error = _finite_width(run, share)
    if pooled:
        log_rate[-1] -= math.log(positions)
    table = curve(
        run,
        top=level,
        log_rate=log_rate,
        of_top=tuple(of_top),
        error=error,
    )
    return by_operation(table, run)


def _batch_norm(run: Run, batch: int, spread: float, common: float, kept: float) -> np.ndarray:
    """log rates (L - 1,) of a batch whose inputs vary by ``spread`` about its mean.

    common: mean signed cosine of two examples' cotangents at the top.
    """
    settings, act = run.settings, get_activation(run.settings.activation)
    own, inverse = batch_moments(act, batch), batch / (batch - 3)
    along = (1 + (batch - 1) * common) / batch  # the share that is equal for all examples
    top = own.spread * (1 - along) + (batch - 1) * own.mean * along
    first = run.maps(0)[0][0] * spread * kept
    if settings.skip == "none":
        sigma_w2 = np.array([run.maps(layer)[0][0] for layer in range(settings.depth)])
        variance = np.append(first, sigma_w2[1:-1] * own.centred * kept)
        pulled = np.append(np.full(settings.depth - 2, own.spread), top)
        behind = _behind(run, kept)
        return np.log(sigma_w2[1:] * behind * inverse * pulled / variance)
    count, reads = _blocks(run)
    grown, rates = np.array([first]), []
    if count:
        flow = pre_batch_norm(
            act,
            batch,
            _branch_w2(run) * kept,
            count,
            start=first,
            branch_scale=_scale(run),
            output_scale=run.network.s,
            common=0.0 if reads else along,
            branch_maps=settings.branch_maps,
        )
        grown, rates = flow.variance, list(np.log(flow.rate))
    if reads:
        rates.append(math.log(run.maps(-1)[0][0] * inverse * top / grown[-1]))
    return np.array(rates)


def _each_example(run: Run, q: float, kept: float) -> tuple[np.ndarray, float]:
    """log rates (L - 1,) under layer or RMS norm, and the mean share of branches in them."""
    settings, act = run.settings, get_activation(run.settings.activation)
    square, slope = norm_branch(act, 1.0)
    w2, b2 = run.maps(0)[0]
    first = w2 * q * kept + b2
    if settings.skip == "none":
        maps = np.array([run.maps(layer)[0] for layer in range(settings.depth)])
        variance = np.append(first, maps[1:-1, 0] * square * kept + maps[1:-1, 1])
        return np.log(maps[1:, 0] * _behind(run, kept) * slope / variance), 1.0
    count, reads = _blocks(run)
    grown, rates, share = np.array([first]), [], 0.0
    if count:
        w2, b2 = _branch_w2(run) * kept, run.initializer.bias_variance(settings.width)
        inner = slope / (square + b2 / w2) if settings.branch_maps == 2 else 1.0
        flow = pre_norm(
            w2 * square + b2,
            w2 * slope * inner,
            count,
            start=first,
            branch_scale=_scale(run),
            output_scale=run.network.s,
        )
        grown, rates = flow.variance, list(np.log(flow.rate))
        share = float(np.mean(1 - run.network.s**2 / flow.rate))
    if reads:
        rates.append(math.log(run.maps(-1)[0][0] * slope / grown[-1]))
    return np.array(rates), share


def _finite_width(run: Run, share: float) -> float:
    """The error of a step's mean: what finite width may add."""
    settings = run.settings
    if settings.skip != "none":
        return 4 * share / settings.width
    norm = "layer_norm" if settings.norm == "layer" else "rms_norm"
    mean, variance = norm_step(settings.activation, norm, settings.width)
    return abs(mean) + variance / 2


def _behind(run: Run, kept: float) -> np.ndarray:
    """What the border leaves of the cotangent in each step: a read-out reads no windows."""
    steps = run.settings.depth - 1
    behind = np.full(steps, kept)
    if run.outputs is not None:
        behind[-1] = 1.0
    return behind


def _blocks(run: Run) -> tuple[int, bool]:
    """Residual blocks, and whether a read-out follows."""
    reads = run.outputs is not None
    return run.settings.depth - 1 - reads, reads


def _branch_w2(run: Run) -> float:
    """sigma_w2 of a branch's maps, before skip=fixup scales them."""
    return run.undivided(1)[0]


def _scale(run: Run) -> float:
    return 0.0 if run.settings.skip in ("rezero", "fixup") else run.network.a
