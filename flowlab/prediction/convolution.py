"""Convolutional nets, plain or residual, without normalization and with.

delta is the cotangent of a map's output, before its normalization, or in a net with a skip of the
sum. The rate is `flowlab.theory.convolution.field_flow`'s, of every example by itself: with
circular padding that of a fully-connected net of fan-in k^2 c, with zeros less by what the border
loses. A convolution of delta-orthogonal weights is a fully-connected net whose batch is examples
and positions. Under a loss the logits read the mean over positions, whose square is that of
`flowlab.theory.position_covariances`.

*Without normalization*: what finite width adds is `flowlab.theory.finite_channels`', with zero
padding half-way between its two cases. The error of a step's mean is half their distance, by how
much one example's exact step differs from its first order, for delta-orthogonal weights the share
1/c that their cotangents may lose, and for activations that bend the drift once more, as what q's
fluctuation adds is not derived; the spread is then not given.

*Layer and RMS norm* divide an example by its mean square over channels and positions: `field_flow`
again. *Batch norm* divides a channel by its mean square over examples and positions:
`flowlab.theory.position_covariances`, with the inputs' own covariances; examples are exchangeable.
What finite width adds is not derived. Under layer and RMS norm as much as to a plain net, once for
the cotangent and once for what it is divided by, and 1/c for what the norm projects out, is the
error of a log rate; a mean over channels that layer norm takes off gives a position without
variance 1/c of the others', and what that would change is added. Under batch norm it is 2/nu of
each norm's degrees of freedom and 2/c, both of the share that branches carry.

Silent: identity weights; batch norm of a channel whose values have fewer than 3 degrees of freedom
or whose windows cover everything, or of more positions than their covariances can be followed.
"""

import math

import numpy as np
import pandas as pd

from flowlab.layers.normalization import EPS
from flowlab.prediction.inputs import Inputs
from flowlab.prediction.rows import IDENTITY, SHALLOW, by_operation, curve
from flowlab.theory.activations import get_activation
from flowlab.theory.convolution import FieldFlow, averaging, field_flow
from flowlab.theory.finite_channels import (
    ActivatedMap,
    channel_steps,
    covariance_overlaps,
    mapped_overlaps,
)
from flowlab.theory.position_covariances import PositionCovariances, Windows, windows_freedom

# Members (examples of all batches) whose fields are followed, and the work for covariances.
_MEMBERS = 64
# Layers after which positions' correlations are as they remain.
_SETTLED = 64
_MOST_WORK = 2e9


def predict(given: Inputs) -> pd.DataFrame | str:
    """delta at every layer."""
    settings, normalized = given.settings, given.settings.norm != "none"
    if settings.depth < 1 + (normalized or given.outputs is not None):
        return SHALLOW
    if given.initializer.identity:
        return IDENTITY
    return _normalized(given) if normalized else _plain(given)


def _plain(given: Inputs) -> pd.DataFrame:
    x = given.examples()
    flow = _fields(given, x)
    level, *of_top, alpha, _ = _top(given, x)
    log_rate = flow.log_rate
    drift, variance, error = _finite_width(given, x, flow, alpha)
    if given.outputs is not None:
        log_rate = np.append(log_rate, _pooled_rate(given, x, flow.log_top))
        drift, variance = np.append(drift, 0.0), np.append(variance, 0.0)
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


