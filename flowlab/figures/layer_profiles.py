"""Log-norms against layer or step: measured over seeds, and predicted; a panel for each norm."""

from collections.abc import Sequence
from textwrap import fill

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flowlab.analysis.statistics import profile
from flowlab.errors import InputError, unknown
from flowlab.figures import style
from flowlab.figures.panels import LINE, PANEL, SYMBOLS, key, legend, panel, share_y
from flowlab.figures.runs import describe, flow, in_place_of_layers
from flowlab.figures.shown import Shown
from flowlab.schema import COTANGENT, DELTA

LAYERS = (DELTA, "dW_log10_norm", "db_log10_norm")
STEPS = (COTANGENT, DELTA, "activation_log10_norm")


def profiles(
    table: pd.DataFrame,
    prediction: pd.DataFrame | None = None,
    columns: Sequence[str] | None = None,
) -> Figure:
    """Norms against layer, a panel for each of ``columns``, the runs of ``table`` overlaid.

    ``table`` is tidy, one row per (run, seed, layer). A curve is the mean over seeds of the log10
    norm; its bands are the mean's 95 % Student interval and ±1 sd of single seeds. ``prediction``
    has one row per (run, layer), with for each column c theory's mean c and the sd ``c_sd`` of
    one seed (NaN where theory is silent); its band ±1.96 sd/√n holds 95 % of the means of n seeds.
    Zero and nonfinite norms, which have no place on the axis, are marked at its lower and upper
    edge. All panels have one y axis, which spans a decade at least, lest rounding look like a
    trend. By default the columns are δ, dW and db; of recurrent nets ∂L/∂h_t, δ_t and h_t, against
    the step, in the last recurrent layer.

    Raises InputError for an empty table, a missing column, more than 8 runs or several steps.
    """
    if columns is not None and len(columns) == 0:
        raise InputError("columns must name at least one norm; got none")
    runs, _ = describe(table)
    rows, curves, _, along = flow(table, prediction)
    columns = columns or (STEPS if along == "time" else LAYERS)
    _check_prediction(curves, columns, along)
    summaries = [profile(rows, column, along=along) for column in columns]
    if along == "time":
        summaries = [in_place_of_layers(summary) for summary in summaries]
    first, last = int(rows[along].min()), int(rows[along].max())
    width = max(style.WIDTH, style.WIDTH / 3 * len(columns))

    with style.context():
        figure = Shown(figsize=(width, PANEL))
        axes = figure.subplots(1, len(columns), squeeze=False)[0]
        drawn = set()
        for ax, column, summary in zip(axes, columns, summaries, strict=True):
            style.layers(ax, first, last, "step $t$" if along == "time" else "layer")
            ax.set_title(_symbol(column, along))
            drawn |= panel(ax, column, summary, runs, curves, last - first)
        share_y(axes)
        handles = [handle for name, handle in key().items() if name in drawn]
        if len(runs) > 1 or runs[0].seeds == 1:
            named = zip(runs, style.COLORS, style.MARKERS, strict=False)
            handles = [
                Line2D([], [], color=color, marker=marker, label=fill(run.label, int(12 * width)))
                for run, color, marker in named
            ] + handles
        silent = prediction is not None and not {"theory", "theory interval"} & drawn
        height = legend(figure, handles, "lower", title="No prediction" if silent else None)
        figure.set_figheight(PANEL + 0.7 + LINE * height)
    return figure


def _symbol(column: str, along: str) -> str:
    symbol = SYMBOLS.get(column, column)
    if along == "time":
        return {"‖δ‖": "‖$δ_t$‖", "‖h‖": "‖$h_t$‖", "‖∂L/∂h_t‖": "‖∂L/∂$h_t$‖"}.get(symbol, symbol)
    return symbol


def _check_prediction(prediction: pd.DataFrame | None, columns: Sequence[str], along: str) -> None:
    if prediction is None or (along == "time" and prediction.empty):
        return
    for name in ("run", "layer", *columns, *(f"{column}_sd" for column in columns)):
        if name not in prediction:
            raise unknown("column of prediction", name, prediction.columns)
