"""A finished run in plain words."""

import numpy as np
import pandas as pd

from flowlab.analysis.statistics import profile
from flowlab.analysis.verdicts import Verdict, has_readout, view
from flowlab.schema import COTANGENT, DELTA

_BARS = "▁▂▃▄▅▆▇█"
_SHOWN = {
    "activation_log10_norm": "h",
    DELTA: "δ",
    "dX_log10_norm": "dX",
    "dW_log10_norm": "dW",
    "db_log10_norm": "db",
}
_STEPS = {"activation_log10_norm": "h_t", DELTA: "δ_t", COTANGENT: "∂L/∂h_t"}
_MOST_PLACES, _MOST_BARS = 8, 60


def sparkline(values) -> str:
    """One bar for each value, the lowest to the highest finite one; × where none is finite."""
    values = np.asarray(values, float)
    if len(values) > _MOST_BARS:
        picked = np.linspace(0, len(values) - 1, _MOST_BARS).round().astype(int)
        values = values[picked]
    finite = values[np.isfinite(values)]
    if not len(finite):
        return "×" * len(values)
    low, span = finite.min(), np.ptp(finite)
    # A change of less than a tenth of a decade is drawn flat.
    level = (values - low) / max(span, 0.1) * (len(_BARS) - 1)
    return "".join(_BARS[round(v)] if np.isfinite(v) else "×" for v in level)


def summarise(table: pd.DataFrame, verdict: Verdict) -> str:
    """The verdict, then a sparkline and a small table of mean log10 norms.

    Along layers; of a recurrent run along the steps of its last recurrent layer.
    """
    rows, column, along = view(table)
    if along == "time":
        title = f"log10‖∂L/∂h_t‖ in layer {rows['layer'].max()} from step {{}} to {{}}:"
        flow = _flow(rows, title, _STEPS, column, along)
    else:
        flow = _flow(rows, "log10‖δ‖ from layer {} (input) to {} (output):", _SHOWN, column, along)
    lines = [verdict.sentence, "", *flow]
    if has_readout(table) and verdict.agreement != "no theory":
        lines.append(
            "(Theory takes the upstream gradient as independent of the forward pass; a loss is not"
            " quite: upstream=gaussian is the strict test.)"
        )
    troubled = table.loc[table["status"] != "ok", "status"].value_counts()
    for status, count in troubled.items():
        meaning = {
            "zero": "hold a norm that is exactly zero",
            "lost": "hold a norm below the rounding or the range of what it is made from: null",
            "nonfinite": "left the range of the type: their norms are not finite or not known",
            "underflow": "lie below the range of their type: exponents=True finds their norms",
            "unused": "belong to modules that did not run or got no gradient",
        }[status]
        lines.append(f"{count} of {len(table)} rows {meaning} (status={status}).")
    return "\n".join(lines)


def norms(table: pd.DataFrame) -> pd.DataFrame:
    """Mean log10 norms at a few layers, or steps of a recurrent run: a column for each norm."""
    rows, _, along = view(table)
    shown = _STEPS if along == "time" else _SHOWN
    means = {
        s: profile(rows, name, along=along).set_index(along)["mean"] for name, s in shown.items()
    }
    means = pd.DataFrame(means).rename_axis("step" if along == "time" else along)
    return means.loc[_picked(means.index)]


def _picked(places: pd.Index) -> pd.Index:
    """A few of them, evenly."""
    at = np.linspace(0, len(places) - 1, min(len(places), _MOST_PLACES)).round()
    return places[np.unique(at).astype(int)]


def _flow(table: pd.DataFrame, title: str, shown: dict, column: str, along: str) -> list[str]:
    """The lines that show how ``column`` changes along layers or steps."""
    means = {name: profile(table, name, along=along).set_index(along)["mean"] for name in shown}
    flow, axis = means[column], "step" if along == "time" else along
    lines = [title.format(flow.index[0], flow.index[-1]), f"  {sparkline(flow)}", ""]
    lines.append(f"  {axis:>5}" + "".join(f"{symbol:>10}" for symbol in shown.values()))
    for place in _picked(flow.index):
        cells = "".join(f"{_cell(means[name].get(place, np.nan)):>10}" for name in shown)
        lines.append(f"  {place:>5}{cells}")
    seeds = table["seed"].nunique()
    lines.append(f"  (mean over {seeds} seed{'s' * (seeds > 1)} of log10 of the Frobenius norm)")
    return lines


def _cell(value: float) -> str:
    return f"{value:.2f}" if np.isfinite(value) else ("-" if np.isnan(value) else str(value))
