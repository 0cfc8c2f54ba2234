"""What stands above a figure: its finding, and the settings that it holds fixed."""

from textwrap import wrap

import pandas as pd
from matplotlib.figure import Figure

from flowlab.analysis.comparison import LEADING, differing, settings_words
from flowlab.figures import style
from flowlab.schema import names
from flowlab.settings import frame

LINE = 0.2  # inches, the height of a line
FINDING = {"fontsize": style.TEXT + 1.5, "fontweight": "bold"}
FIXED = {"fontsize": style.TEXT, "color": "0.35"}
LETTERS = 11.5, 14.0  # of a finding, of the settings, to an inch


def head(figure: Figure, finding: str, fixed: str = "") -> Figure:
    """Write the finding above everything else, the fixed settings under it; the same figure.

    The figure grows by the height of these lines, so that the panels keep their size. It must have
    a constrained layout, and its legends inside or below.
    """
    width, height = figure.get_size_inches()
    parts = [(finding, FINDING, LETTERS[0]), (fixed, FIXED, LETTERS[1])]
    lines = [
        (line, look) for text, look, letters in parts for line in wrap(text, int(letters * width))
    ]
    grown = height + LINE * len(lines) + 0.1
    figure.set_size_inches(width, grown)
    figure.get_layout_engine().set(rect=(0, 0, 1, height / grown))
    for place, (line, look) in enumerate(lines):
        top = 1 - (0.06 + LINE * place) / grown
        figure.text(0.08 / width, top, line, va="top", ha="left", **look)
    return figure


def fixed(table: pd.DataFrame) -> str:
    """The settings that all runs of a tidy table share, in one line; defaults mostly left out."""
    rows = table.groupby("run", observed=True).first()
    rows["seeds"] = table.groupby("run", observed=True)["seed"].nunique()
    defaults = frame().set_index("column")["default"]
    varying = set(differing(rows))
    known = rows.loc[:, rows.notna().all()].iloc[0]
    shared = [
        name
        for name in dict.fromkeys((*LEADING, *names("setting")))
        if name in known and name not in varying
        if name in LEADING or known[name] != defaults.get(name)
    ]
    return settings_words(rows.iloc[0], shared) if len(rows) else ""
