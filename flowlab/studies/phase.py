"""The phase diagram: where gradients vanish and explode, measured over theory's map."""

from functools import lru_cache, partial
from math import exp, log, sqrt

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flowlab import theory
from flowlab.analysis.verdicts import counted
from flowlab.claims import compare
from flowlab.claims.claim import Finding
from flowlab.claims.rates import growth_law
from flowlab.claims.trial import log_growth
from flowlab.figures import style
from flowlab.figures.panels import THEORY, legend
from flowlab.figures.ratios import ratios
from flowlab.figures.shown import Shown
from flowlab.studies.study import Drawing, Reading, Study, finding, first_run, runs_with
from flowlab.theory.mean_field import phase_plane

SCALES = (3, 10, 30)  # layers, the depth scales that are drawn
LOOKS = {
    "vanishing": {"color": style.COLORS[0], "marker": "v"},
    "exploding": {"color": style.COLORS[1], "marker": "^"},
    "kept": {"color": style.COLORS[2], "marker": "o"},
    "undecided": {"color": style.COLORS[6], "marker": "s"},
}
PAST = {
    "vanishing": "vanishes",
    "exploding": "explodes",
    "kept": "is kept",
    "undecided": "is undecided",
}
HEIGHT = 4.6  # inches
POINTS = 41  # theory's plane, along each side

SETTLED = 16  # q is at its fixed point from this layer on
# σ_w² at which χ = 1, for each σ_b²; and (q*, χ₁) at σ_b² = .05 for each σ_w².
CRITICAL_LINE = {0.01: 1.42421, 0.05: 1.76096, 0.3: 2.50513}
FIXED_POINTS = {1.0: (0.1936, 0.7590), 1.5: (0.4180, 0.9386), 2.5: (1.0640, 1.1335)}


def phase_diagram(reading: Reading) -> Figure:
    """Measured points over (σ_w², σ_b²), theory's critical line and its gradient depth scales.

    A point has its run's verdict. Theory's plane is drawn as contours of ξ = 1/|ln χ| layers,
    χ = 1 being the critical line. Raises InputError for a missing column.
    """
    points = _points(reading, judged=False)
    with style.context():
        figure = Shown(figsize=(style.WIDTH, HEIGHT))
        ax = figure.subplots()
        _contours(ax, plane(reading.table))
        handles = [
            Line2D([], [], color="black", label="theory: critical, χ = 1"),
            Line2D([], [], color="0.45", **THEORY, label="theory: depth scale ξ, layers"),
        ]
        for kind, look in LOOKS.items():
            of_kind = points[points["trend"] == kind]
            if len(of_kind):
                dots = {"linestyle": "none", "markersize": 6, "label": f"measured: {kind}", **look}
                x, y = of_kind["sigma_w"] ** 2, of_kind["sigma_b"] ** 2
                ax.plot(x, y, markeredgecolor="white", markeredgewidth=0.5, **dots)
                handles.append(Line2D([], [], **dots))
        ax.set_xlabel(r"$\sigma_w^2$, fan_in × variance of a weight")
        ax.set_ylabel(r"$\sigma_b^2$, variance of a bias")
        ax.tick_params(labelsize=style.TEXT)
        ax.grid(False)
        ax.set_xlim(_padded(points["sigma_w"] ** 2))
        ax.set_ylim(_padded(points["sigma_b"] ** 2))
        legend(figure, handles, "lower")
    return figure


def phase_finding(reading: Reading) -> str:
    """How many runs vanish and explode, and how many of them on theory's side of χ = 1."""
    points = _points(reading)
    count = points["trend"].value_counts()
    words = ", ".join(f"{PAST[trend]} in {count[trend]}" for trend in PAST if trend in count)
    text = f"Of {len(points)} runs the gradient {words}"
    decided, right, _ = _sides(reading, points)
    if decided.any():
        share = "all" if right.sum() == decided.sum() else f"{right.sum()} of the"
        text += (
            f"; {share} {decided.sum()} that vanish or explode do so on theory's side of the "
            "critical line"
        )
    return text


def phase_caption(reading: Reading) -> str:
    """How many points fall on theory's side of the critical line, and how far rates differ."""
    points = _points(reading)
    trends = counted(points["trend"], reading.kept_within)
    text = f"Of {len(points)} points, going backward: {trends}."
    decided, right, chi = _sides(reading, points)
    if decided.any():
        text += (
            f" {right.sum()} of the {decided.sum()} vanishing or exploding ones lie in that phase "
            "by theory"
        )
        wrong = chi[decided & ~right]
        if len(wrong):
            low, high = (f"{wrong.agg(end):.3f}" for end in ("min", "max"))
            text += f", the others at χ = {low}" + (f" to {high}" if high != low else "")
        text += "."
    compared = points.dropna(subset="difference")
    if len(compared):
        # Decades of the norm are half of those of its square.
        miss = 10 ** (2 * compared["difference"] / compared["crossed"]) - 1
        text += (
            f" The factor of ‖δ‖² per layer differs from theory's by {miss.abs().median():.1%} in "
            f"the median point, at most {miss.abs().max():.1%}."
        )
    return text


