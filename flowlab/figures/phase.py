"""The phase diagram: where gradients vanish and explode, measured over theory's map."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flowlab.analysis.verdicts import KEPT_WITHIN, counted
from flowlab.figures import style
from flowlab.figures.by_layer import THEORY, legend
from flowlab.figures.ratios import ratios

SCALES = (3, 10, 30)  # layers, the depth scales that are drawn
LOOKS = {
    "vanishing": {"color": style.COLORS[0], "marker": "v"},
    "exploding": {"color": style.COLORS[1], "marker": "^"},
    "kept": {"color": style.COLORS[2], "marker": "o"},
    "undecided": {"color": style.COLORS[6], "marker": "s"},
}
HEIGHT = 4.6  # inches


def phase_diagram(
    table: pd.DataFrame,
    prediction: pd.DataFrame | None = None,
    plane: pd.DataFrame | None = None,
    kept_within: float = KEPT_WITHIN,
) -> Figure:
    """Measured points over (σ_w², σ_b²), theory's critical line and its gradient depth scales.

    A point has its run's verdict. ``plane`` (sigma_w2, sigma_b2, chi over a grid) is drawn as
    contours of ξ = 1/|ln χ| layers, χ = 1 being the critical line. ``prediction`` is not drawn.
    Raises InputError for a missing column.
    """
    points = _points(table, None, kept_within)
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


def phase_caption(
    table: pd.DataFrame,
    prediction: pd.DataFrame | None = None,
    plane: pd.DataFrame | None = None,
    kept_within: float = KEPT_WITHIN,
) -> str:
    """How many points fall on theory's side of the critical line, and how far rates differ."""
    points = _points(table, prediction, kept_within)
    text = f"Of {len(points)} points, going backward: {counted(points['trend'], kept_within)}."
    sided = points["trend"].map({"vanishing": -1, "exploding": 1}).fillna(0)
    decided = sided != 0
    if plane is not None and decided.any():
        near = _nearest(plane, points)
        right = (np.sign(near - 1)[decided] == sided[decided]).sum()
        text += (
            f" {right} of the {decided.sum()} vanishing or exploding ones lie in that phase by "
            "theory"
        )
        wrong = points[decided & (np.sign(near - 1) != sided)]
        if len(wrong):
            low, high = (f"{near[wrong.index].agg(end):.3f}" for end in ("min", "max"))
            text += f", the others at χ = {low}" + (f" to {high}" if high != low else "")
        text += "."
    told = points.dropna(subset="difference")
    if len(told):
        # Decades of the norm are half of those of its square.
        miss = 10 ** (2 * told["difference"] / told["crossed"]) - 1
        text += (
            f" The factor of ‖δ‖² per layer differs from theory's by {miss.abs().median():.1%} in "
            f"the median point, at most {miss.abs().max():.1%}."
        )
    return text


def _points(
    table: pd.DataFrame, prediction: pd.DataFrame | None, kept_within: float
) -> pd.DataFrame:
    """Every run's place in the plane and its verdict, in the terms of ``ratios``."""
    return ratios(table, prediction, ["sigma_w", "sigma_b"], kept_within)


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
