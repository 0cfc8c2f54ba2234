"""A gradient far below what floating point can hold, and the layers where others read 0."""

from math import log10
from textwrap import fill

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flowlab.analysis.statistics import profile
from flowlab.errors import InputError
from flowlab.figures import style
from flowlab.figures.panels import THEORY, legend
from flowlab.figures.runs import describe, whole_layers
from flowlab.schema import DELTA

# log2 of half the smallest subnormal: what lies below is rounded to 0.
UNDERFLOW = {"float32": -150, "float64": -1075}
HEIGHT = 4.5  # inches


def depths_of_underflow(
    table: pd.DataFrame, prediction: pd.DataFrame | None = None, positions: int = 1
) -> Figure:
    """One run's log10‖δ‖ against layer, all of them and those near the output.

    Marked: the layer, going backward, from which float32 and float64 would read ‖δ‖ as 0: first a
    plain norm, whose squares underflow, then the entries themselves, both judged by the root mean
    square of δ's entries: width × ``positions`` of each example. Dashes are theory.
    Raises InputError unless ``table`` holds one run.
    """
    mean, marks = _line(table), _marks(table, positions)
    first, last = int(mean.index.min()), int(mean.index.max())
    lowest = min((layer for _, layer in marks.values() if layer), default=first)
    near = max(first, last - int(1.15 * (last - lowest)) - 1)
    _, shared = describe(table)
    shared = fill(shared, int(13 * style.WIDTH))
    with style.context():
        figure = Figure(figsize=(style.WIDTH, HEIGHT))
        for ax, start in zip(figure.subplots(1, 2), (first, near), strict=True):
            style.layers(ax, start, last)
            shown = mean[mean.index >= start]
            ax.plot(shown.index, shown, color=style.COLORS[0], label="mean")
            if prediction is not None:
                curve = whole_layers(prediction).dropna(subset=DELTA)
                curve = curve.drop_duplicates("layer", keep="last")
                curve = curve[curve["layer"] >= start]
                shade = style.shade(style.COLORS[0])
                ax.plot(curve["layer"], curve[DELTA], color=shade, **THEORY, label="theory")
            for (name, (_, layer)), look in zip(marks.items(), _looks(), strict=True):
                if layer:
                    ax.plot([layer], [mean[layer]], label=name, **look)
            if start == first:
                ax.set_title("‖δ‖ in all layers")
            else:
                ax.set_title(f"‖δ‖ in layers {start} to {last}")
            style.decades(ax, *_limits(shown))
        handles = [Line2D([], [], color=style.COLORS[0], label="mean over seeds")]
        if prediction is not None and prediction[DELTA].notna().any():
            handles.append(
                Line2D([], [], color=style.shade(style.COLORS[0]), **THEORY, label="theory")
            )
        for (name, (_, layer)), look in zip(marks.items(), _looks(), strict=True):
            if layer:
                handles.append(Line2D([], [], label=f"{name} from layer {layer} down", **look))
        legend(figure, handles, "lower", title=shared)
    return figure


def underflow_caption(
    table: pd.DataFrame, prediction: pd.DataFrame | None = None, positions: int = 1
) -> str:
    """How small the gradient gets, and the layers from which floating point reads 0."""
    mean, marks = _line(table), _marks(table, positions)
    first, last = mean.index.min(), mean.index.max()
    text = (
        f"log10‖δ‖ goes from {mean[last]:.1f} in layer {last} to {mean[first]:.1f} in layer {first}"
    )
    if prediction is not None:
        curve = whole_layers(prediction)
        curve = curve[curve["layer"] == first][DELTA].dropna()
        if len(curve):
            text += f" (theory {curve.iloc[-1]:.1f})"
    found = [f"{name} from layer {layer} down" for name, (_, layer) in marks.items() if layer]
    if not found:
        return f"{text}; neither float32 nor float64 would read 0 anywhere."
    return f"{text}; {', '.join(found)}."


def _line(table: pd.DataFrame) -> pd.Series:
    """The mean over seeds of log10‖δ‖ by layer."""
    if table["run"].nunique() != 1:
        raise InputError(f"table must hold one run; got {table['run'].nunique()}")
    return profile(table, DELTA).set_index("layer")["mean"].dropna()


def _marks(table: pd.DataFrame, positions: int) -> dict[str, tuple[float, int | None]]:
    """By what reads 0: the log10 of the least root mean square, the first layer below it or None.

    Frobenius norms are over batch × fan_out entries, of images batch × width × positions.
    """
    mean = _line(table)
    rows = whole_layers(table)
    last_op = rows[rows[DELTA].notna()].drop_duplicates("layer", keep="last").set_index("layer")
    units = last_op["fan_out"] if positions == 1 else last_op["width"] * positions
    entries = last_op["batch_size"] * units
    rms = mean - 0.5 * np.log10(entries.reindex(mean.index))
    marks = {}
    for dtype, power in UNDERFLOW.items():
        for name, bound in ((f"{dtype}: norm reads 0", power / 2), (f"{dtype}: δ is 0", power)):
            below = rms.index[rms < bound * log10(2)]
            marks[name] = bound * log10(2), int(below.max()) if len(below) else None
    return marks


def _limits(values: pd.Series) -> tuple[float, float]:
    low, high = values.min(), values.max()
    pad = 0.05 * max(high - low, 1)
    return low - pad, high + pad


def _looks() -> list[dict]:
    pairs = ((1, "v"), (1, "s"), (2, "v"), (2, "s"))
    base = {"linestyle": "none", "markersize": 7, "zorder": 3}
    return [{"color": style.COLORS[c], "marker": marker, **base} for c, marker in pairs]