def plane(table: pd.DataFrame) -> pd.DataFrame:
    """Theory's phase plane around the measured points, which it contains."""
    sides = []
    for name in ("sigma_w", "sigma_b"):
        squares = np.unique(table[name] ** 2)
        margin = 0.05 * np.ptp(squares) or 0.05
        ends = max(squares[0] - margin, 0), squares[-1] + margin
        sides.append(tuple(np.union1d(np.linspace(*ends, POINTS), squares)))
    return _plane(table["activation"].iat[0], *sides)


@lru_cache(1)  # for figure and caption
def _plane(activation: str, sigma_w2: tuple, sigma_b2: tuple) -> pd.DataFrame:
    return phase_plane(activation, sigma_w2, sigma_b2)


def _points(reading: Reading, judged: bool = True) -> pd.DataFrame:
    """Every run's place in the plane and its verdict, in the terms of ``ratios``."""
    prediction = reading.prediction if judged else None
    return ratios(reading.table, prediction, ["sigma_w", "sigma_b"], reading.kept_within)


def _sides(reading: Reading, points: pd.DataFrame) -> tuple[pd.Series, pd.Series, pd.Series]:
    """Which runs vanish or explode, which of them as theory's χ has it, and that χ."""
    sided = points["trend"].map({"vanishing": -1, "exploding": 1}).fillna(0)
    chi = _nearest(plane(reading.table), points)
    return sided != 0, (sided != 0) & (np.sign(chi - 1) == sided), chi


def _padded(values: pd.Series) -> tuple[float, float]:
    """Limits that leave room for the outermost marks."""
    pad = 0.05 * np.ptp(values) or 0.05
    return values.min() - pad, values.max() + pad


def _contours(ax: Axes, plane: pd.DataFrame) -> None:
    grid = plane.pivot(index="sigma_b2", columns="sigma_w2", values="chi")
    where, logs = (grid.columns, grid.index), np.log(grid.to_numpy())
    levels = sorted([*(-1 / scale for scale in SCALES), *(1 / scale for scale in SCALES)])
    lines = ax.contour(
        *where, logs, levels, colors="0.45", linewidths=1, linestyles=[THEORY["linestyle"]]
    )
    ax.clabel(lines, fmt=lambda level: f"ξ = {1 / abs(level):.0f}", fontsize=style.TEXT)
    ax.contour(*where, logs, [0], colors="black", linewidths=1.8)


def _nearest(plane: pd.DataFrame, points: pd.DataFrame) -> pd.Series:
    """Theory's chi at the grid point nearest to each measured one."""
    w, b = plane["sigma_w2"].to_numpy(), plane["sigma_b2"].to_numpy()
    spans = np.ptp(w) or 1, np.ptp(b) or 1
    distance = [
        ((w - x**2) / spans[0]) ** 2 + ((b - y**2) / spans[1]) ** 2
        for x, y in zip(points["sigma_w"], points["sigma_b"], strict=True)
    ]
    nearest = [int(np.argmin(d)) for d in distance]
    return pd.Series(plane["chi"].to_numpy()[nearest], points.index)


NET = {"activation": "tanh", "upstream": "gaussian", "skip": "none", "norm": "none"}


@finding(
    "M2",
    "Tanh at Xavier is critical: ‖δ_1‖²/‖δ_L‖² ≈ 0.71/L, a power law, not an exponential.",
    "Schoenholz et al. 2017; q ≈ 1/(2l) from tanh² ≈ q − 2q²",
    runs=[{"depth": 48, "width": 192, "activation": "tanh", "init": "xavier"}],
)
def power_law(reading: Reading) -> Finding:
    """From q_1 = 1; the asymptotic law with the finite-width drift −κL/2N."""
    rows = runs_with(reading.table, **NET, sigma_w=1.0, sigma_b=0.0, data="gaussian", batch_size=1)
    rows = first_run(rows[rows["init"].isin(["xavier", "normal"])], "depth", "width")
    width, depth = int(rows["width"].iat[0]), int(rows["depth"].iat[0])
    mean, variance, allowance = growth_law("tanh", 1.0, 0.0, width, depth)
    infinite = mean + 0.5 * variance
    predicted = log(0.71 / depth) - 0.5 * variance
    # The asymptotic law is itself off at this depth, by what the trajectory says.
    allowance += abs(infinite - log(0.71 / depth))
    result = compare.mean(
        "ln ‖δ_1‖²/‖δ_L‖²", log_growth(rows), predicted, sqrt(variance), allowance, against=0.0
    )
    infinite_ratio = exp(result.measured + 0.5 * variance)
    return result.finding(
        f"At depth {depth} ‖δ_1‖²/‖δ_L‖², corrected for width {width}, is {infinite_ratio:.4f} = "
        f"{depth * infinite_ratio:.2f}/L, near 0.71/L and far from both 1 and an exponential such "
        f"as ReLU's {0.5 ** (depth - 1):.0e} at the same initialization."
    )


