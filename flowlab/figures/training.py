"""Training: loss and accuracy over the examples seen, and what is left at the end."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from flowlab.analysis import curves
from flowlab.errors import InputError
from flowlab.figures import style
from flowlab.figures.labels import MOST, End, label_ends
from flowlab.figures.panels import GREY, INTERVAL, LINE, legend
from flowlab.figures.shown import Shown
from flowlab.figures.sweeps import Conditions
from flowlab.figures.words import listed, said

LOSS, ACCURACY = curves.HELD_OUT, "held_out_accuracy"
NAMES = {LOSS: "held-out loss", ACCURACY: "held-out accuracy"}
PANEL = 1.75  # inches, the height of a panel
MOST_PANELS = 4
CEILING = 0.5  # decades above the first loss; what diverges goes further
LOST = {"marker": "x", "linestyle": "none", "markersize": 4.5}
LOST_NAME = "seeds diverge: not in the mean from there on"

# By the name of a panel, by the name of a line, the curve of its runs.
Panels = Mapping[str, Mapping[str, pd.DataFrame]]


def bands(panels: Panels) -> Figure:
    """Held-out loss and, of classes, accuracy over the examples seen: means and 95 % intervals.

    A column of panels for each name, a line for each name within, of one colour in all panels. A
    cross at the edge marks the step from which a line lacks seeds that diverged. Raises InputError
    for more than 8 lines.
    """
    lines = list(dict.fromkeys(line for panel in panels.values() for line in panel))
    if len(lines) > MOST:
        raise InputError(f"curve must hold at most {MOST} lines; got {len(lines)}")
    columns = [LOSS]
    if any(of[ACCURACY].notna().any() for panel in panels.values() for of in panel.values()):
        columns.append(ACCURACY)
    shape = (1, len(columns)) if len(panels) == 1 else (len(columns), len(panels))
    with style.context():
        height = PANEL + (len(panels) == 1)
        figure = Shown(figsize=(style.WIDTH, shape[0] * (height + 0.2) + 0.5))
        grid = figure.subplots(*shape, squeeze=False)
        grid = grid.T if len(panels) == 1 else grid  # quantities down
        ends, lost = {}, False
        for place, (row, column) in enumerate(zip(grid, columns, strict=True)):
            found = {name: _rows(panel, column) for name, panel in panels.items()}
            limits = _limits([rows for of in found.values() for rows in of.values()], column)
            # Lines are named in the last panel that has them.
            last = {line: name for name, panel in panels.items() for line in panel}
            for ax, (name, of) in zip(row, found.items(), strict=True):
                ends[ax] = []
                for line, rows in of.items():
                    end = _line(ax, rows, column, lines.index(line), limits)
                    lost |= bool((rows["excluded"] > 0).any())
                    if last[line] == name and len(lines) > 1:
                        ends[ax].append(End(end[0], end[1], line, style.COLORS[lines.index(line)]))
                _frame(ax, column, limits)
                ax.set_title(name if place == 0 else "")
                if ax is row[0]:
                    ax.set_ylabel(NAMES[column])
                else:
                    ax.tick_params(labelleft=False)
        for ax in grid[-1] if len(panels) > 1 else grid.flat:
            ax.set_xlabel("examples seen")
        height = legend(figure, _key(lost), "lower")
        figure.set_figheight(figure.get_figheight() + LINE * height)
        label_ends(figure, ends)
    return figure


def finals(panels: Panels, axis: str, label: str, column: str = LOSS) -> Figure:
    """What is left at the end of training against ``axis``: means over seeds, 95 % intervals.

    Panels and lines as those of :func:`bands`; the curve of a line holds the runs of all values of
    ``axis``, numbers, which ``label`` names. A cross at the edge marks a value at which seeds
    diverged. Raises InputError for more than 8 lines.
    """
    lines = list(dict.fromkeys(line for panel in panels.values() for line in panel))
    if len(lines) > MOST:
        raise InputError(f"curve must hold at most {MOST} lines; got {len(lines)}")
    found = {
        name: {line: curves.final_bands(of, column, by=axis) for line, of in panel.items()}
        for name, panel in panels.items()
    }
    limits = _limits([rows for of in found.values() for rows in of.values()], column)
    with style.context():
        figure = Shown(figsize=(style.WIDTH, 3.0))
        row = figure.subplots(1, len(panels), squeeze=False)[0]
        ends, lost = {}, False
        for ax, (name, of) in zip(row, found.items(), strict=True):
            ends[ax] = []
            for line, rows in of.items():
                place = lines.index(line)
                color, x = style.COLORS[place], rows[axis].to_numpy(float)
                low, mean, high = _drawn(rows, column, limits)
                margins = np.nan_to_num(np.maximum([mean - low, high - mean], 0))
                look = {"color": color, "marker": style.MARKERS[place], "linewidth": 1.2}
                ax.errorbar(x, mean, margins, capsize=2, elinewidth=1, label=line, **look)
                gone = x[rows["excluded"].to_numpy() > 0]
                if len(gone):
                    edge = {"transform": ax.get_xaxis_transform(), "color": color}
                    ax.plot(gone, np.full(len(gone), 0.98 - 0.035 * place), **edge, **LOST)
                    lost = True
                known = np.flatnonzero(np.isfinite(mean))
                if len(known):
                    y = min(mean[known[-1]], limits[1])
                    ends[ax].append(End(x[known[-1]], y, line, color))
            ax.set_xscale("log", base=2)
            sizes = np.unique(np.concatenate([rows[axis] for rows in of.values()]))
            ax.set_xticks(sizes[:: 1 + len(sizes) // 6], minor=False)
            ax.xaxis.set_major_formatter("{x:.0f}")
            ax.set_xlabel(label)
            _limit(ax, column, limits)
            ax.set_title(name)
            if ax is row[0]:
                ax.set_ylabel(f"{NAMES[column]} at the end")
            else:
                ax.tick_params(labelleft=False)
        handles = [Line2D([], [], color=GREY, marker="o", label="mean over seeds, 95 % interval")]
        if lost:
            handles.append(Line2D([], [], color=GREY, **LOST, label="seeds diverge"))
        height = legend(figure, handles, "lower")
        figure.set_figheight(figure.get_figheight() + LINE * height)
        label_ends(figure, ends)
    return figure


# Of any sweep


def fits(sweep: Conditions) -> bool:
    """Whether every run has a curve, and one or two settings vary, few enough to be legible."""
    if not complete(sweep) or len(sweep.axes) > 2:
        return False
    lines, panels = _axes(sweep)
    few = lines is None or len(sweep.values(lines)) <= MOST
    return few and (panels is None or len(sweep.values(panels)) <= MOST_PANELS)


def complete(sweep: Conditions) -> bool:
    """Whether every run has a curve."""
    return sweep.curve is not None and set(sweep.points.index) <= set(sweep.curve["run"])


def training(sweep: Conditions) -> Figure:
    """The :func:`bands` of a sweep: a line for each value of one setting, panels for another."""
    lines, panels = _axes(sweep)
    found: dict[str, dict[str, pd.DataFrame]] = {}
    values = sweep.values(panels) if panels else [None]
    for value in values:
        points = sweep.points[sweep.points[panels] == value] if panels else sweep.points
        of = found.setdefault(said(panels, value) if panels else "", {})
        for run, row in points.iterrows():
            name = said(lines, row[lines]) if lines else "the run"
            of[name] = sweep.curve[sweep.curve["run"] == run]
    return bands(found)


def finding(sweep: Conditions) -> str:
    """What the best and the worst run have learnt; how many have seeds that diverge."""
    rows, column, unit = _finals(sweep)
    if len(rows) == 1:
        row, first = rows.iloc[0], curves.bands(sweep.curve, LOSS).iloc[0]
        text = f"Held-out loss goes from {first['mean']:.3g} to {row['loss']:.3g}"
        if column == ACCURACY:
            text += f"; accuracy is {_said(row, unit)}"
        text += f" after {int(row['examples']):,} examples"
    else:
        ordered = rows.dropna(subset="mean").sort_values("mean", ascending=column == LOSS)
        what = NAMES[column].split()[-1]
        if ordered.empty:
            return "No run has a finite loss at the end of training"
        best, worst = ordered.iloc[0], ordered.iloc[-1]
        text = (
            f"Of {len(rows)} runs {best['label']} has the best held-out {what} at the end, "
            f"{_said(best, unit)}, {worst['label']} the worst, {_said(worst, unit)}"
        )
    gone = rows[rows["excluded"] > 0]
    if len(gone) == 1 == len(rows):
        text += f"; {int(gone['excluded'].iat[0])} of {int(gone['seeds'].iat[0])} seeds diverge"
    elif len(gone):
        text += f"; seeds diverge in {listed(gone['label'].str.replace(', ', '/'))}"
    return text


def caption(sweep: Conditions) -> str:
    """Every run's loss and accuracy at the end, with intervals."""
    rows, column, unit = _finals(sweep)
    parts = []
    for _, row in rows.iterrows():
        words = "none finite" if np.isnan(row["mean"]) else _said(row, unit)
        if row["excluded"]:
            words += f", {int(row['excluded'])} of {int(row['seeds'])} seeds diverged"
        parts.append(f"{row['label']} {words}" if len(rows) > 1 else words)
    kind = "geometric mean" if column == LOSS else "mean"
    return f"{NAMES[column].capitalize()} at the end, {kind} [95 % interval]: {'; '.join(parts)}."


