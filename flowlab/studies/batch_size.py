"""Norms of gradients against the batch size: the exact law, and runs laid over it."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flowlab.analysis import batch_law
from flowlab.analysis.statistics import mean_interval
from flowlab.claims import compare
from flowlab.claims.claim import CONDITIONAL, FAILS, HOLDS, OPEN, Finding
from flowlab.errors import InputError
from flowlab.figures import style
from flowlab.studies.study import Drawing, Reading, Study, finding, runs_with

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


def norm_by_batch(reading: Reading) -> Figure:
    """‖dW‖ and ‖db‖ against batch size in a few layers, above their local slopes.

    ``table`` holds one run for each batch size (see ``one_family``). Lines are the exact law of the
    largest run, markers the runs, with 95 % intervals over seeds of their distance from the law;
    vertical lines stand at each noise scale B_s, where the slope is ¾. Theory has no say.
    Raises InputError as :func:`flowlab.analysis.batch_law.against_runs` does.
    """
    table = reading.table
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


def norm_by_batch_caption(reading: Reading) -> str:
    """How far the runs lie from the exact law, and each layer's noise scales."""
    table = reading.table
    rows = batch_law.against_runs(table)
    inside = ((rows["low"] <= 1) & (rows["high"] >= 1))[rows["batch_size"] < _most(rows)]
    law = _largest_law(table)
    scales = batch_law.noise_scales(law)
    named = "; ".join(
        f"layer {layer}: {_number(_where(scales, layer, 'W'))} for W, "
        f"{_number(_where(scales, layer, 'b'))} for b"
        for layer in _few(rows["layer"].unique())
    )
    return (
        f"The law computed from one batch of {_most(rows)} examples passes through "
        f"{inside.sum()} of {len(inside)} measured points (95 % intervals over "
        f"{rows['n'].max()} seeds; every layer, W and b); where a few examples carry most of the "
        f"mean square, small batches seldom hold one. Noise scales B_s, where the slope is ¾: "
        f"{named}."
    )


def noise_by_layer(reading: Reading) -> Figure:
    """B_s of W and of b against layer, a panel for each data set, a colour for each initializer.

    ``table`` holds runs at one batch size (see ``largest_batch``); bands are 95 % intervals over
    seeds, open upward where |G|² may be 0. Raises InputError as
    :func:`flowlab.analysis.batch_law.law`.
    """
    table = reading.table
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


def noise_by_layer_caption(reading: Reading) -> str:
    """In how many layers the bias has the smaller noise scale."""
    table = reading.table
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


NET = {"depth": 4, "width": 24, "activation": "relu", "init": "he", "upstream": "loss"}
QUICK = [
    {**NET, "reduction": reduction, "dtype": "float64", "batch_size": size}
    for reduction in batch_law.REDUCTIONS
    for size in (1, 4, 16, 64, 256)
]


def _families(table: pd.DataFrame) -> dict[str, tuple[pd.Series, pd.Series]]:
    """By reduction ‖g_B‖² of runs over the law of the largest batch, and log10 of the law's norm.

    Of He ReLU nets on gaussian data, both by (layer, parameter, batch_size, seed), for all batch
    sizes but the largest. Raises InputError where one of the reductions or all smaller batches
    are absent, and where batch sizes repeat.
    """
    found = {}
    for reduction in batch_law.REDUCTIONS:
        net = {"activation": "relu", "init": "he", "data": "gaussian", "reduction": reduction}
        rows = runs_with(table, **net, upstream="loss", skip="none", norm="none")
        *sizes, largest = (int(size) for size in sorted(rows["batch_size"].unique()))
        runs = rows.groupby("batch_size")["run"].nunique()
        if not sizes or runs.max() > 1:
            raise InputError(
                f"table must hold one run for each of several batch sizes under {reduction}; got "
                f"{', '.join(f'{n} of {size}' for size, n in runs.items())}"
            )
        law = batch_law.law(rows[rows["batch_size"] == largest])
        exact = batch_law.log10_norms(law, sizes, reduction).droplevel(["run", "op"])
        norms = [
            rows.set_index(["layer", "batch_size", "seed"])[f"d{parameter}_log10_norm"]
            for parameter in batch_law.PARAMETERS
        ]
        measured = pd.concat(norms, keys=batch_law.PARAMETERS, names=["parameter"])
        measured = measured.reorder_levels(exact.index.names).reindex(exact.index)
        found[reduction] = 10.0 ** (2 * (measured - exact)), exact
    return found


