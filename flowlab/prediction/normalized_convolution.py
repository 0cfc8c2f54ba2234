"""Images with normalization, plain or residual.

delta is the cotangent of a map's output, before its normalization, or in a net with a skip of the
sum.

*Layer and RMS norm* divide an example by its mean square over channels and positions:
`flowlab.theory.convolution.field_flow`, every example by itself.

*Batch norm* divides a channel by its mean square over examples and positions:
`flowlab.theory.position_kernels`, with the inputs' own covariances; examples are exchangeable.

What finite width adds is not derived. Under layer and RMS norm as much as to a plain net, once for
the cotangent and once for what it is divided by, and 1/c for what the norm projects out, is the
error of a log rate; a mean over channels that layer norm takes off gives a position without
variance 1/c of the others', and what that would change is added. Under batch norm it is 2/nu of
each norm's degrees of freedom and 2/c, both of the share that branches carry.

Silent: identity weights; batch norm of a channel whose values have fewer than 3 degrees of freedom
or whose windows cover everything, or of more positions than their covariances can be followed.
"""

import numpy as np
import pandas as pd

from flowlab.layers.normalization import EPS
from flowlab.prediction import convolution
from flowlab.prediction.curve import IDENTITY, SHALLOW, by_operation, curve
from flowlab.prediction.inputs import Run
from flowlab.theory.convolution import FieldFlow
from flowlab.theory.position_kernels import PositionKernels


def predict(run: Run) -> pd.DataFrame | str:
    """delta at every layer."""
    settings = run.settings
    pooled = run.outputs is not None
    if settings.depth < 2:
        return SHALLOW
    if run.initializer.identity:
        return IDENTITY
    x = run.inputs()
    if settings.norm == "batch":
        found = convolution.kernels(run, x, "batch", EPS)
        if isinstance(found, str):
            return found
        level, *of_top, _, common = convolution.top(run, x, found)
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
        found = convolution.kernels(run, x, "example", EPS) if pooled else None
        level, *of_top, alpha, _ = convolution.top(run, x, found)
        flow = convolution.fields(run, x, EPS)
        error = _examples_error(run, x, flow, alpha)
    log_rate = flow.log_rate
    if pooled:
        log_rate = np.append(log_rate, convolution.pooled_rate(run, x, flow.log_top))
    table = curve(run, top=level, log_rate=log_rate, of_top=tuple(of_top), error=error)
    return by_operation(table, run)


def _fewest(found: PositionKernels, share: np.ndarray, pooled: bool) -> float:
    """The fewest degrees of freedom of a norm that carries anything."""
    each = found.freedoms.reshape(len(share), -1)[share > 0] if len(share) else np.zeros(0)
    return float(min([*each.ravel(), *([found.last.freedom] if pooled else [])], default=np.inf))


def _batch_error(width: int, share: np.ndarray, freedoms: np.ndarray) -> float:
    if len(share) == 0:
        return 0.0
    few = (2 / freedoms).reshape(len(share), -1).sum(axis=1)
    return float(np.mean(share * (few + 2 / width)))


def _examples_error(run: Run, x: np.ndarray, flow: FieldFlow, alpha: float) -> float:
    if len(flow.share) == 0:
        return 0.0
    drift, _, error = convolution.finite_width(run, x, flow, alpha)
    error += 2 * abs(float(np.mean(drift))) + float(np.mean(flow.share)) / run.settings.width
    if run.settings.norm == "layer":
        raised = convolution.fields(run, x, EPS, 1 / run.settings.width)
        error += abs(float(np.mean(raised.log_rate - flow.log_rate)))
    return error
