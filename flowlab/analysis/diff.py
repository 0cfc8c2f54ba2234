"""Two tables compared: the first place where they part, and by how much, over paired seeds.

*Effect.* In each place (see :mod:`flowlab.analysis.pairing`) and for each quantity the values of
shared seeds are subtracted, a − b in decades, and averaged. Networks of one seed share their draws,
so that pairing takes out what seeds differ by.

*Test.* Student's t of these differences against |effect| ≤ ``within``: the two-sided p value of
(|mean| − within)/se. ``within`` is a rounding's worth by default, lest a bias in the last bits be a
finding. Differences without spread, such as those of a factor, have p = 0 beyond ``within``.

*Correction.* The family is every place and quantity that is tested. ``parts`` follows Holm's
step-down ("A simple sequentially rejective multiple test procedure", 1979): under whatever
dependence, some place that does not differ is among those that part with a probability of at most
1 − level. Intervals are Bonferroni's, which all hold the truth at once with probability ``level``.
They are wider than the step-down needs: a place may part whose interval just reaches ``within``.

*Status.* Where a value is known in one table and not in the other, in any shared seed, the place
parts, whatever the test says: that is seen, not inferred.

*First.* Places stand in the order in which they are computed: step by step, first activations from
the input on, then gradients from the output back. The first one that parts is the first one *shown*
to part: a smaller difference before it may be there, and go unseen with these seeds.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import inf, log

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from flowlab import notebook, schema
from flowlab.analysis.comparison import differing, settings_words
from flowlab.analysis.pairing import FORWARD, NAMES, POSITION, Pair, pair, place_words
from flowlab.analysis.statistics import check_level, format_of
from flowlab.errors import InputError, unknown

VERDICTS = ("equal", "rounding", "parts", "undecided", "one seed")
# What is compared by default, in the order in which a place computes it.
BACKWARD = (schema.COTANGENT, schema.DELTA, *schema.GAIN_NORMS, *schema.NORMS[3:], "dX_log10_norm")
QUANTITIES = (schema.NORMS[0], *BACKWARD)
ROUNDINGS = 64  # how many of them two ways to compute a norm may differ by
_EPS = {"float64": 2.0**-52}  # of other types, and where none is named, that of float32
_LONGEST = 60  # letters of a label
_WORDS = {"activation_log10_norm": "activation", schema.DELTA: "δ", schema.COTANGENT: "∂L/∂h"}


@dataclass(frozen=True, eq=False)
class Difference:
    """What two tables differ in; it prints as its :attr:`sentence`.

    ``table`` has one row for each quantity and place, in the order of computation: ``quantity``,
    ``direction`` (forward or backward) and what names the place; ``effect`` (decades, a − b) with
    its simultaneous interval ``low``, ``high``, ``p`` and Holm's ``adjusted`` p over the ``n``
    seeds that have numbers in both, and whether it ``parts``; in how many seeds statuses are
    ``unlike``, whether any bit ``differs``, the ``largest`` |difference| of a seed, and the
    statuses, ``status_a`` and ``status_b``.
    ``verdict`` is one of VERDICTS; ``by`` is what rows were joined by, ``notes`` name what was left
    out. ``runs`` has the settings of each table's run, a row for each shared seed.
    """

    table: pd.DataFrame
    verdict: str
    seeds: tuple[int, ...]
    within: float
    level: float
    by: str
    notes: tuple[str, ...]
    runs: pd.DataFrame

    @property
    def first(self) -> pd.Series | None:
        """The row, earliest in computation, in which the tables part; None of none."""
        return self._first(self.table["parts"])

    @property
    def forward(self) -> pd.Series | None:
        """The first row that parts among what goes forward: nearest the input."""
        return self._first(self.table["parts"] & (self.table["direction"] == "forward"))

    @property
    def backward(self) -> pd.Series | None:
        """The first row that parts among what goes backward: nearest the output."""
        return self._first(self.table["parts"] & (self.table["direction"] == "backward"))

    def _first(self, chosen: pd.Series) -> pd.Series | None:
        return self.table[chosen].iloc[0] if chosen.any() else None

    @property
    def tested(self) -> int:
        """How many comparisons the correction counts."""
        return int(self.table["p"].notna().sum())

    @property
    def labels(self) -> tuple[str, str]:
        """The two runs by the settings in which they differ, else by their digests, or a and b."""
        rows = self.runs.groupby("side").first()
        own = [name for name in rows if name not in ("run", "experiment", "seed", "seeds")]
        axes = differing(rows[own]) or [name for name in ("experiment",) if name in rows]
        words = [settings_words(rows.loc[side], axes) for side in rows.index]
        if not all(words) or max(map(len, words)) > _LONGEST:
            words = [f"run {str(run)[:8]}" for run in rows["run"]]
        return (words[0], words[1]) if words[0] != words[1] else ("a", "b")

    @property
    def family(self) -> str:
        """What effects and intervals stand for: a minus b, level, correction."""
        text = " minus ".join(self.labels)
        if self.verdict in ("parts", "undecided") and self.tested:
            text += f"; {100 * self.level:g} % intervals, corrected for {self.tested:,} comparisons"
        return text

    def largest(self, most: int = 5) -> pd.DataFrame:
        """The rows that part, or else differ, most: by status first, then by size."""
        rows = self.table[self.table["differs"]]
        order = -rows[["unlike", "parts"]].astype(float)
        order = order.assign(size=-rows["effect"].abs().fillna(inf), place=rows.index)
        return rows.loc[order.sort_values([*order]).index[:most]]

    @property
    def sentence(self) -> str:
        """The verdict in plain words: the first places, sizes, and what was left out."""
        joined = [f"rows are joined by {self.by}"] * (self.by == POSITION)
        notes = [f" {note[:1].upper()}{note[1:]}." for note in (*joined, *self.notes)]
        return _SENTENCES[self.verdict](self) + "".join(notes)

    def __str__(self) -> str:
        return self.sentence

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return notebook.of_difference(self.sentence, rows_words(self.largest()))


def diff(
    table_a: pd.DataFrame,
    table_b: pd.DataFrame,
    columns: Sequence[str] | None = None,
    level: float = 0.95,
    within: float | None = None,
    on: str | Sequence[str] | None = None,
) -> Difference:
    """Compare two tables of one run each, a − b, by the rules of this module.

    ``columns`` are log10 norms, by default the activation and all gradients that either has.
    ``within`` (decades) is the size of a difference that is none, by default 64 roundings of
    float64 where both tables say that it is their ``dtype``, else of float32: 6e-15 or 3e-6. ``on``
    names the columns that identify a row beside seed and step, or is "position"; by default they
    are module, use, output and parameter, or layer, op and time, or position where these share no
    row. Tables of several steps are compared at those that both have.

    Raises InputError for a table without rows, of several runs or without a column, where they
    share no seed, step or place, for a column that is no log10 norm, a level outside (0, 1) and a
    ``within`` below 0.
    """
    check_level(level)
    if within is not None and not 0 <= within < inf:
        raise InputError(f"within must be a finite number of at least 0; got {within}")
    tables = {"a": table_a, "b": table_b}
    for name, table in tables.items():
        if not isinstance(table, pd.DataFrame):
            raise InputError(f"table_{name} must be a DataFrame; got a {type(table).__name__}")
    pairing = pair(table_a, table_b, _columns(columns, tables.values()), on)
    runs = _runs(tables, pairing.seeds)
    within = _rounding(runs) if within is None else float(within)
    compared = pd.concat([_compared(one, within) for one in pairing.pairs], ignore_index=True)
    table = _corrected(_ordered(compared), level)
    verdict = "undecided"
    if not table["differs"].any():
        verdict = "equal"
    elif table["parts"].any():
        verdict = "parts"
    elif not table["largest"].max() > within:
        verdict = "rounding"
    elif not table["p"].notna().any():
        verdict = "one seed"
    return Difference(table, verdict, pairing.seeds, within, level, pairing.by, pairing.notes, runs)


def holm(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Holm's adjusted p values of a family (m,), NaN where p is.

    They are below α exactly where the step-down at α rejects.
    """
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    adjusted = np.full(len(p), np.nan)
    left = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(left * p[order]), 1)
    return adjusted