def _normalized(given: Inputs) -> pd.DataFrame | str:
    settings = given.settings
    pooled = given.outputs is not None
    x = given.examples()
    if settings.norm == "batch":
        found = _covariances(given, x, "batch", EPS)
        if isinstance(found, str):
            return found
        level, *of_top, _, common = _top(given, x, found)
        flow = found.back(white=settings.upstream == "gaussian", pooled=pooled, common=common)
        if _fewest(found, flow.share, pooled) < 3:
            return (
                "the mean rate of batch norm is infinite where a channel's values over the batch "
                "have but 2 degrees of freedom; batch_size=32 network.kernel_size=3 init=he has a "
                "prediction"
            )
        if not np.isfinite([*flow.log_rate, flow.log_top]).all():
            return (
                "windows leave positions nothing but their mean, which batch norm takes off; "
                "network.kernel_size=3 has a prediction"
            )
        error = _batch_error(settings.width, flow.share, found.freedoms)
    else:
        found = _covariances(given, x, "example", EPS) if pooled else None
        level, *of_top, alpha, _ = _top(given, x, found)
        flow = _fields(given, x, EPS)
        error = _examples_error(given, x, flow, alpha)
    log_rate = flow.log_rate
    if pooled:
        log_rate = np.append(log_rate, _pooled_rate(given, x, flow.log_top))
    table = curve(given, top=level, log_rate=log_rate, of_top=tuple(of_top), error=error)
    return by_operation(table, given)


def _fewest(found: PositionCovariances, share: np.ndarray, pooled: bool) -> float:
    """The fewest degrees of freedom of a norm that carries anything."""
    each = found.freedoms.reshape(len(share), -1)[share > 0] if len(share) else np.zeros(0)
    return float(min([*each.ravel(), *([found.last.freedom] if pooled else [])], default=np.inf))


def _batch_error(width: int, share: np.ndarray, freedoms: np.ndarray) -> float:
    if len(share) == 0:
        return 0.0
    few = (2 / freedoms).reshape(len(share), -1).sum(axis=1)
    return float(np.mean(share * (few + 2 / width)))


def _examples_error(given: Inputs, x: np.ndarray, flow: FieldFlow, alpha: float) -> float:
    if len(flow.share) == 0:
        return 0.0
    drift, _, error = _finite_width(given, x, flow, alpha)
    error += 2 * abs(float(np.mean(drift))) + float(np.mean(flow.share)) / given.settings.width
    if given.settings.norm == "layer":
        raised = _fields(given, x, EPS, 1 / given.settings.width)
        error += abs(float(np.mean(raised.log_rate - flow.log_rate)))
    return error


def _layers(given: Inputs) -> list[list[tuple[float, float]]]:
    """(sigma_w2, sigma_b2) of the maps of every layer but a read-out."""
    return [
        given.maps(layer) for layer in range(given.settings.depth - (given.outputs is not None))
    ]


def _residual(given: Inputs) -> dict:
    """The skip's factors, as theory takes them."""
    scale = 0.0 if given.settings.skip == "rezero" else given.network.a
    skip = given.settings.skip != "none"
    return {"residual": skip, "branch_scale": scale, "output_scale": given.network.s}


