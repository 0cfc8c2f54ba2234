"""Fluctuations of the gradient's norm from net to net against depth over width."""

from functools import partial
from math import log, nan, sqrt

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flowlab.analysis.statistics import log_variance
from flowlab.claims import compare
from flowlab.claims.claim import Finding
from flowlab.claims.trial import log_growth
from flowlab.figures import style
from flowlab.figures.panels import THEORY, legend
from flowlab.figures.ratios import ratios
from flowlab.figures.shown import Shown
from flowlab.studies.study import Drawing, Reading, Study, finding, first_run, runs_with
from flowlab.theory.finite_width import chi_square_step, he_relu_step

SQUARED = (2 * log(10)) ** 2  # from decades of a norm to natural logs of its square
HEIGHT = 4.2  # inches


def variance_collapse(reading: Reading) -> Figure:
    """Variance over seeds of ln ‖δ_1‖²/‖δ_L‖² against L/N, a colour for each width N.

    L counts the layers between the two norms. Bars are 95 % chi-square intervals of the variance;
    the dashed line is theory's κL/N (Hanin & Nica 2018), its κ that of the widest nets.
    Raises InputError as ``ratios`` does.
    """
    table, prediction = reading.table, reading.prediction
    rows = _variances(table, prediction)
    with style.context():
        figure = Shown(figsize=(style.WIDTH, HEIGHT))
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


def variance_finding(reading: Reading) -> str:
    """The power of L/N by which the variance grows, at which widths, and how often theory holds."""
    rows = _variances(reading.table, reading.prediction)
    widths, power = sorted(rows["width"].unique()), _power(rows)
    text = "The variance of ln ‖δ₁‖²/‖δ_L‖² from net to net "
    if power is None:
        text += f"is {(rows['variance'] / rows['x']).mean():.3g} L/N"
    else:
        text += f"grows as (L/N)^{power[0]:.2f} ± {power[1]:.2f}"
    text += f" at widths {widths[0]} to {widths[-1]}" if len(widths) > 1 else ""
    known = rows.dropna(subset="predicted")
    if len(known):
        text += f"; {_inside(known)} of {len(known)} intervals hold theory's {_kappa(rows):.3g} L/N"
    return text


def variance_caption(reading: Reading) -> str:
    """The measured κ, how well L/N alone decides, and how many intervals hold theory."""
    table, prediction = reading.table, reading.prediction
    rows = _variances(table, prediction)
    kappas = rows["variance"] / rows["x"]
    text = f"The variance of ln ‖δ₁‖²/‖δ_L‖² over {rows['seeds'].min()} seeds"
    power = _power(rows)
    if power is not None:
        text += f" grows as (L/N)^{power[0]:.2f} (±{power[1]:.2f})"
    text += (
        f"; over L/N it is {kappas.mean():.3g} on average, "
        f"{kappas.min():.3g} to {kappas.max():.3g}, in {len(rows)} runs of widths "
        f"{', '.join(map(str, sorted(rows['width'].unique())))}."
    )
    known = rows.dropna(subset="predicted")
    if len(known):
        held = f"{_inside(known)} of {len(known)} 95 % intervals hold it"
        text += f" Theory: κ = {_kappa(rows):.3g}; {held}."
    return text


def _power(rows: pd.DataFrame) -> tuple[float, float] | None:
    """The power of L/N that fits the variances, and two of its standard errors."""
    x, v = np.log(rows["x"]), np.log(rows["variance"])
    if len(rows) < 3 or x.nunique() < 2:
        return None
    # One variance of n normal values has the relative standard deviation √(2/(n − 1)).
    noise = sqrt(2 / (rows["seeds"].min() - 1)) / sqrt(((x - x.mean()) ** 2).sum())
    return float(np.polyfit(x, v, 1)[0]), 2 * noise


def _inside(known: pd.DataFrame) -> int:
    """How many intervals hold theory's variance."""
    return int(known["predicted"].between(known["low"], known["high"]).sum())


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


