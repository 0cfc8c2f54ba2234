"""Two tables beside one another: which row of the one answers which of the other, seed by seed.

A *place* is what a row measures, whatever the seed: an operation of a layer, a module's call, a
parameter. Tables of modules are joined by OF_MODULES, the laboratory's by OF_LAYERS. Where no place
has a counterpart, as between frameworks that name things differently, they are joined by position:
the k-th place that has a quantity answers the k-th one of the other table.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from flowlab.errors import InputError, unknown

OF_MODULES = ("module", "use", "output", "parameter")
OF_LAYERS = ("layer", "op", "time")
POSITION = "position"
NAMES = ("step", *OF_LAYERS, *OF_MODULES)  # of a place, in tables that have them
# What the forward pass computes; everything else goes backward.
FORWARD = ("W_log10_norm", "activation_log10_norm")
# Statuses under which a value may be absent although its quantity exists.
UNKNOWN = ("lost", "nonfinite", "underflow", "unused")
MOST = 4  # names in a note


@dataclass(frozen=True, eq=False)
class Pair:
    """One quantity in the P places in which both tables have it, in the order of execution.

    ``places`` has a row for each: NAMES as the first table has them, its ``place`` there in the
    order of execution, and the other table's layer, ``layer_b``. ``a`` and ``b`` (S, P) are the
    values in the shared seeds, ``kind_a`` and ``kind_b`` (S, P) what these are: ok, zero, a status
    of UNKNOWN, or missing where a seed has no such number.
    """

    quantity: str
    places: pd.DataFrame
    a: NDArray[np.float64]
    b: NDArray[np.float64]
    kind_a: NDArray[np.object_]
    kind_b: NDArray[np.object_]


@dataclass(frozen=True, eq=False)
class Pairing:
    """What two tables share: their ``seeds``, a pair for each quantity, and ``by`` what rows were
    joined. ``notes`` name what has no counterpart and is left out, a line each.
    """

    seeds: tuple[int, ...]
    pairs: tuple[Pair, ...]
    by: str
    notes: tuple[str, ...]


def pair(
    table_a: pd.DataFrame,
    table_b: pd.DataFrame,
    columns: Sequence[str],
    on: str | Sequence[str] | None = None,
) -> Pairing:
    """Pair two tables of one run each in ``columns``, by seed, step and place.

    ``on`` names the columns that identify a place, or is "position". A table's only step answers
    the other's, whatever their numbers. Rows of single time steps are left out where a table has
    rows of whole layers. Raises InputError for tables of several runs, without a shared seed, step
    or place, and where no quantity can be joined.
    """
    a, b = _Side("table_a", table_a), _Side("table_b", table_b)
    shared = np.intersect1d(a.rows["seed"], b.rows["seed"])
    if not len(shared):
        received = " against ".join(_some(sorted(side.rows["seed"].unique())) for side in (a, b))
        raise InputError(f"tables must share at least one seed; got {received}")
    notes = _one_step(a, b)
    keys = _given(on, a, b)
    for side in (a, b):
        notes += side.keep(shared, keys or side.own_keys)
    same = keys or (a.own_keys if a.own_keys == b.own_keys and on is None else ())
    joined = _joined(a, b) if same else None
    if joined is None and keys:
        raise InputError(f"tables must share a place by {', '.join(keys)}; got none")
    if joined is None:
        by = POSITION
    else:
        by = ", ".join(name for name in same if a.rows[name].notna().any())
        notes += [
            f"{len(alone)} place{'s' * (len(alone) != 1)} of {side.name} alone: "
            f"{_named(side.places.iloc[alone])}"
            for side, one in ((a, joined[0]), (b, joined[1]))
            if len(alone := np.setdiff1d(np.arange(len(side.places)), one))
        ]
    found = [_paired(a, b, column, joined) for column in columns]
    pairs = tuple(pair for pair, _ in found if pair is not None)
    lacking = [note for _, more in found for note in more]
    if not pairs:
        raise InputError(
            f"tables must share a quantity, joined by {by}; got {'; '.join(lacking) or 'none'}"
        )
    return Pairing(tuple(map(int, shared)), pairs, by, (*notes, *lacking))


def place_words(place: pd.Series) -> str:
    """A place in words: "layer 3 (linear)", "blocks.0.fc weight (Linear, layer 4)"."""
    known = {name: place[name] for name in NAMES if name in place and pd.notna(place[name])}
    text, inside = f"layer {known['layer']}", known.get("op", "")
    if "module" in known:
        named = [str(known[name]) for name in ("output", "parameter") if name in known]
        called = f"call {known['use']}" if known.get("use", 1) > 1 else ""
        inside = ", ".join(filter(None, [inside, called, text]))
        text = " ".join([known["module"] or "the model", *named])
    text += f" ({inside})" if inside else ""
    text += f", time {known['time']}" if "time" in known else ""
    return text + (f", step {known['step']}" if "step" in known else "")


class _Side:
    """One of the tables: its rows and, after :meth:`keep`, its places and the place of each row."""

    def __init__(self, name: str, table: pd.DataFrame):
        self.name = name
        for column in ("seed", "layer"):
            if column not in table:
                raise unknown(f"column of {name}", column, table.columns)
        if table.empty:
            raise InputError(f"{name} must hold at least one row; got none")
        if "run" in table and table["run"].nunique() > 1:
            raise InputError(
                f"{name} must hold one run; got {table['run'].nunique()}: filter it first, as in "
                f"table[table['run'] == '{table['run'].iat[0]}']"
            )
        if "time" in table and not (single := table["time"].notna()).all():
            table = table[~single]
        absent = [name for name in ("status", *NAMES) if name not in table]
        self.rows = table.assign(**dict.fromkeys(absent, pd.NA))
        self.own_keys = OF_MODULES if self.rows["module"].notna().any() else OF_LAYERS

    @property
    def steps(self) -> list[int]:
        return sorted(map(int, self.rows["step"].dropna().unique()))

    def keep(self, seeds: NDArray[np.int64], keys: Sequence[str]) -> list[str]:
        """Keep the rows of ``seeds`` and find the place of each; a note on other seeds."""
        alone = np.setdiff1d(self.rows["seed"], seeds)
        self.rows = self.rows[self.rows["seed"].isin(seeds)]
        self.seed = np.searchsorted(seeds, self.rows["seed"])
        # Equal names within a seed differ in their order, so that no row is lost.
        named = _plain(self.rows[["step", *keys]])
        again = named.assign(seed=self.seed).groupby(["seed", *named], dropna=False).cumcount()
        named["again"] = again.astype(np.float64)
        code = named.groupby([*named], dropna=False, sort=False).ngroup().to_numpy()
        first = np.unique(code, return_index=True)[1]
        places = self.rows.iloc[first].reset_index(drop=True)
        order = _plain(places[["step", "layer", "time"]]).assign(came=first)
        order = order.sort_values([*order]).index.to_numpy()
        self.places = places.iloc[order].reset_index(drop=True)
        self.names = named.iloc[first[order]].reset_index(drop=True)
        self.place = np.argsort(order)[code]
        self._shape = len(seeds), len(first)
        return [f"seeds of {self.name} alone: {_some(alone)}"] if len(alone) else []

    def values(self, column: str) -> tuple[NDArray[np.float64], NDArray[np.object_]]:
        """A quantity (seeds, places), NaN where it is not known, and what each value is."""
        if column not in self.rows:
            return np.full(self._shape, np.nan), np.full(self._shape, "missing", dtype=object)
        value = np.full(self._shape, np.nan)
        kind = np.full(self._shape, "missing", dtype=object)
        at = self.seed, self.place
        value[at] = self.rows[column].to_numpy(dtype=np.float64, na_value=np.nan)
        status = self.rows["status"].fillna("ok").to_numpy(dtype=object)
        kind[at] = np.where(np.isin(status, UNKNOWN), status, "missing")
        kind[np.isposinf(value)] = "nonfinite"
        kind[np.isneginf(value)] = "zero"
        # A finite cotangent may have lost what the type could not hold.
        short = (kind == "underflow") & (column not in FORWARD)
        kind[np.isfinite(value) & ~short] = "ok"
        return value, kind


def _given(on: str | Sequence[str] | None, *sides: _Side) -> tuple[str, ...]:
    """The columns by which the caller has rows joined; none by default and by position."""
    if on is None or on == POSITION:
        return ()
    keys = (on,) if isinstance(on, str) else tuple(on)
    for side in sides:
        for name in keys:
            if name not in side.rows:
                raise unknown("on", name, [POSITION, *side.rows])
    return keys


def _one_step(a: _Side, b: _Side) -> list[str]:
    """Leave the steps that both have, or forget a single one; raises InputError for none."""
    if len(a.steps) < 2 and len(b.steps) < 2:
        words = [f"step {side.steps[0]}" if side.steps else "no step" for side in (a, b)]
        for side in (a, b):
            side.rows = side.rows.assign(step=pd.NA)
        return [f"{words[0]} of table_a against {words[1]} of table_b"] * (words[0] != words[1])
    shared = sorted({*a.steps} & {*b.steps})
    if not shared:
        received = " against ".join(_some(side.steps) or "none" for side in (a, b))
        raise InputError(
            f"tables must share a step; got {received}: filter them first, as in "
            f"table[table['step'] == {max(a.steps + b.steps)}]"
        )
    notes = []
    for side in (a, b):
        if alone := [step for step in side.steps if step not in shared]:
            notes.append(f"steps of {side.name} alone: {_some(alone)}")
        side.rows = side.rows[side.rows["step"].isin(shared)]
    return notes


def _joined(a: _Side, b: _Side) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """The places of the same names, as indices of either side, in a's order; None of no place."""
    both = pd.concat([a.names, b.names], ignore_index=True)
    code = both.groupby([*both], dropna=False, sort=False).ngroup().to_numpy()
    count = len(a.names)
    _, of_a, of_b = np.intersect1d(code[:count], code[count:], return_indices=True)
    order = np.argsort(of_a)
    return (of_a[order], of_b[order]) if count and len(of_a) else None


