"""The curve of a training: one row for each seed and logged step.

What is measured of step t belongs to the parameters that it starts from, but for what is held out:
that is evaluated after its update. So the first row's loss is that at initialization, and the last
row's held-out loss that of the trained network.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from flowlab import schema
from flowlab.schema import Column, register

OK, DIVERGED = "ok", "diverged"
CURVE = "curve"

register(
    Column("examples", "examples", "training examples seen, this step's included", "int64", CURVE),
    Column("epoch", "", "passes over the training examples, likewise", part=CURVE),
    Column("learning_rate", "", "the learning rate of the step", part=CURVE),
    Column("training_loss", "", "loss of the step's batch before the update", part=CURVE),
    Column("held_out_loss", "", "mean loss of the held-out examples after the update", part=CURVE),
    Column(
        "held_out_accuracy",
        "share",
        "share of held-out examples whose class is named after the update; null of a regression",
        part=CURVE,
    ),
    Column(
        "gradient_log10_norm",
        "log10",
        "Frobenius norm of the whole gradient, unclipped",
        part=CURVE,
    ),
    Column("clipped", "share", "share of clipped steps since the step logged before", part=CURVE),
    Column("clip_angle", "radians", "angle between the raw and the clipped gradient", part=CURVE),
    Column(
        "noise_scale",
        "examples",
        "trΣ/|G|² from the norms of the batch's examples; null where they are coupled",
        part=CURVE,
    ),
    Column(
        "noise_scale_two_batches",
        "examples",
        "trΣ/|G|² estimated from the batch and its first quarter",
        part=CURVE,
    ),
    Column("sharpness", "", "largest eigenvalue of the loss's Hessian", part=CURVE),
    Column(
        "preconditioned_sharpness",
        "",
        "largest eigenvalue of the Hessian behind adam's preconditioner",
        part=CURVE,
    ),
    Column("diverged_step", "", "step of the first non-finite value", "Int64", CURVE),
    Column("diverged_layer", "", "layer of the first non-finite value", "Int64", CURVE),
    Column("training_status", "", "ok, or diverged at this step or before", "string", CURVE),
)


def of_training(
    axes: Mapping[str, Any], seeds: np.ndarray, steps: Mapping[int, Mapping[str, np.ndarray]]
) -> pd.DataFrame:
    """The curve of ``seeds`` (S,): by logged step, in order, the columns (S,) that were measured.

    ``axes`` are the run's name and its settings by column. What was not measured is null.
    """
    count = len(seeds) * len(steps)
    found = {name: _repeated(axes.get(name), count) for name in schema.names("run", "setting")}
    found["seed"] = np.tile(seeds, len(steps))
    found["step"] = np.repeat(list(steps), len(seeds))
    for name in schema.names(CURVE):
        parts = [of[name] for of in steps.values() if name in of]
        found[name] = pd.Series(np.concatenate(parts)) if parts else _repeated(None, count)
    return schema.typed(pd.DataFrame(found, copy=False))


def _repeated(value: Any, count: int) -> pd.Series:
    return pd.Series([value], dtype=object).repeat(count).reset_index(drop=True)
