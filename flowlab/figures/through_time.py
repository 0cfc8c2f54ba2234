"""Backpropagation through time: ‖∂L/∂h_t‖ of recurrent nets, step by step."""

from itertools import product
from math import isfinite, log10

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flowlab.analysis.statistics import profile
from flowlab.analysis.verdicts import AGREEMENTS, KEPT_WITHIN, judge, tally
from flowlab.errors import InputError
from flowlab.figures import style
from flowlab.figures.by_layer import LINE, THEORY, key, legend, panel
from flowlab.figures.runs import Named, describe, single_steps
from flowlab.schema import COTANGENT

PANEL = 1.65  # inches, the height of a panel
SYMBOL = "‖∂L/∂$h_t$‖"
LINEAR = "slope $\\log_{10}\\rho$ per step"
MAP = "viridis"


def plain_cells(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of simple recurrent nets."""
    return table[table["network"] == "rnn"]


def gated_cells(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of LSTM and GRU nets."""
    return table[table["network"].isin(["lstm", "gru"])]


def state_gradients(
    table: pd.DataFrame,
    prediction: pd.DataFrame | None = None,
    down: str = "activation",
    across: str = "recurrent",
) -> Figure:
    """‖∂L/∂h_t‖ of the last recurrent layer against t, a panel for each pair of two settings.

    ``table`` has rows with ``time``; runs of one panel are overlaid. Curves are means over seeds,
    bands their 95 % interval and ±1 sd. Dashes are theory where ``prediction`` tells of steps, else
    the slope log10 ρ per step, ρ the radius of a simple net, drawn from the last step on: that of a
    linear net. Raises InputError without such rows and for more than 8 runs in a panel.
    """
    steps = _steps(table)
    told = None if prediction is None else as_layers(single_steps(prediction))
    rows, columns = (_values(steps, axis) for axis in (down, across))
    first, last = int(steps["time"].min()), int(steps["time"].max())
    with style.context():
        figure = Figure(figsize=(style.WIDTH, 1))
        axes = figure.subplots(len(rows), len(columns), squeeze=False, sharex=True)
        drawn, names, bound = set(), {}, False
        for (i, row), (j, column) in product(enumerate(rows), enumerate(columns)):
            ax = axes[i, j]
            of = steps[(steps[down] == row) & (steps[across] == column)]
            style.layers(ax, first, last, "step $t$")
            if i < len(rows) - 1:
                ax.set_xlabel("")
            title = f"{column}" if len(rows) == 1 else f"{row}, {column}"
            ax.set_title(title)
            if j == 0:
                ax.set_ylabel(SYMBOL)
            runs = _runs(of)
            names |= {run.label: place for place, run in enumerate(runs)}
            summary = as_layers(profile(of, COTANGENT, along="time"))
            drawn |= panel(ax, COTANGENT, summary, runs, told, last - first)
            if "theory" not in drawn:
                bound |= _bounds(ax, of, summary, runs)
        handles = [
            Line2D([], [], color=style.COLORS[place], marker=style.MARKERS[place], label=name)
            for name, place in names.items()
        ]
        handles += [handle for name, handle in key().items() if name in drawn]
        if bound:
            handles.append(Line2D([], [], color="black", **THEORY, label=LINEAR))
        lines = legend(figure, handles, "lower")
        figure.set_figheight(len(rows) * (PANEL + 0.25) + 0.4 + LINE * lines)
    return figure


def state_gradients_caption(
    table: pd.DataFrame,
    prediction: pd.DataFrame | None = None,
    down: str = "activation",
    across: str = "recurrent",
    kept_within: float = KEPT_WITHIN,
) -> str:
    """Each run's change per step with its verdict, and how often theory or log10 ρ agrees."""
    steps = _steps(table)
    told = None if prediction is None else single_steps(prediction)
    foretold = told is not None and COTANGENT in told and told[COTANGENT].notna().any()
    findings, agreements, held, known = [], [], 0, 0
    for row, column in product(_values(steps, down), _values(steps, across)):
        of = steps[(steps[down] == row) & (steps[across] == column)]
        parts = []
        for run in _runs(of):
            mine = of[of["run"] == run.id]
            curve = told[told["run"] == run.id] if foretold else None
            found, level = judge(mine, curve, kept_within), _log_radius(mine)
            change, crossed = found.change, max(found.crossed, 1)
            parts.append(
                f"{run.name} {change.mean / crossed:z.4f} ({found.trend})"
                if change.n
                else f"{run.name} none finite"
            )
            agreements.append(found.agreement)
            if isfinite(level) and change.known:
                known += 1
                # Rounding alone moves a rate by a millionth.
                slack = 1e-6 * crossed
                held += change.low - slack <= level * crossed <= change.high + slack
        if parts:
            findings.append(f"{row}, {column}: {', '.join(parts)}")
    text = f"Decades of ‖∂L/∂h_t‖ per step going backward over {steps['time'].max()} steps, "
    text += f"mean over {steps['seed'].nunique()} seeds. " + "; ".join(findings) + "."
    if foretold:
        tallied = tally(agreements, AGREEMENTS)
        text += f" Theory: {', '.join(f'{word} {n}' for word, n in tallied.items())}."
    elif known:
        text += f" {held} of {known} 95 % intervals hold log10 of the radius, a linear net's rate."
    return text


def layer_by_time(table: pd.DataFrame, prediction: pd.DataFrame | None = None) -> Figure:
    """log10 ‖∂L/∂h_t‖ over layers and steps as a map, a panel and a colour scale for each run.

    Means over seeds; grey where none is finite. ``prediction`` is not drawn. Raises InputError
    without rows of steps and for more than 8 runs.
    """
    states = _states(table)
    runs, _ = describe(states, ["network"])
    with style.context():
        figure = Figure(figsize=(style.WIDTH, 0.3 + 1.5 * len(runs)))
        axes = figure.subplots(len(runs), 1, squeeze=False)[:, 0]
        for ax, run in zip(axes, runs, strict=True):
            grid = _map(states[states["run"] == run.id])
            ax.set_facecolor("0.8")
            ends = (grid.columns[0] - 0.5, grid.columns[-1] + 0.5)
            image = ax.imshow(
                np.ma.masked_invalid(grid.to_numpy()),
                extent=(*ends, grid.index[0] - 0.5, grid.index[-1] + 0.5),
                origin="lower",
                aspect="auto",
                cmap=MAP,
                interpolation="nearest",
            )
            style.layers(ax, int(grid.columns[0]), int(grid.columns[-1]), "step $t$")
            ax.set_xlim(ends)
            ax.set_yticks(list(grid.index))
            ax.tick_params(axis="y", labelsize=style.TEXT)
            ax.set(title=run.name.removeprefix("network="), ylabel="layer")
            if ax is not axes[-1]:
                ax.set_xlabel("")
            ax.grid(False)
            bar = figure.colorbar(image, ax=ax, pad=0.02, label=f"$\\log_{{10}}${SYMBOL}")
            bar.ax.tick_params(labelsize=style.TEXT)
    return figure


def layer_by_time_caption(table: pd.DataFrame, prediction: pd.DataFrame | None = None) -> str:
    """What each layer and the sequence cost the gradient: corner by corner."""
    states = _states(table)
    runs, shared = describe(states, ["network"])
    findings = []
    for run in runs:
        grid = _map(states[states["run"] == run.id])
        top, bottom = grid.iloc[-1], grid.iloc[0]
        findings.append(
            f"{run.name}, from {top.iloc[-1]:z.2f} in the last layer and step: "
            f"{bottom.iloc[-1]:z.2f} in the first layer of that step, "
            f"{top.iloc[0]:z.2f} in the first step of that layer, "
            f"{bottom.iloc[0]:z.2f} in the first of both"
        )
    return f"Mean over seeds of log10 ‖∂L/∂h_t‖: {'; '.join(findings)}. All runs: {shared}."


def _states(table: pd.DataFrame) -> pd.DataFrame:
    if "time" not in table or not table["time"].notna().any():
        raise InputError("table must hold rows of single time steps; got none")
    return table[table["time"].notna()]


def _steps(table: pd.DataFrame) -> pd.DataFrame:
    return single_steps(_states(table))


def _values(table: pd.DataFrame, axis: str) -> list:
    """A setting's values in order of first appearance under a fixed order of names."""
    return sorted(table[axis].fillna("run's own").unique(), reverse=True)


def _runs(rows: pd.DataFrame) -> list[Named]:
    """A panel's runs, named at least by the radius of a simple net or the scheme of a gated one."""
    if rows.empty:
        return []
    return describe(rows, ["radius" if (rows["network"] == "rnn").all() else "recurrent"])[0]


def as_layers(steps: pd.DataFrame) -> pd.DataFrame:
    """Steps in the place of layers, for panels that draw along layers."""
    if COTANGENT not in steps:
        steps = steps.assign(**{COTANGENT: np.nan})
    if f"{COTANGENT}_sd" not in steps:
        steps = steps.assign(**{f"{COTANGENT}_sd": np.nan})
    kept = steps.drop(columns="layer", errors="ignore").rename(columns={"time": "layer"})
    return kept.astype({"layer": float})


def _bounds(ax: Axes, rows: pd.DataFrame, summary: pd.DataFrame, runs: list[Named]) -> bool:
    """The slope log10 ρ from each run's last step on; is there any?"""
    drawn = False
    for place, run in enumerate(runs):
        slope = _log_radius(rows[rows["run"] == run.id])
        curve = summary[summary["run"] == run.id].dropna(subset="mean")
        if not isfinite(slope) or curve.empty:
            continue
        x, end = curve["layer"].to_numpy(), curve["mean"].iat[-1]
        line = end + slope * (x[-1] - x)
        shown = np.abs(line) < 1.5 * max(10.0, *np.abs(ax.get_ylim()))
        shade = style.shade(style.COLORS[place])
        ax.plot(x[shown], line[shown], color=shade, **THEORY, label=f"radius: {run.label}")
        drawn = True
    return drawn


def _log_radius(rows: pd.DataFrame) -> float:
    """log10 of the radius of one run's recurrent map; NaN where gates come between."""
    if rows["network"].iat[0] != "rnn" or pd.isna(rows["radius"].iat[0]):
        return float("nan")
    return log10(rows["radius"].iat[0])


def _map(states: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds by layer (down, the first one first) and step of one run."""
    means = profile(states, COTANGENT, by=("run", "layer"), along="time")
    return means.pivot(index="layer", columns="time", values="mean")
