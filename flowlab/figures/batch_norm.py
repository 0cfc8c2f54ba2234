"""What batch norm does to gradients of plain nets: a rate that the batch size sets."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flowlab.analysis.statistics import over_seeds, seed_slopes
from flowlab.figures import style
from flowlab.figures.by_layer import THEORY, legend
from flowlab.figures.runs import whole_layers

HEIGHT = 3.2  # inches


def rate_by_batch(
    table: pd.DataFrame,
    prediction: pd.DataFrame | None = None,
    theory: pd.DataFrame | None = None,
) -> Figure:
    """Decades of ‖δ‖ per layer going backward against batch size, a line for each activation.

    Points are slopes over all hidden layers but the first, means over seeds with their 95 %
    interval. ``theory`` (activation, batch_size, rate) is drawn as dashes, where each rate means
    infinite width; ``prediction`` is not. Raises InputError as ``seed_slopes`` does.
    """
    rates = _rates(table)
    with style.context():
        figure = Figure(figsize=(style.WIDTH, HEIGHT))
        ax = figure.subplots()
        handles = []
        for place, (activation, rows) in enumerate(rates.groupby("activation")):
            color, marker = style.COLORS[place], style.MARKERS[place]
            margins = np.nan_to_num([rows["mean"] - rows["low"], rows["high"] - rows["mean"]])
            look = {"color": color, "marker": marker, "linestyle": "none", "capsize": 3}
            points, label = (rows["batch_size"], rows["mean"]), f"measured: {activation}"
            ax.errorbar(*points, margins, **look, label=label)
            if theory is not None:
                told = theory[theory["activation"] == activation].sort_values("batch_size")
                line = told["batch_size"], told["rate"]
                ax.plot(*line, color=style.shade(color), **THEORY, label=f"theory: {activation}")
            handles.append(Line2D([], [], color=color, marker=marker, ls="none", label=activation))
        sizes = np.sort(rates["batch_size"].unique())
        ax.set_xscale("log", base=2)
        ax.set_xticks(sizes, [f"{size}" for size in sizes])
        ax.minorticks_off()
        ax.axhline(0, color="0.35", linewidth=0.8, zorder=0)
        ax.set_ylim(bottom=min(0, ax.get_ylim()[0]))
        ax.set_xlabel("batch size $B$")
        ax.set_ylabel("decades of ‖δ‖ per layer")
        ax.tick_params(labelsize=style.TEXT)
        if theory is not None:
            handles.append(Line2D([], [], color="black", **THEORY, label="theory, infinite width"))
        legend(figure, handles, "upper")
    return figure


def rate_by_batch_caption(
    table: pd.DataFrame,
    prediction: pd.DataFrame | None = None,
    theory: pd.DataFrame | None = None,
) -> str:
    """Each activation's rate in the smallest and the largest batch, and theory's error."""
    rates = _rates(table)
    if theory is not None:
        rates = rates.merge(theory, "left", ["activation", "batch_size"])
    findings = []
    for activation, rows in rates.groupby("activation"):
        ends = [
            f"{row['mean']:.4f} [{row['low']:.4f}, {row['high']:.4f}]"
            + (f" (theory {row['rate']:.4f})" if "rate" in row and pd.notna(row["rate"]) else "")
            + f" at B = {row['batch_size']}"
            for _, row in rows.iloc[[0, -1]].iterrows()
        ]
        findings.append(f"{activation} {' and '.join(ends)}")
    text = "With batch norm and no skips the gradient explodes; decades of ‖δ‖ per layer, "
    if not (rates["low"] > 0).all():
        text = "Decades of ‖δ‖ per layer going backward with batch norm and no skips, "
    text += f"mean over seeds [95 % interval]: {'; '.join(findings)}."
    if "rate" in rates and rates["rate"].notna().any():
        miss = (rates["mean"] / rates["rate"] - 1).abs()
        worst = rates.loc[miss.idxmax()]
        text += (
            f" Theory's rate is off by {miss.median():.1%} in the median point and by at most "
            f"{miss.max():.1%} ({worst['activation']}, B = {worst['batch_size']})."
        )
    return text


def _rates(table: pd.DataFrame) -> pd.DataFrame:
    """Slopes over the layers that batch norm follows, one row per run.

    Without the first, whose input is not an activation and gives its map another variance.
    """
    rows = whole_layers(table)
    rows = rows[(rows["layer"] > 1) & (rows["layer"] < rows["depth"])]
    runs = rows.groupby("run", observed=True)[["activation", "batch_size"]].first()
    measured = over_seeds(seed_slopes(rows, by="run")).set_index("run")
    return runs.join(measured).reset_index().sort_values(["activation", "batch_size"])
