"""Rewrite the generated tables of docs/ from the schema.

A table stands between ``<!-- generated: NAME -->`` and ``<!-- end -->``.
"""

import re
import sys
from pathlib import Path

import pandas as pd

from experiments.command import groups
from experiments.help import Command, written
from flowlab import schema, settings
from flowlab.errors import unknown
from flowlab.storage.files import write
from flowlab.training.curve import CURVE

COMMAND = Command("docs", __doc__, {"": "names the pages that it changes"})
DOCS = Path(__file__).resolve().parent.parent / "docs"


def main(arguments: list[str]) -> int:
    """Rewrite the pages that are out of date; the exit code."""
    return COMMAND.start(arguments, rewrite)


def rewrite() -> None:
    """Write each page of docs/ whose tables have changed, and name it."""
    for path in sorted(DOCS.glob("*.md")):
        text = path.read_text()
        if (new := renewed(text)) != text:
            write(new, path)
            print(path.name)


def renewed(page: str) -> str:
    """A page with its tables as the schema has them now; raises InputError for an unknown table."""

    def table(match: re.Match) -> str:
        if match[1] not in _TABLES:
            raise unknown("generated table", match[1], _TABLES)
        return f"<!-- generated: {match[1]} -->\n{_TABLES[match[1]]()}<!-- end -->"

    return re.sub(r"<!-- generated: (\w+) -->\n.*?<!-- end -->", table, page, flags=re.DOTALL)


def _settings(beginning: str = "") -> str:
    frame = settings.frame()
    frame = frame[frame["key"].str.startswith(beginning)]
    return _markdown(
        {
            "key": frame["key"].map("`{}`".format),
            "default": frame["default"].map(lambda value: f"`{written(value)}`"),
            "values": frame["allowed"],
            "meaning": frame["meaning"] + frame["unit"].map(lambda unit: unit and f" ({unit})"),
            "column": frame["column"].map(lambda name: name and f"`{name}`"),
        }
    )


def _columns(*parts: str) -> str:
    frame = schema.frame()
    frame = frame[frame["part"].isin(parts)]
    return _markdown(
        {
            "column": frame["name"].map("`{}`".format),
            **{name: frame[name] for name in ("unit", "type", "meaning")},
        }
    )


def _choices() -> str:
    found = groups()
    return _markdown(
        {
            "group": pd.Series([f"`{group}`" for group in found]),
            "choices": pd.Series([", ".join(f"`{c}`" for c in each) for each in found.values()]),
        }
    )


_TABLES = {
    "settings": _settings,
    "choices": _choices,
    "columns": lambda: _columns("run", "row", "measured", "status"),
    "modules": lambda: _columns("module"),
    "predicted": lambda: _columns("predicted"),
    "curves": lambda: _columns(CURVE),
    "training": lambda: _settings("training"),
}


def _markdown(columns: dict[str, pd.Series]) -> str:
    rows = [list(columns), ["---"] * len(columns), *zip(*columns.values(), strict=True)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
