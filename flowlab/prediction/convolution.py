"""Convolutional nets without normalization, plain or residual.

The rate is `flowlab.theory.convolution.field_flow`'s, of every example by itself: with circular
padding that of a fully-connected net of fan-in k^2 c, with zeros less by what the border loses. A
convolution of delta-orthogonal weights is a fully-connected net whose batch is examples and
positions.

What finite width adds is `flowlab.theory.finite_channels`', with zero padding half-way between its
two cases. The error of a step's mean is half their distance, by how much one example's exact step
differs from its first order, for delta-orthogonal weights the share 1/c that their cotangents may
lose, and for activations that bend the drift once more, as what q's fluctuation adds is not
derived; the spread is then not given. Under a loss the logits read the mean over
positions, whose square is that of `flowlab.theory.position_kernels`. Silent: identity weights.
"""

import math

import numpy as np
import pandas as pd

from flowlab.prediction.curve import IDENTITY, SHALLOW, by_operation, curve
from flowlab.prediction.inputs import Run
from flowlab.theory.activations import get_activation
from flowlab.theory.convolution import FieldFlow, averaging, field_flow
from flowlab.theory.finite_channels import (
    Map,
    channel_steps,
    kernel_overlaps,
    mapped_overlaps,
)
from flowlab.theory.position_kernels import PositionKernels, Windows, windows_freedom

# Members (examples of all batches) whose fields are followed, and the work for covariances.
_MEMBERS = 64
# Layers after which positions' correlations are as they remain.
_SETTLED = 64
_MOST_WORK = 2e9


def predict(run: Run) -> pd.DataFrame | str:
    """delta at every layer."""
    settings = run.settings
    convolutions = settings.depth - (run.outputs is not None)
    if convolutions < 1:
        return SHALLOW
    if run.initializer.identity:
        return IDENTITY
    x = run.inputs()
    flow = fields(run, x)
    level, *of_top, alpha, _ = top(run, x)
    log_rate = flow.log_rate
    drift, variance, error = finite_width(run, x, flow, alpha)
    if run.outputs is not None:
        log_rate = np.append(log_rate, pooled_rate(run, x, flow.log_top))
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


def layers(run: Run) -> list[list[tuple[float, float]]]:
    """(sigma_w2, sigma_b2) of the maps of every layer but a read-out."""
    return [run.maps(layer) for layer in range(run.settings.depth - (run.outputs is not None))]


def residual(run: Run) -> dict:
    """The skip's factors, as theory takes them."""
    scale = 0.0 if run.settings.skip == "rezero" else run.network.a
    skip = run.settings.skip != "none"
    return {"residual": skip, "branch_scale": scale, "output_scale": run.network.s}


