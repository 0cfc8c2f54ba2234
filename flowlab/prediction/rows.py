"""A prediction by layer becomes rows with the table's columns."""

import math

import numpy as np
import pandas as pd

from flowlab.prediction.inputs import TO_LOG10, Inputs
from flowlab.schema import DELTA, NORMS

_BLOCK = ("activation_log10_norm", DELTA)
_OF_LAYER = (f"{DELTA}_infinite", "q", "chi", "slope_error")
# Sentences of several families.
SHALLOW = "a net of one layer has no step between layers; depth=2 has a prediction"
OWN = "theory knows the networks of the settings, not one's own; network=mlp has a prediction"
IDENTITY = (
    "theory averages over random weights and init=identity draws none; "
    "init=orthogonal has a prediction"
)
NARROW = "steps under layer and RMS norm are known from 4 units on; width=4 has a prediction"
FEW_EXAMPLES = "batch norm's mean rate is infinite below 4 examples; batch_size=4 has a prediction"


def curve(
    given: Inputs,
    *,
    top: float,
    log_rate,
    drift=None,
    variance=None,
    of_top: tuple[float, float] = (0.0, 0.0),
    error: float = 0.0,
    **more,
) -> pd.DataFrame:
    """One row per layer from log E||delta_L||^2 = ``top`` and the steps below it.

    log_rate, drift, variance: (L - 1,), entry l the step from layer l + 2 to l + 1: its rate, what
    finite width adds to its mean and its variance (NaN where that is not derived); of_top: mean and
    variance of log ||delta_L||^2 about its level. error: theory's error of a layer's log rate.
    ``more`` are log squared norms, (L,) or one number.
    """

    def down(start, steps):
        return start + np.append(np.cumsum(np.asarray(steps)[::-1])[::-1], 0.0)

    log_rate = np.asarray(log_rate, dtype=float)
    drift = np.zeros_like(log_rate) if drift is None else drift
    infinite = down(top, log_rate)
    mean = infinite + down(of_top[0], drift)
    spread = np.full(len(mean), math.nan) if variance is None else down(of_top[1], variance)
    columns = {f"{DELTA}_infinite": infinite * TO_LOG10, DELTA: mean * TO_LOG10}
    columns[f"{DELTA}_sd"] = np.sqrt(np.maximum(spread, 0.0)) * TO_LOG10
    columns |= {name: np.broadcast_to(value, len(mean)) * TO_LOG10 for name, value in more.items()}
    columns["chi"] = np.append(np.exp(log_rate), math.nan)
    columns["slope_error"] = error * TO_LOG10
    return pd.DataFrame(columns)


def by_operation(table: pd.DataFrame, given: Inputs) -> pd.DataFrame:
    """Give each layer's prediction to its rows: block norms to the last, others to the last map."""
    layers, names, of_block, of_map = [], [], [], []
    for layer, block in enumerate(given.rows):
        maps = [k for k, row in enumerate(block) if row.has_delta and row.op != "scale"]
        for k, row in enumerate(block):
            layers.append(layer)
            names.append(row.op)
            of_block.append(k == len(block) - 1)
            of_map.append([k] == maps[-1:])
    layers = np.array(layers)
    columns = {"run": given.run, "layer": layers + 1, "op": names}
    for name in NORMS:
        mine = of_block if name in _BLOCK else of_map
        for column in (name, f"{name}_sd"):
            columns[column] = _where(mine, table, column, layers)
    columns |= {column: _where(of_block, table, column, layers) for column in _OF_LAYER}
    return _because(pd.DataFrame(columns), None)


def _where(mine: list[bool], table: pd.DataFrame, column: str, layers: np.ndarray) -> np.ndarray:
    """The layers' values in the rows that are theirs, else NaN."""
    if column not in table:
        return np.full(len(layers), math.nan)
    return np.where(mine, table[column].to_numpy(dtype=float)[layers], math.nan)


def unpredicted(given: Inputs) -> pd.DataFrame:
    """The rows of layers without a prediction, beside others that have one."""
    return by_operation(pd.DataFrame(index=range(len(given.rows))), given)


def silent(given: Inputs, because: str) -> pd.DataFrame:
    """The rows of a run without a prediction: one sentence, the assumption that fails."""
    return _because(unpredicted(given), because)


def _because(table: pd.DataFrame, sentence: str | None) -> pd.DataFrame:
    return table.assign(silent_because=pd.array([sentence] * len(table), dtype="string"))
