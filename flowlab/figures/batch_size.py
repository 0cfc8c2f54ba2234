"""Norms of gradients against the batch size: the exact law, and runs laid over it."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flowlab.analysis import batch_law
from flowlab.analysis.statistics import over_seeds, slope_of
from flowlab.errors import InputError
from flowlab.figures import style

SYMBOLS = {"W": "‖dW‖", "b": "‖db‖"}
_GREY = "0.35"
_FEW = 3  # layers


def one_family(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of runs that differ in batch size alone, those of the first settings by name.

    Of the reductions ``sum`` comes first.
    """
    axes = [a for a in ("data", "init", "activation", "skip", "depth", "width") if a in table]
    runs = table.drop_duplicates("run").sort_values(
        ["reduction", *axes], ascending=[False, *(True for _ in axes)]
    )
    first = runs.iloc[0]
    same = (table[["reduction", *axes]] == first[["reduction", *axes]]).all(axis=1)
    return table[same]


def largest_batch(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of runs at the largest batch size, of one reduction: their law is the same."""
    table = table[table["batch_size"] == table["batch_size"].max()]
    return table[table["reduction"] == table["reduction"].max()]


def norm_by_batch(table: pd.DataFrame, prediction: pd.DataFrame | None = None) -> Figure:
    """‖dW‖ and ‖db‖ against batch size in a few layers, above their local slopes.

    ``table`` holds one run for each batch size (see ``one_family``). Lines are the exact law of the
    largest run, markers the runs, with 95 % intervals over seeds of their distance from the law;
    vertical lines stand at each noise scale B_s, where the slope is ¾. Theory has no say.
    Raises InputError as :func:`flowlab.analysis.batch_law.against_runs` does.
    """
    rows = batch_law.against_runs(table)
    law = _largest_law(table)
    scales = batch_law.noise_scales(law)
    layers = _few(rows["layer"].unique())
    sizes = np.sort(rows["batch_size"].unique())
    per_mean = str(table["reduction"].iat[0]) == "mean"
    with style.context():
        figure = Figure(figsize=(style.WIDTH, 5.2))
        axes = figure.subplots(2, 2, sharex=True)
        for column, parameter in enumerate(batch_law.PARAMETERS):
            upper, lower = axes[:, column]
            for place, layer in enumerate(layers):
                of = _where(rows, layer, parameter)
                color = style.COLORS[place]
                _norms(upper, of, color, style.MARKERS[place])
                _slopes(lower, _where(law, layer, parameter), of, color, style.MARKERS[place])
                scale = _where(scales, layer, parameter)["noise_scale"].iat[0]
                if 1 <= scale <= sizes[-1]:
                    for ax in (upper, lower):
                        ax.axvline(scale, color=color, linewidth=0.9, linestyle=(0, (1, 1.5)))
            upper.set_title(f"{SYMBOLS[parameter]}, reduction={table['reduction'].iat[0]}")
            low, high = upper.dataLim.intervaly
            style.decades(upper, low - 0.1, high + 0.1)
            lower.set_xlabel("batch size $B$")
            lower.set_xscale("log", base=2)
            lower.set_xticks(sizes[::2], [f"{size}" for size in sizes[::2]])
            lower.set_ylim((-0.65, 0.15) if per_mean else (0.35, 1.15))
            for level in (0.5, 0.75, 1.0):
                lower.axhline(level - per_mean, color=_GREY, linewidth=0.7, zorder=0)
        axes[1, 0].set_ylabel("slope of the log-norm")
        handles = [
            Line2D([], [], color=c, marker=m, label=f"layer {layer}")
            for layer, c, m in zip(layers, style.COLORS, style.MARKERS, strict=False)
        ]
        handles += [
            Line2D([], [], color=_GREY, label="exact, from one batch"),
            Line2D([], [], color=_GREY, marker="o", linestyle="none", label="runs, 95 % interval"),
            Line2D([], [], color=_GREY, linestyle=(0, (1, 1.5)), label="$B_s$"),
        ]
        figure.legend(handles=handles, loc="outside upper left", ncols=6, columnspacing=1.0)
    return figure


def norm_by_batch_caption(table: pd.DataFrame, prediction: pd.DataFrame | None = None) -> str:
    """How far the runs lie from the exact law, and each layer's noise scales."""
    rows = batch_law.against_runs(table)
    inside = ((rows["low"] <= 1) & (rows["high"] >= 1))[rows["batch_size"] < _most(rows)]
    law = _largest_law(table)
    scales = batch_law.noise_scales(law)
    told = "; ".join(
        f"layer {layer}: {_number(_where(scales, layer, 'W'))} for W, "
        f"{_number(_where(scales, layer, 'b'))} for b"
        for layer in _few(rows["layer"].unique())
    )
    return (
        f"The law computed from one batch of {_most(rows)} examples passes through "
        f"{inside.sum()} of {len(inside)} measured points (95 % intervals over "
        f"{rows['n'].max()} seeds; every layer, W and b); where a few examples carry most of the "
        f"mean square, small batches seldom hold one. Noise scales B_s, where the slope is ¾: "
        f"{told}."
    )


def noise_by_layer(table: pd.DataFrame, prediction: pd.DataFrame | None = None) -> Figure:
    """B_s of W and of b against layer, a panel for each data set, a colour for each initializer.

    ``table`` holds runs at one batch size (see ``largest_batch``); bands are 95 % intervals over
    seeds, open upward where |G|² may be 0. Raises InputError as
    :func:`flowlab.analysis.batch_law.law`.
    """
    scales = _scales(table)
    data = sorted(scales["data"].unique())
    finite = scales[["noise_scale", "low"]].to_numpy()
    finite = finite[np.isfinite(finite) & (finite > 0)]
    if len(finite) == 0:
        raise InputError("table must hold a finite noise scale; got none")
    top = 10 ** (np.ceil(2 * np.log10(finite.max())) / 2 + 0.25)
    with style.context():
        figure = Figure(figsize=(style.WIDTH, 3.0))
        axes = figure.subplots(1, len(data), sharey=True, squeeze=False)[0]
        handles = {}
        for ax, name in zip(axes, data, strict=True):
            ax.set_title(name)
            ax.set_yscale("log")
            groups = scales[scales["data"] == name].groupby(["init", "parameter"])
            inits = sorted(scales["init"].unique())
            for (init, parameter), rows in groups:
                place = inits.index(init)
                color, filled = style.COLORS[place % len(style.COLORS)], parameter == "W"
                look = {"color": color, "marker": style.MARKERS[place % len(style.MARKERS)]}
                look |= {"linestyle": "-" if filled else (0, (4, 1.5))}
                look |= {"markerfacecolor": color if filled else "white"}
                x, y = rows["layer"], rows["noise_scale"].clip(upper=top)
                ax.fill_between(
                    x, rows["low"], rows["high"].clip(upper=top), color=color, alpha=0.15, lw=0
                )
                (line,) = ax.plot(x, y, label=f"{init}, {parameter}", **look)
                handles[init, parameter] = line
            style.layers(ax, int(scales["layer"].min()), int(scales["layer"].max()))
        axes[0].set_ylabel("noise scale $B_s$")
        axes[0].set_ylim(finite.min() / 1.5, top)
        figure.legend(
            handles=[handles[key] for key in sorted(handles, key=lambda k: k)],
            loc="outside upper left",
            ncols=min(len({init for init, _ in handles}), 4),
        )
    return figure


def noise_by_layer_caption(table: pd.DataFrame, prediction: pd.DataFrame | None = None) -> str:
    """In how many layers the bias has the smaller noise scale."""
    scales = _scales(table)
    wide = scales.pivot_table(
        "noise_scale", ["run", "layer", "op"], "parameter", aggfunc="first", dropna=False
    )
    wide = wide.dropna()
    smaller = int((wide["b"] < wide["W"]).sum())
    return (
        f"The bias has the smaller noise scale in {smaller} of {len(wide)} layers (of all runs): "
        "its gradients lack the factor x_i·x_j that sets the weights' gradients of two examples "
        "apart. It has the larger one where classes balance and their gradients nearly cancel, "
        "which the inputs, alike within a class, prevent for the weights. From batches of "
        f"{int(table['batch_size'].iat[0])} examples, {table['seed'].nunique()} seeds."
    )


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


def _norms(ax: Axes, rows: pd.DataFrame, color: str, marker: str) -> None:
    ax.plot(rows["batch_size"], rows["exact"], color=color, linewidth=1.2)
    level = rows["exact"].to_numpy()
    points, low, high = (
        level + np.log10(rows[name].clip(lower=1e-3)).to_numpy() / 2
        for name in ("ratio", "low", "high")
    )
    error = np.maximum([points - low, high - points], 0)
    look = {"color": color, "marker": marker, "linestyle": "none", "capsize": 2}
    ax.errorbar(rows["batch_size"], points, error, elinewidth=1, **look)


def _slopes(ax: Axes, law: pd.DataFrame, rows: pd.DataFrame, color: str, marker: str) -> None:
    """The law's slope, and differences of neighbouring runs."""
    sizes = rows["batch_size"].to_numpy(float)
    fine = np.geomspace(sizes[0], sizes[-1], 100)
    # The slope of the curve that is drawn: the mean over seeds of log-norms.
    per_mean = (rows["exact"].iloc[-1] < rows["exact"].iloc[0]) * 1.0
    alignment = law["alignment"].dropna().to_numpy()[:, None]
    ax.plot(fine, batch_law.slope(fine, alignment).mean(axis=0) - per_mean, color=color, lw=1.2)
    points = (rows["exact"] + np.log10(rows["ratio"]) / 2).to_numpy()
    slope = np.diff(points) / np.diff(np.log10(sizes))
    ax.plot(np.sqrt(sizes[1:] * sizes[:-1]), slope, color=color, marker=marker, linestyle="none")


def _largest_law(table: pd.DataFrame) -> pd.DataFrame:
    return batch_law.law(table[table["batch_size"] == table["batch_size"].max()])


def _scales(table: pd.DataFrame) -> pd.DataFrame:
    names = table.drop_duplicates("run")[["run", "init", "data"]]
    return batch_law.noise_scales(batch_law.law(table)).merge(names)


def _where(rows: pd.DataFrame, layer: int, parameter: str) -> pd.DataFrame:
    """The rows of a layer's last op."""
    rows = rows[(rows["layer"] == layer) & (rows["parameter"] == parameter)]
    return rows[rows["op"] == rows["op"].iat[-1]]


def _few(layers) -> list[int]:
    layers = np.sort(layers)
    at = np.linspace(0, len(layers) - 1, min(_FEW, len(layers))).round().astype(int)
    return [int(layer) for layer in layers[at]]


def _most(rows: pd.DataFrame) -> int:
    return int(rows["batch_size"].max())


def _number(rows: pd.DataFrame) -> str:
    low, value, high = rows[["low", "noise_scale", "high"]].iloc[0]
    return f"{value:.3g} [{low:.3g}, {high:.3g}]"
