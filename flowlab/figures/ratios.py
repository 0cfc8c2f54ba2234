"""One number for each run: by how much the gradient's norm changes over its body."""

from collections.abc import Sequence
from math import nan

import pandas as pd

from flowlab.analysis.verdicts import KEPT_WITHIN, Verdict, judge_all
from flowlab.errors import InputError, unknown
from flowlab.figures.words import number
from flowlab.schema import DELTA

SYMBOL = r"change of $\log_{10}\Vert\delta\Vert$"  # on axes
TIME_SYMBOL = r"change of $\log_{10}\Vert\partial L/\partial h_t\Vert$"  # of recurrent nets
WORDS = "Change of log10‖δ‖ over the body"  # in captions


def ratios(
    table: pd.DataFrame,
    prediction: pd.DataFrame | None,
    axes: Sequence[str],
    kept_within: float = KEPT_WITHIN,
) -> pd.DataFrame:
    """Each run's change going backward over its body, in decades; one row per run.

    Columns: ``axes`` (of the configuration), then those of ``changes``.
    Raises InputError for an empty table, a missing column and runs that agree in all of ``axes``.
    """
    for name in axes:
        if name not in table:
            raise unknown("column", name, table.columns)
    judged = changes(table, prediction, kept_within)
    rows = table.groupby("run", observed=True)[list(axes)].first()
    twice = rows[rows.duplicated(keep=False)]
    if len(twice):
        cell = ", ".join(f"{axis}={twice[axis].iat[0]}" for axis in axes)
        raise InputError(
            f"table must hold one run for each {' and '.join(axes)}; got {len(twice)} like {cell}"
        )
    return rows.join(judged).reset_index()


def changes(
    table: pd.DataFrame,
    prediction: pd.DataFrame | None = None,
    kept_within: float = KEPT_WITHIN,
) -> pd.DataFrame:
    """What the verdict says of each run, one row per run, indexed by it.

    Columns: ``seeds``, ``along`` (layer or step), ``crossed`` (layers or steps between the two
    ends), ``last`` (the body's last one), ``mean``, ``low``, ``high``, ``excluded``, ``trend``,
    ``agreement`` and ``difference`` (measured minus predicted), and ``predicted`` with
    ``predicted_sd``, the sd of one seed, NaN where theory does not cover the whole body.
    Raises InputError for an empty table and a missing column.
    """
    for name in ("run", "seed", "layer", DELTA):
        if name not in table:
            raise unknown("column", name, table.columns)
    if table.empty:
        raise InputError("table must hold at least one row; got none")
    verdicts = judge_all(table, prediction, kept_within)
    judged = pd.DataFrame.from_dict({run: _row(v) for run, v in verdicts.items()}, "index")
    judged.insert(0, "seeds", table.groupby("run", observed=True)["seed"].nunique())
    return judged


def _row(verdict: Verdict) -> dict:
    change, difference = verdict.change, verdict.difference
    return {
        **{"along": verdict.along, "crossed": verdict.crossed, "last": verdict.last},
        **{name: getattr(change, name) for name in ("mean", "low", "high", "excluded")},
        **{"trend": verdict.trend, "agreement": verdict.agreement},
        "difference": nan if difference is None else difference.mean,
        "predicted": verdict.predicted if verdict.whole else nan,
        "predicted_sd": verdict.predicted_sd if verdict.whole else nan,
    }


def init_labels(rows: pd.DataFrame) -> pd.Series:
    """The initializer's name, with the gain where it is not 1."""
    gain = rows["gain"].map(lambda g: "" if g == 1 else f" × {number(g)}")
    return rows["init"].astype(str) + gain
