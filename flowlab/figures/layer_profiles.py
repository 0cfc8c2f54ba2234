"""Log-norms against layer: measured over seeds, and predicted."""

from collections.abc import Sequence
from textwrap import fill

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flowlab.analysis.statistics import profile
from flowlab.analysis.verdicts import KEPT_WITHIN, judge
from flowlab.errors import InputError, unknown
from flowlab.figures import style
from flowlab.figures.panels import LINE, PANEL, SYMBOLS, key, legend, panel
from flowlab.figures.runs import describe, whole_layers
from flowlab.schema import DELTA


def profiles(
    table: pd.DataFrame,
    prediction: pd.DataFrame | None = None,
    columns: Sequence[str] = (DELTA, "dW_log10_norm", "db_log10_norm"),
) -> Figure:
    """Norms against layer, a panel for each of ``columns``, the runs of ``table`` overlaid.

    ``table`` is tidy, one row per (run, seed, layer). A curve is the mean over seeds of the log10
    norm; its bands are the mean's 95 % Student interval and ±1 sd of single seeds. ``prediction``
    has one row per (run, layer), with for each column c theory's mean c and the sd ``c_sd`` of
    one seed (NaN where theory is silent); its band ±1.96 sd/√n holds 95 % of the means of n seeds.
    Zero and nonfinite norms, which have no place on the axis, are marked at its lower and upper
    edge. A y axis spans a decade at least, lest rounding look like a trend.

    Raises InputError for an empty table, a missing column, more than 8 runs or several steps.
    """
    if len(columns) == 0:
        raise InputError("columns must name at least one norm; got none")
    runs, shared = describe(table)
    _check_prediction(prediction, columns)
    summaries = [profile(table, column) for column in columns]
    first, last = int(table["layer"].min()), int(table["layer"].max())
    width = max(style.WIDTH, style.WIDTH / 3 * len(columns))

    with style.context():
        figure = Figure(figsize=(width, PANEL))
        axes = figure.subplots(1, len(columns), squeeze=False)[0]
        drawn = set()
        for ax, column, summary in zip(axes, columns, summaries, strict=True):
            style.layers(ax, first, last)
            ax.set_title(SYMBOLS.get(column, column))
            drawn |= panel(ax, column, summary, runs, prediction, last - first)

        title = fill(shared, int(13 * width))
        lines = [
            Line2D([], [], color=color, marker=marker, label=fill(run.label, int(12 * width)))
            for run, color, marker in zip(runs, style.COLORS, style.MARKERS, strict=False)
        ]
        keys = [handle for name, handle in key().items() if name in drawn]
        height = title.count("\n") + 1 + legend(figure, lines, "upper", title=title)
        height += legend(figure, keys, "lower") if keys else 0
        figure.set_figheight(PANEL + 0.7 + LINE * height)
    return figure


def caption(
    table: pd.DataFrame,
    prediction: pd.DataFrame | None = None,
    kept_within: float = KEPT_WITHIN,
) -> str:
    """The finding in words: by how much log10‖δ‖ changes over each run's body, and in theory.

    Tables as in ``profiles``; the numbers and words are those of the verdict. Raises InputError as
    ``profiles`` does.
    """
    runs, shared = describe(table)
    _check_prediction(prediction, [DELTA])
    findings = []
    for run in runs:
        rows = whole_layers(table[table["run"] == run.id])
        curve = None if prediction is None else prediction[prediction["run"] == run.id]
        found = judge(rows, curve, kept_within)
        change = found.change
        text = f"{change:z.2f}" if len(runs) == 1 else f"{run.name} {change:z.2f}"
        if change.excluded and change.n:
            text += f", {change.excluded} of {run.seeds} seeds left out as zero or nonfinite"
        text += f", {found.trend}"
        if prediction is not None:
            silent = found.agreement == "no theory"
            text += ", no prediction" if silent else f", theory {found.predicted:z.2f}"
            text += "" if silent else f" ({found.agreement})"
        findings.append(text)
    text = "Change of log10‖δ‖ over the body going backward, decades, mean [95 % interval]: "
    text += "; ".join(findings) + "."
    return f"{text} {'All runs' if len(runs) > 1 else 'Run'}: {shared}." if shared else text


def _check_prediction(prediction: pd.DataFrame | None, columns: Sequence[str]) -> None:
    if prediction is None:
        return
    for name in ("run", "layer", *columns, *(f"{column}_sd" for column in columns)):
        if name not in prediction:
            raise unknown("column of prediction", name, prediction.columns)
