"""Slopes, changes and their intervals: tidy tables in, estimates over seeds out.

A *per-seed statistic* reduces each network of the ensemble to one number (a Series indexed by
seed); an interval then treats the seeds as independent draws. Slopes are of the log-norm against
depth, in decades (powers of ten) per layer travelled backward.

Log-norms, not norms, are averaged: the squared norm of a random net is nearly log-normal with
log-variance κL/N, so the mean of the norm itself is carried by rare seeds (Hanin & Nica 2018).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import floor, inf, isfinite, log10, nan, sqrt

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import chdtri, stdtrit

from flowlab.errors import InputError, unknown
from flowlab.schema import DELTA

NO_FINITE_SEED = "no seed has finite norms throughout"

Statistic = Callable[[pd.DataFrame, str], pd.Series]


# Intervals


@dataclass(frozen=True)
class Interval:
    """An estimate over seeds with its confidence interval.

    ``mean`` is the estimate, ``se`` its standard error, ``n`` the number of seeds it rests on and
    ``excluded`` the number of seeds left out; ``note`` says why, or why there is no estimate.
    From one seed ``se``, ``low`` and ``high`` are NaN; from none ``mean`` is NaN too.
    """

    mean: float
    low: float
    high: float
    se: float
    n: int
    level: float = 0.95
    excluded: int = 0
    note: str = ""

    @property
    def known(self) -> bool:
        """Whether the seeds themselves give an interval."""
        return isfinite(self.low) and isfinite(self.high)

    def __format__(self, spec: str) -> str:
        """``mean [low, high]``; without a format, as many digits as the interval warrants."""
        if self.n == 0:
            return f"no estimate ({self.note or 'no seed'})"
        spec = spec or format_of(self.mean, (self.high - self.low) / 2)
        if not self.known:
            return f"{self.mean:{spec}} (one seed: no interval)"
        return f"{self.mean:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"

    def __str__(self) -> str:
        return format(self)


def mean_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Student's t interval of the mean of ``values`` (n,), one per seed.

    Values that are not finite are left out and counted in ``excluded``.
    Raises InputError unless 0 < level < 1.
    """
    kept, excluded = _finite(values, level)
    n = len(kept)
    mean = float(kept.mean()) if n else nan
    se = float(kept.std(ddof=1)) / sqrt(n) if n > 1 else nan
    half = se * _student(level, n)
    note = "" if n else NO_FINITE_SEED
    return Interval(mean, mean - half, mean + half, se, n, level, excluded, note)


def variance_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """The unbiased variance of ``values`` (n,), one per seed, with its chi-square interval.

    (n − 1)s²/σ² is χ² with n − 1 degrees of freedom when the values are normal, which log-norms of
    deep nets nearly are: they are sums of one independent term per layer. ``se`` is s²√(2/(n − 1)).
    Raises InputError unless 0 < level < 1.
    """
    kept, excluded = _finite(values, level)
    n = len(kept)
    if n < 2:
        note = "a variance needs two seeds"
        return Interval(nan, nan, nan, nan, 0, level, excluded + n, note)
    variance = float(kept.var(ddof=1))
    tail = (1 - level) / 2
    low, high = ((n - 1) * variance / chdtri(n - 1, p) for p in (tail, 1 - tail))
    se = variance * sqrt(2 / (n - 1))
    return Interval(variance, float(low), float(high), se, n, level, excluded)


# Per-seed statistics: a table to a Series indexed by (*by, seed), NaN where undefined


def seed_slopes(
    table: pd.DataFrame,
    column: str = DELTA,
    by: str | Iterable[str] = (),
    first: int | None = None,
    last: int | None = None,
    along: str = "layer",
) -> pd.Series:
    """Each seed's least-squares slope of ``column`` per step travelled backward along ``along``.

    Negative when the norm shrinks on its way to the input. Only steps ``first`` to ``last``
    (inclusive) are fitted. NaN for a seed with a zero, non-finite or absent value among them, and
    where there are fewer than two steps. Of several ops in a layer the last that has the quantity
    counts. Raises InputError on an unknown column, on first > last, and when the table holds
    several runs (steps, times, layers) that ``by`` does not keep apart.
    """
    by = _names(by)
    return _slopes(_rows(table, column, [*by, "seed"], along, first, last), by, along)


