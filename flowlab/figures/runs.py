"""Which runs a table holds, and the words that distinguish them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from flowlab import schema
from flowlab.analysis.comparison import value_words
from flowlab.analysis.statistics import at_start, by_block
from flowlab.analysis.verdicts import view
from flowlab.errors import InputError, unknown
from flowlab.figures.head import fixed

MOST = 8  # more curves than this look alike


@dataclass(frozen=True)
class NamedRun:
    """A run, named by what sets it apart; the label adds the number of seeds where that differs."""

    id: object
    name: str
    label: str
    seeds: int


def whole_layers(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table or a prediction of whole layers, not of single time steps."""
    return frame[frame["time"].isna()] if "time" in frame else frame


def single_steps(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of single time steps in each run's last recurrent layer; none without ``time``."""
    if "time" not in frame:
        return frame.iloc[:0].assign(time=pd.array([], dtype="Int64"))
    steps = frame[frame["time"].notna()]
    return steps[steps["layer"] == steps.groupby("run", observed=True)["layer"].transform("max")]


def describe(table: pd.DataFrame, always: Sequence[str] = ()) -> tuple[list[NamedRun], str]:
    """The runs of ``table`` (tidy: run, seed, axes, ...) and the settings that they share.

    Axes are all columns but those of the schema that say where a row stands and what was measured:
    a user's own are among them. Names hold the axes in ``always`` even where runs agree in them,
    and the seeds where nothing else differs. Runs are sorted by the axes in which they differ,
    so that the order of rows does not matter. Runs that agree in everything are named by their id.
    Raises InputError for an empty table, for one without ``run`` or ``seed``, and for more than 8
    runs.
    """
    for name in ("run", "seed"):
        if name not in table:
            raise unknown("column", name, table.columns)
    ids = table["run"].unique()
    if len(ids) == 0:
        raise InputError("table must hold at least one row; got none")
    if len(ids) > MOST:
        raise InputError(
            f"table must hold at most {MOST} runs in one figure; got {len(ids)}: "
            "filter it first, as in table.query('depth == 50')"
        )
    groups = table.groupby("run", observed=True)
    axes = [column for column in table if is_axis(column)]
    varying = groups[axes].nunique().gt(1).any() if axes else {}
    axes = [axis for axis in axes if not varying[axis]]
    values = groups[axes].first() if axes else pd.DataFrame(index=groups.size().index)
    seeds = groups["seed"].nunique()

    differing = [a for a in axes if a in always or values[a].nunique(dropna=False) > 1]
    if not differing:
        values = values.assign(seed=groups["seed"].min(), seeds=seeds)
        differing = [name for name in ("seed", "seeds") if values[name].nunique() > 1]
    values = values.sort_values(differing) if differing else values
    labels = [
        # Of one run all in which it differs may be null.
        _settings(values.loc[run], differing) or ", ".join(f"{axis}=null" for axis in differing)
        for run in values.index
    ]
    if seeds.nunique() == 1 and seeds.iloc[0] > 1:
        counts = dict.fromkeys(values.index, "")
    else:
        counts = {
            run: "one seed: no interval" if n == 1 else f"{n} seeds" for run, n in seeds.items()
        }

    runs = []
    for run, label in zip(values.index, labels, strict=True):
        name = (
            label if label and labels.count(label) == 1 else f"{label} run={str(run)[:8]}".strip()
        )
        text = f"{name} ({counts[run]})" if counts[run] else name
        runs.append(NamedRun(run, name, text, int(seeds[run])))
    return runs, fixed(table)


def _settings(values: pd.Series, axes: list[str]) -> str:
    present = [(axis, values[axis]) for axis in axes if pd.notna(values[axis])]
    return ", ".join(f"{a}={v:g}" if isinstance(v, float) else f"{a}={v}" for a, v in present)


def is_axis(column: object) -> bool:
    """Whether a column belongs to a run's configuration; ``seeds`` is its label's."""
    of_rows = column in schema.columns("row", "module", "measured", "status")
    return not of_rows and column not in ("run", "seeds", "step")


def flow(
    table: pd.DataFrame, prediction: pd.DataFrame | None = None
) -> tuple[pd.DataFrame, pd.DataFrame | None, str, str]:
    """What runs are judged by, ready for panels: rows, predicted rows, the column and the axis.

    The axis is ``layer``, or ``time`` where there are single steps. Trained runs are read at the
    first step of their training.
    """
    table = at_start(table)
    rows, column, along = view(table)
    if along == "layer":
        rows = whole_layers(rows)
        curves = None if prediction is None else by_block(whole_layers(prediction))
    else:
        rows = single_steps(table)
        curves = None if prediction is None else in_place_of_layers(single_steps(prediction))
    if curves is not None:
        curves = with_prediction(curves, column)
    return rows, curves, column, along


def with_prediction(curves: pd.DataFrame, column: str) -> pd.DataFrame:
    """Predicted rows with a column and its spread, NaN where there is none."""
    absent = [name for name in (column, f"{column}_sd") if name not in curves]
    return curves.assign(**dict.fromkeys(absent, np.nan))


def in_place_of_layers(steps: pd.DataFrame) -> pd.DataFrame:
    """Rows of single steps with the steps in the place of layers, for panels."""
    kept = steps.drop(columns="layer", errors="ignore").rename(columns={"time": "layer"})
    return kept.astype({"layer": float})


def named_by(
    setting: str, rows: pd.DataFrame, runs: list[NamedRun], sign: str = ""
) -> list[NamedRun]:
    """The runs labelled by their value of a setting alone, where that sets them apart."""
    if setting not in rows or rows.empty:
        return runs
    values = rows.groupby("run", observed=True)[setting].first()
    if values.isna().any() or values.nunique() < len(runs):
        return runs
    return [replace(run, label=f"{sign}{value_words(values[run.id])}") for run in runs]
