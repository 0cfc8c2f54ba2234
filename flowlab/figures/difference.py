"""What two tables differ in: the effect against layer, a panel for each quantity."""

from math import floor, log10

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from flowlab.analysis.diff import Difference, at_words, quantity_words
from flowlab.analysis.pairing import place_words
from flowlab.figures import style
from flowlab.figures.head import fixed, head
from flowlab.figures.panels import GREY, INTERVAL, LINE, NONFINITE, SYMBOLS, legend, slots
from flowlab.figures.shown import Shown

PANEL = 1.75  # inches, the height of a panel
COLUMNS = 2
MOST_BARS = 60  # places of a panel whose intervals are bars of their own
LETTERS = 30  # of the name of a place above a panel
EDGE = 0.94  # of an axis, where crosses stand
# An axis is at most so many times as long as this share of intervals needs: those of two seeds may
# be wider by far than all else.
WIDEST, SHOWN = 2, 0.95
SMALL = 0.01  # decades: below, an axis has a power of ten for its unit
COLOR, FIRST = style.COLORS[:2]
PARTS = {"marker": "o", "linestyle": "none", "color": COLOR}
OTHERS = {**PARTS, "color": "0.5", "markerfacecolor": "white", "markeredgewidth": 0.8}
UNLIKE = {**NONFINITE, "color": "black"}
MARK = {"color": FIRST, "linewidth": 1.0, "zorder": 0.7}
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def difference(found: Difference) -> Figure:
    """The effect in every place, a − b in decades, against layer, with simultaneous intervals.

    A panel for each quantity, all with one y axis. Markers are filled where the tables part; a
    cross at the upper edge is a place that parts by its statuses. The widest intervals may leave a
    panel. A line marks the first place that
    parts going forward, and going backward. Of several steps the one is shown at which the tables
    part first, or the last. Above stand the finding and the settings that both runs share.
    """
    table, step = _of_one_step(found)
    quantities = list(dict.fromkeys(table["quantity"]))
    columns = min(COLUMNS, len(quantities))
    rows = -(-len(quantities) // columns)
    low, high = _range(table)
    unit = floor(log10(max(-low, high))) if 0 < max(-low, high) < SMALL else 0
    with style.context():
        figure = Shown(figsize=(style.WIDTH, rows * (PANEL + 0.25) + 0.35))
        axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
        drawn: dict[str, Artist] = {}
        for ax, quantity in zip(axes, quantities, strict=False):
            of = _placed(table[table["quantity"] == quantity])
            ax.set_title(SYMBOLS.get(quantity, f"‖{quantity_words(quantity)}‖"))
            drawn |= _panel(ax, of, 10.0**-unit)
            for first in (found.forward, found.backward):
                if first is not None and first.name in of.index:
                    drawn |= _mark(ax, of.loc[first.name])
        for ax in axes[len(quantities) :]:
            ax.set_axis_off()
        _limits(axes[0], low / 10.0**unit, high / 10.0**unit, bool((table["unlike"] > 0).any()))
        first, last = int(table["layer"].min()), int(table["layer"].max())
        for place, ax in enumerate(axes[: len(quantities)]):
            style.layers(ax, first, last)
            pad = 0.03 * (last - first) + 0.4
            ax.set_xlim(first - pad, last + pad)
            ax.tick_params(labelbottom=True, labelleft=place % columns == 0)
            if place < columns * (rows - 1):
                ax.set_xlabel("")
        power = f"10{str(unit).translate(SUPERSCRIPT)} " if unit else ""
        figure.supylabel(f"{' minus '.join(found.labels)} ({power}decades)", fontsize=style.TEXT)
        height = legend(figure, _key(found, drawn), "lower")
        figure.set_figheight(figure.get_figheight() + LINE * height)
        shared = [fixed(found.runs), f"step={step}" if step is not None else ""]
        return head(figure, finding(found), ", ".join(filter(None, shared)))


def finding(found: Difference) -> str:
    """Where the tables part first, forward and backward, or that they do not."""
    labels = found.labels
    text = "The tables" if labels == ("a", "b") else f"{labels[0]} and {labels[1]}"
    if found.verdict == "equal":
        return f"{text} are equal in every bit"
    if found.verdict == "rounding":
        return f"{text} are equal to rounding"
    if found.verdict == "one seed":
        return f"{text} differ in their one seed"
    if found.verdict == "undecided":
        return f"{text} are not shown to part"
    first, backward = found.first, found.backward
    text += f" part first at {at_words(first)}"
    if backward is not None and first["direction"] == "forward":
        text += f"; going backward, at {at_words(backward)}"
    return text


def _of_one_step(found: Difference) -> tuple[pd.DataFrame, int | None]:
    """The rows of the step at which the tables part first, or of the last; which that is."""
    table = found.table
    if "step" not in table:
        return table, None
    step = table["step"].max() if found.first is None else found.first["step"]
    return table[table["step"] == step], int(step)


def _range(table: pd.DataFrame) -> tuple[float, float]:
    """What an axis holds: 0, all effects and intervals, but of the widest of these a part."""
    ends, effects = table[["low", "high"]].dropna(), table["effect"].dropna()
    reach = [0.0, *effects]
    if len(ends):
        low, high = ends["low"], ends["high"]
        reach.append(max(low.min(), WIDEST * min(low.quantile(1 - SHOWN), effects.min(), 0)))
        reach.append(min(high.max(), WIDEST * max(high.quantile(SHOWN), effects.max(), 0)))
    return min(reach), max(reach)


def _placed(of: pd.DataFrame) -> pd.DataFrame:
    """A quantity's rows from the input on, with ``x``: the places of a layer side by side."""
    of = of if (of["direction"] == "forward").all() else of.iloc[::-1]
    layers = of.groupby("layer")["layer"]
    within, count = layers.cumcount(), layers.transform("size")
    return of.assign(x=of["layer"] + 0.7 * ((within + 0.5) / count - 0.5))


def _panel(ax: Axes, of: pd.DataFrame, scale: float) -> dict[str, Artist]:
    """Draw one quantity; by name what stands for each kind of artist in the key."""
    x, parts = of["x"].to_numpy(), of["parts"].to_numpy()
    effect, low, high = (scale * of[name].to_numpy() for name in ("effect", "low", "high"))
    drawn: dict[str, Artist] = {}
    ax.axhline(0, color="0.25", linewidth=0.8, zorder=0.6)
    few = len(of) <= MOST_BARS
    if np.isfinite(low).any():
        if few:
            for chosen, color in ((parts, COLOR), (~parts, "0.6")):
                ax.vlines(
                    x[chosen], low[chosen], high[chosen], color=color, linewidth=1.2, alpha=0.6
                )
        else:
            ax.fill_between(x, low, high, color=COLOR, **INTERVAL)
        drawn["interval"] = Patch(facecolor=GREY, alpha=0.5)
    size = 3.5 if few else 1.8
    for name, chosen, look in (("others", ~parts, OTHERS), ("parts", parts, PARTS)):
        chosen = chosen & np.isfinite(effect)
        if chosen.any():
            ax.plot(x[chosen], effect[chosen], label=name, markersize=size, **look)
            drawn[name] = Line2D([], [], markersize=3.5, **look)
    unlike = of["unlike"].to_numpy() > 0
    if unlike.any():
        where = {"transform": ax.get_xaxis_transform(), "label": "unlike"}
        apart = slots(x[unlike], int(x[-1] - x[0]))
        ax.plot(x[unlike], np.full(unlike.sum(), EDGE), markevery=apart, **where, **UNLIKE)
        drawn["unlike"] = Line2D([], [], **UNLIKE)
    return drawn


def _mark(ax: Axes, row: pd.Series) -> dict[str, Artist]:
    """A line at the first place that parts, its name above the panel."""
    ax.axvline(row["x"], label="first", **MARK)
    name = place_words(row)
    name = name if len(name) <= LETTERS else f"…{name[1 - LETTERS :]}"
    ax.set_title(f"first: {name}", loc="right", fontsize=style.TEXT, color=FIRST)
    return {"first": Line2D([], [], **MARK)}


def _limits(ax: Axes, low: float, high: float, crosses: bool) -> None:
    """Limits of y that hold ``low``, ``high`` and 0, with room above for crosses."""
    if max(-low, high) > style.STRETCH:
        style.changes(ax.yaxis, low, high * 3 if crosses else high)
        return
    pad = 0.08 * (high - low) or 1.0
    low, high = low - pad, high + pad * (2.5 if crosses else 1)
    ax.set_ylim(low, high)
    ticks = MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(low, high)
    ticks = ticks[(ticks >= low) & (ticks <= high)]
    ax.set_yticks(ticks, [f"{tick:+.3g}".replace("-", "−") if tick else "0" for tick in ticks])


def _key(found: Difference, drawn: dict[str, Artist]) -> list[Artist]:
    seeds = len(found.seeds)
    words = {
        "parts": "parts",
        "others": "not shown to part" if found.tested else "one seed: no interval",
        "interval": f"{100 * found.level:g} % interval over {seeds} seeds, "
        f"corrected for {found.tested:,} comparisons",
        "unlike": "parts by its status",
        "first": "first place that parts",
    }
    handles = []
    for name, label in words.items():
        if name in drawn:
            drawn[name].set_label(label)
            handles.append(drawn[name])
    return handles
