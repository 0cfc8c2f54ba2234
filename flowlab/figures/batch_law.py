"""Norms of gradients against the batch size: runs, over the exact law where there is one."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flowlab import schema
from flowlab.analysis import batch_law as law
from flowlab.analysis.comparison import differing, settings_words
from flowlab.analysis.statistics import over_seeds
from flowlab.errors import InputError
from flowlab.figures import style
from flowlab.figures.labels import End, label_ends
from flowlab.figures.runs import whole_layers
from flowlab.figures.shown import Shown

SYMBOLS = {"W": "‖dW‖", "b": "‖db‖"}
LEVELS = {0.5: "½: noise", 0.75: "¾: at $B_s$", 1.0: "1: signal"}  # slopes under sum
LEVELS_MEAN = {-0.5: "−½: noise", -0.25: "−¼: at $B_s$", 0.0: "0: signal"}
LOOK = {"linestyle": "none", "capsize": 2, "elinewidth": 1}
HEIGHT = 2.1  # inches, of a panel
MOST = 3  # layers
_GREY = "0.35"


def family(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of runs that differ in batch size alone, those of the first settings by name.

    Families of more batch sizes come first, then ``sum``. Raises InputError for an empty table and
    where no two runs differ in batch size alone.
    """
    return _families(table)[0]


