"""The look that all figures share, whatever the user's own matplotlib settings say.

Text is at least 8 pt on a page 7 inches wide. Series differ in colour and in marker, so that they
stay apart in grey; dashes are kept for theory.
"""

from contextlib import AbstractContextManager
from itertools import pairwise

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_rgb
from matplotlib.ticker import MaxNLocator, NullLocator

WIDTH = 7.0  # inches
TEXT = 8.5  # points
DPI = 200
STRETCH = 8.0  # decades: beyond them an axis of changes is logarithmic

# Okabe & Ito (2008), distinct under every common colour blindness; their yellow vanishes on
# white paper, so grey stands in for it.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#8A8A8A", "#000000")
MARKERS = ("o", "s", "^", "D", "P", "<", "*", "p")

RC = {
    "figure.constrained_layout.use": True,
    "figure.dpi": DPI,
    "font.family": "DejaVu Sans",
    "font.size": TEXT,
    "axes.titlesize": TEXT + 1.5,
    "axes.titlelocation": "left",
    "axes.labelsize": TEXT,
    "xtick.labelsize": TEXT,
    "ytick.labelsize": TEXT + 1.5,  # exponents are set at 70 %
    "legend.fontsize": TEXT,
    "legend.title_fontsize": TEXT,
    "legend.frameon": False,
    "legend.columnspacing": 1.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "0.4",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "hatch.linewidth": 0.5,
}


def context() -> AbstractContextManager:
    """Within it, new artists have the shared look; matplotlib's own settings return after it."""
    return matplotlib.style.context(["default", RC])


def shade(color: str) -> np.ndarray:
    """A darker tone of ``color`` (lighter for black) that shows on a line of that colour."""
    rgb = np.array(to_rgb(color))
    return rgb * 0.45 if rgb.any() else rgb + 0.65


def decades(ax: Axes, low: float, high: float) -> None:
    """Make y an axis of powers of ten from 10^``low`` to 10^``high``, the data being log10 values.

    matplotlib's own log axis ends at 1e±308, norms of deep nets do not.
    """
    ax.set_ylim(low, high)
    if high - low < 2:
        whole = np.arange(np.floor(low), np.ceil(high) + 1)
        ticks = np.add.outer(whole, np.log10([1, 2, 5])).ravel()
    else:
        ticks = MaxNLocator(6, steps=[1, 2, 5, 10], integer=True).tick_values(low, high)
    ticks = ticks[(ticks >= low) & (ticks <= high)]
    ax.set_yticks(ticks, [power_of_ten(tick) for tick in ticks])


def changes(axis: Axis, low: float, high: float) -> None:
    """Make an axis of changes in decades from ``low`` to ``high`` or more, 0 among them.

    Within a decade it is linear; beyond, where changes are far larger, logarithmic.
    """
    top = max(-low, high)
    within = "set_xlim" if axis.axis_name == "x" else "set_ylim"
    if top <= STRETCH:
        pad = 0.08 * (max(high, 0) - min(low, 0))
        low, high = min(low - pad, -1.2), max(high + pad, 1.2)
        getattr(axis.axes, within)(low, high)
        ticks = MaxNLocator(7, steps=[1, 2, 5, 10]).tick_values(low, high)
    else:
        set_scale = axis.axes.set_xscale if axis.axis_name == "x" else axis.axes.set_yscale
        set_scale("symlog", linthresh=1, linscale=0.5)
        low, high = (
            np.sign(end) * 1.25 * max(abs(end), 1.2) for end in (min(low, -1e-9), max(high, 1e-9))
        )
        getattr(axis.axes, within)(low, high)
        every = [1, 10, 100, 1000, 10_000] if top > 300 else [1, 3, 10, 30, 100, 300]
        ticks = np.array([*(-t for t in reversed(every)), 0, *every])
    ticks = ticks[(ticks >= low) & (ticks <= high)]
    axis.set_ticks(ticks, [f"{tick:+g}".replace("-", "−") if tick else "0" for tick in ticks])
    axis.set_minor_locator(NullLocator())


def power_of_ten(log10_value: float) -> str:
    """``10^k`` in mathtext, or ``m×10^k`` between two powers, m rounded to one digit."""
    exponent = int(np.floor(log10_value + 1e-6))
    mantissa = round(10 ** (log10_value - exponent))
    factor = "" if mantissa == 1 else rf"{mantissa}\!\times\!"
    return f"${factor}10^{{{exponent}}}$"


def layers(ax: Axes, first: int, last: int, what: str = "layer") -> None:
    """Make x an axis of whole layers that names the first one, and the way gradients travel.

    ``what`` may be the steps of a sequence or blocks instead.
    """
    pad = 0.03 * (last - first) or 0.6
    ax.set_xlim(first - pad, last + pad)
    ticks = [first]
    if last > first:
        most = 4 if last < 1000 else 2  # long numbers need room
        regular = MaxNLocator(most, steps=[1, 2, 5, 10], integer=True).tick_values(first, last)
        step = min(b - a for a, b in pairwise(regular))
        ticks += [tick for tick in regular if first + step / 2 <= tick <= last]
    ax.set_xticks(ticks, [f"{tick:.0f}" for tick in ticks])
    ax.set_xlabel(f"{what}  (← backward)")
