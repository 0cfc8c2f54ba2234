"""Weights beside biases: noise scales and slopes of one net, and where the two must differ."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flowlab.analysis import batch_law
from flowlab.analysis.statistics import over_seeds, slope_of
from flowlab.figures import style

_GREY = "0.35"


def weights_and_biases(law: pd.DataFrame) -> Figure:
    """Noise scales and slopes of W and b against layer in one run, with 95 % intervals over seeds.

    ``law`` is that of the run. Intervals without an upper end, where |G|² may be 0, are arrows; a
    scale that is not known to be finite is the arrow alone. Of several operations in a layer the
    last is shown.
    """
    scales = _last(batch_law.noise_scales(law))
    slopes = _last(over_seeds(law.set_index([*batch_law.KEYS, "seed"])["slope"]))
    with style.context():
        figure = Figure(figsize=(style.WIDTH, 3.1))
        left, right = figure.subplots(1, 2)
        for place, parameter in enumerate(batch_law.PARAMETERS):
            look = {"color": style.COLORS[place], "marker": style.MARKERS[place], "capsize": 2}
            look |= {"markerfacecolor": "white" if place else style.COLORS[place]}
            rows = scales[(scales["parameter"] == parameter) & np.isfinite(scales["low"])]
            shown = rows["noise_scale"].where(np.isfinite(rows["noise_scale"]), rows["low"])
            ends = rows["high"].where(np.isfinite(rows["high"]), shown)
            left.errorbar(rows["layer"], shown, [shown - rows["low"], ends - shown], **look)
            bare = ~np.isfinite(rows["high"])
            left.errorbar(
                *(rows["layer"][bare], shown[bare], shown[bare] / 2),
                **{"lolims": True, "linestyle": "none", "color": style.COLORS[place]},
            )
            rows = slopes[slopes["parameter"] == parameter]
            error = np.abs(rows[["low", "high"]].to_numpy().T - rows["mean"].to_numpy())
            right.errorbar(
                rows["layer"], rows["mean"], np.nan_to_num(error), label=parameter, **look
            )
        left.set_yscale("log")
        left.set_title("noise scale $B_s$")
        right.set_title(f"slope at batch size {int(law['examples'].max())}")
        for ax in (left, right):
            style.layers(ax, int(law["layer"].min()), int(law["layer"].max()))
        figure.legend(loc="outside upper left", ncols=2)
    return figure


def demonstrations(constant: pd.DataFrame, softmax: pd.DataFrame) -> Figure:
    """Where weights and biases of one linear layer must differ: two panels.

    The frames are those of ``constant_upstream`` and ``uniform_softmax`` in
    :mod:`flowlab.instruments.biases`. Norms are root mean squares over seeds.
    """
    with style.context():
        figure = Figure(figsize=(style.WIDTH, 3.1))
        left, right = figure.subplots(1, 2)
        _lines(left, constant, "inputs", "constant upstream")
        kept = softmax[(softmax["labels"] == "independent") | (softmax["parameter"] == "W")]
        _lines(right, kept, "labels", "uniform softmax")
        right.text(
            *(0.97, 0.04, "b, balanced: cancels\n(below rounding)"),
            **{"transform": right.transAxes, "ha": "right", "color": _GREY},
        )
    return figure


def _last(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of each layer's last operation."""
    last = rows.groupby(["layer", "parameter"])["op"].transform("last")
    return rows[rows["op"] == last]


def _lines(ax: Axes, rows: pd.DataFrame, axis: str, title: str) -> None:
    for place, ((value, parameter), of) in enumerate(rows.groupby([axis, "parameter"])):
        look = {"color": style.COLORS[place], "marker": style.MARKERS[place], "markersize": 3.5}
        slope = -slope_of(of["rms"], np.log10(of["batch_size"]))
        label = f"{parameter}, {value}: {slope:.2f}"
        ax.plot(of["batch_size"], of["rms"], label=label, **look)
    ax.set_title(title)
    ax.set_xscale("log", base=2)
    ax.set_xlabel("batch size $B$")
    low, high = ax.dataLim.intervaly
    style.decades(ax, low - 0.35 * (high - low), high + 0.55 * (high - low))
    ax.legend(title="norm: slope", loc="upper left", handlelength=1.2, borderaxespad=0.1)
