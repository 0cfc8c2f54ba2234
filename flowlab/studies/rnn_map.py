"""Stacked recurrent layers: the gradient travels down through layers and back through time."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from flowlab.analysis.statistics import profile
from flowlab.figures import style
from flowlab.figures.runs import describe
from flowlab.figures.through_time import SYMBOL, states
from flowlab.schema import COTANGENT
from flowlab.studies.study import Drawing, Reading, Study

MAP = "viridis"


def layer_by_time(reading: Reading) -> Figure:
    """log10 ‖∂L/∂h_t‖ over layers and steps as a map, a panel and a colour scale for each run.

    Means over seeds; grey where none is finite. Raises InputError without rows of steps
    and for more than 8 runs.
    """
    rows = states(reading.table)
    runs, _ = describe(rows, ["network"])
    with style.context():
        figure = Figure(figsize=(style.WIDTH, 0.3 + 1.5 * len(runs)))
        axes = figure.subplots(len(runs), 1, squeeze=False)[:, 0]
        for ax, run in zip(axes, runs, strict=True):
            grid = _map(rows[rows["run"] == run.id])
            ax.set_facecolor("0.8")
            ends = (grid.columns[0] - 0.5, grid.columns[-1] + 0.5)
            image = ax.imshow(
                np.ma.masked_invalid(grid.to_numpy()),
                extent=(*ends, grid.index[0] - 0.5, grid.index[-1] + 0.5),
                origin="lower",
                aspect="auto",
                cmap=MAP,
                interpolation="nearest",
            )
            style.layers(ax, int(grid.columns[0]), int(grid.columns[-1]), "step $t$")
            ax.set_xlim(ends)
            ax.set_yticks(list(grid.index))
            ax.tick_params(axis="y", labelsize=style.TEXT)
            ax.set(title=run.name.removeprefix("network="), ylabel="layer")
            if ax is not axes[-1]:
                ax.set_xlabel("")
            ax.grid(False)
            bar = figure.colorbar(image, ax=ax, pad=0.02, label=f"$\\log_{{10}}${SYMBOL}")
            bar.ax.tick_params(labelsize=style.TEXT)
    return figure


def layer_by_time_caption(reading: Reading) -> str:
    """What each layer and the sequence cost the gradient: corner by corner."""
    rows = states(reading.table)
    runs, shared = describe(rows, ["network"])
    findings = []
    for run in runs:
        grid = _map(rows[rows["run"] == run.id])
        top, bottom = grid.iloc[-1], grid.iloc[0]
        findings.append(
            f"{run.name}, from {top.iloc[-1]:z.2f} in the last layer and step: "
            f"{bottom.iloc[-1]:z.2f} in the first layer of that step, "
            f"{top.iloc[0]:z.2f} in the first step of that layer, "
            f"{bottom.iloc[0]:z.2f} in the first of both"
        )
    return f"Mean over seeds of log10 ‖∂L/∂h_t‖: {'; '.join(findings)}. All runs: {shared}."


def _map(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds by layer (down, the first one first) and step of one run."""
    means = profile(rows, COTANGENT, by=("run", "layer"), along="time")
    return means.pivot(index="layer", columns="time", values="mean")


STUDY = Study(
    "How does the gradient spread over layers and time in stacked recurrent nets?",
    "Pascanu et al. 2013",
    (
        Drawing(
            "layer_by_time",
            lambda reading: "The gradient over layers and time",
            layer_by_time,
            layer_by_time_caption,
        ),
    ),
    rank=67,
)
