"""Fully-connected nets without normalization, plain or residual: `flowlab.theory.feedforward`."""

import pandas as pd

from flowlab import theory
from flowlab.prediction.inputs import MOST_VALUES, Inputs, cosines, log_squares
from flowlab.prediction.rows import IDENTITY, by_operation


def predict(given: Inputs) -> pd.DataFrame | str:
    """Every norm's mean and spread; silent for identity weights unless the net is linear."""
    settings, initializer, outputs = given.settings, given.initializer, given.outputs
    if initializer.identity and not (settings.activation == "identity" and settings.skip == "none"):
        return IDENTITY
    # The last row of a block with rezero is its scale: the map comes before.
    which = 0 if settings.skip == "rezero" else -1
    fans = [(block[which].fan_in, block[which].fan_out) for block in given.rows]
    x = given.examples(MOST_VALUES)
    c, c2 = cosines(x)
    curve = theory.norms_by_layer(
        fan_in=[i for i, _ in fans],
        fan_out=[o for _, o in fans],
        sigma_w2=[i * initializer.weight_variance(i, o) for i, o in fans],
        sigma_b2=[initializer.bias_variance(i) for i, _ in fans],
        activation=settings.activation,
        skip=settings.skip,
        branch_scale=given.network.a,
        branch_maps=settings.branch_maps,
        readout=outputs is not None and settings.skip != "none" and settings.depth > 1,
        orthogonal=initializer.orthogonal,
        batch_size=settings.batch_size,
        upstream=settings.upstream,
        loss=settings.loss,
        target_square=given.batches.target_square,
        n_classes=outputs,
        reduction=settings.reduction,
        input_log_q=log_squares(x),
        input_c=c,
        input_c2=c2,
    )
    return by_operation(curve, given)
