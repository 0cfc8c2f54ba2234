"""Layer by step: where in a network and when in its training a norm dies or leaves the range."""

from math import ceil
from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, NullLocator

from flowlab.analysis.statistics import profile
from flowlab.errors import InputError
from flowlab.figures import style
from flowlab.figures.labels import MOST
from flowlab.figures.panels import LINE, SYMBOLS, legend
from flowlab.figures.shown import Shown
from flowlab.figures.sweeps import Conditions
from flowlab.figures.words import decades, listed, said

WEIGHTS = "dW_log10_norm"
PANEL = 1.7  # inches, the height of a panel
COLUMNS = 4
COLORS = "viridis"
NONFINITE, BEYOND, ZERO = style.COLORS[1], style.COLORS[3], "0.8"  # no colours of norms
RANGE = float(np.log10(np.finfo(np.float32).max))
LETTERS = 76  # of panels' titles, side by side
HATCHED = {"hatch": "xxxx", "edgecolor": NONFINITE, "facecolor": "none", "linewidth": 0}


def fits(sweep: Conditions) -> bool:
    """Whether all runs have steps of training, some several, and each can have a panel."""
    if "step" not in sweep.every or len(sweep.points) > MOST:
        return False
    steps = sweep.every.groupby("run", observed=True)["step"].nunique()
    return steps.min() > 0 and steps.max() > 1


