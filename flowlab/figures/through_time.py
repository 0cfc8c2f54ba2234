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
from flowlab.figures.panels import LINE, THEORY, key, legend, panel
from flowlab.figures.runs import NamedRun, describe, single_steps
from flowlab.schema import COTANGENT

PANEL = 1.65  # inches, the height of a panel
SYMBOL = "‖∂L/∂$h_t$‖"
LINEAR = "slope $\\log_{10}\\rho$ per step"


def state_gradients(
    table: pd.DataFrame,
    prediction: pd.DataFrame | None = None,
    down: str = "activation",
    across: str = "recurrent",
) -> Figure:
    """‖∂L/∂h_t‖ of the last recurrent layer against t, a panel for each pair of two settings.

    ``table`` has rows with ``time``; runs of one panel are overlaid. Curves are means over seeds,
    bands their 95 % interval and ±1 sd. Dashes are theory where ``prediction`` has steps, else
    the slope log10 ρ per step, ρ the radius of a simple net, drawn from the last step on: that of a
    linear net. Raises InputError without such rows and for more than 8 runs in a panel.
    """
    steps = _steps(table)
    curves = None if prediction is None else as_layers(single_steps(prediction))
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
            drawn |= panel(ax, COTANGENT, summary, runs, curves, last - first)
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
    curves = None if prediction is None else single_steps(prediction)
    foreseen = curves is not None and COTANGENT in curves and curves[COTANGENT].notna().any()
    findings, agreements, held, known = [], [], 0, 0
    for row, column in product(_values(steps, down), _values(steps, across)):
        of = steps[(steps[down] == row) & (steps[across] == column)]
        parts = []
        for run in _runs(of):
            mine = of[of["run"] == run.id]
            curve = curves[curves["run"] == run.id] if foreseen else None
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
    if foreseen:
        tallied = tally(agreements, AGREEMENTS)
        text += f" Theory: {', '.join(f'{word} {n}' for word, n in tallied.items())}."
    elif known:
        text += f" {held} of {known} 95 % intervals hold log10 of the radius, a linear net's rate."
    return text


def states(table: pd.DataFrame) -> pd.DataFrame:
    if "time" not in table or not table["time"].notna().any():
        raise InputError("table must hold rows of single time steps; got none")
    return table[table["time"].notna()]


def _steps(table: pd.DataFrame) -> pd.DataFrame:
    return single_steps(states(table))


def _values(table: pd.DataFrame, axis: str) -> list:
    """A setting's values in order of first appearance under a fixed order of names."""
    return sorted(table[axis].fillna("run's own").unique(), reverse=True)


def _runs(rows: pd.DataFrame) -> list[NamedRun]:
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


def _bounds(ax: Axes, rows: pd.DataFrame, summary: pd.DataFrame, runs: list[NamedRun]) -> bool:
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
