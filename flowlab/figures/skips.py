"""What each kind of skip connection does to the gradient as nets get deeper."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from flowlab.figures import style
from flowlab.figures.by_layer import THEORY, legend
from flowlab.figures.ratios import SYMBOL, WORDS, ratios

CLOSE = 1.0  # decades: half the height of the second panel
SCALES = {"inverse_sqrt_depth": "a = 1/√L", "inverse_depth": "a = 1/L"}
HEIGHT = 3.6  # inches


def skip_depth(table: pd.DataFrame, prediction: pd.DataFrame | None = None) -> Figure:
    """log10 ‖δ_1‖/‖δ_L‖ against depth, a line for each kind of skip; near zero once more.

    Points are means over seeds with their 95 % interval; dashes are theory. The second panel is the
    first one between −1 and 1 decade. Raises InputError as ``ratios`` does.
    """
    kinds = _kinds(table, prediction)
    with style.context():
        figure = Figure(figsize=(style.WIDTH, HEIGHT))
        whole, near = figure.subplots(1, 2)
        for ax in (whole, near):
            for (_, rows), color, marker in zip(kinds, style.COLORS, style.MARKERS, strict=False):
                _line(ax, rows, color, marker)
            ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            ax.set_xlabel("depth, layers")
            ax.tick_params(labelsize=style.TEXT)
        whole.set_ylabel(f"{SYMBOL}, decades")
        whole.set_title("all kinds")
        near.set_title(f"within ±{CLOSE:g} decade")
        near.set_ylim(-CLOSE, CLOSE)
        handles = [
            Line2D([], [], color=color, marker=marker, label=kind)
            for (kind, _), color, marker in zip(kinds, style.COLORS, style.MARKERS, strict=False)
        ]
        legend(figure, [*handles, Line2D([], [], color="black", **THEORY, label="theory")], "lower")
    return figure


def skip_caption(table: pd.DataFrame, prediction: pd.DataFrame | None = None) -> str:
    """The ratio of every kind at the greatest depth, beside theory's."""
    findings = []
    for kind, rows in _kinds(table, prediction):
        last = rows.iloc[-1]
        text = f"{kind} {last['mean']:z.2f} [{last['low']:z.2f}, {last['high']:z.2f}]"
        if np.isnan(last["mean"]):
            text = f"{kind} no seed with finite norms"
        told = last["predicted"]
        findings.append(f"{text}, theory " + ("silent" if np.isnan(told) else f"{told:z.2f}"))
    depth = table["depth"].max()
    start = f"{WORDS} at depth {depth}, mean over seeds [95 % interval] in decades: "
    return start + "; ".join(findings) + "."


def _kinds(table, prediction) -> list[tuple[str, pd.DataFrame]]:
    """(kind, its rows by depth), the kind most favourable to exploding first."""
    if "branch_scale" not in table:
        table = table.assign(branch_scale=None)
    rows = ratios(table, prediction, ["skip", "branch_scale", "depth"]).sort_values("depth")
    scales = rows["branch_scale"].map(SCALES).fillna("")
    rows["kind"] = (rows["skip"] + " " + scales.astype(str)).str.strip()
    kinds = [(str(kind), group) for kind, group in rows.groupby("kind")]
    return sorted(kinds, key=lambda pair: -pair[1]["mean"].fillna(-np.inf).iloc[-1])


def _line(ax: Axes, rows: pd.DataFrame, color: str, marker: str) -> None:
    mean = rows["mean"].to_numpy()
    margins = np.nan_to_num([mean - rows["low"], rows["high"] - mean])
    kind = rows["kind"].iat[0]
    look = {
        "color": color,
        "marker": marker,
        "capsize": 2,
        "elinewidth": 1,
        "label": f"mean: {kind}",
    }
    ax.errorbar(rows["depth"], mean, margins, **look)
    told = rows["predicted"].astype(float)
    if told.notna().any():
        shade = style.shade(color)
        ax.plot(rows["depth"], told, color=shade, **THEORY, label=f"theory: {kind}", zorder=3)