def _fields(
    given: Inputs, x: np.ndarray, eps: float | None = None, floor: float = 0.0
) -> FieldFlow:
    """Fields of the first examples of x (batches, batch, channels, positions)."""
    q = np.square(x).mean(axis=2)
    act = get_activation(given.settings.activation)
    if act.homogeneous and eps is None:  # linear in q: the examples' mean goes as each does
        q = q.mean(axis=(0, 1), keepdims=True)
    else:
        batches = max(1, _MEMBERS // q.shape[1])
        q = q[:batches, : max(1, _MEMBERS // min(len(q), batches))]
    return field_flow(
        act,
        _layers(given),
        input_q=q,
        averages=_averages(given, q.shape[2:]),
        eps=eps,
        floor=floor,
        pooled=given.outputs is not None,
        **_residual(given),
    )


def _covariances(
    given: Inputs, x: np.ndarray, norm: str, eps: float = 0.0, depth: int | None = None
) -> PositionCovariances | str:
    """Covariances over positions, or a sentence where there are too many or nothing varies."""
    settings, positions = given.settings, math.prod(x.shape[3:])
    terms = 4 if get_activation(settings.activation).homogeneous else 48
    maps = _layers(given)[:depth]
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
    size = 1 if given.initializer.delta else settings.network.kernel_size
    shape = x.shape[3:]
    windows = Windows(shape, (size,) * len(shape), settings.network.padding == "circular")
    freedom = math.inf
    if norm == "batch":
        each = np.array([windows_freedom(batch, windows) for batch in flat])
        freedom = 1 / np.mean(1 / each) if (each > 0).all() else 0.0
        features = x.shape[2] * size ** len(shape)
        if given.initializer.orthogonal and features >= settings.width and freedom > 0:
            # Weights of fixed length: w'Sw fluctuates only as far as S is not a multiple of 1.
            freedom = (1 + 2 / features) / max(1 / freedom - 1 / features, 1e-12)
        if freedom == 0:
            return "nothing varies over a batch of the inputs; data=gaussian has a prediction"
    return PositionCovariances(
        settings.activation,
        maps,
        inputs=np.stack([own, between]),
        batch=batch,
        windows=windows,
        norm=norm,
        eps=eps,
        input_freedom=freedom,
        **_residual(given),
    )


def _top(given: Inputs, x: np.ndarray, found: PositionCovariances | None = None):
    """What `Inputs.top` gives, at the logits of a pooling or at all positions of the last layer."""
    if given.outputs is None:
        return given.top(math.prod(x.shape[3:]))
    ((sigma_w2, sigma_b2),) = given.maps(-1)
    if found is None:
        found = _covariances(given, x, "none")
    # Of so many positions and layers, positions have become alike.
    log_pooled = 0.0 if isinstance(found, str) else found.log_pooled
    log_q = np.logaddexp(_log(sigma_w2) + log_pooled, _log(sigma_b2))
    return given.top(1, float(log_q))


def _pooled_rate(given: Inputs, x: np.ndarray, log_top: float) -> float:
    """From the logits to the last layer: a pooling hands each position its share."""
    return _log(given.maps(-1)[0][0]) + log_top - math.log(math.prod(x.shape[3:]))


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


def _finite_width(given: Inputs, x: np.ndarray, flow: FieldFlow, alpha: float):
    """Mean and variance of every step beyond its rate, and the error of the mean."""
    settings, delta = given.settings, given.initializer.delta
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

    maps = [[ActivatedMap(*read) for read in reads] for reads in flow.reads]
    cosines = _pair_cosines(np.moveaxis(x, 2, -1).reshape(len(x), total, x.shape[2]))
    found = steps(mapped_overlaps(act, maps, cosines, flow.forward_share))
    mean, variance, apart = found.mean, found.variance, 0.0
    if size > 1 and settings.network.padding == "zeros":
        bordered = _bordered(given, x, flow)
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


def _bordered(given: Inputs, x: np.ndarray, flow: FieldFlow):
    """Overlaps of zero-padded positions, those of the first layers repeated; None for too many."""
    count = len(flow.log_rate)
    found = _covariances(given, x, "none", depth=min(count, _SETTLED) + 1)
    if isinstance(found, str):
        return None
    profile = np.exp(flow.log_delta).mean(axis=(0, 1))
    act = get_activation(given.settings.activation)
    first = covariance_overlaps(found, act, profile, x.shape[1])
    return first + first[-1:] * (count - len(first))


def _pair_cosines(x: np.ndarray) -> np.ndarray:
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


def _averages(given: Inputs, shape) -> list[np.ndarray]:
    """Each dimension's matrix A: of delta-orthogonal kernels the centre alone reads."""
    size = given.settings.network.kernel_size
    if given.initializer.delta:
        return [np.eye(n) for n in shape]
    if given.settings.network.padding == "zeros":
        return [averaging(n, size, size // 2) for n in shape]
    return [_circular(n, size) for n in shape]


def _circular(n: int, size: int) -> np.ndarray:
    matrix = np.zeros((n, n))
    for offset in range(size):
        matrix[np.arange(n), (np.arange(n) + offset - size // 2) % n] += 1 / size
    return matrix
