"""Fully-connected nets with normalization, plain or residual: `flowlab.theory.normalization`.

delta is the cotangent of a map's output, before its normalization, or in a net with a skip of the
sum. In a plain net the step from z_{l+1} to z_l is sigma_w2_{l+1} E phi'^2 / v_l with v_l what the
norm of layer l divides by, less what its projection takes.

*Batch norm*: at least 4 examples, well below the width. Behind some layers they are exchangeable,
whatever the inputs; until then the batch's own Gram matrix is followed
(`flowlab.theory.batch_norm_gram`). Biases drop out. The error is that of `batch_norm_error`, half
of what few units lack of the mean, and where the Gram matrix never comes to be isotropic half of
what it keeps adding.

*Layer and RMS norm*: each example's rates are known, with eps, and its steps' spread; so is the
covariance of two examples' steps, and the batch is their mean (`flowlab.theory.batch_average`). The
error is of second order: nets of ELU, the worst of those simulated, show 15/N^2 of a log rate, and
20/N^2 is taken. Across skips what finite width adds is not derived;
a branch that carries the share x of a rate adds at most about 4x/N.

Silent: identity weights; one layer; batch norm of fewer than 4 examples or of inputs that are all
alike; layer and RMS norm of fewer than 4 units.
"""

import math

import numpy as np
import pandas as pd

from flowlab.layers.normalization import EPS
from flowlab.prediction.inputs import MOST_VALUES, Inputs, cosines, log_squares
from flowlab.prediction.rows import FEW_EXAMPLES, IDENTITY, NARROW, SHALLOW, by_operation, curve
from flowlab.theory import batch_norm_gram as gram
from flowlab.theory.activations import get_activation
from flowlab.theory.batch_average import Nodes, nodes
from flowlab.theory.finite_width import BackwardMap, batch_step
from flowlab.theory.moment_curves import curves
from flowlab.theory.moments import NO_SIGNAL
from flowlab.theory.normalization import (
    batch_moments,
    batch_norm_error,
    norm_step,
    pre_batch_norm,
)

ALIKE = (
    "batch norm divides by the spread of a batch and these inputs are all alike; "
    "data=gaussian has a prediction"
)
LOG_EPS = math.log(EPS)
# Of batches that are followed by their Gram matrices.
MOST_EXAMPLES = 256


def predict(given: Inputs) -> pd.DataFrame | str:
    """delta at every layer."""
    settings, batch = given.settings, given.settings.batch_size
    if settings.depth < 2:
        return SHALLOW
    if given.initializer.identity:
        return IDENTITY
    if settings.norm == "batch" and batch < 4:
        return FEW_EXAMPLES
    if settings.norm != "batch" and settings.width < 4:
        return NARROW
    x = given.examples(MOST_VALUES)
    level, *of_top, _, common = given.top(1)
    drift, variance = None, None
    if settings.norm == "batch":
        if any(gram.directions(one @ one.T) == 0 for one in x):
            return ALIKE
        log_rate, error = _batch_norm(given, x, common)
        finite = batch_norm_error(settings.activation, batch, settings.width)
        if settings.skip != "none":
            finite *= float(np.mean(1 - np.exp(-np.abs(log_rate))))
        error += finite
    else:
        log_rate, drift, variance, error = _layer_or_rms(given, x)
    table = curve(
        given,
        top=level,
        log_rate=log_rate,
        drift=drift,
        variance=variance,
        of_top=tuple(of_top),
        error=error,
    )
    return by_operation(table, given)


