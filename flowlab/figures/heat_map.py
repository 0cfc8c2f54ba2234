"""A number in a cell for each pair of settings: the change of log10‖δ‖ over its body."""

import numpy as np
import pandas as pd
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure

from flowlab.analysis.verdicts import KEPT_WITHIN, counted
from flowlab.figures import style
from flowlab.figures.ratios import SYMBOL, init_labels, ratios

CELL = 0.3  # inches, the height of a row
COLORS = "PuOr_r"  # orange to purple through white, apart under every colour blindness
LUMINANCE = (0.2126, 0.7152, 0.0722)  # of red, green and blue
LINEAR = 1.0  # decades: up to here the colour grows linearly


def heat_map(
    table: pd.DataFrame, prediction: pd.DataFrame | None = None, across: str = "depth"
) -> Figure:
    """Initializers down, ``across`` to the right; each cell the mean over seeds in decades.

    Purple and negative: the gradient vanishes on its way to the input; orange: it explodes. The
    colour grows linearly up to one decade and logarithmically beyond. "?" marks a pair whose seeds
    are all zero or nonfinite; a pair without a run stays empty. ``prediction`` is not drawn.
    Raises InputError as ``ratios`` does.
    """
    cells = _cells(table, None, across)
    means = _ordered(cells.pivot(index="label", columns=across, values="mean"))
    present = cells.assign(here=1).pivot(index="label", columns=across, values="here")
    present = present.reindex_like(means).notna().to_numpy()
    values = means.to_numpy()
    top = max(np.nanmax(np.abs(values), initial=0), LINEAR)
    with style.context():
        figure = Figure(figsize=(style.WIDTH, 1.25 + CELL * len(means)))
        ax = figure.subplots()
        norm = SymLogNorm(LINEAR, vmin=-top, vmax=top)
        image = ax.imshow(values, cmap=COLORS, norm=norm, aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            if present[row, column]:
                dark = np.dot(image.to_rgba(value)[:3], LUMINANCE) < 0.5
                text = "?" if np.isnan(value) else _decimals(value)
                ax.text(column, row, text, ha="center", va="center", color="w" if dark else "k")
        ax.set_xticks(range(len(means.columns)), [str(name) for name in means.columns])
        ax.set_yticks(range(len(means)), means.index, fontsize=style.TEXT)
        if max(len(str(name)) for name in means.columns) > 7:
            for label in ax.get_xticklabels():
                label.set(rotation=30, ha="right", rotation_mode="anchor")
        ax.set_xlabel(across)
        ax.set_ylabel("init")
        ax.set_title(f"{SYMBOL} over the body, decades going backward")
        ax.grid(False)
        ax.tick_params(length=0)
        bar = figure.colorbar(image, ax=ax, pad=0.02)
        ticks = [t for t in (-100, -10, -1, 0, 1, 10, 100) if abs(t) <= top]
        bar.set_ticks(ticks, labels=[f"{tick:g}".replace("-", "−") for tick in ticks])
        bar.minorticks_off()
        bar.ax.tick_params(labelsize=style.TEXT)
    return figure


def heat_map_caption(
    table: pd.DataFrame,
    prediction: pd.DataFrame | None = None,
    across: str = "depth",
    kept_within: float = KEPT_WITHIN,
) -> str:
    """How many pairs keep the gradient, the extremes, and theory's error."""
    cells = _cells(table, prediction, across, kept_within)
    known = cells.dropna(subset="mean")
    text = f"Of {len(cells)} pairs of init and {across}: {counted(known['trend'], kept_within)}."
    if len(known):
        low, high = (known.loc[known["mean"].agg(how)] for how in ("idxmin", "idxmax"))
        text += f" Extremes: {_named(low, across)} and {_named(high, across)}."
    always = [
        str(label)
        for label, rows in known.groupby("label", sort=False)
        if (rows["trend"] == "kept").all() and rows["excluded"].sum() == 0
    ]
    text += f" Kept at every {across}: {', '.join(always) or 'none'}."
    compared = known.dropna(subset="difference")
    if len(compared):
        miss = compared["difference"].abs()
        worst = compared.loc[miss.idxmax()]
        text += (
            f" Theory is off by {miss.median():.2g} decades in the median pair and by at most "
            f"{miss.max():.2g} ({worst['label']}, {across} {worst[across]})."
        )
    silent = len(cells) - len(known)
    return text + (f" {silent} pairs have no seed with finite norms throughout." if silent else "")


def _cells(table, prediction, across: str, kept_within: float = KEPT_WITHIN) -> pd.DataFrame:
    cells = ratios(table, prediction, ["init", "gain", across], kept_within)
    return cells.assign(label=init_labels(cells))


def _ordered(means: pd.DataFrame) -> pd.DataFrame:
    """Exploding rows on top; columns too by their mean where they are names."""
    means = means.loc[means.mean(axis=1).sort_values(ascending=False, kind="stable").index]
    if all(isinstance(name, str) for name in means.columns):
        means = means[means.mean().sort_values(kind="stable").index]
    return means


def _decimals(value: float) -> str:
    """Two digits or more, a true minus, no minus zero."""
    text = f"{value:.0f}" if abs(value) >= 99.95 else f"{value:z.1f}"
    return (f"{value:z.2f}" if abs(value) < 0.995 else text).replace("-", "−")


def _named(cell: pd.Series, across: str) -> str:
    return f"{cell['label']} at {across} {cell[across]} ({_decimals(cell['mean'])} decades)"
