"""Convolutional nets without normalization, plain or residual.

The rate is `flowlab.theory.convolution.field_flow`'s, of every example by itself: with circular
padding that of a fully-connected net of fan-in k^2 c, with zeros less by what the border loses. A
convolution of delta-orthogonal weights is a fully-connected net whose batch is examples and
positions.

What finite width adds is `circular_steps`' where that is derived: plain nets of homogeneous
activations without biases, Gaussian weights (with zero padding, as if it were circular). Elsewhere
it is a fully-connected net's of as many channels on a batch of examples and positions. That is
right for delta-orthogonal weights; for others it leaves out that windows mix positions, and half of
it is granted as theory's error and no spread is given. Under a loss the logits read the mean over
positions, whose square is that of `flowlab.theory.position_kernels`. Silent: identity weights.
"""

import math

import numpy as np
import pandas as pd

from flowlab import theory
from flowlab.prediction.curve import IDENTITY, SHALLOW, by_operation, curve
from flowlab.prediction.inputs import TO_LOG10, Run, moments
from flowlab.theory.activations import get_activation
from flowlab.theory.convolution import FieldFlow, averaging, circular_steps, field_flow
from flowlab.theory.position_kernels import PositionKernels, Windows

# Members (examples of all batches) whose fields are followed, and the work for covariances.
_MEMBERS = 64
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
    drift, variance, error = _finite_width(run, x, convolutions, alpha)
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


def fields(run: Run, x: np.ndarray, eps: float | None = None) -> FieldFlow:
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
        pooled=run.outputs is not None,
        **residual(run),
    )


def kernels(run: Run, x: np.ndarray, norm: str, eps: float = 0.0) -> PositionKernels | None:
    """Covariances over positions; None where those of so many take too long."""
    settings, positions = run.settings, math.prod(x.shape[3:])
    terms = 4 if get_activation(settings.activation).homogeneous else 48
    if settings.depth * positions**2 * terms > _MOST_WORK:
        return None
    flat = x.reshape(*x.shape[:3], positions)
    own = np.einsum("sbcp,sbcq->pq", flat, flat) / math.prod(x.shape[:3])
    total = flat.sum(axis=1)
    both = np.einsum("scp,scq->pq", total, total) / (len(x) * x.shape[2])
    batch = settings.batch_size
    between = (both - batch * own) / (batch * (batch - 1)) if batch > 1 else np.zeros_like(own)
    size = 1 if run.initializer.delta else settings.network.kernel_size
    shape = x.shape[3:]
    return PositionKernels(
        settings.activation,
        layers(run),
        inputs=np.stack([own, between]),
        batch=batch,
        windows=Windows(shape, (size,) * len(shape), settings.network.padding == "circular"),
        norm=norm,
        eps=eps,
        **residual(run),
    )


def top(run: Run, x: np.ndarray, found: PositionKernels | None = None):
    """What `Run.top` gives, at the logits of a pooling or at all positions of the last layer."""
    if run.outputs is None:
        return run.top(math.prod(x.shape[3:]))
    ((sigma_w2, sigma_b2),) = run.maps(-1)
    if found is None:
        found = kernels(run, x, "none")
    log_pooled = found.log_pooled if found is not None else 0.0
    log_q = np.logaddexp(_log(sigma_w2) + log_pooled, _log(sigma_b2))
    return run.top(1, float(log_q))


def pooled_rate(run: Run, x: np.ndarray, log_top: float) -> float:
    """From the logits to the last layer: a pooling hands each position its share."""
    return _log(run.maps(-1)[0][0]) + log_top - math.log(math.prod(x.shape[3:]))


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


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
        pooled = ((positions - 1) + (batch - 1) * positions * alpha) / max(batch * positions - 1, 1)
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
        input_log_q=math.log(q) if q > 0 else -math.inf,
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