def seed_ratios(
    table: pd.DataFrame,
    column: str = DELTA,
    by: str | Iterable[str] = (),
    along: str = "layer",
) -> pd.Series:
    """Each seed's log10 of the norm in the first layer over that in the last: ‖δ_1‖/‖δ_L‖.

    NaN for a seed where either is zero, non-finite or absent. Raises as ``seed_slopes`` does.
    """
    by = _names(by)
    keys = [*by, "seed"]
    rows = _rows(table, column, keys, along)
    seeds = rows.groupby(keys, observed=True).size().index

    def end(which: str) -> pd.Series:
        at = rows[along] == _over_group(rows, by, along, which)
        values = rows[at].set_index(keys)["value"].reindex(seeds)
        return values.where(np.isfinite(values))

    return (end("min") - end("max")).rename("log10_ratio")


def by_seed(
    table: pd.DataFrame,
    column: str = DELTA,
    first: int | None = None,
    last: int | None = None,
    along: str = "layer",
) -> pd.DataFrame:
    """One run's ``column``, a row for each seed, a column for each place along ``along``, sorted.

    -inf for an exact zero, NaN where the norm is not known. Raises as ``seed_slopes`` does.
    """
    rows = _rows(table, column, ["seed"], along, first, last)
    seeds, row = np.unique(rows["seed"].to_numpy(), return_inverse=True)
    places, place = np.unique(rows[along].to_numpy(dtype=np.int64), return_inverse=True)
    values = np.full((len(seeds), len(places)), nan)
    values[row, place] = rows["value"].to_numpy()
    return pd.DataFrame(values, pd.Index(seeds, name="seed"), pd.Index(places, name=along))


