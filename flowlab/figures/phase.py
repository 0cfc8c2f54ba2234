"""The phase diagram: where gradients vanish and explode, measured over theory's map."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flowlab.errors import unknown
from flowlab.figures import style
from flowlab.figures.by_layer import THEORY, legend
from flowlab.statistics import DELTA, over_seeds, predicted_slope, seed_slopes

SCALES = (3, 10, 30)  # layers, the depth scales that are drawn
SETTLED = 5  # the share 1/5 of layers in which the forward variance still settles is left out
LOOKS = {
    "vanishes": {"color": style.COLORS[0], "marker": "v"},
    "explodes": {"color": style.COLORS[1], "marker": "^"},
    "neither": {"color": style.COLORS[6], "marker": "o"},
}
HEIGHT = 4.6  # inches


def phase_diagram(
    table: pd.DataFrame, prediction: pd.DataFrame | None = None, plane: pd.DataFrame | None = None
) -> Figure:
    """Measured points over (σ_w², σ_b²), theory's critical line and its gradient depth scales.

    A point says whether the 95 % interval of the slope of log‖δ‖ lies below 0, above it, or holds
    it. ``plane`` (sigma_w2, sigma_b2, chi over a grid) is drawn as contours of ξ = 1/|ln χ| layers,
    χ = 1 being the critical line. ``prediction`` is not drawn.
    Raises InputError for a missing column.
    """
    points = _points(table, None)
    with style.context():
        figure = Figure(figsize=(style.WIDTH * 0.85, HEIGHT))
        ax = figure.subplots()
        handles = []
        if plane is not None:
            _contours(ax, plane)
            handles.append(Line2D([], [], color="black", label="theory: critical, χ = 1"))
            label = "theory: depth scale ξ, layers"
            handles.append(Line2D([], [], color="0.45", **THEORY, label=label))
        for kind, look in LOOKS.items():
            of_kind = points[points["kind"] == kind]
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


def phase_caption(
    table: pd.DataFrame, prediction: pd.DataFrame | None = None, plane: pd.DataFrame | None = None
) -> str:
    """How many points fall on theory's side of the critical line, and how far rates differ."""
    points = _points(table, prediction)
    counts = points["kind"].value_counts()
    text = f"Of {len(points)} points the gradient's norm " + ", ".join(
        f"{kind} going backward at {counts[kind]}"
        for kind in ("vanishes", "explodes")
        if kind in counts
    )
    if "neither" in counts:
        text += f"; at {counts['neither']} the 95 % interval of its slope holds 0"
    text += "."
    if plane is not None:
        near = _nearest(plane, points)
        sided = points["kind"].map({"vanishes": -1, "explodes": 1}).fillna(0)
        decided = sided != 0
        right = (np.sign(near - 1)[decided] == sided[decided]).sum()
        text += f" {right} of the {decided.sum()} that go one way lie in that phase by theory"
        wrong = points[decided & (np.sign(near - 1) != sided)]
        if len(wrong):
            low, high = (f"{near[wrong.index].agg(end):.3f}" for end in ("min", "max"))
            text += f", the others at χ = {low}" + (f" to {high}" if high != low else "")
        text += "."
    told = points.dropna(subset="predicted")
    if len(told):
        # A slope in decades of the norm is half of log10 χ.
        miss = 10 ** (2 * told["mean"]) / 10 ** (2 * told["predicted"]) - 1
        text += (
            f" The factor of ‖δ‖² per layer differs from theory's by {miss.abs().median():.1%} in "
            f"the median point, at most {miss.abs().max():.1%}."
        )
    return text


def _points(table: pd.DataFrame, prediction: pd.DataFrame | None) -> pd.DataFrame:
    """Slope of every run over the settled layers: decades per layer, its kind, theory's slope."""
    for name in ("run", "sigma_w", "sigma_b", "depth", DELTA):
        if name not in table:
            raise unknown("column", name, table.columns)
    settled = table[table["layer"] > table["depth"] // SETTLED]
    points = table.groupby("run", observed=True)[["sigma_w", "sigma_b", "depth"]].first()
    slopes = over_seeds(seed_slopes(settled, by="run")).set_index("run")
    points = points.join(slopes[["mean", "low", "high"]])
    points["kind"] = np.select(
        [points["high"] < 0, points["low"] > 0], ["vanishes", "explodes"], "neither"
    )
    points["predicted"] = np.nan
    if prediction is not None:
        for run, told in prediction.groupby("run", observed=True):
            if run in points.index:
                first = points.at[run, "depth"] // SETTLED + 1
                points.at[run, "predicted"] = predicted_slope(told, first=first)
    return points.reset_index()


def _padded(values: pd.Series) -> tuple[float, float]:
    """Limits that leave room for the outermost marks."""
    pad = 0.05 * np.ptp(values) or 0.05
    return values.min() - pad, values.max() + pad


def _contours(ax, plane: pd.DataFrame) -> None:
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