# What is compared


def _columns(columns: Sequence[str] | None, tables: Collection[pd.DataFrame]) -> list[str]:
    if columns is None:
        held = {name for of in tables for name in QUANTITIES if name in of and of[name].count()}
        if not held:
            raise InputError(f"tables must hold one of {', '.join(QUANTITIES)}; got none")
        return [name for name in QUANTITIES if name in held]
    columns = [columns] if isinstance(columns, str) else list(dict.fromkeys(columns))
    if not columns:
        raise InputError("columns must name at least one norm; got none")
    norms = [name for name, own in schema.columns(*schema.PARTS).items() if own.unit == "log10"]
    known = [name for name in norms if all(name in of for of in tables)]
    for name in columns:
        if name not in known:
            raise unknown("columns", name, known)
    return columns


def _runs(tables: Mapping[str, pd.DataFrame], seeds: Sequence[int]) -> pd.DataFrame:
    """The settings of both runs, a user's own too, a row for each side and shared seed."""
    rows, known = [], schema.columns(*schema.PARTS)
    for side, table in tables.items():
        own = [n for n in table if n not in known and table[n].nunique(dropna=False) == 1]
        names = [*(name for name in schema.names("run", "setting") if name in table), *own]
        row = table[names].iloc[[0]].assign(side=side, **({} if "run" in names else {"run": side}))
        rows.append(row.loc[row.index.repeat(len(seeds))].assign(seed=list(seeds)))
    return pd.concat(rows, ignore_index=True)