def at_start(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table at initialization: of a trained run those of its first step.

    Tables without ``step``, and rows in which it is null, were never trained.
    """
    if "step" not in table or table["step"].isna().all():
        return table
    step, runs = table["step"], table["run"] if "run" in table else np.zeros(len(table))
    return table[step.isna() | (step == step.groupby(runs).transform("min"))]


def by_block(frame: pd.DataFrame) -> pd.DataFrame:
    """Of a user's model that repeats a block the rows within blocks, these in the place of layers.

    Runs without blocks stay as they are; ``frame`` may be a prediction.
    """
    if "block" not in frame or frame["block"].isna().all():
        return frame
    block, runs = frame["block"], frame["run"] if "run" in frame else np.zeros(len(frame))
    shown = block.notna() | ~block.notna().groupby(runs).transform("any")
    layer = block.fillna(frame["layer"].astype("Int64")).astype("int64")
    return frame.assign(layer=layer)[shown]


# Over seeds


def over_seeds(per_seed: pd.Series, level: float = 0.95) -> pd.DataFrame:
    """Summarise a per-seed statistic indexed by (*by, seed): one row per group of ``by``.

    Columns ``by``..., ``mean``, ``sd``, ``se``, ``low``, ``high`` (Student's t), ``n`` (seeds used)
    and ``excluded``. Raises InputError if the index has no level beside the seed.
    """
    by = [name for name in per_seed.index.names if name != "seed"]
    if not by:
        raise InputError("over_seeds needs an index (*by, seed); got seed alone: use mean_interval")
    rows = per_seed.rename("value").reset_index()
    summary = _summary(rows, by, level)
    return summary.assign(excluded=summary.pop("n_zero") + summary.pop("n_nonfinite"))


def profile(
    table: pd.DataFrame,
    column: str = DELTA,
    by: str | Iterable[str] = ("run",),
    level: float = 0.95,
    along: str = "layer",
) -> pd.DataFrame:
    """The log-norm's mean over seeds in each layer, with Student's t interval.

    One row per (*by, layer), sorted: ``mean``, ``sd``, ``se``, ``low``, ``high`` over the ``n``
    finite seeds; ``n_zero`` and ``n_nonfinite`` count the others. Layers in which the quantity does
    not exist are absent. Raises as ``seed_slopes`` does.
    """
    by = _names(by)
    return _summary(_rows(table, column, [*by, "seed"], along), [*by, along], level)


def backward_slope(
    table: pd.DataFrame,
    column: str = DELTA,
    first: int | None = None,
    last: int | None = None,
    level: float = 0.95,
    along: str = "layer",
) -> Interval:
    """The mean over seeds of one run's ``seed_slopes``, in decades per layer going backward.

    For many runs at once: ``over_seeds(seed_slopes(table, by="run"))``.
    """
    rows = _rows(table, column, ["seed"], along, first, last)
    slope = mean_interval(_slopes(rows, [], along), level)
    if rows.empty:
        return _with_note(slope, f"the table has no {column} there")
    if rows[along].nunique() < 2:
        return _with_note(slope, f"one {along} has no slope")
    return slope


def log_variance(
    table: pd.DataFrame,
    column: str = DELTA,
    statistic: Statistic = seed_ratios,
    level: float = 0.95,
) -> Interval:
    """The variance over seeds of one run's per-seed ``statistic``, in decades squared.

    Theory's κL/N is the variance of the natural log of the *squared* norm: divide it by (2 ln 10)².
    """
    return variance_interval(statistic(table, column), level)


def contrast(
    table_a: pd.DataFrame,
    table_b: pd.DataFrame,
    column: str = DELTA,
    statistic: Statistic = seed_slopes,
    level: float = 0.95,
) -> Interval:
    """The mean over shared seeds of ``statistic(a) − statistic(b)``, one run in each table.

    Networks of one seed share their draws across conditions, so the paired difference is narrower
    than two separate intervals. Seeds in one table only are counted and named in ``note``.
    Raises InputError if the tables share no seed.
    """
    a, b = statistic(table_a, column), statistic(table_b, column)
    shared = a.index.intersection(b.index)
    if shared.empty:
        received = f"{_some(a.index)} against {_some(b.index)}"
        raise InputError(f"contrast must share at least one seed; got {received}")
    difference = mean_interval(a[shared] - b[shared], level)
    alone = a.index.symmetric_difference(b.index)
    if alone.empty:
        return difference
    return _with_note(difference, f"unpaired seeds {_some(alone)}", len(alone))


# The same functional for predictions


def slope_of(values: ArrayLike, layers: ArrayLike) -> float:
    """The least-squares slope per layer going backward of one curve ``values`` (L,) at ``layers``.

    NaN with fewer than two layers or a value that is not finite. Raises InputError unless both have
    the same length.
    """
    values, layers = _curve("values", values, layers)
    if not np.isfinite(values).all():
        return nan
    return float(_slope_weights(layers) @ (values - values.mean())) if len(values) > 1 else nan


# Internals


def _rows(
    table: pd.DataFrame,
    column: str,
    keys: list[str],
    along: str,
    first: int | None = None,
    last: int | None = None,
) -> pd.DataFrame:
    """``keys``, ``along`` and ``value``: one row per place where the quantity exists."""
    for name in (column, along, *keys):
        if name not in table:
            raise unknown("column", name, table.columns)
    if first is not None and last is not None and first > last:
        raise InputError(f"first must be at most last; got first={first}, last={last}")
    shown = np.ones(len(table), bool)
    if "time" in table:  # rows of single time steps stand beside those of whole layers
        single = table["time"].notna().to_numpy()
        if along == "time" or "time" in keys:
            shown = single
        elif not single.all():
            shown = ~single
    for axis in ("run", "step", "time", "layer"):
        if axis in table and axis != along and axis not in keys:
            count = _distinct(table[axis].to_numpy()[shown])
            if count > 1:
                raise InputError(
                    f"by must name {axis} when the table holds more than one; "
                    f"got {count} values of {axis}"
                )
    value = table[column].to_numpy(dtype=np.float64, na_value=np.nan)
    place = table[along].to_numpy(dtype=np.float64, na_value=np.nan)
    shown = shown & (place >= (-inf if first is None else first))
    shown &= place <= (inf if last is None else last)
    # A null is a quantity that does not exist, unless the status says that it is not known: of a
    # lost row, if its operation has the quantity. Without a status every NaN is unknown.
    known = ~np.isnan(value)
    if "status" in table and not known.all():
        status = table["status"].to_numpy()
        exists = known | (status == "nonfinite")
        lost = (status == "lost") | (status == "underflow")
        if (lost & ~known).any():
            having = set(table["op"].to_numpy()[known & shown])
            exists |= lost & (table["op"].isin(having).to_numpy() if having else True)
        if "module" in table and "parameter" in table:
            exists &= known | _may_have(table, known & shown)
        shown &= exists
    rows = table.loc[shown, [*keys, along]].assign(value=value[shown])
    return rows.drop_duplicates([*keys, along], keep="last")


def _may_have(table: pd.DataFrame, known: np.ndarray) -> np.ndarray:
    """Which rows may have the quantity of the ``known`` ones: of modules those of the same
    parameters, or of none where it is the modules' own.
    """
    of_module, parameter = table["module"].notna().to_numpy(), table["parameter"].fillna("")
    having = set(parameter.to_numpy()[known & of_module])
    return ~of_module | (parameter.isin(having).to_numpy() if having else True)


def _distinct(values: np.ndarray) -> int:
    """How many different values there are, nulls left out."""
    if len(values) == 0 or (values == values[0]).all():
        return min(len(values), 1)
    return pd.Series(values).nunique()


def _slopes(rows: pd.DataFrame, by: list[str], along: str) -> pd.Series:
    groups = rows.groupby([*by, "seed"], observed=True)
    index = groups.size().index
    code = groups.ngroup().to_numpy()

    def total(weights: np.ndarray) -> np.ndarray:
        return np.bincount(code, weights, minlength=len(index))

    value = rows["value"].to_numpy()
    finite = np.isfinite(value)
    step = rows[along].to_numpy(dtype=np.float64)
    count = total(np.ones_like(step))
    step = step - (total(step) / count)[code]
    expected = np.empty(len(index))
    expected[code] = _over_group(rows, by, along, "nunique")
    defined = (total(finite.astype(float)) == expected) & (expected > 1)
    spread = np.where(defined, total(step**2), 1)
    slope = -total(step * np.where(finite, value, 0)) / spread
    return pd.Series(np.where(defined, slope, nan), index, name="slope")


def _over_group(rows: pd.DataFrame, by: list[str], column: str, how: str):
    """An aggregate over all seeds of a row's group, for each row (or one for all)."""
    if not by:
        return rows[column].agg(how)
    return rows.groupby(by, observed=True)[column].transform(how)


def _summary(rows: pd.DataFrame, by: list[str], level: float) -> pd.DataFrame:
    check_level(level)
    value = rows["value"]
    finite = np.isfinite(value)
    rows = rows.assign(
        value=value.where(finite), n_zero=value == -inf, n_nonfinite=~finite & (value != -inf)
    )
    groups = rows.groupby(by, observed=True)
    summary = groups["value"].agg(mean="mean", sd="std", n="count")
    summary["se"] = summary["sd"] / np.sqrt(summary["n"])
    half = summary["se"] * _student(level, summary["n"])
    summary["low"], summary["high"] = summary["mean"] - half, summary["mean"] + half
    summary = summary.join(groups[["n_zero", "n_nonfinite"]].sum())
    order = ["mean", "sd", "se", "low", "high", "n", "n_zero", "n_nonfinite"]
    return summary[order].reset_index()


def _student(level: float, n):
    """The two-sided Student quantile for ``n`` seeds; NaN below two."""
    degrees = np.where(np.asarray(n) > 1, np.asarray(n) - 1.0, nan)
    quantile = stdtrit(degrees, (1 + level) / 2)
    return quantile if quantile.ndim else float(quantile)


def _slope_weights(layers: np.ndarray) -> np.ndarray:
    """w with Σ w_l y_l the least-squares slope of y going backward."""
    centred = layers - layers.mean()
    return -centred / (centred @ centred)


def _curve(name: str, values: ArrayLike, layers: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    values, layers = np.asarray(values, np.float64), np.asarray(layers, np.float64)
    if values.ndim != 1 or values.shape != layers.shape:
        received = f"shapes {values.shape} and {layers.shape}"
        raise InputError(f"{name} must hold one number for each of layers; got {received}")
    if len(np.unique(layers)) < len(layers):
        raise InputError(f"layers must differ from one another; got {_some(layers)}")
    return values, layers


def _finite(values: ArrayLike, level: float) -> tuple[np.ndarray, int]:
    check_level(level)
    values = np.asarray(values, np.float64).ravel()
    kept = values[np.isfinite(values)]
    return kept, len(values) - len(kept)


def check_level(level: float) -> None:
    if not 0 < level < 1:
        raise InputError(f"level must lie strictly between 0 and 1; got {level}")


def _with_note(interval: Interval, note: str, excluded: int = 0) -> Interval:
    note = f"{interval.note}; {note}" if interval.note and excluded else note
    return replace(interval, note=note, excluded=interval.excluded + excluded)


def _names(by: str | Iterable[str]) -> list[str]:
    return [by] if isinstance(by, str) else list(by)


def _some(items: Iterable, most: int = 6) -> str:
    items = [f"{item:g}" if isinstance(item, float) else str(item) for item in items]
    return ", ".join(items[:most]) + (f", … ({len(items)} in all)" if len(items) > most else "")


def format_of(mean: float, half: float, least: int = 4) -> str:
    """A format with the first digit of the half-width (or four digits of the mean without one).

    At least ``least`` decimals.
    """
    scale = half if isfinite(half) and half > 0 else abs(mean) / 1000
    decimals = max(least, -floor(log10(scale))) if scale > 0 else least
    return f"z.{decimals}f" if decimals <= 8 else ".3e"
