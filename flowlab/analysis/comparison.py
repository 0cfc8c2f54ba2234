"""Runs beside one another: what sets them apart, how far each one's gradient changes, best first.

Rows are those of verdicts (:mod:`flowlab.analysis.verdicts`); where runs differ in one setting, or
in several, each has a column. What is asked decides the order.
"""

from collections.abc import Callable
from math import nan

import numpy as np
import pandas as pd

from flowlab import schema
from flowlab.analysis.training import ends
from flowlab.analysis.verdicts import KEPT_WITHIN, READ, Verdict, judge_all, tally
from flowlab.errors import InputError, unknown


def _trained(rows: pd.DataFrame) -> pd.Series:
    """The highest accuracy first, of a regression the least held-out loss; diverged runs last."""
    if "accuracy" not in rows:
        return pd.Series(nan, rows.index)
    return (-rows["accuracy"]).fillna(rows["held_out_loss"])


def _best(rows: pd.DataFrame) -> pd.Series:
    """What was trained by how it ends, what was measured alone by what it keeps."""
    return ORDERS["trained" if "accuracy" in rows else "kept"](rows)


# What runs can be sorted by, each with the key that puts the first of them first.
ORDERS: dict[str, Callable[[pd.DataFrame], pd.Series]] = {
    "best": _best,
    "trained": _trained,
    # As far as the interval reaches: what is shown to be kept comes before what may be.
    "kept": lambda rows: rows[["decades", "low", "high"]].abs().max(axis=1),
    "vanishing": lambda rows: rows["decades"],
    "exploding": lambda rows: -rows["decades"],
    "differing": lambda rows: -rows["difference"].abs(),
}
# Settings that are named whatever their value, in this order; others where it is not the default.
LEADING = (
    *("network", "init", "activation", "depth", "width", "batch_size", "data", "upstream"),
    "seeds",
)
MEASURES = (
    *("trend", "decades", "low", "high", "over", "rate", "theory", "difference", "agreement"),
    *("seeds", "run"),
)
# Of trained runs alone, before these: see :func:`flowlab.analysis.training.ends`.
ENDS = (
    *("accuracy", "accuracy_low", "accuracy_high", "held_out_loss", "training_loss"),
    "diverged",
)


def compare(
    table: pd.DataFrame,
    prediction: pd.DataFrame | None = None,
    kept_within: float = KEPT_WITHIN,
    by: str = "best",
    curve: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """One row for each run of a tidy table, the one that best answers the question first.

    First the settings in which runs differ; then ``trend``; ``decades``, by how much log10 of the
    gradient's norm changes going backward over the body, with its 95 % interval ``low``, ``high``
    over ``seeds``; ``over``, what was crossed; ``rate`` in words; ``theory``, the predicted change
    where theory covers the whole body; ``difference``, measured minus predicted over what theory
    covers, and the ``agreement`` there; ``run``. Numbers that are not known are NaN. Runs with a
    ``curve`` of training also have how they end, as :func:`flowlab.analysis.training.ends` says.
    ``by`` is "trained" (the best of these first), "kept" (the least change first), "vanishing",
    "exploding", "differing" (from theory most) or a setting in which runs differ; "best" is
    "trained" where there are curves, else "kept". Runs that cannot be judged come last.

    Raises InputError as ``judge`` does, for an unknown order and for a table without runs.
    """
    for name in ("run", "seed", "layer"):
        if name not in table:
            raise unknown("column", name, table.columns)
    if table.empty:
        raise InputError("table must hold at least one row; got none")
    runs = table.groupby("run", observed=True)
    settings = [name for name in schema.names("setting") if name in table]
    rows = runs[[name for name in settings if name != "seeds"]].first()
    rows = rows[differing(rows)]
    verdicts = judge_all(table[[name for name in READ if name in table]], prediction, kept_within)
    judged = pd.DataFrame.from_dict({run: row(v) for run, v in verdicts.items()}, "index")
    rows = rows.join(judged)
    rows["seeds"] = runs["seed"].nunique()
    if curve is not None and len(curve):
        own = {run: ends(of) for run, of in curve.groupby("run", observed=True)}
        rows = rows.join(pd.DataFrame.from_dict(own, "index"))
    return ordered(rows.rename_axis("run").reset_index(), by)


def differing(rows: pd.DataFrame) -> list[str]:
    """The columns in which rows differ.

    A setting with one value that is null elsewhere, since it applies to a part of the runs alone,
    is among them only where nothing else sets these apart.
    """
    found = [name for name in rows if rows[name].nunique() > 1]
    for name in rows:
        if name not in found and rows[name].nunique(dropna=False) > 1:
            apart = rows[found].assign(null=rows[name].isna()).drop_duplicates()
            if apart.duplicated(found).any() if found else True:
                found.append(name)
    return [name for name in rows if name in found]


def row(verdict: Verdict) -> dict:
    """What a comparison says of one verdict."""
    change, difference = verdict.change, verdict.difference
    return {
        "trend": verdict.trend,
        **{"decades": change.mean, "low": change.low, "high": change.high},
        "over": f"{verdict.crossed} {verdict.along}{'s' * (verdict.crossed != 1)}"
        if change.n
        else "",
        "rate": verdict.pace_words(),
        "theory": verdict.predicted if verdict.whole else nan,
        "difference": nan if difference is None else difference.mean,
        "agreement": verdict.agreement,
    }


def ordered(rows: pd.DataFrame, by: str = "best") -> pd.DataFrame:
    """Rows of :func:`row` in the order ``by``, columns in that of :func:`compare`."""
    axes = axes_of(rows)
    if by in ORDERS:
        key = ORDERS[by](rows)
    elif by in axes:
        key = rows[by]
    else:
        raise unknown("by", by, [*ORDERS, *axes])
    # Equals stand in the order of their settings, so that that of the rows does not matter.
    ranks = pd.DataFrame({"key": key.rank(method="dense", na_option="bottom")})
    for name in axes:
        ranks[name] = rows[name].rank(method="dense", na_option="top")
    index = ranks.assign(run=rows["run"].astype(str)).sort_values([*ranks, "run"]).index
    ends_ = [name for name in ENDS if name in rows]
    return rows.loc[index, [*axes, *ends_, *MEASURES]].reset_index(drop=True)


def axes_of(comparison: pd.DataFrame) -> list[str]:
    """The settings in which the runs of a comparison differ."""
    return [name for name in comparison if name not in (*ENDS, *MEASURES)]


def named(row: pd.Series, axes: list[str]) -> str:
    """A run of a comparison by what sets it apart: "init=he, depth=50"; its digest if nothing."""
    return settings_words(row, axes) or f"run {str(row['run'])[:8]}"


def settings_words(values: pd.Series, axes: list[str]) -> str:
    """Settings as they are typed, nulls left out."""
    present = [(axis, values[axis]) for axis in axes if pd.notna(values[axis])]
    return ", ".join(f"{axis}={value_words(value)}" for axis, value in present)


def value_words(value: object) -> str:
    """A setting's value as it is typed, a number in at most 6 digits."""
    if isinstance(value, bool | np.bool_):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float | np.floating) else str(value)


