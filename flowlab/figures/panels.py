"""The parts that figures of norms are put together from: a panel of curves, keys, legends."""

from collections.abc import Collection
from functools import partial
from math import isfinite, sqrt
from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from flowlab.figures import style
from flowlab.figures.runs import NamedRun, whole_layers

SYMBOLS = {
    "activation_log10_norm": "‖h‖",
    "delta_log10_norm": "‖δ‖",
    "dX_log10_norm": "‖dX‖",
    "dW_log10_norm": "‖dW‖",
    "db_log10_norm": "‖db‖",
    "dh_log10_norm": "‖∂L/∂h_t‖",
}
PANEL = 2.2  # inches, the height of a panel without its labels
LINE = 0.19  # inches, the height of a line of legend
MARKS = 8  # markers along a curve
PLACES = 500  # points along the edge of a band, finer than any page shows
SLOTS = 24  # edge marks along an axis
ROW = 0.05  # height of a row of edge marks, as a fraction of the axis

INTERVAL = {"alpha": 0.35, "linewidth": 0}
SPREAD = {"alpha": 0.14, "linewidth": 0}
THEORY = {"linestyle": (0, (3, 1.6)), "linewidth": 1.2}
THEORY_BAND = {"facecolor": "none", "hatch": "//////", "linewidth": 0.5, "alpha": 0.6}
ZERO = {"marker": "v", "linestyle": "none", "markersize": 4.5}
NONFINITE = {"marker": "x", "linestyle": "none", "markersize": 4.5}

BANDS = ("spread", "interval", "theory interval")

GREY = "0.35"


def panel(
    ax: Axes,
    column: str,
    summary: pd.DataFrame,
    runs: list[NamedRun],
    prediction: pd.DataFrame | None,
    span: int,
    bands: Collection[str] = BANDS,
) -> set[str]:
    """Draw one norm of all runs; the names in key of what was drawn.

    ``bands`` are those of the curves: the mean's interval, the spread of seeds, theory's interval.
    """
    drawn = set()
    edges = {"zero": 0, "nonfinite": 0}
    for place, run in enumerate(runs):
        rows = summary[summary["run"] == run.id]
        if rows.empty:
            continue
        color, marker = style.COLORS[place], style.MARKERS[place]
        # Where all runs have one layer they stand side by side.
        shift = 0 if span else 0.12 * (place - (len(runs) - 1) / 2)
        x = rows["layer"].to_numpy(dtype=np.float64) + shift
        half = 0.02 * span or 0.04
        mean = rows["mean"].to_numpy()

        spread = rows["sd"].to_numpy()
        around = {
            "spread": (mean - spread, mean + spread, {"color": color, **SPREAD}),
            "interval": (*rows[["low", "high"]].to_numpy().T, {"color": color, **INTERVAL}),
        }
        theory = _theory(rows, prediction, column, run)
        if theory is not None:
            level, margin = theory
            look = {"edgecolor": color, **THEORY_BAND}
            around["theory interval"] = level - margin, level + margin, look
        for name, (low, high, look) in around.items():
            if name in bands and np.isfinite(high).any():
                ax.fill_between(*_band(x, low, high, half), label=f"{name}: {run.label}", **look)
                drawn.add(name)
        if np.isfinite(mean).any():
            marks = {"marker": marker, "markevery": _marked(mean, place, len(runs))}
            ax.plot(x, mean, color=color, label=f"mean: {run.label}", **marks)
            drawn.add("mean")
        if theory is not None and np.isfinite(level).any():
            line = _wide(x, half), np.repeat(level, 2) if len(x) == 1 else level
            ax.plot(*line, color=style.shade(color), **THEORY, label=f"theory: {run.label}")
            drawn.add("theory")
        for name, look in (("zero", ZERO), ("nonfinite", NONFINITE)):
            out = x[rows[f"n_{name}"].to_numpy() > 0]
            if len(out):
                height = ROW * (edges[name] + 0.4)
                y = np.full(len(out), height if name == "zero" else 1 - height)
                where = {"transform": ax.get_xaxis_transform(), "markevery": slots(out, span)}
                ax.plot(out, y, color=color, label=f"{name}: {run.label}", **where, **look)
                edges[name] += 1
                drawn.add(name)
    if summary.empty:
        ax.text(0.5, 0.5, "none in these runs", transform=ax.transAxes, ha="center", color=GREY)
    _frame(ax, edges)
    return drawn