def _rounding(runs: pd.DataFrame) -> float:
    """The decades that 64 roundings of the coarser type make of a norm."""
    types = runs["dtype"].astype(object).where(runs["dtype"].notna()) if "dtype" in runs else [None]
    return ROUNDINGS * max(_EPS.get(name, 2.0**-23) for name in types) / log(10)


# The comparisons


def _compared(one: Pair, within: float) -> pd.DataFrame:
    """A quantity in all its places: effect, standard error, p and what is known of statuses."""
    both = np.isfinite(one.a) & np.isfinite(one.b)
    n = both.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        difference = np.where(both, one.a - one.b, 0.0)
        effect = difference.sum(axis=0) / n
        squares = np.where(both, (difference - effect) ** 2, 0.0).sum(axis=0)
        se = np.sqrt(squares / (n - 1) / n)
        beyond = np.maximum(np.abs(effect) - within, 0)
        t = np.where(beyond > 0, beyond / se, 0.0)
    found = {"effect": effect, "se": se, "n": n}
    found["p"] = np.where(n > 1, 2 * stdtr(np.maximum(n - 1, 1), -t), np.nan)
    found["unlike"] = (one.kind_a != one.kind_b).sum(axis=0)
    found["differs"] = (found["unlike"] > 0) | (difference != 0).any(axis=0)
    found["largest"] = np.where(n > 0, np.abs(difference).max(axis=0), np.nan)
    found |= {"status_a": _statuses(one.kind_a), "status_b": _statuses(one.kind_b)}
    direction = "forward" if one.quantity in FORWARD else "backward"
    return one.places.assign(quantity=one.quantity, direction=direction, **found)


def _statuses(kinds: NDArray[np.object_]) -> list[str]:
    """Of each place the status of its seeds; of several each with the number of seeds."""
    alike = (kinds == kinds[0]).all(axis=0)
    found = list(kinds[0])
    for place in np.flatnonzero(~alike):
        names, counts = np.unique(kinds[:, place].astype(str), return_counts=True)
        counted = zip(counts, names, strict=True)
        found[place] = ", ".join(f"{count} {name}" for count, name in counted)
    return found


def _ordered(table: pd.DataFrame) -> pd.DataFrame:
    """Rows in the order of computation; of an operation its cotangent precedes its gradients."""
    backward = table["direction"] == "backward"
    sign = np.where(backward, -1, 1)
    step, time = (table[name].astype("Float64").fillna(0) for name in ("step", "time"))
    operation = table.groupby(["layer", table["op"].fillna("")])["place"].transform("min")
    ranks = {name: rank for rank, name in enumerate((*FORWARD, *BACKWARD))}
    order = {"step": step, "backward": backward, "layer": sign * table["layer"]}
    order |= {"operation": sign * operation, "time": sign * time}
    order["rank"] = table["quantity"].map(ranks).fillna(len(ranks))
    order = pd.DataFrame({**order, "place": sign * table["place"]})
    return table.loc[order.sort_values([*order]).index].reset_index(drop=True)


def _corrected(table: pd.DataFrame, level: float) -> pd.DataFrame:
    """The table with what the family makes of each comparison, its columns in their order."""
    p, n = table["p"].to_numpy(), table["n"].to_numpy()
    tested = max(int((~np.isnan(p)).sum()), 1)
    half = -stdtrit(np.maximum(n - 1, 1), (1 - level) / (2 * tested)) * table["se"]
    table["low"], table["high"] = table["effect"] - half, table["effect"] + half
    table["adjusted"] = holm(p)
    table["parts"] = (table["adjusted"] < 1 - level) | (table["unlike"] > 0)
    names = [name for name in NAMES if table[name].notna().any()]
    names += ["layer_b"] * bool((table["layer_b"] != table["layer"]).any())
    numbers = ["effect", "low", "high", "p", "adjusted", "parts", "n", "unlike", "differs"]
    chosen = ["quantity", "direction", *names, *numbers, "largest", "status_a", "status_b"]
    return table[chosen]


# Words


def quantity_words(column: str) -> str:
    """A quantity as it is read: activation, δ, dW."""
    return _WORDS.get(column, column.removesuffix("_log10_norm"))