def _axes(sweep: Conditions) -> tuple[str | None, str | None]:
    """The settings of lines, that with more values, and of panels."""
    axes = sorted(sweep.axes, key=lambda axis: -len(sweep.values(axis)))
    return (*axes, None, None)[:2]


def _finals(sweep: Conditions) -> tuple[pd.DataFrame, str, float]:
    """What each run has at the end, in the sweep's order, the column, and its unit."""
    curve = sweep.curve
    column = ACCURACY if curve[ACCURACY].notna().any() else LOSS
    rows = curves.final_bands(curve, column).set_index("run")
    rows["loss"] = curves.final_bands(curve, LOSS).set_index("run")["mean"]
    rows["examples"] = curve.groupby("run", observed=True)["examples"].max()
    rows["seeds"] = rows["n"] + rows["excluded"]
    names = sweep.rows.set_index("run")["label"]
    return names.to_frame().join(rows), column, 100.0 if column == ACCURACY else 1.0


def _said(row: pd.Series, unit: float) -> str:
    """A mean with its interval: a share in per cent, a loss in three digits."""
    spec, end = (".1f", " %") if unit == 100 else (".3g", "")
    text = f"{unit * row['mean']:{spec}}{end}"
    if np.isfinite(row["low"]):
        low, high = unit * row["low"], unit * row["high"]
        high = min(high, unit) if unit == 100 else high
        text += f" [{low:{spec}}, {high:{spec}}]"
    return text


