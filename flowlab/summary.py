"""A finished run in plain words."""

import numpy as np
import pandas as pd

from flowlab.statistics import DELTA, Verdict, end_to_end, profile

_BARS = "▁▂▃▄▅▆▇█"
_SHOWN = {
    "activation_log10_norm": "h",
    DELTA: "δ",
    "dX_log10_norm": "dX",
    "dW_log10_norm": "dW",
    "db_log10_norm": "db",
}
_MOST_LAYERS, _MOST_BARS = 8, 60


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
    """Sparkline, a small table of mean log10 norms, the change end to end, and the verdict."""
    means = {name: profile(table, name).set_index("layer")["mean"] for name in _SHOWN}
    delta = means[DELTA]
    lines = [f"log10‖δ‖ from layer {delta.index[0]} (input) to {delta.index[-1]} (output):"]
    lines += [f"  {sparkline(delta)}", ""]
    lines.append("  layer" + "".join(f"{symbol:>10}" for symbol in _SHOWN.values()))
    picked = np.unique(np.linspace(0, len(delta) - 1, min(len(delta), _MOST_LAYERS)).round())
    for layer in delta.index[picked.astype(int)]:
        cells = "".join(f"{_cell(means[name].get(layer, np.nan)):>10}" for name in _SHOWN)
        lines.append(f"  {layer:>5}{cells}")
    seeds = table["seed"].nunique()
    lines.append(f"  (mean over {seeds} seed{'s' * (seeds > 1)} of log10 of the Frobenius norm)")
    if len(delta) > 1:
        ratio = end_to_end(table)
        lines += ["", f"From output to input log10‖δ‖ changes by {ratio}."]
    lines += ["", verdict.sentence[0].upper() + verdict.sentence[1:]]
    if (table["upstream"] == "loss").all() and verdict.agreement in ("agrees", "disagrees"):
        lines.append(
            "(Theory takes the upstream gradient as independent of the forward pass; a loss is not"
            " quite: upstream=gaussian is the strict test.)"
        )
    troubled = table.loc[table["status"] != "ok", "status"].value_counts()
    for status, count in troubled.items():
        meaning = {
            "zero": "hold a norm that is exactly zero",
            "nonfinite": "left the range of the type: their norms are not finite or not known",
        }[status]
        lines.append(f"{count} of {len(table)} rows {meaning} (status={status}).")
    return "\n".join(lines)


def _cell(value: float) -> str:
    return f"{value:.2f}" if np.isfinite(value) else ("-" if np.isnan(value) else str(value))
