"""Fully-connected nets without normalization, plain or residual: `flowlab.theory.predict`."""

import math

import pandas as pd

from flowlab import theory
from flowlab.prediction.curve import by_operation
from flowlab.prediction.inputs import Run, moments
from flowlab.settings import Settings

_BACKWARD = ("delta_log10_norm", "dX_log10_norm", "dW_log10_norm", "db_log10_norm")


def predict(run: Run) -> pd.DataFrame | None:
    """Every norm's mean and spread; silent for identity weights unless the net is linear."""
    settings, initializer, outputs = run.settings, run.initializer, run.outputs
    if initializer.identity and not (settings.activation == "identity" and settings.skip == "none"):
        return None
    # The last row of a block with rezero is its scale: the map comes before.
    which = 0 if settings.skip == "rezero" else -1
    fans = [(block[which].fan_in, block[which].fan_out) for block in run.rows]
    x = run.inputs()
    q, c = moments(x.reshape(len(x), settings.batch_size, -1))
    curve = theory.predict(
        fan_in=[i for i, _ in fans],
        fan_out=[o for _, o in fans],
        sigma_w2=[i * initializer.weight_variance(i, o) for i, o in fans],
        sigma_b2=[initializer.bias_variance(i) for i, _ in fans],
        activation=settings.activation,
        skip=settings.skip,
        branch_scale=run.network.a,
        branch_maps=settings.branch_maps,
        readout=outputs is not None and settings.skip != "none" and settings.depth > 1,
        orthogonal=initializer.orthogonal,
        batch_size=settings.batch_size,
        upstream=settings.upstream,
        n_classes=outputs and max(outputs, 2),  # of a regression, whose level is moved below
        reduction=settings.reduction,
        input_q=q,
        input_c=c,
    )
    if settings.upstream == "loss" and settings.loss == "squared_error":
        _shift_to_squared_error(curve, settings, outputs, run.batches.target_square)
    return by_operation(curve.assign(slope_error=0.0), run)


def _shift_to_squared_error(
    curve: pd.DataFrame, settings: Settings, outputs: int, target_square: float
) -> None:
    """Move the backward columns to E‖2(z - t)‖² = 4 B (K q_L + E‖t‖²), z zero-mean."""
    squared = 4.0 * settings.batch_size * (outputs * curve["q"].iloc[-1] + target_square)
    if settings.reduction == "mean":
        squared /= (settings.batch_size * outputs) ** 2
    moved = 0.5 * math.log10(squared) - curve["delta_log10_norm"].iloc[-1]
    for name in (*_BACKWARD, "delta_log10_norm_infinite"):
        curve[name] += moved
