"""What runs do with the gradient, in one sentence: the findings above figures."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from flowlab.figures.words import listed, moved

VERDICTS = {
    "vanishing": "it vanishes",
    "kept": "it is kept",
    "exploding": "it explodes",
    "undecided": "seeds do not decide whether it is kept",
}


def crossed(rows: pd.DataFrame) -> str:
    """How many layers or steps runs cross: "49 layers", "9 to 199 layers"."""
    parts = []
    for along, of in rows.groupby("along"):
        low, high = int(of["crossed"].min()), int(of["crossed"].max())
        count = f"{high}" if low == high else f"{low} to {high}"
        parts.append(f"{count} {along}{'s' * (high != 1)}")
    return " or ".join(parts)


def kept_and_most(rows: pd.DataFrame, kept_within: float, where: str) -> str:
    """The sentence of a few or many runs: who keeps the gradient, who loses and gains most."""
    # In a list of names the commas stand between runs.
    rows = rows.assign(label=rows["label"].str.replace(", ", "/"))
    kept = rows[rows["trend"] == "kept"]["label"]
    within = f"within ±{kept_within:g} decade{'s' * (kept_within != 1)}"
    count = len(rows)
    if count == 1:
        return alone(rows.iloc[0])
    if len(kept) == count:
        change = rows["mean"].abs().max()
        return (
            f"All {count} keep the gradient {within} {where}; none changes it by more than "
            f"{change:.2f}"
        )
    most = ends_of(rows)
    if len(kept) == 0:
        return f"None of {count} keeps the gradient {within} {where}{_joined(most)}"
    if len(kept) <= 3:
        verb = "keeps" if len(kept) == 1 else "keep"
        return f"{listed(kept)} {verb} the gradient {where}{_joined(most)}"
    return f"{majority(rows['label'], kept)} keep the gradient {where}{_joined(most)}"


def majority(names: Iterable[str], kept: Iterable[str]) -> str:
    """Many names of still more: "All of 7 but identity", or how many where the rest is long."""
    names, kept = list(names), set(kept)
    rest = [name for name in names if name not in kept]
    few = len(rest) <= 2 and len(", ".join(rest)) <= 40
    return f"All of {len(names)} but {listed(rest)}" if few else f"{len(kept)} of {len(names)}"


def alone(row: pd.Series) -> str:
    """What one run does, beside theory."""
    if not np.isfinite(row["mean"]):
        zero = row["trend"] == "vanishing"
        return "The gradient is exactly zero in every seed" if zero else "No seed can be judged"
    size = f"{abs(row['mean']):.2f}"
    text = f"The gradient {moved(row['mean']).split()[0]} {size}"
    if np.isfinite(row["low"]):
        low, high = sorted(abs(row[["low", "high"]].astype(float)))
        if row["low"] * row["high"] > 0:
            text += f" [{low:.2f}, {high:.2f}]"
    text += f" decades over {row['crossed']} {row['along']}s"
    if np.isfinite(row["predicted"]):
        text += f", {row['predicted']:+z.2f} in theory".replace("-", "−")
    return f"{text}: {VERDICTS[row['trend']]}"


def ends_of(rows: pd.DataFrame) -> list[str]:
    """The run that loses most and the one that gains most, where they do not keep it."""
    parts = []
    for trend, which in (("vanishing", "idxmin"), ("exploding", "idxmax")):
        of = rows[(rows["trend"] == trend)]
        known = of.dropna(subset="mean")
        zero = of[of["mean"].isna()]
        if len(zero):
            parts.append(f"in {listed(zero['label'], 2)} it is exactly zero")
        elif len(known):
            row = known.loc[getattr(known["mean"], which)()]
            change = moved(row["mean"])
            parts.append(f"{row['label']} {change.split(' decade')[0] if parts else change}")
    if not parts:
        undecided = rows[rows["trend"] == "undecided"]
        if len(undecided):
            verb = "is" if len(undecided) == 1 else "are"
            parts.append(f"{listed(undecided['label'])} {verb} undecided")
    return parts


def _joined(parts: list[str]) -> str:
    return "; " + " and ".join(parts) if parts else ""
