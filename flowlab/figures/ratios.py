"""One number for each run: how much larger its gradient is at the input than at the output."""

from collections.abc import Sequence

import pandas as pd

from flowlab.errors import InputError, unknown
from flowlab.figures.runs import whole_layers
from flowlab.statistics import DELTA, over_seeds, seed_ratios

SYMBOL = r"$\log_{10}\,\Vert\delta_1\Vert/\Vert\delta_L\Vert$"  # on axes
WORDS = "log10 ‖δ₁‖/‖δ_L‖"  # in captions


def ratios(
    table: pd.DataFrame, prediction: pd.DataFrame | None, axes: Sequence[str]
) -> pd.DataFrame:
    """log10 ‖δ_1‖/‖δ_L‖ of every run, measured and predicted, in decades; one row per run.

    Columns: ``axes`` (of the configuration), ``seeds``, ``crossed`` (layers between the two norms),
    ``mean``, ``low``, ``high`` and ``excluded`` over seeds as in ``statistics.over_seeds``, and
    ``predicted`` with ``predicted_sd``, the sd of one seed, NaN where theory is silent.
    Raises InputError for an empty table, a missing column and runs that agree in all of ``axes``.
    """
    for name in ("run", "seed", "layer", DELTA, *axes):
        if name not in table:
            raise unknown("column", name, table.columns)
    if table.empty:
        raise InputError("table must hold at least one row; got none")
    table = whole_layers(table)
    groups = table.groupby("run", observed=True)
    rows = groups[list(axes)].first()
    twice = rows[rows.duplicated(keep=False)]
    if len(twice):
        cell = ", ".join(f"{axis}={twice[axis].iat[0]}" for axis in axes)
        raise InputError(
            f"table must hold one run for each {' and '.join(axes)}; got {len(twice)} like {cell}"
        )
    layers = table[table[DELTA].notna()].groupby("run", observed=True)["layer"]
    rows["crossed"] = layers.max() - layers.min()
    rows["seeds"] = groups["seed"].nunique()
    measured = over_seeds(seed_ratios(table, by="run")).set_index("run")
    rows = rows.join(measured[["mean", "low", "high", "excluded"]])
    return rows.join(_predicted(prediction)).reset_index()


def _predicted(prediction: pd.DataFrame | None) -> pd.DataFrame:
    """Theory's ratio and the sd of one seed, by run; the log-norm is a random walk backward."""
    columns = ["predicted", "predicted_sd"]
    if prediction is None or prediction.empty:
        return pd.DataFrame(columns=columns, dtype=float)
    told = whole_layers(prediction).dropna(subset=DELTA).sort_values("layer", kind="stable")
    ends = told.groupby("run", observed=True)[[DELTA, f"{DELTA}_sd"]].agg(["first", "last"])
    mean, sd = ends[DELTA], ends[f"{DELTA}_sd"]
    variance = (sd["first"] ** 2 - sd["last"] ** 2).clip(lower=0)
    values = {"predicted": mean["first"] - mean["last"], "predicted_sd": variance**0.5}
    return pd.DataFrame(values, columns=columns)


def init_labels(rows: pd.DataFrame) -> pd.Series:
    """The initializer's name, with the gain where it is not 1."""
    gain = rows["gain"].map(lambda g: "" if g == 1 else f" × {g:.4g}")
    return rows["init"].astype(str) + gain
