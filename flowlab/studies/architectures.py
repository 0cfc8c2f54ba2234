"""Architectures side by side: each one's profile, and its rate beside theory's."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flowlab.analysis.verdicts import AGREEMENTS, judge_all, tally
from flowlab.figures import style
from flowlab.figures.networks import order
from flowlab.figures.panels import LINE, legend
from flowlab.figures.shown import Shown
from flowlab.figures.words import listed
from flowlab.studies.study import Drawing, Reading, Study, chosen

ROW = 0.2  # inches, the height of a run's row
MEASURED = {"color": style.COLORS[0], "marker": "o", "linestyle": "none", "capsize": 2}
PART = MEASURED | {"markerfacecolor": "white", "markersize": 5.5, "elinewidth": 1}
THEORY = {"marker": "d", "linestyle": "none", "markersize": 7.5, "markerfacecolor": "none"}
THEORY |= {"markeredgecolor": "black", "markeredgewidth": 1.1}


def architecture_rates(reading: Reading) -> Figure:
    """Every run's rate beside theory's: a panel per layer, one for recurrent nets per step.

    Points are the change over the whole body divided by the layers or steps crossed, means over
    seeds with their 95 % interval; diamonds are theory's rate. Where theory covers a part of the
    body, circles are the measured rate over that part. Raises InputError for a table without runs.
    """
    rates = _rates(reading)
    units = list(dict.fromkeys(rates["unit"]))
    counts = [int((rates["unit"] == unit).sum()) for unit in units]
    with style.context():
        height = sum(counts) * ROW + 0.75 * len(units)
        figure = Shown(figsize=(style.WIDTH, height))
        axes = figure.subplots(len(units), 1, squeeze=False, height_ratios=counts)[:, 0]
        for ax, unit in zip(axes, units, strict=True):
            _panel(ax, rates[rates["unit"] == unit], unit)
        partly = rates[rates["covered"] < rates["crossed"]]
        handles = [Line2D([], [], **_line(MEASURED), label="measured, 95 % interval")]
        if rates["predicted"].notna().any():
            handles.append(Line2D([], [], **THEORY, label="theory"))
        if len(partly):
            handles.append(Line2D([], [], **_line(PART), label=_part(partly)))
        silent = rates.loc[rates["predicted"].isna(), "label"]
        title = f"No prediction: {listed(silent, 4)}" if len(silent) < len(rates) else None
        height += LINE * legend(figure, handles, "lower", title=title if len(silent) else None)
        figure.set_figheight(height + 0.2)
    return figure


def rates_finding(reading: Reading) -> str:
    """The fastest loss and gain per layer and per step, and how far theory's rates are off."""
    rates = _rates(reading)
    parts = []
    for unit, of in rates.groupby("unit", sort=False):
        row = of.loc[of["mean"].abs().idxmax()] if of["mean"].notna().any() else None
        if row is not None:
            verb = "loses" if row["mean"] < 0 else "gains"
            parts.append(f"{row['label']} {verb} most per {unit}, {abs(row['mean']):.2f} decades")
    off = (rates["part"] - rates["predicted"]).abs()
    if off.notna().any():
        parts.append(f"theory's rates are within {off.max():.2g}")
    return "; ".join(parts)


def architecture_rates_caption(reading: Reading) -> str:
    """Every rate with its interval and theory's, and how often they agree."""
    rates = _rates(reading)
    findings = []
    for _, row in rates.iterrows():
        text = f"{row['label']} no seed with finite norms"
        if pd.notna(row["mean"]):
            text = f"{row['label']} {row['mean']:z.4f} [{row['low']:z.4f}, {row['high']:z.4f}]"
        if np.isfinite(row["predicted"]):
            text += f", theory {row['predicted']:z.4f}"
            if row["covered"] < row["crossed"]:
                text += f" against {row['part']:z.4f} over the last {row['covered']} {row['unit']}s"
        findings.append(text)
    text = "Decades per layer, of recurrent nets per step, mean over seeds [95 % interval]: "
    text += "; ".join(findings) + "."
    found = tally(rates["agreement"], AGREEMENTS)
    return f"{text} Theory: {', '.join(f'{word} {n}' for word, n in found.items())}."


def _panel(ax: Axes, rates: pd.DataFrame, unit: str) -> None:
    y = np.arange(len(rates))[::-1]
    part = (rates["covered"] < rates["crossed"]).to_numpy()
    for names, at, look, label in (
        (("mean", "low", "high"), np.ones(len(rates), bool), MEASURED, "measured"),
        (("part", "part_low", "part_high"), part, PART, "measured in part"),
    ):
        mean, low, high = (rates[name].to_numpy(float)[at] for name in names)
        margins = np.nan_to_num([mean - low, high - mean])
        ax.errorbar(mean, y[at], xerr=margins, **look, label=label)
    ax.plot(rates["predicted"], y, **THEORY, label="theory")
    ax.axvline(0, color="0.35", linewidth=0.8, zorder=0)
    ax.set_yticks(y, rates["label"], fontsize=style.TEXT)
    ax.set_ylim(-0.7, len(rates) - 0.3)
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="x", labelsize=style.TEXT)
    ax.set_xlabel(f"decades of the gradient's norm per {unit}, going backward")


def _line(look: dict) -> dict:
    return {name: value for name, value in look.items() if name not in ("capsize", "elinewidth")}


def _part(rates: pd.DataFrame) -> str:
    row = rates.iloc[0]
    last = f"the last {row['covered']} of {row['crossed']} {row['unit']}s"
    return f"measured where theory reaches: {last}"


def _rates(reading: Reading) -> pd.DataFrame:
    """One row per run: its rate, that over the part which theory covers, and theory's."""
    of = reading.sweep
    rows = []
    for run, found in judge_all(of.table, of.prediction, of.kept_within).items():
        crossed, covered, part = max(found.crossed, 1), 0, found.difference
        if part is not None:
            covered = found.covered[1] - found.covered[0]
        rate = {name: getattr(found.change, name) / crossed for name in ("mean", "low", "high")}
        for name in ("mean", "low", "high"):
            value = np.nan if part is None else getattr(part, name) + found.predicted
            rate["part" if name == "mean" else f"part_{name}"] = value / max(covered, 1)
        rate["predicted"] = found.predicted / max(covered, 1)
        rate |= {"unit": found.along, "crossed": crossed, "covered": covered or crossed}
        rows.append({"run": run, **rate, "agreement": found.agreement})
    named = of.rows[["run", "label", *(["network"] if "network" in of.axes else [])]]
    rates = named.merge(pd.DataFrame(rows), on="run")
    keys = [order(name) for name in rates["network"]] if "network" in rates else 0
    rates = rates.assign(place=keys, steps=rates["unit"] == "step")
    return rates.sort_values(["steps", "place", "label"], ignore_index=True)


STUDY = Study(
    "At which rate does every architecture lose or gain the gradient, and does theory say so?",
    "He et al. 2015; LeCun et al. 1998; the sources of each architecture's own study",
    (
        Drawing(
            "architecture_rates", rates_finding, architecture_rates, architecture_rates_caption
        ),
        chosen("architecture_profiles"),
    ),
    rank=64,
)
