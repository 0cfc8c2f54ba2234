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
from flowlab.figures.labels import End, label_ends
from flowlab.figures.panels import GREY, LINE, THEORY, key, legend, panel
from flowlab.figures.runs import (
    NamedRun,
    describe,
    in_place_of_layers,
    named_by,
    single_steps,
    with_prediction,
)
from flowlab.figures.shown import Shown
from flowlab.schema import COTANGENT

PANEL = 1.65  # inches, the height of a panel
SYMBOL = "‖∂L/∂$h_t$‖"
OWN = "run's own"
NOTE = {"ha": "right", "color": GREY, "fontsize": style.TEXT}
LETTERS = {"radius": "ρ = ", "forget_bias": "bias "}
LINEAR = "slope $\\log_{10}\\rho$ per step"


def state_gradients(
    table: pd.DataFrame,
    prediction: pd.DataFrame | None = None,
    down: str = "activation",
    across: str = "recurrent",
    lines: str = "radius",
) -> Figure:
    """‖∂L/∂h_t‖ of the last recurrent layer against t, a panel for each pair of two settings.

    ``table`` has rows with ``time``; runs of one panel are overlaid and named by their value of
    ``lines`` where that suffices. Curves are means over seeds, bands their 95 % interval and ±1 sd.
    Dashes are theory where ``prediction`` has steps, else the slope log10 ρ per step, ρ the radius
    of a simple net, drawn from the last step on: that of a linear net. Raises InputError without
    such rows and for more than 8 runs in a panel.
    """
    steps = _steps(table)
    curves = None
    if prediction is not None:
        curves = with_prediction(in_place_of_layers(single_steps(prediction)), COTANGENT)
    rows, columns = (_values(steps, axis) for axis in (down, across))
    first, last = int(steps["time"].min()), int(steps["time"].max())
    height = PANEL if len(rows) > 1 else 2 * PANEL - 0.5
    with style.context():
        figure = Shown(figsize=(style.WIDTH, len(rows) * (height + 0.25) + 0.9))
        axes = figure.subplots(len(rows), len(columns), squeeze=False, sharex=True, sharey="row")
        drawn, bound = set(), False
        grid = [[_part(steps, **{down: r, across: c}) for c in columns] for r in rows]
        grid = [[(of, _runs(of, lines)) for of in part] for part in grid]
        starts = {}
        for panels, part in zip(axes, grid, strict=True):
            parts = [(ax, of, runs) for ax, (of, runs) in zip(panels, part, strict=True)]
            summaries, limits, theories = [], [], []
            for ax, of, runs in parts:
                summaries.append(in_place_of_layers(profile(of, COTANGENT, along="time")))
                found = panel(ax, COTANGENT, summaries[-1], runs, curves, last - first)
                limits.append(ax.get_ylim())
                theories.append("theory" in found)
                drawn |= found
            low, high = np.array([lim for lim, (_, _, r) in zip(limits, parts, strict=True) if r]).T
            for (ax, of, runs), summary, theory in zip(parts, summaries, theories, strict=True):
                style.decades(ax, low.min(), high.max())
                bounded = not theory and _bounds(ax, of, summary, runs)
                bound |= bounded
                style.layers(ax, first, last, "step $t$")
                starts[ax] = _starts(summary, runs)
                if runs and not bounded:
                    ax.text(
                        0.98, 0.09, _silence(curves, runs, first), **NOTE, transform=ax.transAxes
                    )
        for (i, row), (j, column) in product(enumerate(rows), enumerate(columns)):
            axes[i, j].set_title(f"{column}" if len(rows) == 1 else f"{row}, {column}")
            if i < len(rows) - 1:
                axes[i, j].set_xlabel("")
        for ax in axes[:, 0]:
            ax.set_ylabel(SYMBOL)
        handles = [handle for name, handle in key().items() if name in drawn]
        if bound:
            handles.append(Line2D([], [], color="black", **THEORY, label=LINEAR))
        figure.set_figheight(figure.get_figheight() + LINE * legend(figure, handles, "lower"))
        label_ends(figure, starts, "left")
    return figure


def changes(
    table: pd.DataFrame,
    prediction: pd.DataFrame | None = None,
    down: str = "activation",
    across: str = "recurrent",
    lines: str = "radius",
    kept_within: float = KEPT_WITHIN,
) -> pd.DataFrame:
    """What each run of ``state_gradients`` does over its steps, a row each, in order of panels.

    ``down``, ``across``, ``line``, ``name``; ``change``, decades going backward with ``low``,
    ``high``; ``crossed`` steps, ``trend``, ``agreement`` with theory; ``held``, whether the
    interval holds log10 of the radius per step, None where there is no radius to hold.
    """
    steps = _steps(table)
    curves = None if prediction is None else single_steps(prediction)
    if curves is not None and (COTANGENT not in curves or curves[COTANGENT].isna().all()):
        curves = None
    found = []
    for row, column in product(_values(steps, down), _values(steps, across)):
        of = _part(steps, **{down: row, across: column})
        for run in _runs(of, lines):
            mine = of[of["run"] == run.id]
            curve = None if curves is None else curves[curves["run"] == run.id]
            verdict, level = judge(mine, curve, kept_within), _log_radius(mine)
            change, crossed = verdict.change, max(verdict.crossed, 1)
            held = None
            if isfinite(level) and change.known:
                # Rounding alone moves a rate by a millionth.
                slack = 1e-6 * crossed
                held = change.low - slack <= level * crossed <= change.high + slack
            found.append(
                {
                    **{"down": row, "across": column, "line": run.label, "name": run.name},
                    **{"change": change.mean, "low": change.low, "high": change.high},
                    **{"crossed": crossed, "trend": verdict.trend, "agreement": verdict.agreement},
                    **{"held": held, "foreseen": curves is not None},
                }
            )
    return pd.DataFrame(found)