def key() -> dict[str, Artist]:
    """What the kinds of artists mean, whatever their colour."""
    line, patch = partial(Line2D, [], [], color=GREY), partial(Patch, edgecolor=GREY)
    return {
        "mean": line(label="mean over seeds"),
        "interval": patch(facecolor=GREY, **INTERVAL, label="95 % interval of the mean"),
        "spread": patch(facecolor=GREY, **SPREAD, label="±1 sd of single seeds"),
        "theory": Line2D([], [], color="black", **THEORY, label="theory"),
        "theory interval": patch(**THEORY_BAND, label="theory: 95 % band of the mean"),
        "nonfinite": line(**NONFINITE, label="nonfinite or lost seeds, not in the mean"),
        "zero": line(**ZERO, label="zero seeds, not in the mean"),
    }


def share_y(axes: Collection[Axes]) -> None:
    """Give panels of norms the limits that hold all of them, the first of them the ticks' labels.

    Panels without a curve have no say.
    """
    drawn = [ax for ax in axes if len(ax.get_yticks())]
    if len(drawn) < 2:
        return
    limits = np.array([ax.get_ylim() for ax in drawn])
    for ax in drawn:
        style.decades(ax, limits[:, 0].min(), limits[:, 1].max())
        if ax is not drawn[0]:
            ax.tick_params(labelleft=False)


def slots(x: np.ndarray, span: int) -> list[int]:
    """One of ``x`` for each stretch of the axis, so that edge marks stay apart."""
    stretch = max(1, -(-span // SLOTS))
    return np.unique((x - x[0]) // stretch, return_index=True)[1].tolist()


def _theory(rows, prediction, column, run) -> tuple[np.ndarray, np.ndarray] | None:
    """Theory's mean and the half-width of its band in the layers of ``rows``, NaN where silent."""
    if prediction is None:
        return None
    curve = whole_layers(prediction)
    curve = curve[curve["run"] == run.id].dropna(subset=column)
    curve = curve.drop_duplicates("layer", keep="last").set_index("layer")
    curve = curve[[column, f"{column}_sd"]].reindex(rows["layer"]).to_numpy(dtype=np.float64)
    return curve[:, 0], 1.96 * curve[:, 1] / sqrt(run.seeds)


def _band(x, low, high, half):
    """The outline of a band, thinned to its envelope where it has more points than a page shows."""
    if len(x) == 1:
        return _wide(x, half), np.repeat(low, 2), np.repeat(high, 2)
    if len(x) > PLACES:
        starts = _evenly(len(x) + 1, PLACES + 1)[:-1]
        low, high = np.fmin.reduceat(low, starts), np.fmax.reduceat(high, starts)
        x = np.linspace(x[0], x[-1], PLACES)
    return x, low, high


def _wide(x: np.ndarray, half: float) -> np.ndarray:
    """A single layer as a short stretch: a line through one point would not show."""
    return np.add(x, [-half, half]) if len(x) == 1 else x


def _marked(mean: np.ndarray, place: int, runs: int) -> list[int]:
    """Where a curve has markers: evenly, runs staggered, and where a point has no neighbour."""
    step = max(1, len(mean) // MARKS)
    at = np.arange(len(mean)) % step == place * step // runs
    gap = np.pad(~np.isfinite(mean), 1, constant_values=True)
    return np.flatnonzero(at | (gap[:-2] & gap[2:])).tolist()


def _evenly(count: int, most: int) -> np.ndarray:
    return np.linspace(0, count - 1, min(count, most)).round().astype(int)


def _frame(ax: Axes, edges: dict[str, int]) -> None:
    """Limits that hold all data between the rows of edge marks."""
    low, high = ax.dataLim.intervaly
    if not (isfinite(low) and isfinite(high)):
        ax.set(ylim=(-1, 1), yticks=[])
        return
    middle, span = (low + high) / 2, max(high - low, 1)
    below, above = (0.05 + ROW * edges[name] for name in ("zero", "nonfinite"))
    unit = span / (1 - below - above)
    style.decades(ax, middle - span / 2 - below * unit, middle + span / 2 + above * unit)


def legend(figure: Figure, handles: list, side: str, title: str | None = None) -> int:
    """A legend above or below the panels, in as many columns as fit; its number of rows.

    A title that is too long for the figure is broken, and what is behind its first line counts.
    """
    title = fill(title, int(12 * figure.get_figwidth())) if title else ""
    longest = max(len(line) for handle in handles for line in handle.get_label().split("\n"))
    entry = (0.6 * longest + 4.5) * style.TEXT / 72
    columns = int(np.clip(figure.get_figwidth() // entry, 1, len(handles)))
    figure.legend(
        handles=handles,
        loc=f"outside {side} left",
        ncols=columns,
        title=title or None,
        alignment="left",
    )
    rows = -(-len(handles) // columns)
    broken = title.count("\n")
    return broken + rows * (1 + max(handle.get_label().count("\n") for handle in handles))
