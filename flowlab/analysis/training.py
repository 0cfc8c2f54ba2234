"""A finished training in plain words, from its table and its curve."""

import numpy as np
import pandas as pd

from flowlab.analysis.statistics import mean_interval

_GRADIENT = "dW_log10_norm"


def outcome(table: pd.DataFrame, curve: pd.DataFrame) -> str:
    """What became of the loss, of what is held out, of layer 1's gradient; what was clipped.

    Of the networks that did not diverge; of those that did, how many, when and where.
    """
    last = curve["step"].max()
    ends = curve[curve["step"] == last]
    lost = ends[ends["training_status"] == "diverged"]
    well = set(ends["seed"]) - set(lost["seed"])
    parts = []
    if well:
        kept = curve[curve["seed"].isin(well)]
        first, final = (kept[kept["step"] == step] for step in (curve["step"].min(), last))
        before, after = (_typical(of["training_loss"]) for of in (first, final))
        parts.append(f"loss {before} → {after} after {_budget(final)}{_accuracy(final)}")
        parts.append(_gradient(table[table["seed"].isin(well)]))
        parts.append(_clipping(kept))
    if len(lost):
        parts.append(_divergence(lost, len(ends)))
    text = "; ".join(filter(None, parts))
    return text[:1].upper() + text[1:] + "."


def ends(curve: pd.DataFrame) -> dict[str, float]:
    """What a comparison says of one trained run: how its networks end.

    ``accuracy`` of what is held out with its 95 % interval, ``held_out_loss`` and
    ``training_loss``, means over the seeds that did not diverge, and how many did (``diverged``).
    """
    final = curve[curve["step"] == curve["step"].max()]
    lost = (final["training_status"] == "diverged").to_numpy(bool)
    well = final[~lost]
    accuracy = mean_interval(well["held_out_accuracy"].to_numpy(float))
    return {
        **{"accuracy": accuracy.mean, "accuracy_low": accuracy.low, "accuracy_high": accuracy.high},
        "held_out_loss": float(well["held_out_loss"].mean()),
        "training_loss": float(well["training_loss"].mean()),
        "diverged": int(lost.sum()),
    }


def _typical(losses: pd.Series) -> str:
    return f"{losses.mean():.3g}"


def _budget(final: pd.DataFrame) -> str:
    """How long the training was."""
    step, epoch = int(final["step"].iat[0]), round(float(final["epoch"].iat[0]), 2)
    return f"{epoch:g} epoch{'s' * (epoch != 1)} ({step:,} step{'s' * (step != 1)})"


def _accuracy(final: pd.DataFrame) -> str:
    accuracy = 100 * final["held_out_accuracy"]
    if accuracy.notna().any():
        found = mean_interval(accuracy)
        bounds = f" [{max(found.low, 0):.1f}, {min(found.high, 100):.1f}]" if found.known else ""
        return f", held-out accuracy {found.mean:.1f} %{bounds}"
    loss = mean_interval(final["held_out_loss"])
    return f", held-out loss {loss:.3g}"


def _gradient(table: pd.DataFrame) -> str:
    """The change of ‖dW‖ in layer 1 over the training."""
    rows = table[(table["layer"] == table["layer"].min()) & table[_GRADIENT].notna()]
    rows = rows[rows["op"] == rows["op"].iloc[0]] if len(rows) else rows
    ends = [rows[rows["step"] == step] for step in (table["step"].min(), table["step"].max())]
    first, final = (end.groupby("seed")[_GRADIENT].first() for end in ends)
    change = (final - first).to_numpy(float)
    change = change[np.isfinite(change)]
    if not len(change):
        return ""
    found = mean_interval(change)
    moved = "fell" if found.mean < 0 else "rose"
    return f"the gradient of layer 1 {moved} by {abs(found.mean):.1f} decades"


def _clipping(curve: pd.DataFrame) -> str:
    if (curve["training_clip"] == "none").all():
        return "no step was clipped"
    before = curve.groupby("seed")["step"].shift(fill_value=0)
    share = (curve["clipped"] * (curve["step"] - before)).sum() / (curve["step"] - before).sum()
    return "no step was clipped" if share == 0 else f"{100 * share:.0f} % of the steps were clipped"


def _divergence(lost: pd.DataFrame, count: int) -> str:
    first = lost.sort_values("diverged_step").iloc[0]
    networks = "the network" if count == 1 else f"{len(lost)} of {count} networks"
    return (
        f"{networks} diverged, first at step {first['diverged_step']} in layer "
        f"{first['diverged_layer']}"
    )
