"""What a notebook shows of verdicts, settings and runs: small HTML, all text in it escaped."""

from collections.abc import Iterable, Mapping
from html import escape
from math import isnan
from typing import Any

import pandas as pd


def of_verdict(verdict: Any) -> str:
    """The sentence, its trend in bold, and the numbers behind it."""
    trend = verdict.trend
    sentence = escape(verdict.sentence[len(trend) :])
    rows = {
        f"change from {verdict.along} {verdict.last} to {verdict.first}": (verdict.change, "z.2f"),
        f"change a {verdict.along}": (verdict.slope, ""),
        "measured minus predicted": (verdict.difference, "z.2f"),
        "change across the read-out": (verdict.readout, "z.2f"),
    }
    cells = [(name, format(*cell)) for name, cell in rows.items() if cell[0] and cell[0].n]
    numbers = _table(cells, ("decades", "mean [95 % interval]")) if cells else ""
    return f"<p><b>{escape(trend.capitalize())}</b>{sentence}</p>{numbers}"


def of_settings(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """The settings that apply, by name: those that differ from the defaults, the others folded."""
    given = {name: value for name, value in values.items() if value is not None}
    own = {name: value for name, value in given.items() if value != defaults.get(name)}
    rest = {name: value for name, value in given.items() if name not in own}
    first = _table(own.items()) if own else "<p>All settings have their defaults.</p>"
    title = f"{len(rest)} settings with their defaults"
    return f"{first}<details><summary>{title}</summary>{_table(rest.items())}</details>"


def of_run(verdict: Any, norms: pd.DataFrame, path: Any) -> str:
    """The verdict, mean log10 norms by place, and where the run is kept."""
    head = (norms.index.name, *norms.columns)
    rows = ((place, *map(_cell, row)) for place, *row in norms.itertuples())
    kept = f"<p>Kept in <code>{escape(str(path))}</code></p>"
    return f"{of_verdict(verdict)}<p>Mean log10 norms</p>{_table(rows, head)}{kept}"


def of_difference(sentence: str, rows: pd.DataFrame) -> str:
    """The sentence, and the places that differ most."""
    cells = _table(rows.itertuples(index=False), list(rows)) if len(rows) else ""
    return f"<p>{escape(sentence)}</p>{cells}"


def _table(rows: Iterable[Iterable[Any]], head: Iterable[Any] = ()) -> str:
    def line(cells: Iterable[Any], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(str(c))}</{tag}>" for c in cells) + "</tr>"

    top = line(head, "th") if head else ""
    return f"<table>{top}{''.join(line(row, 'td') for row in rows)}</table>"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "–" if isnan(value) else f"{value:z.2f}"
    return str(value)
