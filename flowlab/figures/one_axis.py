"""Runs on one axis: the gradient's norm against layer or step, each line labelled where it ends."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flowlab.analysis.statistics import profile
from flowlab.errors import InputError
from flowlab.figures import style
from flowlab.figures.labels import MOST, End, label_ends
from flowlab.figures.panels import LINE, SYMBOLS, key, legend, panel
from flowlab.figures.runs import NamedRun, flow, in_place_of_layers
from flowlab.figures.sentences import crossed, kept_and_most
from flowlab.figures.shown import Shown
from flowlab.figures.sweeps import Conditions
from flowlab.figures.words import listed

HEIGHT = 3.1  # inches
FEW = 3  # lines


def curves(sweep: Conditions) -> Figure:
    """The norm of up to 8 runs against layer, of recurrent nets against step.

    Lines are means over seeds with their 95 % interval, dashes theory. Seeds whose norm is zero or
    not finite are marked at the edge of the axis. Raises InputError for more runs.
    """
    if len(sweep.rows) > MOST:
        raise InputError(f"table must hold at most {MOST} runs; got {len(sweep.rows)}")
    with style.context():
        figure = Shown(figsize=(style.WIDTH, HEIGHT))
        ax = figure.subplots()
        drawn, ends = lines(ax, sweep.table, sweep.prediction, named(sweep.rows))
        handles = [handle for name, handle in key().items() if name in drawn]
        rows = legend(figure, handles, "lower", title=silent(sweep))
        figure.set_figheight(HEIGHT + LINE * rows)
        label_ends(figure, {ax: ends}, "left")
    return figure


def finding(sweep: Conditions) -> str:
    """Which runs keep the gradient, and which change it most."""
    return kept_and_most(sweep.rows, sweep.kept_within, f"over {crossed(sweep.rows)}")


def lines(
    ax: Axes, table: pd.DataFrame, prediction: pd.DataFrame | None, runs: list[NamedRun]
) -> tuple[set[str], list[End]]:
    """Draw runs in a panel; the names in key of what was drawn, and where the lines end."""
    rows, theory, column, along = flow(table, prediction)
    summary = profile(rows, column, along=along)
    if along == "time":
        summary = in_place_of_layers(summary)
    first, last = (int(end) for end in (summary["layer"].min(), summary["layer"].max()))
    what = "step $t$" if along == "time" else "layer"
    style.layers(ax, first, last, what)
    ax.set_ylabel("‖∂L/∂$h_t$‖" if along == "time" else SYMBOLS[column])
    # Hatches of many lines hide the lines.
    bands = ("interval", "theory interval") if len(runs) <= FEW else ("interval",)
    drawn = panel(ax, column, summary, runs, theory, last - first, bands)
    ends = []
    for run, color in zip(runs, style.COLORS, strict=False):
        mine = summary[summary["run"] == run.id]
        known = mine[np.isfinite(mine["mean"])]
        if len(known):
            ends.append(End(known["layer"].iat[0], known["mean"].iat[0], run.label, color))
        elif len(mine):
            edge = -np.inf if mine["n_zero"].any() else np.inf
            ends.append(End(mine["layer"].iat[0], edge, run.label, color))
    return drawn, ends


def named(rows: pd.DataFrame, names: pd.Series | None = None) -> list[NamedRun]:
    """The runs of a sweep's rows for a panel, under ``names`` or their labels."""
    names = rows["label"] if names is None else names
    return [
        NamedRun(run, name, name if seeds > 1 else f"{name} (one seed)", int(seeds))
        for run, name, seeds in zip(rows["run"], names, rows["seeds"], strict=True)
    ]


def silent(sweep: Conditions, whole: bool = False) -> str | None:
    """Where theory, which was asked, has no prediction, with ``whole`` none of the whole change.

    None where it has one for every run.
    """
    if sweep.prediction is None:
        return None
    without = sweep.rows["agreement"] == "no theory"
    if whole:
        without = sweep.rows["predicted"].isna()
    if not without.any():
        return None
    names = "any run" if without.all() else listed(sweep.rows.loc[without, "label"], 6)
    return f"No prediction{' of the whole change' * whole} for {names}"
