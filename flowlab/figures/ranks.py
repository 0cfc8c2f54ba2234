"""Runs ranked by the change of their gradient: a point for each, however they differ."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from flowlab.figures import style
from flowlab.figures.one_axis import silent
from flowlab.figures.over import KEPT
from flowlab.figures.panels import LINE, legend
from flowlab.figures.sentences import crossed, kept_and_most
from flowlab.figures.shown import Shown
from flowlab.figures.sweeps import Conditions

MOST = 24  # runs; of more the two ends are shown
ROW = 0.2  # inches
LETTERS = 48  # of a label
MARK = {"marker": "d", "linestyle": "none", "markersize": 7, "markerfacecolor": "none"}
MARK |= {"markeredgecolor": "black", "markeredgewidth": 1.0}


def ranking(sweep: Conditions) -> Figure:
    """Every run's change from output to input with its 95 % interval, the most exploding on top.

    Diamonds are theory, the band is where the gradient counts as kept. Of more than 24 runs the
    ends are shown, and how many stand between them. Runs without a finite seed come last.
    """
    rows = ranked(sweep)
    shown, hidden = _bounded(rows)
    y = np.arange(len(shown) + bool(hidden))[::-1]
    gap = len(shown) // 2
    at = np.delete(y, gap) if hidden else y
    with style.context():
        height = 0.7 + ROW * len(y)
        figure = Shown(figsize=(style.WIDTH, height))
        ax = figure.subplots()
        ax.axvspan(-sweep.kept_within, sweep.kept_within, **KEPT)
        mean, low, high = (shown[name].to_numpy(float) for name in ("mean", "low", "high"))
        margins = np.nan_to_num([mean - low, high - mean])
        look = {"color": style.COLORS[0], "marker": "o", "linestyle": "none", "capsize": 2}
        ax.errorbar(mean, at, xerr=margins, **look, label="measured")
        theory = shown["predicted"].to_numpy(float)
        ax.plot(theory, at, **MARK, label="theory")
        known = np.concatenate([mean, low, high, theory])
        known = known[np.isfinite(known)]
        style.changes(ax.xaxis, *((known.min(), known.max()) if len(known) else (-1, 1)))
        ax.axvline(0, color="0.35", linewidth=0.8, zorder=0)
        labels = [name[: LETTERS - 1] + "…" * (len(name) >= LETTERS) for name in shown["label"]]
        for row, place in zip(shown.itertuples(), at, strict=True):
            note = {"vanishing": "exactly zero"}.get(row.trend, "no finite seed")
            if not np.isfinite(row.mean):
                ax.text(0, place, f" {note}", va="center", color="0.35")
        if hidden:
            labels.insert(gap, f"… {hidden} runs between …")
        ax.set_yticks(y, labels, fontsize=style.TEXT)
        ax.set_ylim(-0.7, len(y) - 0.3)
        ax.tick_params(axis="x", labelsize=style.TEXT)
        ax.grid(axis="y", visible=False)
        ax.set_xlabel(f"change of the gradient's norm over {crossed(rows)}, decades")
        handles = [Line2D([], [], color=style.COLORS[0], marker="o", label="mean, 95 % interval")]
        if np.isfinite(theory).any():
            handles.append(Line2D([], [], **MARK, label="theory"))
        handles.append(_kept(sweep))
        lines = legend(figure, handles, "lower", title=silent(sweep, whole=True))
        figure.set_figheight(height + 0.2 + LINE * lines)
    return figure


def finding(sweep: Conditions) -> str:
    """How many runs keep the gradient, and the two ends."""
    return kept_and_most(sweep.rows, sweep.kept_within, f"over {crossed(sweep.rows)}")


def ranked(sweep: Conditions) -> pd.DataFrame:
    """The sweep's rows, the most exploding first, those without a finite seed last."""
    return sweep.rows.sort_values(
        ["mean", "label"], ascending=[False, True], na_position="last", kind="stable"
    )


def _bounded(rows: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    if len(rows) <= MOST:
        return rows, 0
    half = MOST // 2
    return pd.concat([rows.head(half), rows.tail(half)]), len(rows) - 2 * half


def _kept(sweep: Conditions) -> Patch:
    label = f"kept: within ±{sweep.kept_within:g}"
    return Patch(**KEPT | {"edgecolor": "0.7", "linewidth": 0.5}, label=label)
