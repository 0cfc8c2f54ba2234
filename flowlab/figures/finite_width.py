"""Fluctuations of the gradient's norm from net to net against depth over width."""

from math import log, sqrt

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flowlab.analysis.statistics import log_variance
from flowlab.figures import style
from flowlab.figures.by_layer import THEORY, legend
from flowlab.figures.ratios import ratios

SQUARED = (2 * log(10)) ** 2  # from decades of a norm to natural logs of its square
HEIGHT = 4.2  # inches


def variance_collapse(table: pd.DataFrame, prediction: pd.DataFrame | None = None) -> Figure:
    """Variance over seeds of ln ‖δ_1‖²/‖δ_L‖² against L/N, a colour for each width N.

    L counts the layers between the two norms. Bars are 95 % chi-square intervals of the variance;
    the dashed line is theory's κL/N (Hanin & Nica 2018), its κ that of the widest nets.
    Raises InputError as ``ratios`` does.
    """
    rows = _variances(table, prediction)
    with style.context():
        figure = Figure(figsize=(style.WIDTH * 0.8, HEIGHT))
        ax = figure.subplots()
        handles = []
        widths = rows.groupby("width")
        for (width, group), color, marker in zip(widths, style.COLORS, style.MARKERS, strict=False):
            v = group["variance"].to_numpy()
            look = {"color": color, "marker": marker, "linestyle": "none"}
            margins = [v - group["low"], group["high"] - v]
            bars = {"capsize": 2, "elinewidth": 1, "label": f"width {width}"}
            ax.errorbar(group["x"], v, margins, **bars, **look)
            handles.append(Line2D([], [], label=f"width {width}", **look))
        kappa = _kappa(rows)
        if np.isfinite(kappa):
            x = np.array([rows["x"].min() / 1.3, rows["x"].max() * 1.3])
            ax.plot(x, kappa * x, color="black", **THEORY, label="theory")
            handles.append(
                Line2D([], [], color="black", **THEORY, label=f"theory, κL/N with κ = {kappa:.3g}")
            )
        ax.set(xscale="log", yscale="log")
        ax.set_xlabel("L/N, layers crossed over width")
        ax.set_ylabel(r"variance over seeds of $\ln\,\Vert\delta_1\Vert^2/\Vert\delta_L\Vert^2$")
        legend(figure, handles, "lower")
    return figure


def variance_caption(table: pd.DataFrame, prediction: pd.DataFrame | None = None) -> str:
    """The measured κ, how well L/N alone decides, and how many intervals hold theory."""
    rows = _variances(table, prediction)
    x, v = np.log(rows["x"]), np.log(rows["variance"])
    kappas = rows["variance"] / rows["x"]
    text = f"The variance of ln ‖δ₁‖²/‖δ_L‖² over {rows['seeds'].min()} seeds"
    if len(rows) > 2 and x.nunique() > 1:
        power = np.polyfit(x, v, 1)[0]
        # One variance of n normal values has the relative standard deviation √(2/(n − 1)).
        noise = sqrt(2 / (rows["seeds"].min() - 1)) / sqrt(((x - x.mean()) ** 2).sum())
        text += f" grows as (L/N)^{power:.2f} (±{2 * noise:.2f})"
    text += (
        f"; over L/N it is {kappas.mean():.3g} on average, "
        f"{kappas.min():.3g} to {kappas.max():.3g}, in {len(rows)} runs of widths "
        f"{', '.join(map(str, sorted(rows['width'].unique())))}."
    )
    told = rows.dropna(subset="predicted")
    if len(told):
        inside = told["predicted"].between(told["low"], told["high"]).sum()
        text += f" Theory: κ = {_kappa(rows):.3g}; {inside} of {len(told)} 95 % intervals hold it."
    return text


def _variances(table, prediction) -> pd.DataFrame:
    rows = ratios(table, prediction, ["width", "depth"]).drop(columns=["low", "high"])
    rows = rows[rows["crossed"] > 0]
    of_run = dict(iter(table.groupby("run", observed=True)))
    ends = zip(rows["run"], rows["last"], strict=True)
    intervals = [log_variance(of_run[run].query("layer <= @last")) for run, last in ends]
    rows = rows.assign(
        x=rows["crossed"] / rows["width"],
        variance=[SQUARED * i.mean for i in intervals],
        low=[SQUARED * i.low for i in intervals],
        high=[SQUARED * i.high for i in intervals],
        predicted=SQUARED * rows["predicted_sd"].astype(float) ** 2,
    )
    return rows[rows["variance"] > 0].sort_values("x")


def _kappa(rows: pd.DataFrame) -> float:
    """Theory's variance over L/N in the widest nets, where corrections are least."""
    widest = rows[rows["width"] == rows["width"].max()]
    return float((widest["predicted"] / widest["x"]).mean())