def fields(run: Run, x: np.ndarray, eps: float | None = None, floor: float = 0.0) -> FieldFlow:
    """Fields of the first examples of x (batches, batch, channels, positions)."""
    q = np.square(x).mean(axis=2)
    act = get_activation(run.settings.activation)
    if act.homogeneous and eps is None:  # linear in q: the examples' mean goes as each does
        q = q.mean(axis=(0, 1), keepdims=True)
    else:
        batches = max(1, _MEMBERS // q.shape[1])
        q = q[:batches, : max(1, _MEMBERS // min(len(q), batches))]
    return field_flow(
        act,
        layers(run),
        input_q=q,
        averages=averages(run, q.shape[2:]),
        eps=eps,
        floor=floor,
        pooled=run.outputs is not None,
        **residual(run),
    )


def kernels(
    run: Run, x: np.ndarray, norm: str, eps: float = 0.0, depth: int | None = None
) -> PositionKernels | str:
    """Covariances over positions, or a sentence where there are too many or nothing varies."""
    settings, positions = run.settings, math.prod(x.shape[3:])
    terms = 4 if get_activation(settings.activation).homogeneous else 48
    maps = layers(run)[:depth]
    if len(maps) * positions**2 * terms > _MOST_WORK:
        return (
            "covariances of so many positions in so many layers take too long to follow; "
            "network.image=8 depth=50 has a prediction"
        )
    flat = x.reshape(*x.shape[:3], positions)
    own = np.einsum("sbcp,sbcq->pq", flat, flat) / math.prod(x.shape[:3])
    total = flat.sum(axis=1)
    both = np.einsum("scp,scq->pq", total, total) / (len(x) * x.shape[2])
    batch = settings.batch_size
    between = (both - batch * own) / (batch * (batch - 1)) if batch > 1 else np.zeros_like(own)
    size = 1 if run.initializer.delta else settings.network.kernel_size
    shape = x.shape[3:]
    windows = Windows(shape, (size,) * len(shape), settings.network.padding == "circular")
    freedom = math.inf
    if norm == "batch":
        each = np.array([windows_freedom(batch, windows) for batch in flat])
        freedom = 1 / np.mean(1 / each) if (each > 0).all() else 0.0
        features = x.shape[2] * size ** len(shape)
        if run.initializer.orthogonal and features >= settings.width and freedom > 0:
            # Weights of fixed length: w'Sw fluctuates only as far as S is not a multiple of 1.
            freedom = (1 + 2 / features) / max(1 / freedom - 1 / features, 1e-12)
        if freedom == 0:
            return "nothing varies over a batch of the inputs; data=gaussian has a prediction"
    return PositionKernels(
        settings.activation,
        maps,
        inputs=np.stack([own, between]),
        batch=batch,
        windows=windows,
        norm=norm,
        eps=eps,
        input_freedom=freedom,
        **residual(run),
    )


def top(run: Run, x: np.ndarray, found: PositionKernels | None = None):
    """What `Run.top` gives, at the logits of a pooling or at all positions of the last layer."""
    if run.outputs is None:
        return run.top(math.prod(x.shape[3:]))
    ((sigma_w2, sigma_b2),) = run.maps(-1)
    if found is None:
        found = kernels(run, x, "none")
    # Of so many positions and layers, positions have become alike.
    log_pooled = 0.0 if isinstance(found, str) else found.log_pooled
    log_q = np.logaddexp(_log(sigma_w2) + log_pooled, _log(sigma_b2))
    return run.top(1, float(log_q))


def pooled_rate(run: Run, x: np.ndarray, log_top: float) -> float:
    """From the logits to the last layer: a pooling hands each position its share."""
    return _log(run.maps(-1)[0][0]) + log_top - math.log(math.prod(x.shape[3:]))


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


def finite_width(run: Run, x: np.ndarray, flow: FieldFlow, alpha: float):
    """Mean and variance of every step beyond its rate, and the error of the mean."""
    settings, delta = run.settings, run.initializer.delta
    act = get_activation(settings.activation)
    batch, positions, count = x.shape[1], x.shape[3:], len(flow.log_rate)
    if count == 0:
        return np.zeros(0), np.zeros(0), 0.0
    total = batch * math.prod(positions)
    # Behind a pooling the cotangents of two positions are equal, those of two examples not.
    pooled = (math.prod(positions) * (1 + (batch - 1) * alpha) - 1) / max(total - 1, 1)
    size = 1 if delta else settings.network.kernel_size

    def steps(overlaps):
        return channel_steps(
            act,
            overlaps,
            shape=(batch, *positions),
            kernel=(1, *(size for _ in positions)),
            channels=settings.width,
            share=flow.share,
            orthogonal=delta,
            common={"gaussian": None, "ones": 1.0}.get(settings.upstream, pooled),
        )

    maps = [[Map(*read) for read in reads] for reads in flow.reads]
    cosines = pair_cosines(np.moveaxis(x, 2, -1).reshape(len(x), total, x.shape[2]))
    found = steps(mapped_overlaps(act, maps, cosines, flow.forward_share))
    mean, variance, apart = found.mean, found.variance, 0.0
    if size > 1 and settings.network.padding == "zeros":
        bordered = _bordered(run, x, flow)
        if bordered is not None:
            other = steps(bordered)
            apart = abs(float(np.mean(other.mean - mean))) / 2
            mean, variance = (mean + other.mean) / 2, (variance + other.variance) / 2
        else:
            apart = abs(float(np.mean(mean))) / 2
    drift = abs(float(np.mean(mean)))
    error = apart + float(np.mean(found.next_order))
    if delta:
        error += float(np.mean(flow.share)) / settings.width * (total > 1)
    if not act.homogeneous:  # forward fluctuations of q, which move the rate, are not derived
        error += drift
    if settings.skip != "none" or not act.homogeneous or delta:
        variance = np.full_like(variance, math.nan)
    return mean, variance, error


def _bordered(run: Run, x: np.ndarray, flow: FieldFlow):
    """Overlaps of zero-padded positions, those of the first layers repeated; None for too many."""
    count = len(flow.log_rate)
    found = kernels(run, x, "none", depth=min(count, _SETTLED) + 1)
    if isinstance(found, str):
        return None
    profile = np.exp(flow.log_delta).mean(axis=(0, 1))
    act = get_activation(run.settings.activation)
    first = kernel_overlaps(found, act, profile, x.shape[1])
    return first + first[-1:] * (count - len(first))


def pair_cosines(x: np.ndarray) -> np.ndarray:
    """Quantiles of the cosines of two members of x (batches, members, features)."""
    if x.shape[1] == 1:
        return np.zeros(1)
    rng, pairs = np.random.default_rng(0), 4096
    batch, first = rng.integers(len(x), size=pairs), rng.integers(x.shape[1], size=pairs)
    second = (first + rng.integers(1, x.shape[1], size=pairs)) % x.shape[1]
    a, b = x[batch, first], x[batch, second]
    norms = np.sqrt(np.square(a).sum(1) * np.square(b).sum(1))
    cosines = (a * b).sum(1)[norms > 0] / norms[norms > 0]
    if len(cosines) == 0:
        return np.zeros(1)
    return np.quantile(np.clip(cosines, -1.0, 1.0), (np.arange(16) + 0.5) / 16)


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