# Parts


def _rows(panel: Mapping[str, pd.DataFrame], column: str) -> dict[str, pd.DataFrame]:
    return {line: curves.bands(of, column, by=()) for line, of in panel.items()}


def _data(values: pd.Series, column: str) -> np.ndarray:
    """What is drawn: log10 of a loss."""
    values = values.to_numpy(float)
    return np.log10(values) if column in curves.LOSSES else values


def _drawn(rows: pd.DataFrame, column: str, limits: tuple[float, float]) -> list[np.ndarray]:
    """The lower end, mean and upper end of a line, no further outside than is needed to see it."""
    ends = (_data(rows[end], column) for end in ("low", "mean", "high"))
    return [np.clip(end, limits[0] - 1, limits[1] + 1) for end in ends]


def _limits(found: list[pd.DataFrame], column: str) -> tuple[float, float]:
    """Limits that hold every line, of losses all that do not rise far above where they began."""
    known = [rows.dropna(subset="mean") for rows in found]
    means = [_data(rows["mean"], column) for rows in known if len(rows)]
    if not means:
        raise InputError("curve must hold a finite loss; got none")
    low, high = (end(list(map(end, means))) for end in (min, max))
    if column in curves.LOSSES:
        high = min(high, max(of[0] for of in means) + CEILING, max(low + 1, 1.0))
    pad = 0.06 * (high - low) or 0.05
    return low - pad, high + pad


def _line(
    ax: Axes, rows: pd.DataFrame, column: str, place: int, limits: tuple[float, float]
) -> tuple[float, float]:
    """Draw a line with its band and where seeds are lost; where it ends, within the limits."""
    color, x = style.COLORS[place], rows["examples"].to_numpy(float)
    low, mean, high = _drawn(rows, column, limits)
    ax.fill_between(x, low, high, color=color, **INTERVAL)
    ax.plot(x, mean, color=color, marker=style.MARKERS[place], markersize=2.5, linewidth=1.2)
    lost = np.flatnonzero(rows["excluded"] > 0)
    if len(lost):
        top = column in curves.LOSSES
        y = 0.98 - 0.035 * place if top else 0.02 + 0.035 * place
        edge = {"transform": ax.get_xaxis_transform(), "color": color}
        ax.plot(x[lost[0]], y, **edge, **LOST)
    inside = np.flatnonzero(np.isfinite(mean) & (mean >= limits[0]) & (mean <= limits[1]))
    if len(inside) == 0:
        return x[0], limits[1]
    return x[inside[-1]], mean[inside[-1]]


def _limit(ax: Axes, column: str, limits: tuple[float, float]) -> None:
    if column in curves.LOSSES:
        style.decades(ax, *limits)
    else:
        ax.set_ylim(max(limits[0], -0.02), min(limits[1], 1.02))
        ax.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        ax.tick_params(axis="y", labelsize=style.TEXT)


def _frame(ax: Axes, column: str, limits: tuple[float, float]) -> None:
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(10, numticks=5))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.tick_params(axis="x", labelsize=style.TEXT + 1.5)
    _limit(ax, column, limits)


def _key(lost: bool) -> list:
    handles = [
        Line2D([], [], color=GREY, marker="o", markersize=2.5, label="mean over seeds"),
        Patch(facecolor=GREY, **INTERVAL, label="95 % interval"),
    ]
    if lost:
        handles.append(Line2D([], [], color=GREY, **LOST, label=LOST_NAME))
    return handles
