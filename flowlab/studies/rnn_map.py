"""Stacked recurrent layers: the gradient travels down through layers and back through time."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from flowlab.analysis.statistics import profile
from flowlab.figures import style
from flowlab.figures.labels import End, label_ends
from flowlab.figures.panels import GREY, INTERVAL
from flowlab.figures.runs import NamedRun, describe
from flowlab.figures.shown import Shown
from flowlab.figures.through_time import SYMBOL, states
from flowlab.schema import COTANGENT
from flowlab.studies.study import Drawing, Reading, Study

HEIGHT = 2.9  # inches, of a panel
MOST = 8  # lines in a panel


def layer_by_time(reading: Reading) -> Figure:
    """‖∂L/∂h_t‖ against t, a line for each recurrent layer, a panel for each run.

    Means over seeds, bands their 95 % interval; gaps where none is finite; of more than 8 layers 8
    are drawn. Theory has no say. Raises InputError without rows of steps and for more than 8 runs.
    """
    rows = states(reading.table)
    runs, _ = describe(rows, ["network"])
    layers = _few(rows["layer"].unique())
    first, last = int(rows["time"].min()), int(rows["time"].max())
    with style.context():
        figure = Shown(figsize=(style.WIDTH, HEIGHT + 0.9))
        axes = figure.subplots(1, len(runs), squeeze=False, sharey=True)[0]
        ends = {ax: [] for ax in axes}
        for ax, run in zip(axes, runs, strict=True):
            means = _means(rows[rows["run"] == run.id])
            for place, layer in enumerate(layers):
                of, color = means[means["layer"] == layer], style.COLORS[place]
                ax.fill_between(of["time"], of["low"], of["high"], color=color, **INTERVAL)
                marks = {"marker": style.MARKERS[place], "markevery": (place, 8)}
                ax.plot(of["time"], of["mean"], color=color, label=f"layer {layer}", **marks)
                known = of.dropna(subset="mean")
                if len(known):
                    start = known["time"].iat[0], known["mean"].iat[0]
                    ends[ax].append(End(*start, f"{layer}", color))
            style.layers(ax, first, last, "step $t$")
            ax.set_title(_name(run, runs))
        low, high = np.array([ax.dataLim.intervaly for ax in axes]).T
        margin = 0.04 * (high.max() - low.min())
        for ax in axes:
            style.decades(ax, low.min() - margin, high.max() + margin)
        axes[0].set_ylabel(SYMBOL)
        handles = [
            Line2D([], [], color=GREY, label="mean over seeds; numbers are layers"),
            Patch(facecolor=GREY, **INTERVAL, label="95 % interval; no prediction"),
        ]
        figure.legend(handles=handles, loc="outside lower left", ncols=2)
        label_ends(figure, ends, "left")
    return figure


def layer_by_time_finding(reading: Reading) -> str:
    """What the sequence costs the gradient, and what the layers cost it."""
    rows = states(reading.table)
    runs, _ = describe(rows, ["network"])
    back, below, crossed = [], [], (0, 0)
    for run in runs:
        grid = _map(rows[rows["run"] == run.id])
        crossed = len(grid.columns) - 1, len(grid.index) - 1
        unit = "" if back else " decades"
        back.append(f"{grid.iloc[-1, 0] - grid.iloc[-1, -1]:z.1f}{unit} ({_name(run, runs)})")
        below.append(f"{grid.iloc[0, -1] - grid.iloc[-1, -1]:z.1f}")
    text = (
        f"Over {crossed[0]} steps back the last layer's gradient changes by {', '.join(back)}; "
        f"over {crossed[1]} layers down in the last step by {', '.join(below)}"
    )
    return text.replace("-", "−")


def layer_by_time_caption(reading: Reading) -> str:
    """What each layer and the sequence cost the gradient: corner by corner."""
    rows = states(reading.table)
    runs, _ = describe(rows, ["network"])
    findings = []
    for run in runs:
        grid = _map(rows[rows["run"] == run.id])
        top, bottom = grid.iloc[-1], grid.iloc[0]
        findings.append(
            f"{_name(run, runs)}, from {top.iloc[-1]:z.2f} in the last layer and step: "
            f"{bottom.iloc[-1]:z.2f} in the first layer of that step, "
            f"{top.iloc[0]:z.2f} in the first step of that layer, "
            f"{bottom.iloc[0]:z.2f} in the first of both"
        )
    return f"Mean over seeds of log10 ‖∂L/∂h_t‖: {'; '.join(findings)}."


def _means(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds with intervals, a row for each layer and step of one run."""
    return profile(rows, COTANGENT, by=("run", "layer"), along="time")


def _map(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds by layer (down, the first one first) and step of one run."""
    return _means(rows).pivot(index="layer", columns="time", values="mean")


def _few(layers) -> list[int]:
    layers = np.sort(layers)
    at = np.linspace(0, len(layers) - 1, min(MOST, len(layers))).round().astype(int)
    return [int(layer) for layer in layers[at]]


def _name(run: NamedRun, runs: list[NamedRun]) -> str:
    """The network, and what else sets the run apart where networks repeat."""
    names = [each.name.removeprefix("network=") for each in runs]
    short = [name.partition(",")[0] for name in names]
    return (short if len(set(short)) == len(runs) else names)[runs.index(run)]


STUDY = Study(
    "How does the gradient spread over layers and time in stacked recurrent nets?",
    "Pascanu et al. 2013",
    (
        Drawing(
            "layer_by_time",
            layer_by_time_finding,
            layer_by_time,
            layer_by_time_caption,
        ),
    ),
    rank=67,
)