def batch_law(table: pd.DataFrame) -> Figure:
    """‖dW‖ and ‖db‖ against batch size in a few layers of one family, and their local slopes.

    Lines are the exact law of the largest run, markers the runs, with 95 % intervals over seeds;
    the lower panels have the slopes between neighbouring sizes, from ½ where noise dominates to 1
    where the mean gradient does (½ less under ``mean``), ¾ at the noise scale B_s. Where examples
    are coupled there is no law, and norms alone are drawn, means over seeds of their log. Raises
    InputError as ``family`` and :func:`flowlab.analysis.batch_law.against_runs` do.
    """
    families = _families(table)
    table = families[0]
    lawful = _lawful(table)
    points = _points(table) if lawful else _norms(table)
    layers = _few(points["layer"].unique())
    parameters = [p for p in law.PARAMETERS if (points["parameter"] == p).any()]
    with style.context():
        figure = Shown(figsize=(style.WIDTH, 0.7 + HEIGHT * (1 + lawful)))
        shape = 1 + lawful, len(parameters)
        axes = figure.subplots(*shape, sharex=True, sharey="row", squeeze=False)
        sizes = np.sort(points["batch_size"].unique())
        for ax, parameter in zip(axes[0], parameters, strict=True):
            for place, _, rows in _curves(points, layers, parameter):
                _run_norms(ax, rows, place, lawful)
            ax.set_title(SYMBOLS[parameter])
            ax.set_xscale("log", base=2)
            ax.set_xticks(sizes[:: 1 + len(sizes) // 7], minor=False)
            ax.xaxis.set_major_formatter("{x:.0f}")
        low, high = np.array([ax.dataLim.intervaly for ax in axes[0]]).T
        ends = {}
        for ax, parameter in zip(axes[0], parameters, strict=True):
            style.decades(ax, low.min() - 0.1, high.max() + 0.1)
            ends[ax] = _ends(points, layers, parameter, sizes[-1])
        axes[0, 0].set_ylabel("norm of the gradient")
        if lawful:
            ends[axes[1, -1]] = _slope_panels(axes[1], parameters, table, layers)
        for ax in axes[-1]:
            ax.set_xlabel("batch size $B$")
        _legend(figure, lawful, _chosen(families))
        label_ends(figure, ends)
    return figure


def finding(table: pd.DataFrame) -> str:
    """How the norms grow with the batch, where that turns, and how many runs lie on the law."""
    table = family(table)
    reduction = table["reduction"].iat[0]
    if not _lawful(table):
        rows = _norms(table)
        ends = rows["batch_size"].min(), rows["batch_size"].max()
        grown = rows[rows["batch_size"].isin(ends)].pivot_table(
            "log10", ["parameter", "layer", "op"], "batch_size"
        )
        slopes = (grown[ends[1]] - grown[ends[0]]) / np.log10(ends[1] / ends[0])
        words = " and ".join(
            f"{SYMBOLS[p]} changes as {_power(slope)}"
            for p, slope in slopes.groupby("parameter").mean().items()
        )
        return f"From B = {ends[0]} to {ends[1]} under {reduction} {words}; {_silence(table)}"
    inside, of = _on_the_law(table)
    scales = law.noise_scales(_largest(table))
    turns = []
    for parameter, rows in scales.groupby("parameter"):
        finite = rows["noise_scale"][np.isfinite(rows["noise_scale"])]
        turns.append(f"{_span(finite) if len(finite) else 'none'} for {parameter}")
    first, then = ("grow as √B", "as B") if reduction == "sum" else ("shrink as 1/√B", "no more")
    return (
        f"Under {reduction} gradients {first}, and {then} beyond their noise scale "
        f"({', '.join(turns)}): {inside} of {of} measured norms agree with the exact law"
    )


def caption(table: pd.DataFrame) -> str:
    """How far the runs lie from the exact law, and each layer's noise scales."""
    table = family(table)
    if not _lawful(table):
        seeds = table["seed"].nunique()
        return f"Means over {seeds} seeds of log10 norms, 95 % intervals; {_silence(table)}."
    largest = _largest(table)
    scales = law.noise_scales(largest)
    named = "; ".join(
        f"layer {layer}: "
        + ", ".join(
            f"{_number(rows)} for {parameter}"
            for parameter in law.PARAMETERS
            if len(rows := _where(scales, layer, parameter))
        )
        for layer in _few(scales["layer"].unique())
    )
    inside, of = _on_the_law(table)
    return (
        f"The law computed from one batch of {int(largest['examples'].max())} examples passes "
        f"through {inside} of {of} measured points (95 % intervals over "
        f"{table['seed'].nunique()} seeds; every layer, W and b); where a few examples carry most "
        "of the mean square, small batches seldom hold one. Noise scales B_s, where the slope is "
        f"{'¾' if table['reduction'].iat[0] == 'sum' else '−¼'}: {named}."
    )


def _families(table: pd.DataFrame) -> list[pd.DataFrame]:
    """Rows of runs that differ in batch size alone, the family that is drawn first."""
    for name in ("run", "batch_size", "reduction"):
        if name not in table:
            raise InputError(f"the batch law needs the column {name}; got a table without it")
    settings = [name for name in schema.names("setting") if name in table and name != "batch_size"]
    runs = table.drop_duplicates("run")
    # Text, so that nulls have a place and the order does not hang on types.
    keys = ["\0".join(row) for row in runs[settings].astype("string").fillna("").to_numpy()]
    sizes = runs.groupby(np.array(keys, object))
    several = sizes["batch_size"].nunique()
    several = several[several > 1]
    if several.empty:
        raise InputError("table must hold runs that differ in batch size alone; got none")
    order = sorted(
        several.index,
        key=lambda key: (-several[key], sizes.get_group(key)["reduction"].iat[0] != "sum", key),
    )
    return [table[table["run"].isin(sizes.get_group(key)["run"])] for key in order]


def _chosen(families: list[pd.DataFrame]) -> str | None:
    """What sets the family that is drawn apart from others."""
    if len(families) == 1:
        return None
    names = [name for name in schema.names("setting") if name in families[0]]
    firsts = pd.concat([rows[names].head(1) for rows in families])
    apart = [name for name in differing(firsts) if name not in ("batch_size", "seeds")]
    return f"One of {len(families)} such families: {settings_words(firsts.iloc[0], apart)}"


def _lawful(table: pd.DataFrame) -> bool:
    """Whether the largest run has gradients of single examples, from which the law follows."""
    rows = table[table["batch_size"] == table["batch_size"].max()]
    return all(name in rows and rows[name].notna().any() for name in schema.EXAMPLE_NORMS)


def _largest(table: pd.DataFrame) -> pd.DataFrame:
    return law.law(table[table["batch_size"] == table["batch_size"].max()])


def _points(table: pd.DataFrame) -> pd.DataFrame:
    """Root mean squares of runs with intervals, and the law's: ``log10``, low, high, exact."""
    rows = law.against_runs(table)
    ratios = rows[["ratio", "low", "high"]].clip(lower=1e-3)
    logs = (np.log10(ratios) / 2).add(rows["exact"], axis=0)
    return rows.assign(log10=logs["ratio"], low=logs["low"], high=logs["high"])


def _norms(table: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds of log10 norms with intervals: ``log10``, low, high."""
    rows, frames = whole_layers(table), []
    for parameter in law.PARAMETERS:
        column = f"d{parameter}_log10_norm"
        having = rows[rows[column].notna()].set_index(["layer", "op", "batch_size", "seed"])
        frames.append(over_seeds(having[column]).assign(parameter=parameter))
    return pd.concat(frames, ignore_index=True).rename(columns={"mean": "log10"})


def _run_norms(ax: Axes, rows: pd.DataFrame, place: int, lawful: bool) -> None:
    color, marker = style.COLORS[place], style.MARKERS[place]
    margins = [rows["log10"] - rows["low"], rows["high"] - rows["log10"]]
    x, margins = rows["batch_size"], np.nan_to_num(np.maximum(margins, 0))
    ax.errorbar(x, rows["log10"], margins, color=color, marker=marker, **LOOK)
    line = rows["exact"] if lawful else rows["log10"]
    ax.plot(x, line, color=color, linewidth=1.2, label=f"layer {rows['layer'].iat[0]}")


def _ends(points: pd.DataFrame, layers, parameter: str, size: int) -> list[End]:
    ends = []
    for place, layer, rows in _curves(points, layers, parameter):
        end = rows[rows["batch_size"] == size]["log10"].iat[0]
        ends.append(End(size, end, f"layer {layer}", style.COLORS[place]))
    return ends


def _slope_panels(axes, parameters, table: pd.DataFrame, layers: list[int]) -> list[End]:
    """The law's slopes, those between neighbouring runs with intervals, and the noise scales.

    Gives the names of the levels.
    """
    mean = table["reduction"].iat[0] == "mean"
    rows, slopes = _largest(table), law.slopes_of_runs(table)
    scales = law.noise_scales(rows)
    first, last = table["batch_size"].min(), table["batch_size"].max()
    fine = np.geomspace(first, last, 100)
    levels = LEVELS_MEAN if mean else LEVELS
    bottom, top = min(levels) - 0.2, max(levels) + 0.2
    for ax, parameter in zip(axes, parameters, strict=True):
        for level in levels:
            ax.axhline(level, color=_GREY, linewidth=0.7, zorder=0)
        for place, layer, of in _curves(slopes, layers, parameter):
            color, marker = style.COLORS[place], style.MARKERS[place]
            alignment = _where(rows, layer, parameter)["alignment"].dropna().to_numpy()[:, None]
            ax.plot(fine, law.slope(fine, alignment).mean(axis=0) - mean, color=color, lw=1.2)
            margins = np.nan_to_num([of["slope"] - of["low"], of["high"] - of["slope"]])
            # Beside one another, so that intervals can be told apart.
            x = of["batch_size"] * 2 ** (0.12 * (place - (len(layers) - 1) / 2))
            ax.errorbar(x, of["slope"], margins, color=color, marker=marker, **LOOK)
            scale = _where(scales, layer, parameter)["noise_scale"].iat[0]
            if first <= scale <= last:
                ax.vlines(scale, bottom, 0.75 - mean, color=color, lw=1, ls=(0, (1, 1.5)))
        ax.set_ylim(bottom, top)
        ax.tick_params(axis="y", labelsize=style.TEXT)
    axes[0].set_ylabel("slope of the log-norm")
    return [End(last * 1.4, level, name, _GREY) for level, name in levels.items()]


def _legend(figure: Figure, lawful: bool, title: str | None) -> None:
    points = {"color": _GREY, "marker": "o", "linestyle": "none"}
    handles = [Line2D([], [], **points, label="runs, 95 % interval")]
    if lawful:
        line = {"color": _GREY, "linewidth": 1.2, "label": "exact law, from the largest batch"}
        dots = {"color": _GREY, "linestyle": (0, (1, 1.5)), "label": "noise scale $B_s$"}
        handles += [Line2D([], [], **line), Line2D([], [], **dots)]
    where = {"loc": "outside lower left", "alignment": "left", "ncols": 3}
    figure.legend(handles=handles, title=title, **where)


def _where(rows: pd.DataFrame, layer: int, parameter: str) -> pd.DataFrame:
    """The rows of a layer's last op that has the parameter."""
    rows = rows[(rows["layer"] == layer) & (rows["parameter"] == parameter)]
    return rows if rows.empty else rows[rows["op"] == rows["op"].iat[-1]]


def _curves(rows: pd.DataFrame, layers: list[int], parameter: str):
    """(place, layer, rows) of the layers that have the parameter."""
    found = [(place, layer, _where(rows, layer, parameter)) for place, layer in enumerate(layers)]
    return [curve for curve in found if len(curve[2])]


def _few(layers) -> list[int]:
    layers = np.sort(layers)
    at = np.linspace(0, len(layers) - 1, min(MOST, len(layers))).round().astype(int)
    return [int(layer) for layer in layers[at]]


def _on_the_law(table: pd.DataFrame) -> tuple[int, int]:
    """How many intervals of smaller runs hold the law, of how many."""
    rows = law.against_runs(table)
    rows = rows[rows["batch_size"] < rows["batch_size"].max()]
    return int(((rows["low"] <= 1) & (rows["high"] >= 1)).sum()), len(rows)


def _silence(table: pd.DataFrame) -> str:
    coupled = "norm" in table and (table["norm"] == "batch").any()
    why = (
        "batch norm couples the examples" if coupled else "gradients of single examples are absent"
    )
    return f"there is no law, as {why}"


def _power(slope: float) -> str:
    return f"B^{slope:z.2f}".replace("-", "−")


def _span(values: pd.Series) -> str:
    low, high = _three(values.min()), _three(values.max())
    return low if low == high else f"{low} to {high}"


def _number(rows: pd.DataFrame) -> str:
    low, value, high = rows[["low", "noise_scale", "high"]].iloc[0]
    if not np.isfinite(value):
        return f"above {_three(low)}"
    return f"{_three(value)} [{_three(low)}, {_three(high) if np.isfinite(high) else 'no bound'}]"


def _three(value: float) -> str:
    """A number in three digits, whole from 100 on."""
    return f"{value:.0f}" if 100 <= value < 1e6 else f"{value:.3g}"
