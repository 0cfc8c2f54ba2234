"""The figure of growth: time and memory along each axis, with the lines that were fitted."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

from flowlab.figures import style

_HEIGHT = 3.9  # inches
_QUANTITIES = {"seconds": ("time", "seconds"), "megabytes": ("memory", "MB at the peak")}


def draw(table: pd.DataFrame, exponents: pd.DataFrame, title: str) -> Figure:
    """A panel for each axis and quantity; both scales are logarithmic.

    ``exponents`` has a row for each axis that is drawn, see
    :func:`experiments.benchmarks.growth.exponents`.
    """
    with style.context():
        figure = Figure(figsize=(style.WIDTH, _HEIGHT))
        shape = len(_QUANTITIES), len(exponents)
        axes = figure.subplots(*shape, sharex="col", sharey="row", squeeze=False)
        for column, fitted in enumerate(exponents.to_dict("records")):
            own = table[table["along"] == fitted["along"]].sort_values("at")
            for row, (quantity, (name, _)) in enumerate(_QUANTITIES.items()):
                _panel(axes[row][column], own, quantity, fitted[name], style.COLORS[column])
            axes[1][column].set_xlabel(fitted["along"])
        for row, (_, label) in enumerate(_QUANTITIES.values()):
            axes[row][0].set_ylabel(label)
        figure.suptitle(title, x=0.01, ha="left", fontsize=style.TEXT + 1.5)
    return figure


def _panel(ax, own: pd.DataFrame, quantity: str, exponent: float, color: str) -> None:
    at, y = own["at"].to_numpy(float), own[quantity].to_numpy()
    through = np.exp(np.mean(np.log(y)) + exponent * (np.log(at) - np.mean(np.log(at))))
    ax.set(xscale="log", yscale="log")
    ax.plot(at, through, color=style.shade(color), linestyle=(0, (3, 1.6)), linewidth=1.2)
    ax.plot(at, y, color=color, marker="o", linestyle="none")
    if quantity == "seconds":
        ax.vlines(at, own["low"], own["high"], color=color, linewidth=1.2)
    ax.set_title(f"exponent {exponent:.2f}", fontsize=style.TEXT)
    ax.xaxis.set_major_locator(FixedLocator(at))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0f}")
    ax.yaxis.set_minor_formatter(NullFormatter())