def _batch_norm(given: Inputs, x: np.ndarray, common: float) -> tuple[np.ndarray, float]:
    """log rates (L - 1,), means over batches, and what they leave open, in log rate per layer.

    common: mean signed cosine of two examples' cotangents at the top. The first layers follow the
    batch's own Gram matrix, the others are exchangeable. Where they have not come to be so the
    excess is kept by identity, which never will, and halved of others; half of it is left open.
    """
    settings, act = given.settings, get_activation(given.settings.activation)
    batch, first = settings.batch_size, given.maps(0)[0][0]
    # Of weights beyond eps the scale drops out: a unit keeps the squares in range.
    unit = 1 / max(1.0, *(1e-100 * given.maps(layer)[0][0] for layer in range(settings.depth)))
    branches = _branches(given, unit)
    found, opens = [], []
    for one in x[: max(1, MOST_EXAMPLES // batch)]:
        start = first * unit * (one @ one.T) / one.shape[1]
        through = gram.forward(act, start, branches, settings.width, EPS)
        done = len(through.passed)
        reached = gram.variance(through.last) / unit
        rest, above = _exchangeable(given, reached, done, common)
        rates, lacks = gram.backward(through, branches[:done], above, settings.width)
        if done and len(rest) and not gram.isotropic(through.last, settings.width):
            before = gram.variance(through.grams[-1]) / unit
            known, _ = _exchangeable(given, before, done - 1, common)
            excess = (rates[-1] - known[0]) * (1.0 if plain(given) else rest / known[0])
            opens.append(0.5 * abs(float(np.mean(excess))) * len(rest) / (settings.depth - 1))
            rest = rest + excess * (1.0 if act.negative_slope == 1 else 0.5)
        opens.append(-0.5 * float(lacks.sum()) / (settings.depth - 1))
        found.append(np.append(rates + lacks, rest))
    return np.mean(found, axis=0), sum(opens) / len(found)


def _branches(given: Inputs, unit: float) -> list[gram.Branch]:
    """What stands between z_l and z_{l+1}, (L - 1,), all variances times ``unit``."""
    settings = given.settings
    if plain(given):
        sigma_w2 = [given.maps(layer)[0][0] for layer in range(1, settings.depth)]
        return [gram.Branch((unit * w2,)) for w2 in sigma_w2]
    count, reads = _blocks(given)
    maps = (unit * _branch_w2(given),) * settings.branch_maps
    block = gram.Branch(maps, True, _scale(given), given.network.s)
    return [block] * count + [gram.Branch((unit * given.maps(-1)[0][0],))] * reads


def _exchangeable(given: Inputs, start: float, done: int, common: float):
    """log rates of the layers above ``done``, and the cotangents' covariance (B, B) below them.

    start: variance over the batch of what the first of them reads.
    """
    settings, act = given.settings, get_activation(given.settings.activation)
    batch = settings.batch_size
    own, inverse = batch_moments(act, batch), batch / (batch - 3)
    along = (1 + (batch - 1) * common) / batch  # the share that is equal for all examples
    top = own.spread * (1 - along) + (batch - 1) * own.mean * along
    rates, steps = [], settings.depth - 1 - done
    if plain(given):
        sigma_w2 = np.array([given.maps(layer)[0][0] for layer in range(1 + done, settings.depth)])
        if steps:
            variance = np.append(start, sigma_w2[:-1] * own.centred)
            pulled = np.append(np.full(steps - 1, own.spread), top)
            rates, along = np.log(sigma_w2 * inverse * pulled / variance), 0.0
    elif steps:
        count, reads = _blocks(given)
        grown = np.array([start])
        along = 0.0 if reads else along
        if count > done:
            flow = pre_batch_norm(
                act,
                batch,
                _branch_w2(given),
                count - done,
                start=start,
                branch_scale=_scale(given),
                output_scale=given.network.s,
                common=along,
                branch_maps=settings.branch_maps,
            )
            grown, rates, along = flow.variance, list(np.log(flow.rate)), flow.common
        if reads:
            rates.append(math.log(given.maps(-1)[0][0] * inverse * top / grown[-1]))
    equal = np.full((batch, batch), 1 / batch)
    covariance = (1 - along) * (np.eye(batch) - equal) / (batch - 1) + along * equal
    return np.array(rates), covariance


def _each_example(given: Inputs, examples: Nodes) -> tuple[np.ndarray, np.ndarray]:
    """Under layer or RMS norm: log rates and branches' shares of them, both (L - 1, nodes).

    log v is the log variance of what a norm reads, whose output has variance v/(v + eps).
    """
    settings, act = given.settings, get_activation(given.settings.activation)
    known = curves(act)

    def read(log_v):
        """log E phi^2 and log E phi'^2 behind the norm, the latter of its input's square."""
        log_k = log_v - np.logaddexp(log_v, LOG_EPS)
        square, slope = known.logs(np.where(log_v <= NO_SIGNAL / 2, NO_SIGNAL, log_k))[0]
        return square, slope - np.logaddexp(log_v, LOG_EPS)

    maps = [
        _logs(*given.maps(layer)[0]) for layer in (range(settings.depth) if plain(given) else (0,))
    ]
    w2, b2 = maps[0]
    log_v = np.maximum(np.logaddexp(w2 + examples.log_q, b2), NO_SIGNAL)
    rates, shares = [], []
    if plain(given):
        for w2, b2 in maps[1:]:
            square, slope = read(log_v)
            rates.append(w2 + slope)
            log_v = np.maximum(np.logaddexp(w2 + square, b2), NO_SIGNAL)
        return np.array(rates), np.ones((len(rates), 1))
    count, reads = _blocks(given)
    w2, b2 = _logs(_branch_w2(given), given.initializer.bias_variance(settings.width))
    scale2, branch2 = _logs(given.network.s**2, _scale(given) ** 2)
    for _ in range(count):
        log_f, log_rate = log_v, branch2
        for _ in range(settings.branch_maps):
            square, slope = read(log_f)
            log_f, log_rate = np.logaddexp(w2 + square, b2), log_rate + w2 + slope
        rates.append(scale2 + np.logaddexp(0.0, log_rate))
        shares.append(np.exp(log_rate - np.logaddexp(0.0, log_rate)))
        log_v = np.maximum(scale2 + np.logaddexp(log_v, branch2 + log_f), NO_SIGNAL)
    if reads:
        rates.append(_logs(given.maps(-1)[0][0])[0] + read(log_v)[1])
        shares.append(np.zeros(len(log_v)))
    return np.array(rates), np.array(shares)


def _layer_or_rms(given: Inputs, x: np.ndarray):
    """What `curve` needs: log rates, drifts and variances of the steps, and the error of a rate."""
    settings, batch = given.settings, given.settings.batch_size
    examples = nodes(log_squares(x), batch)
    rates, shares = _each_example(given, examples)
    level = _down(rates)
    log_rate = _steps(examples.log_mean(level).mean(axis=1))
    if not plain(given):
        return log_rate, None, None, 4 * float(shares.mean()) / settings.width
    norm = "layer_norm" if settings.norm == "layer" else "rms_norm"
    mean, variance = norm_step(settings.activation, norm, settings.width)
    if given.initializer.orthogonal:
        return log_rate, None, None, abs(mean) + variance / 2
    of_layers = np.arange(len(rates), -1.0, -1.0)
    pair = np.append(np.cumsum(_pair_steps(given, x)[::-1])[::-1], 0.0)
    own = of_layers * variance
    rho = np.divide(pair, own, out=np.zeros_like(own), where=own > 0)
    spread = np.broadcast_to(own[:, None], level.shape)
    typical, total = examples.batched(
        level + of_layers[:, None] * mean, spread, np.clip(rho, 0.0, 1.0)
    )
    steps = _steps(typical)
    drift = np.subtract(steps, log_rate, out=np.zeros_like(steps), where=log_rate > -np.inf)
    return log_rate, drift, _steps(total), 20 / settings.width**2


def _pair_steps(given: Inputs, x: np.ndarray) -> np.ndarray:
    """Covariance of two examples' log steps, (L - 1,): the variance of `norm_step` at c < 1.

    With a = phi'^2/mu_1 and p = phi^2/E phi^2 at the two examples, of correlation c, alpha the mean
    squared cosine of their cotangents (`flowlab.theory.finite_width`) and n the width, it is
    [2 alpha E a a' + Cov(a - p, a' - p') + 2 c_h^2]/n, c_h the correlation behind the activation,
    less the parts of a - p along z^2 (and under layer norm z), which the norm takes out.
    """
    settings, width = given.settings, given.settings.width
    known = curves(get_activation(settings.activation))
    at = known.at(np.zeros(1), np.zeros(1))
    c, c2 = cosines(x)
    along_square = 2 * float((at.mu1_slope - at.phi2_slope)[0]) ** 2
    along = float((at.mu1_tilt - at.phi2_tilt)[0]) ** 2 * (settings.norm == "layer")
    forward, extra = [], max(c2 - c * c, 0.0)
    for layer in range(settings.depth - 1):
        w2, b2 = given.maps(layer)[0]
        if layer:
            gap = 1e-3 if c < 0 else -1e-3
            phi_c = known.phi_correlation(0.0, c)
            slope = (known.phi_correlation(0.0, c + gap) - phi_c) / gap
            square = w2 * math.exp(float(at.log_phi2[0]))
            weight = square / (square + b2) if square + b2 > 0 else 1.0
            c, extra = weight * phi_c + 1 - weight, (weight * slope) ** 2 * extra
        extra = min(extra + (1 - c * c) * (1 + 2 * c * c) / width, 1 - c * c)
        rms = math.copysign(min(math.sqrt(c * c + extra), 1.0), c)
        forward.append((*known.pairs(0.0, rms), known.phi_correlation(0.0, rms), rms))
    alpha, steps = given.top(1)[3], []
    for h, m, p2, cross, c_h, rms in reversed(forward):
        noise, alpha = batch_step([BackwardMap(h, m, 0.0)], 1.0, width, math.inf, alpha)
        shared = p2 - 1 - 2 * (cross - 1) - along_square * rms**2 - along * rms + 2 * c_h**2
        steps.append(noise + shared / width)
    return np.array(steps[::-1])


def _down(steps: np.ndarray) -> np.ndarray:
    """Sums (L, ...) of the steps above each layer."""
    return np.append(np.cumsum(steps[::-1], axis=0)[::-1], np.zeros((1, *steps.shape[1:])), axis=0)


def _steps(level: np.ndarray) -> np.ndarray:
    """The differences whose sums from above are ``level``; 0 below what is -inf already."""
    above, below = level[1:], level[:-1]
    return np.subtract(below, above, out=np.zeros_like(above), where=above > -np.inf)


def _logs(*values):
    with np.errstate(divide="ignore"):
        return np.log(np.array(values, dtype=float))


def plain(given: Inputs) -> bool:
    """Has the net no skip?"""
    return given.settings.skip == "none"


def _blocks(given: Inputs) -> tuple[int, bool]:
    """Residual blocks, and whether a read-out follows."""
    reads = given.outputs is not None
    return given.settings.depth - 1 - reads, reads


def _branch_w2(given: Inputs) -> float:
    """sigma_w2 of a branch's maps, before skip=fixup scales them."""
    return given.undivided(1)[0]


def _scale(given: Inputs) -> float:
    return 0.0 if given.settings.skip in ("rezero", "fixup") else given.network.a
