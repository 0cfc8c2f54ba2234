"""Weights beside biases: noise scales and slopes of one net, and where the two must differ."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flowlab.analysis import batch_law
from flowlab.analysis.statistics import over_seeds, slope_of
from flowlab.figures import style
from flowlab.figures.labels import End, label_ends
from flowlab.figures.shown import Shown

HEIGHT = 3.1  # inches
ALIKE = 0.03  # in slope and in decades: lines that no page sets apart
NAMES = {"W": "weights", "b": "biases"}
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
        figure = Shown(figsize=(style.WIDTH, HEIGHT))
        left, right = figure.subplots(1, 2)
        ends = {left: [], right: []}
        for place, parameter in enumerate(batch_law.PARAMETERS):
            look = {"color": style.COLORS[place], "marker": style.MARKERS[place], "capsize": 2}
            look |= {"markerfacecolor": "white" if place else style.COLORS[place]}
            rows = scales[(scales["parameter"] == parameter) & np.isfinite(scales["low"])]
            shown = rows["noise_scale"].where(np.isfinite(rows["noise_scale"]), rows["low"])
            high = rows["high"].where(np.isfinite(rows["high"]), shown)
            # Beside one another, so that neither hides the other's interval.
            shift = 0.08 * (2 * place - 1)
            left.errorbar(rows["layer"] + shift, shown, [shown - rows["low"], high - shown], **look)
            bare = ~np.isfinite(rows["high"])
            left.errorbar(
                *(rows["layer"][bare] + shift, shown[bare], shown[bare] / 2),
                **{"lolims": True, "linestyle": "none", "color": style.COLORS[place]},
            )
            if len(rows):
                end = rows["layer"].iat[-1] + shift, shown.iat[-1]
                ends[left].append(End(*end, NAMES[parameter], style.COLORS[place]))
            rows = slopes[slopes["parameter"] == parameter]
            error = np.abs(rows[["low", "high"]].to_numpy().T - rows["mean"].to_numpy())
            right.errorbar(
                rows["layer"] + shift, rows["mean"], np.nan_to_num(error), label=parameter, **look
            )
            if len(rows):
                end = rows["layer"].iat[-1] + shift, rows["mean"].iat[-1]
                ends[right].append(End(*end, NAMES[parameter], style.COLORS[place]))
        left.set_yscale("log")
        left.set_ylabel("noise scale $B_s$, examples")
        right.set_ylabel(f"slope of the log-norm at $B$ = {int(law['examples'].max())}")
        for ax in (left, right):
            style.layers(ax, int(law["layer"].min()), int(law["layer"].max()))
            ax.tick_params(axis="y", labelsize=style.TEXT)
        label_ends(figure, ends)
    return figure


def finding(law: pd.DataFrame) -> str:
    """In how many linear maps the bias has the smaller noise scale, from what to what each goes."""
    scales = _last(batch_law.noise_scales(law))
    wide = scales.pivot(index="layer", columns="parameter", values="noise_scale").dropna()
    smaller = int((wide["b"] < wide["W"]).sum())
    first, last = wide.index[0], wide.index[-1]
    words = " and ".join(
        f"{_scale(wide[p][first])} to {_scale(wide[p][last])} for the {NAMES[p]}"
        for p in batch_law.PARAMETERS
    )
    return (
        f"The biases have the smaller noise scale in {smaller} of {len(wide)} layers: from layer "
        f"{first} to {last} it goes from {words}"
    )


def demonstrations(constant: pd.DataFrame, softmax: pd.DataFrame) -> Figure:
    """Where weights and biases of one linear layer must differ: two panels.

    The frames are those of ``constant_upstream`` and ``uniform_softmax`` in
    :mod:`flowlab.instruments.biases`. Norms are root mean squares over seeds; lines that coincide
    have one name.
    """
    with style.context():
        figure = Shown(figsize=(style.WIDTH, HEIGHT))
        left, right = figure.subplots(1, 2)
        ends = {left: _lines(left, constant, "inputs", "constant upstream gradient")}
        kept = softmax[(softmax["labels"] == "independent") | (softmax["parameter"] == "W")]
        ends[right] = _lines(right, kept, "labels", "uniform softmax, labels")
        right.text(
            *(0.97, 0.04, "b, balanced: cancels\n(below rounding)"),
            **{"transform": right.transAxes, "ha": "right", "color": _GREY},
        )
        left.set_ylabel("norm of the gradient")
        label_ends(figure, ends)
    return figure


def _last(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of each layer's last operation."""
    last = rows.groupby(["layer", "parameter"])["op"].transform("last")
    return rows[rows["op"] == last]


def _scale(value: float) -> str:
    return f"{value:.3g}" if np.isfinite(value) else "no bound"


def _lines(ax: Axes, rows: pd.DataFrame, axis: str, title: str) -> None:
    ends: list[list] = []
    for place, ((parameter, value), of) in enumerate(rows.groupby(["parameter", axis])):
        color = style.COLORS[place]
        # Open marks, the later the smaller, so that those that coincide all show.
        look = {"marker": style.MARKERS[place], "markersize": 7 - 1.5 * place}
        look |= {"markerfacecolor": "white", "linewidth": 1.2, "color": color}
        of = of.sort_values("batch_size")
        slope = -slope_of(of["rms"], np.log10(of["batch_size"]))
        ax.plot(of["batch_size"], of["rms"], label=f"{parameter}, {value}", **look)
        end = [*of[["batch_size", "rms"]].iloc[-1], parameter, [value], slope, color]
        alike = [e for e in ends if e[2] == parameter and abs(e[4] - slope) < ALIKE]
        level = [np.interp(np.log(of["batch_size"].iat[-1]), *e[6]) for e in alike]
        same = [e for e, y in zip(alike, level, strict=True) if abs(y - end[1]) < ALIKE]
        if same:
            same[0][3].append(value)
        else:
            ends.append([*end, (np.log(of["batch_size"]), of["rms"])])
    ax.set_title(title)
    ax.set_xscale("log", base=2)
    ax.set_xlabel("batch size $B$")
    low, high = ax.dataLim.intervaly
    style.decades(ax, low - 0.1 * (high - low), high + 0.1 * (high - low))
    return [
        End(x, y, f"{parameter}, {' or '.join(values)}: $B^{{{slope:.2f}}}$", color)
        for x, y, parameter, values, slope, color, _ in ends
    ]