def _paired(a: _Side, b: _Side, column: str, joined) -> tuple[Pair | None, list[str]]:
    """A quantity in the places ``joined``, or by position, and notes on those that are left out."""
    (value_a, kind_a), (value_b, kind_b) = a.values(column), b.values(column)
    known_a, known_b = (~np.isnan(value).all(axis=0) for value in (value_a, value_b))
    notes = []
    if joined is None:
        of_a, of_b = np.flatnonzero(known_a), np.flatnonzero(known_b)
        steps = [list(side.names["step"].iloc[of]) for side, of in ((a, of_a), (b, of_b))]
        if str(steps[0]) != str(steps[1]):
            notes.append(
                f"not joined: {column}, {len(of_a)} places of table_a, {len(of_b)} of table_b"
            )
            return None, notes
    else:
        of_a, of_b = joined
        known_a, known_b = known_a[of_a], known_b[of_b]
        # Where a status hides the values, the quantity may exist.
        maybe_a, maybe_b = (
            np.isin(kind[:, of], UNKNOWN).any(axis=0)
            for kind, of in ((kind_a, of_a), (kind_b, of_b))
        )
        for side, of, alone in (
            (a, of_a, known_a & ~known_b & ~maybe_b),
            (b, of_b, known_b & ~known_a & ~maybe_a),
        ):
            if alone.any():
                places = side.places.iloc[of[alone]]
                notes.append(f"in {side.name} alone: {column} of {_named(places)}")
        shown = (known_a & (known_b | maybe_b)) | (known_b & maybe_a)
        of_a, of_b = of_a[shown], of_b[shown]
    if not len(of_a):
        return None, notes
    places = a.places[[*NAMES]].iloc[of_a].rename_axis("place").reset_index()
    places["layer_b"] = b.places["layer"].iloc[of_b].to_numpy()
    values = value_a[:, of_a], value_b[:, of_b], kind_a[:, of_a], kind_b[:, of_b]
    return Pair(column, places, *values), notes


def _plain(names: pd.DataFrame) -> pd.DataFrame:
    """Names as numbers or text, whatever types their tables gave them, so that equals are equal."""
    found = {}
    for name, column in names.items():
        number = pd.api.types.is_numeric_dtype(column) or column.isna().all()
        found[name] = (
            column.to_numpy(np.float64, na_value=np.nan) if number else column.astype("string")
        )
    return pd.DataFrame(found, names.index)


def _named(places: pd.DataFrame) -> str:
    return _some((place_words(place) for _, place in places.head(MOST).iterrows()), len(places))


def _some(items: Iterable, count: int | None = None) -> str:
    """The first items, and how many there are in all."""
    items = [str(item) for item in items]
    count = len(items) if count is None else count
    return ", ".join(items[:MOST]) + (f", … ({count} in all)" if count > MOST else "")