def _sizes(exact: pd.Series) -> list[int]:
    return sorted(exact.index.get_level_values("batch_size").unique())


@finding(
    "B1",
    "E‖Σg‖² = B²|G|² + B·trΣ over random batches, divided by B² under mean: the log-log slope "
    "rises from ½ through ¾ at B = trΣ/|G|² to 1.",
    "McCandlish et al. 2018, appendix A",
    runs=QUICK,
)
def law_of_batches(reading: Reading) -> Finding:
    """Runs at several batch sizes, whose examples are subsets of the largest run's."""
    parts, families = [], _families(reading.table)
    for reduction, (ratios, _) in families.items():
        groups = ratios.groupby(["layer", "parameter", "batch_size"])
        for (layer, parameter, size), values in groups:
            name = f"‖d{parameter}‖² over the law (layer {layer}, B = {size}, {reduction})"
            parts.append(compare.mean(name, values, 1.0))
    worst = compare.worst(parts)
    largest = int(reading.table["batch_size"].max())
    return worst.finding(
        f"The law computed from {largest} examples gives the mean squared norms at B = "
        f"{', '.join(map(str, _sizes(families['sum'][1])))} in all {len(parts)} cases (layers, W "
        f"and b, reductions); the furthest is {worst.measured:.3f} of it."
        if worst.verdict == HOLDS
        else f"Of the law computed from {largest} examples the furthest mean squared norm, "
        f"{worst.quantity}, is {worst.measured:.3f}."
    )


@finding(
    "S4",
    "dW sums over the n examples, so larger batches give larger gradients and the learning rate "
    "must scale with the batch.",
    "the text",
    CONDITIONAL,
    runs=QUICK,
)
def larger_batches(reading: Reading) -> Finding:
    """The slope of log ‖dW‖ from the least to the largest of the batch sizes, and the law's."""
    slopes, predicted = {}, {}
    for reduction, (ratios, exact) in _families(reading.table).items():
        sizes = _sizes(exact)
        logs = exact + np.log10(ratios) / 2
        for found, values in ((slopes, logs), (predicted, exact)):
            ends = values.xs("W", level="parameter").groupby(["seed", "batch_size"]).mean()
            ends = ends.unstack()
            found[reduction] = (ends[sizes[-1]] - ends[sizes[0]]) / np.log10(sizes[-1] / sizes[0])
    # The mean of log ‖dW‖ at B = 1 lies below the log of its mean square, the more so the more
    # examples differ: the law is for the latter, and the allowance for the difference.
    measured = {reduction: mean_interval(values) for reduction, values in slopes.items()}
    law = mean_interval(predicted["sum"]).mean
    result = compare.mean("slope of log‖dW‖ in log B, sum", slopes["sum"], law, allowance=0.1)
    grows, shrinks = measured["sum"].low > 0.5 - 0.1, measured["mean"].high < 0
    verdict = CONDITIONAL if result.verdict == HOLDS and grows and shrinks else OPEN
    return result.finding(
        f"Under sum ‖dW‖ grows as B^{measured['sum'].mean:.2f} up to B = {sizes[-1]}; under mean, "
        f"the usual choice, it shrinks as B^{measured['mean'].mean:.2f} towards |G|. What that "
        "asks of the learning rate is not measured here.",
        verdict if result.verdict != FAILS else FAILS,
    )


STUDY = Study(
    "How does the gradient's norm grow with the batch, and do biases differ from weights?",
    "McCandlish et al. 2018",
    (
        Drawing(
            "norm_by_batch",
            lambda reading: "The gradient's norm against batch size",
            norm_by_batch,
            norm_by_batch_caption,
            one_family,
        ),
        Drawing(
            "noise_by_layer",
            lambda reading: "The noise scales of weights and biases",
            noise_by_layer,
            noise_by_layer_caption,
            largest_batch,
        ),
    ),
    (law_of_batches, larger_batches),
    rank=6,
)