def radius_finding(rows: pd.DataFrame) -> str:
    """In how many runs of each kind the radius sets the rate; rows as of :func:`changes`."""
    known, parts = rows[rows["held"].notna()], []
    for row, of in known.groupby("down", sort=False):
        runs = "" if parts else " runs"
        parts.append(f"{int(of['held'].sum())} of {len(of)}{runs} with {row}")
    if not parts:
        return steps_finding(rows)
    changed = f"log₁₀ρ a step, as in a linear net, in {_and(parts)}"
    return f"Over {rows['crossed'].max()} steps back the gradient changes by {changed}"


def steps_finding(rows: pd.DataFrame) -> str:
    """By how much the gradient of each line changes over all steps; rows of :func:`changes`."""
    return f"Over {rows['crossed'].max()} steps back the gradient changes by {by_line(rows)}"


def by_line(rows: pd.DataFrame) -> str:
    """The change over all steps of each line, over all panels; rows as of :func:`changes`."""
    parts = []
    for line, of in rows.groupby("line", sort=False):
        low, high = (_two(of["change"].agg(end)) for end in ("min", "max"))
        unit = "" if parts else " decades"
        parts.append(f"{low if low == high else f'{low} to {high}'}{unit} ({line})")
    return ", ".join(parts)


def _two(value: float) -> str:
    """A number of decades: whole from ten on, else with one decimal."""
    return f"{value:z.{0 if abs(value) >= 10 else 1}f}".replace("-", "−")


def state_gradients_caption(rows: pd.DataFrame, seeds: int) -> str:
    """Each run's change per step with its verdict, and how often theory or log10 ρ agrees.

    ``rows`` as of :func:`changes`.
    """
    findings = []
    for (row, column), of in rows.groupby(["down", "across"], sort=False):
        parts = [
            f"{run.name} {run.change / run.crossed:z.4f} ({run.trend})"
            if isfinite(run.change)
            else f"{run.name} none finite"
            for run in of.itertuples()
        ]
        findings.append(f"{row}, {column}: {', '.join(parts)}")
    text = (
        f"Decades of ‖∂L/∂h_t‖ per step going backward over {rows['crossed'].max()} steps, "
        f"mean over {seeds} seeds. {'; '.join(findings)}."
    )
    known = rows["held"].dropna()
    if rows["foreseen"].any():
        tallied = tally(rows["agreement"], AGREEMENTS)
        text += f" Theory: {', '.join(f'{word} {n}' for word, n in tallied.items())}."
    elif len(known):
        held = f"{int(known.sum())} of {len(known)}"
        text += f" {held} 95 % intervals hold log10 of the radius, a linear net's rate."
    return text


def states(table: pd.DataFrame) -> pd.DataFrame:
    if "time" not in table or not table["time"].notna().any():
        raise InputError("table must hold rows of single time steps; got none")
    return table[table["time"].notna()]


def _steps(table: pd.DataFrame) -> pd.DataFrame:
    return single_steps(states(table))


def _values(table: pd.DataFrame, axis: str) -> list:
    """A setting's values in order of first appearance under a fixed order of names."""
    return sorted(table[axis].fillna(OWN).unique(), reverse=True)


def _silence(curves: pd.DataFrame | None, runs: list[NamedRun], first: int) -> str:
    """Where theory has no say on the runs of a panel; empty where it covers all steps."""
    if curves is None:
        return "no prediction"
    of = curves[curves["run"].isin([run.id for run in runs])]
    known = of.dropna(subset=COTANGENT)
    if known.empty:
        return "no prediction"
    start = int(known["layer"].min())
    return f"no prediction\nfor t < {start}" if start > first else ""


def _and(parts: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def _part(steps: pd.DataFrame, **values) -> pd.DataFrame:
    """The rows of one panel."""
    for axis, value in values.items():
        steps = steps[steps[axis].fillna(OWN) == value]
    return steps


def _runs(rows: pd.DataFrame, lines: str) -> list[NamedRun]:
    """A panel's runs, labelled by their value of ``lines`` where that sets them apart."""
    if rows.empty:
        return []
    runs, _ = describe(rows, [lines] if lines in rows else [])
    return named_by(lines, rows, runs, LETTERS.get(lines, ""))


def _starts(summary: pd.DataFrame, runs: list[NamedRun]) -> list[End]:
    """Each line's label at its first step."""
    ends = []
    for place, run in enumerate(runs):
        curve = summary[summary["run"] == run.id].dropna(subset="mean")
        if len(curve):
            end = curve.iloc[0]
            ends.append(End(end["layer"], end["mean"], run.label, style.COLORS[place]))
    return ends


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
