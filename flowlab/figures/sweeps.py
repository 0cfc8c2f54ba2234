"""What a table of runs varies, and by how much each run's gradient changes."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd

from flowlab import schema
from flowlab.analysis.comparison import differing
from flowlab.analysis.statistics import at_start
from flowlab.analysis.verdicts import KEPT_WITHIN
from flowlab.errors import InputError, unknown
from flowlab.figures.ratios import changes
from flowlab.figures.runs import is_axis
from flowlab.figures.words import bare, said
from flowlab.settings import frame

SIZES = ("depth", "steps")  # along which a change grows


@dataclass(frozen=True)
class Conditions:
    """Runs by the settings in which they differ.

    ``every`` and ``prediction`` hold one run for each point, trained ones with all their steps;
    ``points`` one row for each run, indexed by it, with a column for each of ``axes``: a number, or
    a name to which the options that belong to it are joined, as "orthogonal × √2". ``curve`` holds
    the training of trained runs, None where there are none.
    """

    every: pd.DataFrame
    prediction: pd.DataFrame | None
    kept_within: float
    points: pd.DataFrame
    curve: pd.DataFrame | None = None

    @cached_property
    def table(self) -> pd.DataFrame:
        """The rows at initialization: of trained runs those of their first step."""
        return at_start(self.every)

    @property
    def axes(self) -> list[str]:
        return [*self.points]

    def with_axes(self, *names: str) -> "Conditions":
        """The same with these settings among the axes, even where all runs agree in them.

        Raises InputError for a setting that the table does not have.
        """
        points = self.points
        for name in names:
            if name not in points:
                if name not in self.table:
                    raise unknown("column", name, self.table.columns)
                value = self.table[name].iat[0]
                points = points.assign(**{name: None if pd.isna(value) else value})
        return self if points is self.points else replace(self, points=points.astype(object))

    @cached_property
    def rows(self) -> pd.DataFrame:
        """The points with the changes of their runs (``ratios``) and a ``label`` for each."""
        names = pd.Series(
            [
                ", ".join(said(axis, value) for axis, value in row.items()) or "the run"
                for _, row in self.points.iterrows()
            ],
            self.points.index,
            dtype=object,
            name="label",
        )
        judged = changes(self.table, self.prediction, self.kept_within)
        return self.points.join(names).join(judged).rename_axis("run").reset_index()

    def values(self, axis: str) -> list:
        """The values of an axis, sorted; nulls last."""
        return [*_ranks(self.points[axis])]

    def numeric(self, axis: str) -> bool:
        """Whether an axis is one of numbers."""
        return all(
            isinstance(v, int | float | np.number) and not isinstance(v, bool | np.bool_)
            for v in self.points[axis]
        )


def sweep(
    table: pd.DataFrame,
    prediction: pd.DataFrame | None = None,
    kept_within: float = KEPT_WITHIN,
    curve: pd.DataFrame | None = None,
) -> Conditions:
    """The sweep that a tidy table (one row per run, seed, layer) holds.

    Runs that agree in all settings, as those of other seeds do, are one run; those of users' models
    that have a seed in common are not, and are named by their digests. Trained runs are read at the
    first step of their training. Raises InputError for
    an empty table and a missing column.
    """
    for name in ("run", "seed", "layer"):
        if name not in table:
            raise unknown("column", name, table.columns)
    if table.empty:
        raise InputError("table must hold at least one row; got none")
    known = [name for name in schema.names("setting") if name in table]
    own = [name for name in table if is_axis(name) and name not in known]
    names = [name for name in [*known, *own] if name not in ("experiment", "seeds")]
    groups = at_start(table).groupby("run", observed=True)
    own = [name for name in own if groups[name].nunique().max() <= 1]
    rows = groups[[name for name in names if name in known or name in own]].first()
    rows = rows.astype(object).where(rows.notna(), None)
    rows = rows[differing(rows)].loc[groups["seed"].nunique().sort_values(ascending=False).index]
    if "module" in table:
        rows = _named_apart(rows, table)
    first = _alike(rows)
    heads = first.drop_duplicates()
    rows = rows.loc[heads.index]
    same = first.map(dict(zip(heads, heads.index, strict=True)))
    if len(rows) < len(first):
        table, prediction, curve = (
            None if of is None else of.assign(run=of["run"].map(same))
            for of in (table, prediction, curve)
        )
        keys = ("run", "step", "seed", "layer", "op", "time", *schema.columns("module"))
        table = table.drop_duplicates([key for key in keys if key in table])
        if prediction is not None:
            keys = [key for key in keys if key in prediction]
            prediction = prediction.dropna(subset="run").drop_duplicates(keys)
        if curve is not None:
            curve = curve.drop_duplicates(["run", "seed", "step"])
    points = _folded(rows)
    ranks = {axis: _ranks(points[axis]) for axis in points}
    index = sorted(
        points.index,
        key=lambda run: ([ranks[axis][points.at[run, axis]] for axis in points], str(run)),
    )
    return Conditions(table, prediction, kept_within, points.loc[index], curve)


def _alike(rows: pd.DataFrame) -> pd.Series:
    """Numbers of runs, the same for those that agree in all settings."""
    if not rows.shape[1]:
        return pd.Series(0, rows.index)
    return rows.astype(str).groupby([*rows], sort=False, dropna=False).ngroup()


def _named_apart(rows: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """The settings with the digest of runs of users' models that agree in them and in a seed.

    A model is more than its settings say; of the laboratory's networks they say all.
    """
    seeds = table.loc[table["module"].notna(), ["run", "seed"]].drop_duplicates()
    alike = seeds.assign(run=seeds["run"].map(_alike(rows)))
    twice = set(seeds.loc[alike.duplicated(keep=False), "run"])
    if not twice:
        return rows
    digests = pd.Series([str(run)[:8] for run in rows.index], rows.index, dtype=object)
    if "network" not in rows:
        return rows.assign(digest=digests)
    named = rows["network"] + " " + digests
    return rows.assign(network=rows["network"].where(~rows.index.isin(twice), named))


def _ranks(values: pd.Series) -> dict:
    """Each value's place among all: numbers in their order, then names, then null."""
    order = sorted(values.unique(), key=lambda v: (v is None, isinstance(v, str), v))
    return {value: place for place, value in enumerate(order)}