def rows_words(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of a difference as they are read: quantity, place, effect, p, statuses."""
    of_rows = [row for _, row in rows.iterrows()]
    found = {
        "quantity": [quantity_words(row["quantity"]) for row in of_rows],
        "place": [place_words(row) for row in of_rows],
        "difference": [_effect(row) for row in of_rows],
        "p": ["–" if np.isnan(row["adjusted"]) else f"{row['adjusted']:.2g}" for row in of_rows],
        "parts": ["yes" if row["parts"] else "not shown" for row in of_rows],
    }
    if rows["unlike"].any():
        statuses = zip(rows["status_a"], rows["status_b"], strict=True)
        found["status"] = [a if a == b else f"{a} against {b}" for a, b in statuses]
    return pd.DataFrame(found)


def at_words(row: pd.Series) -> str:
    """A row in words: "dW of layer 3 (linear)"."""
    quantity = quantity_words(row["quantity"])
    return f"{'the ' * (quantity == 'activation')}{quantity} of {place_words(row)}"


def _effect(row: pd.Series) -> str:
    """An effect in decades with its interval, if there is one."""
    if not row["n"]:
        return "–"
    # An interval without a width, as of a factor, warrants no more than four digits.
    spec = format_of(
        row["effect"], max((row["high"] - row["low"]) / 20, abs(row["effect"]) / 1e3), 2
    )
    text = f"{row['effect']:{spec}}"
    if np.isfinite(row["low"]):
        text += f" [{row['low']:{spec}}, {row['high']:{spec}}]"
    return text.replace("-", "−")


def _size(row: pd.Series) -> str:
    """How a place parts: by so many decades, or by its statuses."""
    if row["unlike"]:
        return f"where the status is {row['status_a']} against {row['status_b']}"
    text = f"by {_effect(row)} decades"
    # The test may see what the wider interval does not.
    if row["low"] <= 0 <= row["high"]:
        text += f", yet p = {row['adjusted']:.2g} by Holm's step-down"
    return text


def _tiny(value: float) -> str:
    return f"{value:.1e}".replace("-", "−")


def _counted(found: Difference) -> str:
    """How much was compared: "50 comparisons over 16 seeds"."""
    count, seeds = len(found.table), len(found.seeds)
    return f"{count:,} comparison{'s' * (count != 1)} over {seeds} seed{'s' * (seeds != 1)}"


def _before(found: Difference) -> str:
    """Up to where values differ by no more than rounding, if they do so from the start."""
    table = found.table
    beyond = (table["largest"] > found.within) | (table["unlike"] > 0)
    before = table.iloc[: int(beyond.to_numpy().argmax())]
    if before.empty:
        return ""
    how = "to rounding" if before["differs"].any() else "in every bit"
    return f" Up to {at_words(before.iloc[-1])} they are equal {how}."


def _parts_words(found: Difference) -> str:
    table, first, backward = found.table, found.first, found.backward
    text = f"The tables part first at {at_words(first)}, {_size(first)}"
    if first["direction"] == "backward" and (table["direction"] == "forward").any():
        text += "; no activation is shown to part"
    elif backward is not None and first["direction"] == "forward":
        text += f"; going backward, first at {at_words(backward)}, {_size(backward)}"
    text += f". Of {_counted(found)}, {int(table['parts'].sum()):,} part"
    sized = table[table["parts"] & (table["unlike"] == 0)]
    if len(sized) > 1:
        most = sized.loc[sized["effect"].abs().idxmax()]
        text += f", {at_words(most)} most, {_size(most)}"
    return f"{text} ({found.family}).{_before(found)}"


def _undecided_words(found: Difference) -> str:
    table = found.table
    most = table.loc[table["effect"].abs().idxmax()]
    bound = float(np.maximum(-table["low"], table["high"]).max())
    return (
        f"The tables are not shown to part: of {_counted(found)}, none does. The largest effect is "
        f"{_effect(most)} decades, {at_words(most)}; none is beyond ±{bound:.2g} decades "
        f"({found.family}).{_before(found)}"
    )


def _one_seed_words(found: Difference) -> str:
    rows = [row for _, row in found.largest(3).iterrows()]
    sizes = "; ".join(f"{at_words(row)}, {_effect(row)} decades" for row in rows)
    return (
        "The tables differ; one seed gives no interval and no verdict. The largest of "
        f"{_counted(found)}: {sizes} ({found.family}).{_before(found)}"
    )


def _rounding_words(found: Difference) -> str:
    most = found.table.loc[found.table["largest"].idxmax()]
    return (
        f"The tables are equal to rounding: {_counted(found)} differ by at most "
        f"{_tiny(most['largest'])} decades, {at_words(most)}; up to {_tiny(found.within)} counts "
        f"as rounding ({found.family})."
    )


def _equal_words(found: Difference) -> str:
    labels = found.labels
    named = "" if labels == ("a", "b") else f" ({' and '.join(labels)})"
    return f"The tables are equal in every bit: {_counted(found)}{named}."


_SENTENCES = {
    "equal": _equal_words,
    "rounding": _rounding_words,
    "parts": _parts_words,
    "undecided": _undecided_words,
    "one seed": _one_seed_words,
}