def _settled(reading: Reading, sigma_w2: float, sigma_b2: float) -> pd.DataFrame:
    """The deepest run of these variances, of those in which q has the layers to settle."""
    place = {"init": "normal", "sigma_w": sqrt(sigma_w2), "sigma_b": sqrt(sigma_b2)}
    deep = reading.table[reading.table["depth"] > SETTLED + 1]
    return first_run(runs_with(deep, **NET, **place), "depth", "width")


def _settled_rate(rows: pd.DataFrame, chi: float, q: float) -> compare.Comparison:
    """The rate of ‖δ‖² per layer beyond layer SETTLED against χ; theory's error is 0.3 κ/N.

    The drift κ/2N is that of one example; a batch has between none and that.
    """
    width, steps = int(rows["width"].iat[0]), int(rows["depth"].iat[0]) - SETTLED
    drift, variance = theory.step_mean_variance("tanh", width, q=q)
    allowance = 0.3 * steps * variance
    if rows["batch_size"].iat[0] > 1:
        drift /= 2
        allowance += steps * abs(drift)
    return compare.rate(
        "‖δ‖² per layer",
        log_growth(rows, SETTLED),
        steps,
        steps * (log(chi) + drift),
        steps * variance,
        allowance,
    )


def _critical(reading: Reading, sigma_b2: float) -> Finding:
    sigma_w2 = CRITICAL_LINE[sigma_b2]
    rows = _settled(reading, sigma_w2, sigma_b2)
    result = _settled_rate(rows, 1.0, theory.q_fixed_point("tanh", sigma_w2, sigma_b2))
    return result.finding(
        f"At (σ_w², σ_b²) = ({sigma_w2}, {sigma_b2}) ‖δ‖² changes by {result.measured:.4f} per "
        f"layer, against {result.predicted:.4f}: 1 less the drift of width {rows['width'].iat[0]}."
    )


def _fixed_point(reading: Reading, sigma_w2: float) -> Finding:
    q, chi = FIXED_POINTS[sigma_w2]
    rows = _settled(reading, sigma_w2, 0.05)
    rate = _settled_rate(rows, chi, q)
    depth, width = int(rows["depth"].iat[0]), int(rows["width"].iat[0])
    hidden = rows[(rows["layer"] >= SETTLED) & (rows["layer"] < depth)]
    squares = 10 ** (2 * hidden["activation_log10_norm"]) / width / hidden["batch_size"]
    per_seed = sigma_w2 * squares.groupby(hidden["seed"]).mean().to_numpy() + 0.05
    # q fluctuates by a relative √(2/N) a layer; the curvature of its map shifts the mean by O(1/N).
    variance = compare.mean("q*", per_seed, q, allowance=2 * q / width)
    both = compare.worst((rate, variance))
    return rate.finding(
        f"At σ_w² = {sigma_w2} the variance settles at q = {np.mean(per_seed):.4f} (theory {q}), "
        f"and ‖δ‖² changes by {rate.measured:.4f} per layer, against {rate.predicted:.4f} from "
        f"χ = {chi} at width {width}.",
        both.verdict,
    )


def _at(sigma_w2: float, sigma_b2: float) -> list[dict]:
    """The small sweep of one point of the plane."""
    init = {"name": "normal", "sigma_w": sqrt(sigma_w2), "sigma_b": sqrt(sigma_b2)}
    return [{"depth": 40, "width": 96, "activation": "tanh", "init": init}]


CRITICAL = tuple(
    finding(
        f"M3-{sigma_b2}",
        f"A tanh net with σ_b² = {sigma_b2} is critical at σ_w² = {sigma_w2}.",
        "Poole et al. 2016; Schoenholz et al. 2017",
        runs=_at(sigma_w2, sigma_b2),
    )(partial(_critical, sigma_b2=sigma_b2))
    for sigma_b2, sigma_w2 in CRITICAL_LINE.items()
)
FIXED = tuple(
    finding(
        f"M4-{sigma_w2}",
        f"At σ_b² = 0.05, σ_w² = {sigma_w2} a tanh net has q* = {q} and χ = {chi}.",
        "Poole et al. 2016; Schoenholz et al. 2017",
        runs=_at(sigma_w2, 0.05),
    )(partial(_fixed_point, sigma_w2=sigma_w2))
    for sigma_w2, (q, chi) in FIXED_POINTS.items()
)

STUDY = Study(
    "Where in the plane of weight and bias variances do gradients of tanh nets vanish and explode?",
    "Poole et al. 2016; Schoenholz et al. 2017",
    (
        Drawing(
            "phase_diagram",
            phase_finding,
            phase_diagram,
            phase_caption,
        ),
    ),
    (power_law, *CRITICAL, *FIXED),
    rank=63,
)
