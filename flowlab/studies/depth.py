"""How depth and initialization decide between vanishing, kept and exploding gradients."""

from math import ceil
from textwrap import fill

import pandas as pd
from matplotlib.figure import Figure

from flowlab.analysis.statistics import profile
from flowlab.figures import style
from flowlab.figures.heat_map import heat_map, heat_map_caption
from flowlab.figures.layer_profiles import caption
from flowlab.figures.panels import LINE, PANEL, SYMBOLS, key, legend, panel
from flowlab.figures.ratios import init_labels
from flowlab.figures.runs import describe
from flowlab.schema import DELTA
from flowlab.studies.study import Drawing, Reading, Study


def one_depth(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the middle one of the depths."""
    depths = sorted(table["depth"].unique())
    return table[table["depth"] == depths[len(depths) // 2]]


def small_multiples(reading: Reading) -> Figure:
    """‖δ‖ against layer, one panel for each run, each with a y axis of its own.

    Tables, artists and errors are those of ``profiles``: mean over seeds with its 95 % interval and
    ±1 sd, theory's line and the band of the mean.
    """
    table = labelled(reading.table)
    runs, shared = describe(table)
    shared = fill(shared, int(13 * style.WIDTH))
    summary = profile(table, DELTA)
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
                ax.set_ylabel(SYMBOLS[DELTA])
            drawn |= panel(ax, DELTA, summary, [run], reading.prediction, last - first)
        for ax in axes[len(runs) :]:
            ax.set_visible(False)
        keys = [handle for name, handle in key().items() if name in drawn]
        height = legend(figure, keys, "lower", title=shared)
        figure.set_figheight(rows * (PANEL + 0.1) + 0.3 + LINE * (height + shared.count("\n") + 1))
    return figure


def small_multiples_caption(reading: Reading) -> str:
    """The caption of ``profiles`` with each initializer and its gain in one name."""
    return caption(labelled(reading.table), reading.prediction, reading.kept_within)


def labelled(table: pd.DataFrame) -> pd.DataFrame:
    """The table with the gain in the initializer's name, not beside it."""
    if not {"init", "gain"} <= set(table):
        return table
    return table.assign(init=init_labels(table)).drop(columns="gain")


STUDY = Study(
    "Which initializers keep the gradient as nets get deeper?",
    "Glorot & Bengio 2010; He et al. 2015",
    (
        Drawing(
            "profiles_by_init",
            lambda reading: "The gradient's norm against layer under each initializer",
            small_multiples,
            small_multiples_caption,
            one_depth,
        ),
        Drawing(
            "depth_by_init",
            lambda reading: "What depth does to the gradient under each initializer",
            lambda r: heat_map(r.table, across="depth"),
            lambda r: heat_map_caption(r.table, r.prediction, "depth", r.kept_within),
        ),
    ),
    rank=1,
)
