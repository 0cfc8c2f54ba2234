"""Fully-connected nets with normalization, plain or residual: `flowlab.theory.normalization`.

delta is the cotangent of a map's output, before its normalization, or in a net with a skip of the
sum. In a plain net the step from z_{l+1} to z_l is sigma_w2_{l+1} E phi'^2 / v_l with v_l what the
norm of layer l divides by, less what its projection takes.

*Batch norm*: examples exchangeable (so of other data than gaussian only behind some layers), at
least 4, well below the width. Theory's error is 0.1 B/N of a log rate, 0.1 more below B = 6
(`batch_norm_rate`). Biases drop out.

*Layer and RMS norm*: one example's step is known with its spread. The mean log of a batch's norm
lies between one example's, where all fluctuate together, and the log of its mean, where each
fluctuates alone: the middle is predicted, half the distance is the error. Across skips what finite
width adds is not derived; a branch that carries the share x of a rate adds at most about 4x/N.

Silent: identity weights; batch norm of fewer than 4 examples.
"""

import math

import numpy as np
import pandas as pd

from flowlab.prediction.curve import FEW_EXAMPLES, IDENTITY, SHALLOW, by_operation, curve
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
    x = run.inputs()
    q, c = moments(x)
    level, *of_top, _, common = run.top(1)
    drift, variance = None, None
    if settings.norm == "batch":
        log_rate = _batch_norm(run, batch, q * (1 - c), common)
        error = 0.1 * batch / settings.width + 0.1 * (batch < 6)
        if settings.skip != "none":
            error *= float(np.mean(1 - np.exp(-np.abs(log_rate))))
    else:
        log_rate, share = _each_example(run, q)
        drift, variance, error = _finite_width(run, len(log_rate), share)
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


def _batch_norm(run: Run, batch: int, spread: float, common: float) -> np.ndarray:
    """log rates (L - 1,) of a batch whose inputs vary by ``spread`` about its mean.

    common: mean signed cosine of two examples' cotangents at the top.
    """
    settings, act = run.settings, get_activation(run.settings.activation)
    own, inverse = batch_moments(act, batch), batch / (batch - 3)
    along = (1 + (batch - 1) * common) / batch  # the share that is equal for all examples
    top = own.spread * (1 - along) + (batch - 1) * own.mean * along
    first = run.maps(0)[0][0] * spread
    if settings.skip == "none":
        sigma_w2 = np.array([run.maps(layer)[0][0] for layer in range(settings.depth)])
        variance = np.append(first, sigma_w2[1:-1] * own.centred)
        pulled = np.append(np.full(settings.depth - 2, own.spread), top)
        return np.log(sigma_w2[1:] * inverse * pulled / variance)
    count, reads = _blocks(run)
    grown, rates = np.array([first]), []
    if count:
        flow = pre_batch_norm(
            act,
            batch,
            _branch_w2(run),
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


def _each_example(run: Run, q: float) -> tuple[np.ndarray, float]:
    """log rates (L - 1,) under layer or RMS norm, and the mean share of branches in them."""
    settings, act = run.settings, get_activation(run.settings.activation)
    square, slope = norm_branch(act, 1.0)
    w2, b2 = run.maps(0)[0]
    first = w2 * q + b2
    if settings.skip == "none":
        maps = np.array([run.maps(layer)[0] for layer in range(settings.depth)])
        variance = np.append(first, maps[1:-1, 0] * square + maps[1:-1, 1])
        return np.log(maps[1:, 0] * slope / variance), 1.0
    count, reads = _blocks(run)
    grown, rates, share = np.array([first]), [], 0.0
    if count:
        w2, b2 = _branch_w2(run), run.initializer.bias_variance(settings.width)
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


def _finite_width(run: Run, steps: int, share: float):
    """Mean and variance of each step beyond its rate, and the error of the mean."""
    settings, batch = run.settings, run.settings.batch_size
    norm = "layer_norm" if settings.norm == "layer" else "rms_norm"
    mean, variance = norm_step(settings.activation, norm, settings.width)
    if settings.skip != "none":
        return None, None, 4 * share / settings.width
    alone = variance / 4 * (1 - 1 / batch)
    if run.initializer.orthogonal:
        return None, None, abs(mean) + variance / 2
    spread = np.full(steps, variance if batch == 1 else math.nan)
    return np.full(steps, mean + alone), spread, alone


def _blocks(run: Run) -> tuple[int, bool]:
    """Residual blocks, and whether a read-out follows."""
    reads = run.outputs is not None
    return run.settings.depth - 1 - reads, reads


def _branch_w2(run: Run) -> float:
    """sigma_w2 of a branch's maps, before skip=fixup scales them."""
    return run.undivided(1)[0]


def _scale(run: Run) -> float:
    return 0.0 if run.settings.skip in ("rezero", "fixup") else run.network.a
