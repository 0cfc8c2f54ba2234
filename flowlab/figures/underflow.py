"""Gradients far below what floating point can hold, and the layers where others read 0."""

from math import log10

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flowlab.analysis.statistics import profile
from flowlab.errors import InputError
from flowlab.figures import style
from flowlab.figures.labels import MOST, End, label_ends
from flowlab.figures.panels import LINE, THEORY, legend
from flowlab.figures.runs import whole_layers
from flowlab.figures.shown import Shown
from flowlab.figures.sweeps import Conditions
from flowlab.schema import DELTA

# log2 of half the smallest subnormal: what lies below is rounded to 0.
UNDERFLOW = {"float32": -150, "float64": -1075}
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
HEIGHT = 3.4  # inches
LOOK = {"linestyle": "none", "zorder": 4, "markeredgecolor": "black"}
MARKERS = {"norm reads 0": "v", "δ is 0": "s"}
FILLED = {"float32": "white", "float64": "black"}


def depths_of_underflow(sweep: Conditions, side: int | None = None) -> Figure:
    """log10‖δ‖ of up to 8 runs against layer, all of the layers and those near the output.

    Marked: the layer, going backward, from which float32 and float64 would read ‖δ‖ as 0: first a
    plain norm, whose squares underflow, then the entries themselves, both judged by the root mean
    square of δ's entries. Of images, whose ``side`` the table says or the caller, these are
    width × side² of each example. Dashes are theory. Raises InputError for more runs.
    """
    if len(sweep.rows) > MOST:
        raise InputError(f"table must hold at most {MOST} runs; got {len(sweep.rows)}")
    lines = {
        row.run: (row.label, *_line(sweep.table[sweep.table["run"] == row.run], side))
        for row in sweep.rows.itertuples()
    }
    first = min(int(mean.index.min()) for _, mean, _ in lines.values())
    last = max(int(mean.index.max()) for _, mean, _ in lines.values())
    # Where float32 gives out soonest.
    zeros = [marks["float32", "δ is 0"] for *_, marks in lines.values()]
    lowest = max((layer for layer in zeros if layer), default=first)
    near = max(first, last - int(1.3 * (last - lowest)) - 1)
    with style.context():
        figure = Shown(figsize=(style.WIDTH, HEIGHT))
        axes = figure.subplots(1, 2)
        ends = {}
        for ax, start in zip(axes, (first, near), strict=True):
            ends[ax] = []
            style.layers(ax, start, last)
            low, high = np.inf, -np.inf
            for (run, (name, mean, marks)), color in zip(lines.items(), style.COLORS, strict=False):
                shown = mean[mean.index >= start]
                ax.plot(shown.index, shown, color=color, label=f"mean: {name}")
                _theory(ax, sweep.prediction, run, start, color, name)
                for (dtype, what), layer in marks.items():
                    if layer and layer >= start:
                        look = {"marker": MARKERS[what], "markerfacecolor": FILLED[dtype]}
                        ax.plot([layer], [mean[layer]], label=f"{dtype}: {what}", **look, **LOOK)
                low, high = min(low, shown.min()), max(high, shown.max())
                ends[ax].append(End(shown.index[0], shown.iloc[0], name, color))
            ax.set_title("‖δ‖ in all layers" if start == first else f"‖δ‖ from layer {start}")
            pad = 0.05 * max(high - low, 1)
            style.decades(ax, low - pad, high + pad)
        found = {key for *_, marks in lines.values() for key, layer in marks.items() if layer}
        handles = [
            Line2D(
                *([], []),
                **{"marker": MARKERS[what], "markerfacecolor": FILLED[dtype], **LOOK},
                label=f"{dtype}: {what}",
            )
            for dtype in UNDERFLOW
            for what in MARKERS
            if (dtype, what) in found
        ]
        if sweep.rows["predicted"].notna().any():
            handles.append(Line2D([], [], color="black", **THEORY, label="theory"))
        if handles:
            figure.set_figheight(HEIGHT + LINE * legend(figure, handles, "lower"))
        if len(lines) > 1:
            label_ends(figure, ends, "left")
    return figure


def finding(sweep: Conditions, side: int | None = None) -> str:
    """How small the smallest gradient gets, and from which layer floating point reads 0."""
    lines = [_line(sweep.table[sweep.table["run"] == run], side) for run in sweep.rows["run"]]
    mean, marks = min(lines, key=lambda line: line[0].iloc[0])
    first = mean.index.min()
    power = f"{mean[first]:.0f}".translate(SUPERSCRIPT)
    text = f"Measured down to ‖δ‖ = 10{power} in layer {first}"
    zeros = [
        f"from layer {layer} down in {dtype}"
        for dtype in UNDERFLOW
        if (layer := marks[dtype, "norm reads 0"])
    ]
    return f"{text}; a plain norm reads 0 {' and '.join(zeros)}" if zeros else text


def caption(sweep: Conditions, side: int | None = None) -> str:
    """How small each run's gradient gets, and the layers from which floating point reads 0."""
    parts = []
    for row in sweep.rows.itertuples():
        mean, marks = _line(sweep.table[sweep.table["run"] == row.run], side)
        first, last = mean.index.min(), mean.index.max()
        text = "" if len(sweep.rows) == 1 else f"{row.label}: "
        text += f"log10‖δ‖ goes from {mean[last]:.1f} in layer {last} to {mean[first]:.1f} in "
        text += f"layer {first}"
        if np.isfinite(row.predicted):
            text += f" (a change of {row.mean:z.1f}, theory {row.predicted:z.1f})"
        found = [
            f"{dtype}: {what} from layer {layer} down"
            for (dtype, what), layer in marks.items()
            if layer
        ]
        zeros = ", ".join(found) or "neither float32 nor float64 would read 0 anywhere"
        parts.append(f"{text}; {zeros}.")
    return " ".join(parts)


def _theory(ax, prediction, run, start: int, color: str, name: str) -> None:
    if prediction is None:
        return
    curve = whole_layers(prediction[prediction["run"] == run]).dropna(subset=DELTA)
    curve = curve.drop_duplicates("layer", keep="last")
    curve = curve[curve["layer"] >= start]
    look = {"color": style.shade(color), **THEORY}
    ax.plot(curve["layer"], curve[DELTA], label=f"theory: {name}", **look)


def _line(
    table: pd.DataFrame, side: int | None
) -> tuple[pd.Series, dict[tuple[str, str], int | None]]:
    """The mean over seeds of log10‖δ‖ by layer; by what reads 0 the first layer where it does.

    Frobenius norms are over batch × fan_out entries, of images batch × width × positions.
    """
    table = whole_layers(table)
    mean = profile(table, DELTA).set_index("layer")["mean"].dropna()
    ops = table[table[DELTA].notna()].drop_duplicates("layer", keep="last").set_index("layer")
    if "image" in ops and ops["image"].notna().all():
        side = int(ops["image"].iat[0])
    imaged = side is not None and "network" in ops and ops["network"].iat[0] in ("cnn", "resnet")
    units = ops["width"] * side**2 if imaged else ops["fan_out"]
    entries = (ops["batch_size"] * units).astype(float)
    rms = mean - 0.5 * np.log10(entries.reindex(mean.index))
    marks = {}
    for dtype, power in UNDERFLOW.items():
        for what, bound in (("norm reads 0", power / 2), ("δ is 0", power)):
            below = rms.index[rms < bound * log10(2)]
            marks[dtype, what] = int(below.max()) if len(below) else None
    return mean, marks