def answer(comparison: pd.DataFrame, kept_within: float = KEPT_WITHIN) -> str:
    """The comparison in a sentence or two: how many runs keep the gradient, and the two ends."""
    if "accuracy" in comparison:
        return _ends_words(comparison)
    axes, known = axes_of(comparison), comparison.dropna(subset="decades")
    count = len(comparison)
    if count == 1:
        one = comparison.iloc[0]
        return f"{_sized(one)}: {one['trend']}." if len(known) else "The run cannot be judged."
    kept = int((comparison["trend"] == "kept").sum())
    limit = f"(within ±{kept_within:g} decade{'s' * (kept_within != 1)})"
    some = f"All {count} runs keep" if kept == count else f"{kept} of the {count} runs keep"
    if kept < 2:
        some = f"{'One' if kept else 'None'} of the {count} runs keeps"
    text = f"{some} the gradient {limit}"
    others = tally(comparison["trend"], ("vanishing", "exploding", "undecided"))
    words = {"vanishing": "in {} it vanishes", "exploding": "in {} it explodes"}
    words["undecided"] = "{} is undecided" if others.get("undecided") == 1 else "{} are undecided"
    text = ", ".join([text, *(words[trend].format(n) for trend, n in others.items())]) + "."
    if len(known) < 2:
        return text
    sizes = known["decades"].abs()
    least, most = known.loc[sizes.idxmin()], known.loc[sizes.idxmax()]
    return (
        f"{text} Least change: {named(least, axes)}, {_sized(least)}; "
        f"most: {named(most, axes)}, {_sized(most)}."
    )


def _ends_words(comparison: pd.DataFrame) -> str:
    """How the trained runs end: the best, the worst, and how many networks diverged."""
    axes, rows = axes_of(comparison), ordered(comparison, "trained")
    rows = rows[rows["training_loss"].notna()]
    lost, count = int(comparison["diverged"].sum()), int(comparison["seeds"].sum())
    parts = []
    if len(rows) == 1 == len(comparison):
        parts.append(_ended(rows.iloc[0]))
    elif len(rows):
        best, worst = rows.iloc[0], rows.iloc[-1]
        parts.append(f"Best trained: {named(best, axes)}, {_ended(best)}")
        if len(rows) > 1:
            parts.append(f"worst: {named(worst, axes)}, {_ended(worst)}")
    text = "; ".join(parts) + "." if parts else ""
    diverged = f"{lost} of {count} networks diverged." if lost else "No network diverged."
    text = f"{text} {diverged}".strip()
    return text[:1].upper() + text[1:]


def _ended(row) -> str:
    if np.isnan(row["accuracy"]):
        return f"held-out loss {row['held_out_loss']:.3g}"
    return f"held-out accuracy {accuracy_words(row)}"


def accuracy_words(row) -> str:
    """The accuracy of a trained run in per cent, with its interval; "not known" where it is not."""
    if np.isnan(row["accuracy"]):
        return "not known"
    low, high = 100 * max(row["accuracy_low"], 0.0), 100 * min(row["accuracy_high"], 1.0)
    interval = f" [{low:.1f}, {high:.1f}]" if np.isfinite(row["accuracy_low"]) else ""
    return f"{100 * row['accuracy']:.1f} %{interval}"


def _sized(row) -> str:
    interval = f" [{row['low']:.2f}, {row['high']:.2f}]" if np.isfinite(row["low"]) else ""
    return f"{row['decades']:z.2f}{interval} decades over {row['over']}".replace("-", "−")
