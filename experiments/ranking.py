"""A comparison of runs as a table for the terminal: bounded to what fits, best first."""

import shutil
import sys
from collections.abc import Callable

import numpy as np
import pandas as pd

from flowlab.analysis.comparison import ORDERS, accuracy_words, axes_of, value_words
from flowlab.errors import unknown

ROWS = 20  # where nothing says how many fit
LEAST_ROWS = 8
COLUMNS = 140  # where there is no terminal
GAP = "  "
FIRST = {
    "trained": "Best trained first:",
    "kept": "Closest to kept first:",
    "vanishing": "Most vanishing first:",
    "exploding": "Most exploding first:",
    "differing": "Furthest from theory first:",
}


def ranking(comparison: pd.DataFrame, by: str, rest: str, more: dict[str, list] | None = None):
    """The ranked runs with a heading; ``rest`` says where those are that do not fit.

    ``more`` are further columns of text, a cell for each run.
    """
    columns, most = COLUMNS, ROWS
    if sys.stdout.isatty():
        columns, lines = shutil.get_terminal_size()
        most = max(LEAST_ROWS, lines - 12)
    shown = comparison.head(most)
    axes = axes_of(comparison)
    cells = {axis: [_setting(value) for value in shown[axis]] for axis in axes}
    if by == "best":
        by = "trained" if "accuracy" in comparison else "kept"
    if "accuracy" in comparison:
        cells |= {name: column(shown) for name, column in _ENDS.items()}
        if not comparison["diverged"].any():
            del cells["diverged"]
        if comparison["accuracy"].isna().all():
            del cells["accuracy [95 %]"]
    cells |= {name: column(shown) for name, column in _MEASURES.items()}
    if comparison["over"].nunique() == 1:
        del cells["over"]
    if comparison["agreement"].eq("no theory").all():
        del cells["theory"]
    cells |= {name: values[:most] for name, values in (more or {}).items()}
    table = {name: [name, *values] for name, values in cells.items()}
    if _width(table) > columns:
        table["verdict"] = ["verdict", *shown["trend"]]
    text = "\n".join([FIRST.get(by, f"By {by}:"), *_aligned(table, columns)])
    left = len(comparison) - len(shown)
    return f"{text}\n{left:,} more: {rest}" if left else text


def _decades(rows: pd.DataFrame) -> list[str]:
    """Changes with their intervals, all with the digits that the widest of them needs."""
    return [
        "not known"
        if np.isnan(row.decades)
        else f"{row.decades:z.2f}"
        if np.isnan(row.low)
        else f"{row.decades:z.2f} [{row.low:z.2f}, {row.high:z.2f}]"
        for row in rows.itertuples()
    ]


def _verdicts(rows: pd.DataFrame) -> list[str]:
    """The trend, with its rate where the gradient does not keep its norm."""
    found = []
    for row in rows.itertuples():
        pace = row.rate.removeprefix("loses ").removeprefix("gains ")
        rated = pace and row.trend in ("vanishing", "exploding")
        found.append(f"{row.trend}, {pace}" if rated else row.trend)
    return found


def _theory(rows: pd.DataFrame) -> list[str]:
    """The predicted change and the agreement; of a part of the body the agreement alone."""
    found = []
    for row in rows.itertuples():
        if row.agreement == "no theory":
            found.append("-")
        elif np.isnan(row.theory):
            found.append(f"{row.agreement} in part")
        else:
            found.append(f"{row.theory:z.2f} {row.agreement}")
    return found


_MEASURES = {
    "decades [95 %]": _decades,
    "over": lambda rows: list(rows["over"]),
    "verdict": _verdicts,
    "theory": _theory,
}


def _each(column: str, words) -> Callable[[pd.DataFrame], list[str]]:
    """A cell of ``words(row)`` for each row in which the column is known."""
    return lambda rows: ["-" if pd.isna(row[column]) else words(row) for _, row in rows.iterrows()]


_ENDS = {
    "accuracy [95 %]": _each("accuracy", accuracy_words),
    "held-out loss": _each("held_out_loss", lambda row: f"{row['held_out_loss']:.3g}"),
    "loss": _each("training_loss", lambda row: f"{row['training_loss']:.3g}"),
    "diverged": _each("diverged", lambda row: f"{row['diverged']:.0f} of {row['seeds']}"),
}
_NUMBERS = {"decades [95 %]", "accuracy [95 %]"}


def _setting(value: object) -> str:
    return "-" if pd.isna(value) else value_words(value)


def _width(table: dict[str, list[str]]) -> int:
    return sum(max(map(len, cells)) for cells in table.values()) + len(GAP) * len(table)


def _aligned(table: dict[str, list[str]], columns: int) -> list[str]:
    """Lines of cells under their names, numbers to the right, none beyond the terminal's edge."""
    padded = []
    for name, cells in table.items():
        width = max(map(len, cells))
        right = name in _NUMBERS or all(_is_number(cell) for cell in cells[1:])
        padded.append([cell.rjust(width) if right else cell.ljust(width) for cell in cells])
    lines = [(GAP + GAP.join(row)).rstrip() for row in zip(*padded, strict=True)]
    return [line if len(line) <= columns else line[: columns - 1] + "…" for line in lines]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text == "-"
    return True


def check(by: str, axes: list[str]) -> None:
    """Raise InputError unless runs that differ in ``axes`` can be ranked ``by``."""
    if by not in ORDERS and by not in axes:
        raise unknown("rank", by, [*ORDERS, *axes])
