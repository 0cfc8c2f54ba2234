"""Images with normalization, plain or residual.

delta is the cotangent of a map's output, before its normalization, or in a net with a skip of the
sum.

*Layer and RMS norm* divide an example by its mean square over channels and positions:
`flowlab.theory.convolution.field_flow`, every example by itself.

*Batch norm* divides a channel by its mean square over examples and positions:
`flowlab.theory.position_kernels`, with the inputs' own covariances; examples are exchangeable.

What finite width adds is not derived: the error is TODO.

Silent: identity weights; batch norm of fewer than 4 examples or of a channel whose values have
fewer than 4 degrees of freedom, or of more positions than their covariances can be followed.
"""

import numpy as np
import pandas as pd

from flowlab.layers.normalization import EPS
from flowlab.prediction import images
from flowlab.prediction.curve import IDENTITY, SHALLOW, by_operation, curve
from flowlab.prediction.inputs import Run
from flowlab.theory.normalization import norm_step


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
        found = images.kernels(run, x, "batch", EPS)
        if isinstance(found, str):
            return found
        if len(found.freedoms) and found.freedoms.min() < 3:
            return (
                "the mean rate of batch norm is infinite where a channel's values over the batch "
                "have but 2 degrees of freedom; batch_size=32 network.kernel_size=3 init=he has a "
                "prediction"
            )
        level, *of_top, _, common = images.top(run, x, found)
        flow = found.back(white=settings.upstream == "gaussian", pooled=pooled, common=common)
    else:
        found = images.kernels(run, x, "example", EPS) if pooled else None
        level, *of_top, _, _ = images.top(run, x, found)
        flow = images.fields(run, x, EPS)
    log_rate = flow.log_rate
    if pooled:
        log_rate = np.append(log_rate, images.pooled_rate(run, x, flow.log_top))
    error = _error(run, flow.share, found.freedoms if settings.norm == "batch" else None)
    table = curve(run, top=level, log_rate=log_rate, of_top=tuple(of_top), error=error)
    return by_operation(table, run)


def _error(run: Run, share: np.ndarray, freedoms: np.ndarray | None) -> float:
    """The error of a step's mean: what finite width and few degrees of freedom may add."""
    settings = run.settings
    if len(share) == 0:
        return 0.0
    if freedoms is not None:
        each = (2 / freedoms).reshape(len(share), -1).sum(axis=1)
        return float(np.mean(share * (each + 2 / settings.width)))
    if settings.skip != "none":
        return 4 * float(np.mean(share)) / settings.width
    norm = "layer_norm" if settings.norm == "layer" else "rms_norm"
    mean, variance = norm_step(settings.activation, norm, max(settings.width, 4))
    return abs(mean) + variance / 2