def layer_by_step(sweep: Conditions, column: str = WEIGHTS) -> Figure:
    """A norm's log10 in every layer (up) at every logged step (to the right), a panel for each run.

    Colours are means over seeds, the same in all panels. Cells in which no seed has a finite norm
    have a colour of their own, and so have those in which every seed's is exactly zero, and those
    whose mean is beyond float32's range, where exponents alone know it; cells that lack some seeds
    are hatched. Raises InputError without steps and for more than 8 runs.
    """
    cells = _cells(sweep, column)
    names = _names(sweep)
    rows = ceil(len(names) / COLUMNS)
    columns = ceil(len(names) / rows)
    known = cells.loc[cells["mean"] <= RANGE, "mean"]
    low, high = (known.min(), known.max()) if len(known) else (-1.0, 1.0)
    norm = Normalize(low, max(high, low + 1))  # a decade at least: rounding is no trend
    with style.context():
        figure = Shown(figsize=(style.WIDTH, 1))
        axes = figure.subplots(rows, columns, squeeze=False)
        for ax in axes.flat[len(names) :]:
            ax.set_visible(False)
        for place, (ax, (run, name)) in enumerate(zip(axes.flat, names.items(), strict=False)):
            image = _panel(ax, cells[cells["run"] == run], norm)
            title = fill(name, LETTERS // columns) if len(names) > 1 else ""
            ax.set_title(title, fontsize=style.TEXT + (columns < COLUMNS))
            if place >= len(names) - columns:
                ax.set_xlabel("step")
            if place % columns == 0:
                ax.set_ylabel("layer")
        bar = figure.colorbar(image, ax=axes, pad=0.02, aspect=30)
        ticks = MaxNLocator(6, steps=[1, 2, 5, 10], integer=True).tick_values(low, norm.vmax)
        ticks = [tick for tick in ticks if low <= tick <= norm.vmax]
        bar.set_ticks(ticks, labels=[style.power_of_ten(tick) for tick in ticks])
        bar.ax.tick_params(labelsize=style.TEXT)
        bar.set_label(f"{SYMBOLS.get(column, column)}, mean over seeds of the log")
        handles = _key(cells)
        height = LINE * legend(figure, handles, "lower") if handles else 0
        figure.set_figheight(rows * (PANEL + 0.35) + 0.3 + height)
    return figure


def finding(sweep: Conditions, column: str = WEIGHTS) -> str:
    """How far apart layers are at the first and at the last step; where seeds diverge, and when."""
    cells, names = _cells(sweep, column), _names(sweep)
    symbol = SYMBOLS.get(column, column)
    ends, gone = ([], []), []
    for run, name in names.items():
        of = cells[cells["run"] == run]
        for end, which in zip(ends, ("min", "max"), strict=True):
            at = of["step"].agg(which)
            span = _span(of[of["step"] == at])
            if span is not None:
                end.append((*span, name, at))
        out = of.loc[of["nonfinite"] > 0, "step"]
        if len(out):
            gone.append(f"from step {out.min()} on" + f" ({name})" * (len(names) > 1))
    parts = [
        f"{_range(end, len(names) > 1)} at step {max(row[-1] for row in end)}"
        for end in ends
        if end
    ]
    text = f"No run has a finite {symbol} in every layer, neither at first nor in the end"
    if parts:
        text = f"Between layers {symbol} differs by {' and by '.join(parts)}"
    return text + (f"; seeds are not finite {listed(gone)}" if gone else "")


def _range(spans: list[tuple], several: bool) -> str:
    """The least and the greatest of (decades, layer of the least norm, run, step)."""
    low, high = min(spans), max(spans)
    sizes = [decades(span[0]) for span in (low, high)]
    if not several:
        return f"{sizes[0]} (least in layer {low[1]})"
    if sizes[0] == sizes[1]:
        return f"{sizes[0]}{f' ({low[2]})' if len(spans) == 1 else ''}"
    return f"{sizes[0].split()[0]} ({low[2]}) to {sizes[1]} ({high[2]})"


def _cells(sweep: Conditions, column: str) -> pd.DataFrame:
    """A row for each run, step and layer: ``mean``, ``zero`` and ``nonfinite`` (seeds), ``seeds``.

    Seeds whose rows are absent where others have theirs are among the nonfinite ones.
    """
    table = sweep.every
    if "step" not in table or table["step"].isna().all():
        raise InputError("table must hold steps of training; got none")
    if len(sweep.points) > MOST:
        raise InputError(f"table must hold at most {MOST} runs; got {len(sweep.points)}")
    rows = table[table["step"].notna()]
    cells = profile(rows, column, by=("run", "step"))
    cells["seeds"] = cells["run"].map(rows.groupby("run", observed=True)["seed"].nunique())
    cells["nonfinite"] = cells["seeds"] - cells["n"] - cells["n_zero"]
    return cells.rename(columns={"n_zero": "zero"})


def _names(sweep: Conditions) -> dict:
    """Runs with what sets them apart, in the sweep's order."""
    return {
        run: ", ".join(said(axis, value) for axis, value in row.items()) or "the run"
        for run, row in sweep.points.iterrows()
    }


def _span(cells: pd.DataFrame) -> tuple[float, int] | None:
    """Decades between the layers' greatest and least mean, and where that is; None if not known."""
    means = cells.set_index("layer")["mean"]
    if means.isna().any():
        return None
    return float(np.ptp(means)), int(means.idxmin())


def _panel(ax: Axes, cells: pd.DataFrame, norm: Normalize) -> QuadMesh:
    grids = {
        name: cells.pivot(index="layer", columns="step", values=name)
        for name in ("mean", "zero", "nonfinite", "seeds")
    }
    means = grids["mean"]
    steps, layers = (index.to_numpy(float) for index in (means.columns, means.index))
    edges = _edges(np.log(steps)), _edges(layers)
    edges = np.exp(edges[0]), edges[1]
    image = ax.pcolormesh(*edges, means, cmap=COLORS, norm=norm, rasterized=True)
    none = means.isna()
    zero = none & (grids["zero"] == grids["seeds"])
    for where, color in ((none & ~zero, NONFINITE), (means > RANGE, BEYOND), (zero, ZERO)):
        masked = np.ma.masked_where(~where, np.zeros(where.shape))
        ax.pcolormesh(*edges, masked, cmap=ListedColormap([color]), rasterized=True)
    partly = ~none & (grids["nonfinite"] + grids["zero"] > 0)
    ax.pcolor(*edges, np.ma.masked_where(~partly, np.zeros(partly.shape)), **HATCHED)
    ax.set_xscale("log")
    ax.set_xlim(edges[0][0], edges[0][-1])
    ax.set_ylim(edges[1][0], edges[1][-1])
    ticks = [10**k for k in range(10) if edges[0][0] <= 10**k <= edges[0][-1]]
    ax.set_xticks(ticks, [f"{tick:,}".replace(",", " ") for tick in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    style_layers = MaxNLocator(4, steps=[1, 2, 5, 10], integer=True)
    first, last = layers[0], layers[-1]
    inner = [t for t in style_layers.tick_values(first, last) if first + 1 < t <= last]
    ax.set_yticks([first, *inner], [f"{tick:.0f}" for tick in (first, *inner)])
    ax.tick_params(labelsize=style.TEXT, length=2)
    ax.grid(False)
    return image


def _edges(centres: np.ndarray) -> np.ndarray:
    """The borders halfway between neighbours; the outermost cells reach as far outwards."""
    if len(centres) == 1:
        return centres[0] + np.array([-0.5, 0.5])
    middle = (centres[1:] + centres[:-1]) / 2
    return np.array([2 * centres[0] - middle[0], *middle, 2 * centres[-1] - middle[-1]])


def _key(cells: pd.DataFrame) -> list:
    """What stands for cells without a mean, of those that occur."""
    none, zero = cells["mean"].isna(), cells["zero"] == cells["seeds"]
    partly = ~none & (cells["nonfinite"] + cells["zero"] > 0)
    handles = {
        "beyond the range of float32": ((cells["mean"] > RANGE).any(), Patch(facecolor=BEYOND)),
        "no seed has a finite norm": ((none & ~zero).any(), Patch(facecolor=NONFINITE)),
        "exactly zero in every seed": (zero.any(), Patch(facecolor=ZERO)),
        "some seeds zero or not finite, not in the mean": (partly.any(), Patch(**HATCHED)),
    }
    for label, (_, handle) in handles.items():
        handle.set_label(label)
    return [handle for occurs, handle in handles.values() if occurs]