def _orthogonal_step(width: int) -> tuple[float, float]:
    """An orthogonal map keeps the norm and the mask takes a Beta share of it.

    χ²_K is the product of χ²_N and that share, independent: both cumulants of logs subtract.
    """
    gaussian, linear = he_relu_step(width), chi_square_step(width)
    return gaussian[0] - linear[0], gaussian[1] - linear[1]


def _walk(reading: Reading, net: dict, name: str, law, rival, constant: str) -> Finding:
    """Mean and variance of a layer's step in ln‖δ‖², apart from those of a rival law.

    Of a table the narrowest and then the deepest of such nets, where the law shows most. ``law``
    and ``rival`` take the width.
    """
    alone = {"batch_size": 1, "upstream": "gaussian", "skip": "none", "norm": "none"}
    rows = runs_with(reading.table, **net, **alone)
    rows = first_run(rows[rows["width"] == rows["width"].min()], "depth")
    width, steps = int(rows["width"].iat[0]), int(rows["depth"].iat[0]) - 1
    logs, (mean, variance), (other_mean, other_variance) = (
        log_growth(rows),
        law(width),
        rival(width),
    )
    drift = compare.mean(
        "mean of a layer's step in ln‖δ‖²",
        *(logs / steps, mean, (variance / steps) ** 0.5),
        against=other_mean,
    )
    spread = compare.variance("", logs, steps * variance, against=steps * other_variance)
    return drift.finding(
        f"Over one {name} layer of width {width} ln‖δ‖² moves by {drift.measured:.4f} on average "
        f"(exactly {mean:.4f}, about −{constant}/N) with variance {spread.measured / steps:.4f} "
        f"(exactly {variance:.4f}): the typical net of depth L loses {constant}·L/N.",
        compare.worst((drift, spread)).verdict,
    )


def _claimed(id: str, statement: str, source: str, net: dict, **law):
    """A claim on the walk of nets of 16 layers and width 32, of eight times the seeds."""
    init = {"name": net["init"]} | ({"gain": net["gain"]} if "gain" in net else {})
    run = {"depth": 16, "width": 32, "activation": net["activation"], "init": init}
    return finding(id, statement, source, runs=[run], times=8)(partial(_walk, net=net, **law))


WALKS = (
    _claimed(
        "P1",
        "In a Gaussian linear net ln‖δ‖² walks by log(χ²_N/N): mean ≈ −1/N, variance ≈ 2/N.",
        "Hanin & Nica 2018; Hanin & Rolnick 2018",
        {"activation": "identity", "init": "lecun"},
        **{"name": "linear", "law": chi_square_step, "rival": he_relu_step, "constant": "1"},
    ),
    _claimed(
        "P2",
        "In a He ReLU net it walks by log(2χ²_K/N), K ~ Bin(N, ½): mean ≈ −5/(2N), variance ≈ 5/N.",
        "Hanin & Nica 2018; Hanin & Rolnick 2018",
        {"activation": "relu", "init": "he"},
        **{"name": "He ReLU", "law": he_relu_step, "rival": chi_square_step, "constant": "2.5"},
    ),
    _claimed(
        "P3",
        "Orthogonal weights shorten the ReLU net's drift from 5/(2N) to 3/(2N) per layer.",
        "Hanin & Nica 2018; χ²_K = χ²_N·Beta(K/2, (N−K)/2)",
        {"activation": "relu", "init": "orthogonal", "gain": 2**0.5},
        name="orthogonal ReLU",
        law=_orthogonal_step,
        rival=lambda width: (he_relu_step(width)[0], nan),
        constant="1.5",
    ),
)


STUDY = Study(
    "Does the variance of the log-norm from net to net depend on depth over width alone?",
    "Hanin & Nica 2018; Hanin & Rolnick 2018",
    (
        Drawing(
            "variance_collapse",
            variance_finding,
            variance_collapse,
            variance_caption,
        ),
    ),
    WALKS,
    rank=66,
)
