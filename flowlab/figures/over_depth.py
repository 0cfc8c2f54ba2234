"""log10 ‖δ_1‖/‖δ_L‖ against depth: a panel for each value of one setting, a line for another's."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from flowlab.figures import style
from flowlab.figures.panels import THEORY, legend
from flowlab.figures.ratios import SYMBOL, WORDS, ratios

HEIGHT = 2.5  # inches, a row of panels
RATE = "theory, wide net of Gaussian kernels"
BORDER = {"linestyle": ":", "linewidth": 1.3, "color": "0.25"}


def change_by_depth(
    table: pd.DataFrame,
    prediction: pd.DataFrame | None = None,
    theory: pd.DataFrame | None = None,
    *,
    panels: str,
    lines: str,
    near: float | None = None,
) -> Figure:
    """The change from output to input against depth; panels share no axis.

    With ``near`` a second row shows them once more, within that many decades of zero. Points are
    means over seeds with their 95 % interval, dashes the prediction of the same nets. ``theory``
    (``panels``, rate) adds to a panel a dotted line of that many decades per layer.
    Raises InputError as ``ratios`` does.
    """
    rows = ratios(table, prediction, [panels, lines, "depth"]).sort_values("depth")
    names = sorted(rows[lines].unique())
    values = sorted(rows[panels].unique())
    with style.context():
        rows_of_panels = 1 if near is None else 2
        figure = Figure(figsize=(style.WIDTH, HEIGHT * rows_of_panels + 0.6))
        axes = figure.subplots(rows_of_panels, len(values), squeeze=False)
        for (row, column), ax in np.ndenumerate(axes):
            value = values[column]
            mine = rows[rows[panels] == value]
            for place, name in enumerate(names):
                _line(ax, mine[mine[lines] == name], place, f"{name}")
            if theory is not None:
                for rate in theory.loc[theory[panels] == value, "rate"]:
                    crossed = np.sort(mine["crossed"].to_numpy())[[0, -1]]
                    ax.plot(crossed + 1, rate * crossed, **BORDER, label=f"rate: {value}")
            _frame(ax, near if row else None)
            ax.set_title(f"{panels}={value}" + (f", within ±{near:g} decades" if row else ""))
            if row == rows_of_panels - 1:
                ax.set_xlabel("depth, layers")
            if column == 0:
                ax.set_ylabel(f"{SYMBOL}, decades")
        handles = [
            Line2D([], [], color=style.COLORS[k], marker=style.MARKERS[k], label=f"{lines}={name}")
            for k, name in enumerate(names)
        ]
        if rows["predicted"].notna().any():
            handles.append(Line2D([], [], color="black", **THEORY, label="theory"))
        if theory is not None:
            handles.append(Line2D([], [], **BORDER, label=RATE))
        legend(figure, handles, "lower")
    return figure


def change_by_depth_caption(
    table: pd.DataFrame,
    prediction: pd.DataFrame | None = None,
    theory: pd.DataFrame | None = None,
    *,
    panels: str,
    lines: str,
) -> str:
    """Every line's change at the greatest depth, beside theory's."""
    rows = ratios(table, prediction, [panels, lines, "depth"]).sort_values("depth")
    findings = []
    for value, of in rows.groupby(panels):
        parts = []
        for name, line in of.groupby(lines):
            last = line.iloc[-1]
            text = f"{name} {last['mean']:z.2f} [{last['low']:z.2f}, {last['high']:z.2f}]"
            if np.isnan(last["mean"]):
                text = f"{name} no seed with finite norms"
            elif last["excluded"]:
                text += f" ({last['excluded']} seeds left out)"
            if pd.notna(last["predicted"]):
                text += f", theory {last['predicted']:z.2f}"
            parts.append(text)
        text = f"{panels}={value}: {'; '.join(parts)}"
        if theory is not None:
            for rate in theory.loc[theory[panels] == value, "rate"]:
                text += f" ({RATE}: {rate * of['crossed'].max():z.2f})"
        findings.append(text)
    start = f"{WORDS} at depth {rows['depth'].max()}, mean over seeds [95 % interval] in decades. "
    return start + ". ".join(findings) + "."


def _line(ax: Axes, rows: pd.DataFrame, place: int, name: str) -> None:
    color = style.COLORS[place]
    mean = rows["mean"].to_numpy()
    margins = np.nan_to_num([mean - rows["low"], rows["high"] - mean])
    look = {"color": color, "marker": style.MARKERS[place], "capsize": 2, "elinewidth": 1}
    ax.errorbar(rows["depth"], mean, margins, label=f"mean: {name}", **look)
    predicted = rows["predicted"].astype(float)
    if predicted.notna().any():
        line = {"color": style.shade(color), **THEORY, "zorder": 3, "label": f"theory: {name}"}
        ax.plot(rows["depth"], predicted, **line)


def _frame(ax: Axes, near: float | None) -> None:
    ax.tick_params(labelsize=style.TEXT)
    ax.axhline(0, color="0.35", linewidth=0.8, zorder=0)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if near is not None:
        ax.set_ylim(-near, near)
    low, high = ax.get_ylim()
    if high - low < 2:  # lest a hundredth of a decade look like a trend
        ax.set_ylim((low + high) / 2 - 1, (low + high) / 2 + 1)
