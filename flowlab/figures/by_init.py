"""Log-norm against layer, a panel of its own for each run: an initializer each, say."""

from math import ceil
from textwrap import fill

import pandas as pd
from matplotlib.figure import Figure

from flowlab.analysis.statistics import profile
from flowlab.figures import style
from flowlab.figures.by_layer import LINE, PANEL, SYMBOLS, caption, key, legend, panel
from flowlab.figures.ratios import init_labels
from flowlab.figures.runs import describe
from flowlab.schema import DELTA


def small_multiples(
    table: pd.DataFrame, prediction: pd.DataFrame | None = None, column: str = DELTA
) -> Figure:
    """``column`` against layer, one panel for each run, each with a y axis of its own.

    Tables, artists and errors are those of ``by_layer.profiles``: mean over seeds with its 95 %
    interval and ±1 sd, theory's line and the band of the mean.
    """
    table = labelled(table)
    runs, shared = describe(table)
    shared = fill(shared, int(13 * style.WIDTH))
    summary = profile(table, column)
    first, last = int(table["layer"].min()), int(table["layer"].max())
    columns = min(4 if len(runs) > 6 else 3, len(runs))
    rows = ceil(len(runs) / columns)
    with style.context():
        figure = Figure(figsize=(style.WIDTH, 1))
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        drawn = set()
        for place, (ax, run) in enumerate(zip(axes, runs, strict=False)):
            style.layers(ax, first, last)
            ax.set_title(fill(run.label.removeprefix("init="), 16))
            if place % columns == 0:
                ax.set_ylabel(SYMBOLS.get(column, column))
            drawn |= panel(ax, column, summary, [run], prediction, last - first)
        for ax in axes[len(runs) :]:
            ax.set_visible(False)
        keys = [handle for name, handle in key().items() if name in drawn]
        height = legend(figure, keys, "lower", title=shared)
        figure.set_figheight(rows * (PANEL + 0.1) + 0.3 + LINE * (height + shared.count("\n") + 1))
    return figure


def small_multiples_caption(table: pd.DataFrame, prediction: pd.DataFrame | None = None) -> str:
    """``by_layer.caption`` with each initializer and its gain in one name."""
    return caption(labelled(table), prediction)


def labelled(table: pd.DataFrame) -> pd.DataFrame:
    """The gain told with the initializer's name, not beside it."""
    if not {"init", "gain"} <= set(table):
        return table
    return table.assign(init=init_labels(table)).drop(columns="gain")
