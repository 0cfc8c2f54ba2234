"""One number for each run: by how much the gradient's norm changes over its body."""

from collections.abc import Sequence
from math import nan

import pandas as pd

from flowlab.analysis.verdicts import KEPT_WITHIN, Verdict, judge_all
from flowlab.errors import InputError, unknown
from flowlab.figures.runs import whole_layers
from flowlab.schema import DELTA

SYMBOL = r"change of $\log_{10}\Vert\delta\Vert$"  # on axes
WORDS = "Change of log10‖δ‖ over the body"  # in captions


def ratios(
    table: pd.DataFrame,
    prediction: pd.DataFrame | None,
    axes: Sequence[str],
    kept_within: float = KEPT_WITHIN,
) -> pd.DataFrame:
    """Each run's change of log10‖δ‖ going backward over its body, in decades; one row per run.

    Columns: ``axes`` (of the configuration), ``seeds``, ``crossed`` (layers between the two ends),
    ``last`` (the body's last layer),
    the verdict's ``mean``, ``low``, ``high``, ``excluded``, ``trend``, ``agreement`` and
    ``difference`` (measured minus predicted), and ``predicted`` with ``predicted_sd``, the sd of
    one seed, NaN where theory does not cover the whole body.
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
    rows["seeds"] = groups["seed"].nunique()
    curves = None if prediction is None else whole_layers(prediction)
    verdicts = judge_all(table, curves, kept_within)
    judged = pd.DataFrame.from_dict({run: _row(v) for run, v in verdicts.items()}, "index")
    return rows.join(judged).reset_index()


def _row(verdict: Verdict) -> dict:
    whole = verdict.covered == (verdict.first, verdict.last)
    change, difference = verdict.change, verdict.difference
    return {
        **{"crossed": verdict.crossed, "last": verdict.last},
        **{name: getattr(change, name) for name in ("mean", "low", "high", "excluded")},
        **{"trend": verdict.trend, "agreement": verdict.agreement},
        "difference": nan if difference is None else difference.mean,
        "predicted": verdict.predicted if whole else nan,
        "predicted_sd": verdict.predicted_sd if whole else nan,
    }


def init_labels(rows: pd.DataFrame) -> pd.Series:
    """The initializer's name, with the gain where it is not 1."""
    gain = rows["gain"].map(lambda g: "" if g == 1 else f" × {g:.4g}")
    return rows["init"].astype(str) + gain