def _folded(rows: pd.DataFrame) -> pd.DataFrame:
    """The settings with the options that belong to another setting joined to its values."""
    keys = frame().set_index("column")["key"]
    rows = rows.copy()
    for option in [*rows]:
        group, _, rest = keys.get(option, "").partition(".")
        if not rest:
            continue
        for owner in dict.fromkeys([group, *rows]):
            if owner in rows and owner != option and _belongs(rows, option, owner, group):
                own = rows[option].astype(str).groupby(rows[owner]).nunique(dropna=False).max() > 1
                if option == "gain" or (own and rows[option].dropna().nunique() > 1):
                    parts = [_part(option, value) for value in rows[option]]
                    rows[owner] = [
                        bare(v) + part for v, part in zip(rows[owner], parts, strict=True)
                    ]
                rows = rows.drop(columns=option)
                break
    # What an architecture brings with it, such as its own norm or depth, is in its name.
    own = [a for a in rows if "network" in rows and a != "network" and _given(rows, a)]
    return rows.drop(columns=own)


def _belongs(rows: pd.DataFrame, option: str, owner: str, group: str) -> bool:
    """Whether an option varies with its owner rather than across its values."""
    pairs = rows[[owner, option]].drop_duplicates()
    crossed = pairs.groupby(owner)[option].nunique(dropna=False).min() > 1
    if crossed:
        return False
    absent = rows[option].isna()
    apart = absent.groupby(rows[owner]).nunique().eq(1).all() and absent.any()
    return owner == group or bool(apart and not absent.all())


def _given(rows: pd.DataFrame, axis: str) -> bool:
    """Whether the network determines an axis."""
    values = rows[axis].astype(str).groupby(rows["network"])
    return bool(values.nunique(dropna=False).max() == 1)


def _part(option: str, value: object) -> str:
    if value is None or (option == "gain" and value == 1):
        return ""
    if option == "gain":
        return f" × {bare(value)}"
    short = bare(value)
    return f" {short}" if isinstance(value, str) else f" {option}={short}"
