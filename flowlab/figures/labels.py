"""Lines named at their ends instead of in a legend."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from flowlab.analysis.comparison import value_words
from flowlab.figures import style
from flowlab.figures.runs import NamedRun

LINE = 0.155  # inches, the height of a name
LETTER, OFFSET = 0.07, 0.22  # inches, the width of a letter, and that of all beside a name


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


def widen(ax: Axes, names: Iterable[str], width: float) -> None:
    """Move the left limit of a panel ``width`` inches wide so that names fit beside its lines."""
    longest = max((len(name) for name in names), default=0)
    share = min((OFFSET + LETTER * longest) / width, 0.6)
    first, last = ax.get_xlim()
    ax.set_xlim(left=first - (last - first) * share / (1 - share))


def label_ends(
    ax: Axes,
    ends: Iterable[tuple[float, float, str, object]],
    height: float,
    side: str = "right",
) -> None:
    """Write each (x, y, name, colour) beside its end of a line, so that no two names overlap.

    ``height`` is that of the panel in inches. The axes must have their limits. Names on the left
    stand inside the panel, whose limits must leave them room; a fine line leads to a name that had
    to move. Ends that are not finite are left out.
    """
    ends = [end for end in ends if np.isfinite(end[1])]
    to_panel = ax.transData + ax.transAxes.inverted()
    wanted = np.array([to_panel.transform((x, y))[1] for x, y, *_ in ends])
    sign, align = (1, "left") if side == "right" else (-1, "right")
    for (x, y, name, color), place in zip(ends, spread(wanted, LINE / height), strict=True):
        name_at = (9 * sign, (place - to_panel.transform((x, y))[1]) * height * 72)
        where = {"textcoords": "offset points", "annotation_clip": False}
        text = {"ha": align, "va": "center", "fontsize": style.TEXT, "color": style.shade(color)}
        ax.annotate(name, (x, y), name_at, **where, **text)
        line = {"arrowstyle": "-", "color": color, "linewidth": 0.7, "shrinkA": 1, "shrinkB": 3}
        ax.annotate("", (x, y), name_at, **where, arrowprops=line)


def spread(places: np.ndarray, gap: float) -> np.ndarray:
    """The nearest places to ``places`` that lie ``gap`` apart and, if they fit, within 0 and 1."""
    if len(places) == 0:
        return places
    order = np.argsort(places, kind="stable")
    steps = gap * np.arange(len(places))
    # Least squares under order: neighbours that are too close share the mean of where they want
    # to be (pool adjacent violators).
    blocks: list[tuple[float, int]] = []
    for value in places[order] - steps:
        count = 1
        while blocks and blocks[-1][0] >= value:
            mean, size = blocks.pop()
            value, count = (mean * size + value * count) / (size + count), size + count
        blocks.append((value, count))
    apart = np.concatenate([np.full(count, value) for value, count in blocks])
    top = max(1 - gap / 2 - steps[-1], gap / 2)
    found = np.empty(len(places))
    found[order] = np.clip(apart, gap / 2, top) + steps
    return found
