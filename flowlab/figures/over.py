"""The change of the gradient's norm against a number: depth, steps, width, a gain."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, NullLocator

from flowlab.figures import style
from flowlab.figures.labels import End, label_ends
from flowlab.figures.one_axis import silent
from flowlab.figures.panels import LINE, THEORY, legend
from flowlab.figures.ratios import SYMBOL, TIME_SYMBOL
from flowlab.figures.sentences import crossed, ends_of, kept_and_most, majority
from flowlab.figures.shown import Shown
from flowlab.figures.sweeps import SIZES, Conditions
from flowlab.figures.words import MOST, bare, decades, listed, moved, said

HEIGHT = 3.0  # inches, a panel
KEPT = {"facecolor": "0.92", "linewidth": 0, "zorder": 0}
LAW = {"linestyle": ":", "linewidth": 1.3, "color": "0.25"}
LONG = 110  # letters of what is kept, beyond which it is counted
LETTERS = 26  # of a label's line, panels together
ONE = "all runs"  # the line of a sweep that varies nothing else


def change_over(
    sweep: Conditions,
    over: str,
    lines: str | None = None,
    panels: str | None = None,
    law: dict | None = None,
    law_name: str = "",
) -> Figure:
    """The change from output to input against the setting ``over``, in decades.

    A line for each value of ``lines``, a panel for each of ``panels``, on one y axis: linear up to
    a decade, logarithmic beyond where changes are large. Points are means over seeds with their
    95 % interval, dashes theory; the band is where the gradient counts as kept. ``law`` adds to the
    panel of each of its keys a dotted line of as many decades per layer.
    """
    sweep = sweep.with_axes(*filter(None, (over, lines, panels)))
    rows = _placed(sweep, over, lines, panels)
    values = sweep.values(panels) if panels else [ONE]
    names = _names(rows)
    low, high = _reach(rows)
    with style.context():
        figure = Shown(figsize=(style.WIDTH, HEIGHT))
        axes = figure.subplots(1, len(values), sharey=True, squeeze=False)[0]
        ends = {}
        for ax, value in zip(axes, values, strict=True):
            mine = rows[rows["panel"] == value]
            ax.axhspan(-sweep.kept_within, sweep.kept_within, **KEPT)
            ends[ax] = [
                _line(ax, mine[mine["line"] == name], place)
                for place, name in enumerate(names)
                if (mine["line"] == name).any()
            ]
            if law is not None and value in law:
                x = np.sort(mine["x"].unique().astype(float))
                y = law[value] * (x - 1)
                ax.plot(x, y, **LAW, label=f"law: {value}")
                low, high = min(low, y.min()), max(high, y.max())
            _frame_x(ax, rows["x"].astype(float), over)
            if panels:
                ax.set_title(f"{panels}={bare(value)}")
        style.changes(axes[0].yaxis, low, high)
        axes[0].set_ylabel(f"{_symbol(rows)}, decades")
        handles = [Line2D([], [], color="0.35", marker="o", label="mean, 95 % interval")]
        if rows["predicted"].notna().any():
            handles.append(Line2D([], [], color="black", **THEORY, label="theory"))
        if law is not None:
            handles.append(Line2D([], [], **LAW, label=law_name))
        limit = f"kept: within ±{sweep.kept_within:g}"
        handles.append(Patch(**KEPT | {"edgecolor": "0.7", "linewidth": 0.5}, label=limit))
        height = legend(figure, handles, "lower", title=silent(sweep, whole=True))
        figure.set_figheight(HEIGHT + LINE * height)
        if names != [ONE]:
            label_ends(figure, ends, letters=LETTERS // len(values))
    return figure


def finding(
    sweep: Conditions, over: str, lines: str | None = None, panels: str | None = None, **_
) -> str:
    """Which lines keep the gradient at every value of ``over``, and what others lose or gain."""
    sweep = sweep.with_axes(*filter(None, (over, lines, panels)))
    rows = _placed(sweep, over, lines, panels)
    low, high = (bare(end) for end in (rows["x"].min(), rows["x"].max()))
    whole = f"at every {over} from {low} to {high}"
    if over in SIZES:
        whole = f"to depth {high}" if over == "depth" else f"over {high} steps"
    keys = [name for name in (lines, panels) if name]
    if not keys:
        return _alone(rows, over, sweep.kept_within)
    # A line that ends before the others is not kept to the end.
    ends = rows.groupby(keys, sort=False).agg(
        kept=("trend", lambda trends: (trends == "kept").all()), last=("x", "max")
    )
    ends["kept"] &= ends["last"] == rows["x"].max()
    if ends["kept"].all():
        most = rows["mean"].abs().max()
        return f"All {len(ends)} keep the gradient {whole}; it changes by {decades(most)} at most"
    pairs = [_pair(row, keys) for _, row in rows.iterrows()]
    most = " and ".join(ends_of(rows.assign(label=pairs)))
    rest = f"; {most}" if most else ""
    count = int(ends["kept"].sum())
    if not count:
        return f"None of {len(ends)} keeps the gradient {whole}{rest}"
    if panels and lines:
        text = f"Kept {whole}: {_by_panel(sweep, ends, lines, panels)}"
        if len(text) > LONG:
            text = f"{count} of {len(ends)} keep the gradient {whole}"
        return f"{text}{rest}"
    names = [said(keys[0], name) for name in ends.index]
    kept = [name for name, keeps in zip(names, ends["kept"], strict=True) if keeps]
    verb = "keeps" if count == 1 else "keep"
    who = listed(kept) if count <= MOST else majority(names, kept)
    return f"{who} {verb} the gradient {whole}{rest}"


def _alone(rows: pd.DataFrame, over: str, kept_within: float) -> str:
    """Of runs that differ in nothing else: how far the gradient is kept, and the change at last."""
    if over not in SIZES:
        return kept_and_most(rows, kept_within, f"over {crossed(rows)}")
    last = rows.iloc[-1]
    if not np.isfinite(last["mean"]) or (rows["trend"] == "kept").all():
        return kept_and_most(rows, kept_within, f"over {crossed(rows)}")
    text = f"The gradient {moved(last['mean'])} by {over} {bare(last['x'])}"
    changed = (rows["trend"] != "kept").to_numpy()
    kept = rows["x"].iloc[: int(np.argmax(changed))]
    return f"{text}; it is kept to {over} {bare(kept.iloc[-1])}" if len(kept) else text


def _by_panel(sweep: Conditions, ends: pd.DataFrame, lines: str, panels: str) -> str:
    kept = ends[ends["kept"]].reset_index()
    parts = []
    for value in sweep.values(panels):
        of = [said(lines, name) for name in kept.loc[kept[panels] == value, lines]]
        parts.append(f"{listed(of, MOST + 1) or 'none'} with {panels}={bare(value)}")
    return "; ".join(parts)


def _pair(row: pd.Series, keys: list[str]) -> str:
    return " with ".join(
        said(key, row[key]) if key == keys[0] else f"{key}={bare(row[key])}" for key in keys
    )


def _placed(sweep: Conditions, over: str, lines: str | None, panels: str | None) -> pd.DataFrame:
    rows = sweep.rows.copy()
    rows["x"] = rows[over]
    rows["line"] = [said(lines, v) for v in rows[lines]] if lines else ONE
    rows["panel"] = rows[panels] if panels else ONE
    return rows.sort_values("x", kind="stable")


def _names(rows: pd.DataFrame) -> list[str]:
    """Lines by their last mean, the highest first."""
    last = rows.groupby("line", sort=False)["mean"].last()
    return [*last.sort_values(ascending=False, kind="stable").index]


def _reach(rows: pd.DataFrame) -> tuple[float, float]:
    values = rows[["low", "high", "mean", "predicted"]].to_numpy(float)
    values = values[np.isfinite(values)]
    return (values.min(), values.max()) if len(values) else (-1.0, 1.0)


def _line(ax: Axes, rows: pd.DataFrame, place: int) -> End:
    color, name = style.COLORS[place], rows["line"].iat[0]
    x, mean = rows["x"].to_numpy(float), rows["mean"].to_numpy(float)
    margins = np.nan_to_num([mean - rows["low"], rows["high"] - mean])
    look = {"color": color, "marker": style.MARKERS[place], "capsize": 2, "elinewidth": 1}
    ax.errorbar(x, mean, margins, label=f"mean: {name}", **look)
    predicted = rows["predicted"].to_numpy(float)
    if np.isfinite(predicted).any():
        line = {"color": style.shade(color), **THEORY, "zorder": 3, "label": f"theory: {name}"}
        ax.plot(x, predicted, **line)
    known = np.flatnonzero(np.isfinite(mean))
    if len(known):
        return End(x[known[-1]], mean[known[-1]], name, color)
    edge = -np.inf if (rows["trend"] == "vanishing").any() else np.inf
    return End(x[-1], edge, f"{name}: none finite" if edge > 0 else f"{name}: zero", color)


def _frame_x(ax: Axes, x: pd.Series, over: str) -> None:
    values = np.sort(x.unique())
    ax.set_xlabel(f"{over}, layers" if over == "depth" else over)
    ax.tick_params(labelsize=style.TEXT)
    ax.axhline(0, color="0.35", linewidth=0.8, zorder=0)
    if len(values) > 1 and values[0] > 0 and values[-1] / values[0] > 30:
        ax.set_xscale("log")
        step = -(-len(values) // 7)
        ax.set_xticks(values[::step], [bare(float(v)) for v in values[::step]])
        ax.xaxis.set_minor_locator(NullLocator())
    else:
        whole = bool((values == values.round()).all())
        ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=whole))


def _symbol(rows: pd.DataFrame) -> str:
    steps = (rows["along"] == "step").all()
    return TIME_SYMBOL if steps else SYMBOL
