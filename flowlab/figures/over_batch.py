"""The batch law of a sweep over batch sizes: ‖dW‖ and ‖db‖ against B, and their noise scales."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from flowlab.analysis import batch_law
from flowlab.analysis.statistics import slope_of
from flowlab.errors import InputError
from flowlab.figures import style
from flowlab.figures.labels import MOST, End, label_ends
from flowlab.figures.panels import LINE, legend, share_y
from flowlab.figures.shown import Shown
from flowlab.figures.sweeps import Conditions
from flowlab.figures.words import bare, said

HEIGHT = 2.9  # inches
FEW = 3  # layers


def fits(sweep: Conditions) -> bool:
    """Whether the sweep varies the batch size, at most one setting beside it, and has the law."""
    if "batch_size" not in sweep.axes or len(sweep.axes) > 2:
        return False
    other = _other(sweep)
    if other and len(sweep.values(other)) > MOST:
        return False
    try:
        _laws(sweep)
    except InputError:
        return False
    return True


def norms_by_batch(sweep: Conditions) -> Figure:
    """‖dW‖ and ‖db‖ against the batch size: a line for each of a few layers, or each other value.

    Points are the runs with the 95 % interval over seeds of their distance from the law, lines the
    exact law of the largest batch. Where a second setting varies the middle layer is shown. Raises
    InputError as :func:`flowlab.analysis.batch_law.against_runs` does.
    """
    laws = _laws(sweep)
    with style.context():
        figure = Shown(figsize=(style.WIDTH, HEIGHT))
        axes = figure.subplots(1, 2)
        ends = {}
        for ax, parameter in zip(axes, batch_law.PARAMETERS, strict=True):
            ends[ax] = [
                _line(ax, rows[rows["parameter"] == parameter], place, name)
                for place, (name, rows) in enumerate(laws.items())
            ]
            ax.set_title(f"‖d{parameter}‖" + _where(laws, sweep))
            _frame(ax, sweep)
        share_y(axes)
        grey = "0.35"
        handles = [
            Line2D([], [], color=grey, marker="o", linestyle="none", label="runs, 95 % interval"),
            Line2D([], [], color=grey, label="exact law, from the largest batch"),
        ]
        height = legend(figure, handles, "lower")
        figure.set_figheight(HEIGHT + LINE * height)
        label_ends(figure, ends)
    return figure


def finding(sweep: Conditions) -> str:
    """The slopes of the norms in the batch size, least to greatest, and how far the law is off."""
    laws, parts = _laws(sweep), []
    for parameter in batch_law.PARAMETERS:
        slopes = []
        for rows in laws.values():
            of = rows[rows["parameter"] == parameter]
            slopes.append(-slope_of(of["measured"], np.log10(of["batch_size"].astype(float))))
        low, high = min(slopes), max(slopes)
        power = f"B^{low:z.2f}" if high - low < 0.005 else f"B^{low:z.2f} to B^{high:z.2f}"
        parts.append(f"‖d{parameter}‖ as {power}")
    every = pd.concat(laws.values())
    off = (every["measured"] - every["exact"]).abs().max()
    sizes = sweep.values("batch_size")
    text = f"From B = {bare(sizes[0])} to {bare(sizes[-1])} go {' and '.join(parts)}"
    return f"{text}; runs lie within {off:.2f} decades of the exact law".replace("-", "−")


def _other(sweep: Conditions) -> str | None:
    return next((axis for axis in sweep.axes if axis != "batch_size"), None)


def _laws(sweep: Conditions) -> dict[str, pd.DataFrame]:
    """By what a line is called: rows of parameter and batch size with the law and the runs."""
    other = _other(sweep)
    found = {}
    for value in sweep.values(other) if other else [None]:
        points = sweep.points if other is None else sweep.points[sweep.points[other] == value]
        rows = batch_law.against_runs(sweep.table[sweep.table["run"].isin(points.index)])
        rows = rows.assign(measured=rows["exact"] + np.log10(rows["ratio"]) / 2)
        rows = rows[rows["op"] == rows.groupby(["layer", "parameter"])["op"].transform("last")]
        layers = np.sort(rows["layer"].unique())
        if other is None:
            at = np.linspace(0, len(layers) - 1, min(FEW, len(layers))).round().astype(int)
            for layer in layers[at]:
                found[f"layer {layer}"] = rows[rows["layer"] == layer]
        else:
            found[said(other, value)] = rows[rows["layer"] == layers[len(layers) // 2]]
    return found


def _where(laws: dict[str, pd.DataFrame], sweep: Conditions) -> str:
    layers = {int(rows["layer"].iat[0]) for rows in laws.values()}
    return f" in layer {layers.pop()}" if _other(sweep) and len(layers) == 1 else ""


def _line(ax: Axes, rows: pd.DataFrame, place: int, name: str) -> End:
    color = style.COLORS[place]
    rows = rows.sort_values("batch_size")
    x, exact = rows["batch_size"].to_numpy(float), rows["exact"].to_numpy(float)
    ax.plot(x, exact, color=color, linewidth=1.2, label=f"law: {name}")
    points, low, high = (
        exact + np.log10(rows[end].clip(lower=1e-3)).to_numpy() / 2
        for end in ("ratio", "low", "high")
    )
    error = np.nan_to_num(np.maximum([points - low, high - points], 0))
    look = {"color": color, "marker": style.MARKERS[place], "linestyle": "none", "capsize": 2}
    ax.errorbar(x, points, error, elinewidth=1, label=f"runs: {name}", **look)
    return End(x[-1], points[-1], name, color)


def _frame(ax: Axes, sweep: Conditions) -> None:
    sizes = sweep.values("batch_size")
    ax.set_xscale("log", base=2)
    step = -(-len(sizes) // 6)
    ax.set_xticks(sizes[::step], [bare(size) for size in sizes[::step]])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("batch size $B$")
    low, high = ax.dataLim.intervaly
    pad = max(0.05 * (high - low), (1 - high + low) / 2, 0.05)
    style.decades(ax, low - pad, high + pad)
