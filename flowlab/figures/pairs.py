"""A number in a cell for each pair of two settings: the change of the gradient's norm."""

import re

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure

from flowlab.errors import InputError
from flowlab.figures import style
from flowlab.figures.ratios import SYMBOL, TIME_SYMBOL
from flowlab.figures.sentences import ends_of
from flowlab.figures.shown import Shown
from flowlab.figures.sweeps import SIZES, Conditions
from flowlab.figures.words import bare, listed, said

CELL = 0.3  # inches, the height of a row
COLORS = "PuOr_r"  # orange to purple through white, apart under every colour blindness
LUMINANCE = (0.2126, 0.7152, 0.0722)  # of red, green and blue
LINEAR = 1.0  # decades: up to here the colour grows linearly
WIDE = 14  # columns whose numbers are legible side by side


def heat_map(sweep: Conditions, down: str, across: str) -> Figure:
    """Values of one setting down, of another to the right; each cell the mean over seeds.

    Purple and negative: the gradient vanishes on its way to the input; orange: it explodes. The
    colour grows linearly up to one decade and logarithmically beyond. Numbers are sorted, names
    by their mean; "?" marks a run whose seeds are all zero or nonfinite; a pair without a run stays
    empty. Raises InputError where anything else varies.
    """
    sweep = sweep.with_axes(down, across)
    check_axes(sweep, down, across)
    means = _ordered(sweep, down, across)
    rows = sweep.rows.set_index([down, across])
    values = means.to_numpy(float)
    top = max(np.nanmax(np.abs(values), initial=0), LINEAR)
    with style.context():
        figure = Shown(figsize=(style.WIDTH, 1.0 + CELL * len(means)))
        ax = figure.subplots()
        norm = SymLogNorm(LINEAR, vmin=-top, vmax=top)
        image = ax.imshow(values, cmap=COLORS, norm=norm, aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            key = means.index[row], means.columns[column]
            if key in rows.index:
                dark = np.dot(image.to_rgba(value)[:3], LUMINANCE) < 0.5
                text = "?" if np.isnan(value) else _decimals(value)
                ax.text(column, row, text, ha="center", va="center", color="w" if dark else "k")
        ax.set_yticks(range(len(means)), [bare(v) for v in means.index], fontsize=style.TEXT)
        _columns(ax, [bare(v) for v in means.columns])
        ax.set_xlabel(across)
        ax.set_ylabel(down)
        ax.grid(False)
        ax.tick_params(length=0)
        bar = figure.colorbar(image, ax=ax, pad=0.02)
        ticks = [t for t in (-100, -10, -1, 0, 1, 10, 100) if abs(t) <= top]
        bar.set_ticks(ticks, labels=[f"{tick:+g}".replace("-", "−").lstrip("+") for tick in ticks])
        bar.minorticks_off()
        bar.ax.tick_params(labelsize=style.TEXT)
        symbol = TIME_SYMBOL if (sweep.rows["along"] == "step").all() else SYMBOL
        ax.set_title(f"{symbol} over the body, decades")
    return figure


def finding(sweep: Conditions, down: str, across: str) -> str:
    """Which rows keep the gradient in every column, or most often, and the two ends."""
    sweep = sweep.with_axes(down, across)
    rows = sweep.rows
    kept = (rows["trend"] == "kept").groupby(rows[down]).agg(["sum", "size"])
    always = [said(down, name) for name in kept.index[kept["sum"] == kept["size"]]]
    at = f" at {across} " if sweep.numeric(across) else " with "
    pair = [f"{bare(a)}{at}{bare(b)}" for a, b in zip(rows[down], rows[across], strict=True)]
    values = sweep.values(across)
    most = " and ".join(ends_of(rows.assign(label=pair)))
    for value in values:
        # Where both ends have it, it is said once.
        where = re.compile(rf"{re.escape(at + bare(value))}(?= )")
        if len(where.findall(most)) > 1:
            most = f"{at.strip()} {bare(value)} {where.sub('', most)}"
    every = f"{'at' if sweep.numeric(across) else 'under'} every {across}"
    if across in SIZES:
        every = f"to {across} {bare(values[-1])}"
    elif sweep.numeric(across):
        every += f" from {bare(values[0])} to {bare(values[-1])}"
    if len(always) == len(kept):
        return f"Every {down} keeps the gradient {every}"
    if always:
        verb = "keeps" if len(always) == 1 else "keep"
        text = f"{listed(always, 4)} {verb} the gradient {every}"
    elif not kept["sum"].any():
        text = f"No pair of {down} and {across} keeps the gradient"
    else:
        best = kept.index[kept["sum"] == kept["sum"].max()]
        shares = f"{kept['sum'].max()} of {len(values)}"
        verb = "keeps" if len(best) == 1 else "keep"
        text = f"No {down} keeps the gradient {every}: {listed(map(bare, best))} {verb} {shares}"
    return f"{text}; {most}" if most else text


def check_axes(sweep: Conditions, *axes: str) -> None:
    """Raise InputError unless the sweep varies these settings alone."""
    others = [axis for axis in sweep.axes if axis not in axes]
    if others:
        raise InputError(
            f"table must vary {' and '.join(axes)} alone; got runs that differ in {others[0]} too"
        )


def _ordered(sweep: Conditions, down: str, across: str) -> pd.DataFrame:
    """Means by pair: exploding rows on top; numbers in their order."""
    rows = sweep.rows
    means = rows.pivot(index=down, columns=across, values="mean")
    for axis, along in ((down, 0), (across, 1)):
        if sweep.numeric(axis):
            means = means.sort_index(axis=along, ascending=bool(along))
        else:
            order = means.mean(axis=1 - along).sort_values(ascending=bool(along), kind="stable")
            means = means.reindex(order.index, axis=along)
    return means


def _columns(ax: Axes, names: list[str]) -> None:
    ax.set_xticks(range(len(names)), names)
    if max(map(len, names)) * len(names) > 60:
        for label in ax.get_xticklabels():
            label.set(rotation=30, ha="right", rotation_mode="anchor")


def _decimals(value: float) -> str:
    """Two digits or more, a true minus, no minus zero."""
    text = f"{value:.0f}" if abs(value) >= 99.95 else f"{value:z.1f}"
    return (f"{value:z.2f}" if abs(value) < 0.995 else text).replace("-", "−")
