"""A quantity over the steps of training, beside the level at which theory has each run stay."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from flowlab.analysis.statistics import over_seeds
from flowlab.errors import InputError
from flowlab.figures import style
from flowlab.figures.labels import MOST, End, label_ends
from flowlab.figures.panels import GREY, INTERVAL, LINE, THEORY, legend
from flowlab.figures.shown import Shown
from flowlab.figures.words import number

HEIGHT = 3.2  # inches
WITHIN = (1, 1.5, 2, 3, 5, 7)  # ticks of an axis that is shorter than a decade


def over_steps(values: pd.DataFrame, label: str, theory: str, from_step: float = 0) -> Figure:
    """Lines of log10 of a positive quantity over steps: means over seeds with 95 % intervals.

    ``values`` has a row for each ``line``, ``seed`` and ``step``, with its ``value`` and the
    ``level`` of its line, drawn as dashes; ``label`` names the quantity and ``theory`` the level.
    Steps before ``from_step`` are shaded. Raises InputError for more than 8 lines.
    """
    names = list(values.groupby("line")["level"].first().sort_values(ascending=False).index)
    if len(names) > MOST:
        raise InputError(f"curve must hold at most {MOST} lines; got {len(names)}")
    logs = values.assign(log=np.log10(values["value"].where(values["value"] > 0)))
    summary = over_seeds(logs.set_index(["line", "step", "seed"])["log"])
    with style.context():
        figure = Shown(figsize=(style.WIDTH, HEIGHT))
        ax, ends = figure.subplots(), []
        for place, name in enumerate(names):
            rows = summary[summary["line"] == name].sort_values("step")
            x, color = rows["step"].to_numpy(float), style.COLORS[place]
            ax.fill_between(x, rows["low"], rows["high"], color=color, **INTERVAL)
            ax.plot(x, rows["mean"], color=color, linewidth=1.2, label=f"mean: {name}")
            level = np.log10(values.loc[values["line"] == name, "level"].iloc[0])
            line = {"color": style.shade(color), **THEORY, "zorder": 3}
            ax.plot([0, x[-1]], [level, level], **line, label=f"theory: {name}")
            known = rows.dropna(subset="mean")
            if len(known):
                ends.append(End(x[-1], known["mean"].iloc[-1], name, color))
        low, high = ax.dataLim.intervaly
        pad = 0.06 * (high - low)
        _frame(ax, low - pad, high + pad)
        last = values["step"].max()
        ax.set_xlim(0, last)
        ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
        ax.tick_params(axis="x", labelsize=style.TEXT)
        ax.set_xlabel("step")
        ax.set_ylabel(label)
        handles = [
            Line2D([], [], color=GREY, linewidth=1.2, label="mean over seeds"),
            Patch(facecolor=GREY, **INTERVAL, label="95 % interval"),
            Line2D([], [], color="black", **THEORY, label=theory),
        ]
        if from_step:
            before = {"facecolor": "0.94", "linewidth": 0, "zorder": 0}
            ax.axvspan(0, from_step, **before)
            edge = {"edgecolor": "0.7", "linewidth": 0.5}
            handles.append(Patch(**before | edge, label="not taken into the mean above"))
        height = legend(figure, handles, "lower")
        figure.set_figheight(HEIGHT + LINE * height)
        label_ends(figure, {ax: ends})
    return figure


def _frame(ax: Axes, low: float, high: float) -> None:
    """Limits of a log10 axis: within a decade its ticks are plain numbers."""
    style.decades(ax, low, high)
    if high - low < 1:
        tens = 10.0 ** np.arange(np.floor(low), np.ceil(high) + 1)
        ticks = np.multiply.outer(tens, WITHIN).ravel()
        ticks = ticks[(np.log10(ticks) >= low) & (np.log10(ticks) <= high)]
        ax.set_yticks(np.log10(ticks), [number(tick) for tick in ticks])
        ax.tick_params(axis="y", labelsize=style.TEXT)
