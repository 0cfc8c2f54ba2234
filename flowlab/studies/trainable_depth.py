"""How deep a net may be and still train: theory's depth scale of correlations over a map."""

from math import sqrt

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from flowlab import theory
from flowlab.claims.claim import FAILS, HOLDS, OPEN, Finding
from flowlab.figures import style
from flowlab.figures.panels import THEORY, legend
from flowlab.figures.shown import Shown
from flowlab.studies.study import Drawing, Reading, Study, finding
from flowlab.studies.trainability import COLORS, TRAINS, black_or_white, outcomes

SCALES = 6  # depth scales to which nets train (Schoenholz et al. 2017)
HEIGHT = 3.6  # inches
POINTS = 241  # of theory's line
TOLERANCE = 0.1  # share of nets beyond the bound that may train


def depth_map(reading: Reading) -> Figure:
    """Held-out accuracy over σ_w² and depth, a cell for each run, beside theory's 6ξ_c.

    Numbers are means over seeds in percent; diverged networks count as 0. Raises InputError
    without trained runs, and for runs of several activations or σ_b.
    """
    points = _points(reading)
    cells = points.pivot(index="depth", columns="sigma_w2", values="accuracy")
    widths, depths = cells.columns.to_numpy(float), cells.index.to_numpy(float)
    x, y = _edges(widths), np.exp(_edges(np.log(depths)))
    with style.context():
        figure = Shown(figsize=(style.WIDTH, HEIGHT))
        ax = figure.subplots()
        mesh = ax.pcolormesh(x, y, cells, cmap=COLORS, vmin=0, vmax=1, rasterized=True)
        for (row, column), value in np.ndenumerate(cells.to_numpy()):
            if np.isfinite(value):
                color = black_or_white(mesh.to_rgba(value))
                place = np.sqrt(x[column] * x[column + 1]), depths[row]
                ax.text(*place, f"{100 * value:.0f}", ha="center", va="center", color=color)
        line = np.linspace(x[0], x[-1], POINTS)
        bound = [_bound(points, sigma_w2) for sigma_w2 in line]
        ax.plot(line, bound, color="white", linewidth=3.2)
        ax.plot(line, bound, color="black", **THEORY)
        ax.set_yscale("log")
        ax.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
        ax.set_yticks(depths, [f"{depth:.0f}" for depth in depths])
        ax.set_xticks(widths, [f"{value:.3g}" for value in widths])
        ax.yaxis.set_minor_locator(NullLocator())
        ax.tick_params(labelsize=style.TEXT)
        ax.grid(False)
        ax.set_xlabel(r"$\sigma_w^2$, fan_in × variance of a weight")
        ax.set_ylabel("depth, layers")
        bar = figure.colorbar(mesh, ax=ax, pad=0.02)
        bar.set_label("held-out accuracy")
        bar.ax.tick_params(labelsize=style.TEXT)
        handle = Line2D([], [], color="black", **THEORY, label=f"theory: {SCALES}ξ_c layers")
        legend(figure, [handle], "lower")
    return figure


def depth_finding(reading: Reading) -> str:
    """How many nets train within theory's bound, and how many beyond it."""
    points = _points(reading)
    inside, beyond = _sides(points)
    return (
        f"{_count(inside)} nets of at most {SCALES}ξ_c layers reach {100 * TRAINS:.0f} % of the "
        f"held-out examples, {_count(beyond)} deeper ones do"
    )


def depth_caption(reading: Reading) -> str:
    """The deepest net that trains at each σ_w², beside theory's bound."""
    points = _points(reading)
    parts = []
    for sigma_w2, of in points.groupby("sigma_w2"):
        deepest = of.loc[of["accuracy"] >= TRAINS, "depth"].max()
        words = "none" if np.isnan(deepest) else f"{deepest:.0f}"
        parts.append(f"{words} at σ_w² = {sigma_w2:.3g} ({SCALES}ξ_c = {of['bound'].iat[0]:.3g})")
    return (
        f"Deepest net that reaches {100 * TRAINS:.0f} % of the held-out examples in the budget: "
        f"{', '.join(parts)}. The line bounds from above what any budget may train."
    )


def _points(reading: Reading) -> pd.DataFrame:
    """``outcomes`` with ``sigma_w2`` and ``bound``, 6ξ_c layers."""
    points = outcomes(reading, "activation", "sigma_w", "sigma_b", "depth")
    points["sigma_w2"] = points["sigma_w"] ** 2
    points["bound"] = [_bound(points, sigma_w2) for sigma_w2 in points["sigma_w2"]]
    return points


def _bound(points: pd.DataFrame, sigma_w2: float) -> float:
    activation, sigma_b = points[["activation", "sigma_b"]].iloc[0]
    return SCALES * theory.correlation_depth(activation, sigma_w2, sigma_b**2)


def _sides(points: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Of the nets within the bound, and of those beyond it: which train."""
    trains, inside = points["accuracy"] >= TRAINS, points["depth"] <= points["bound"]
    return trains[inside], trains[~inside]


def _count(trains: pd.Series) -> str:
    return f"{trains.sum()} of {len(trains)}"


def _edges(centres: np.ndarray) -> np.ndarray:
    middle = (centres[1:] + centres[:-1]) / 2
    return np.array([2 * centres[0] - middle[0], *middle, 2 * centres[-1] - middle[-1]])


@finding(
    "S17-depth",
    f"Tanh nets train up to a depth of about {SCALES}ξ_c, ξ_c the depth scale of correlations.",
    "Schoenholz et al. 2017",
    runs=[
        {"width": 32, "batch_size": 32, "activation": "tanh", "depth": depth}
        | {"init": {"name": "normal", "sigma_w": sigma_w, "sigma_b": sqrt(0.05)}}
        | {"training": {"name": "sgd", "lr": 0.05, "steps": 100, "log": 100}}
        for sigma_w in (0.8, 1.0, 1.3)
        for depth in (4, 16, 32)
    ],
    times=1 / 16,
)
def trainable_depth(reading: Reading) -> Finding:
    """The bound holds if nets beyond it do not train and some within it do."""
    points = _points(reading)
    inside, beyond = _sides(points)
    share = float(beyond.mean()) if len(beyond) else np.nan
    verdict = OPEN
    if len(beyond) and inside.any():
        verdict = FAILS if share > TOLERANCE else HOLDS
    return Finding(
        f"share of nets deeper than {SCALES}ξ_c that train",
        0.0,
        share,
        TOLERANCE,
        verdict,
        f"Of nets within {SCALES}ξ_c layers {_count(inside)} reach {100 * TRAINS:.0f} % of the "
        f"held-out examples, of those beyond {_count(beyond)}; near the critical line, where ξ_c "
        "diverges, width and budget set the bound.",
        share,
        share,
    )


STUDY = Study(
    "How deep may a tanh net be and still train?",
    "Schoenholz et al. 2017",
    (Drawing("trainable_depth", depth_finding, depth_map, depth_caption),),
    (trainable_depth,),
    rank=54,
)
