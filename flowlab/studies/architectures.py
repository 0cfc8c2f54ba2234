"""Architectures side by side: each one's profile, and its rate beside theory's."""

from math import ceil

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flowlab.analysis.statistics import profile
from flowlab.analysis.verdicts import AGREEMENTS, KEPT_WITHIN, counted, judge, tally
from flowlab.figures import style
from flowlab.figures.panels import LINE, key, legend, panel
from flowlab.figures.runs import describe, single_steps, whole_layers
from flowlab.figures.through_time import as_layers
from flowlab.schema import COTANGENT, DELTA
from flowlab.studies.study import Drawing, Reading, Study

PANEL = 1.75  # inches, the height of a panel
COLUMNS = 4
ORDER = ("mlp", "cnn", "resnet", "transformer", "rnn", "lstm", "gru")


def architecture_profiles(reading: Reading) -> Figure:
    """‖δ‖ against layer, of recurrent nets ‖∂L/∂h_t‖ against step; a panel for each network.

    Curves are means over seeds, bands their 95 % interval and ±1 sd, dashes theory where
    there is a prediction. Raises InputError for more than 8 runs of one network.
    """
    table, prediction = reading.table, reading.prediction
    names = _networks(table)
    columns = min(COLUMNS, len(names))
    rows = ceil(len(names) / columns)
    with style.context():
        figure = Figure(figsize=(style.WIDTH, 1))
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        drawn, labels = set(), {}
        before = ""
        for place, (ax, name) in enumerate(zip(axes, names, strict=False)):
            mine, theory, column, along = _view(table, prediction, name)
            runs, _ = describe(mine, ["init"])
            labels |= {run.label: color for color, run in enumerate(runs)}
            summary = profile(mine, column, along=along)
            if along == "time":
                summary, theory = as_layers(summary), None if theory is None else as_layers(theory)
            first, last = int(mine[along].min()), int(mine[along].max())
            style.layers(ax, first, last, "step" if along == "time" else "layer")
            ax.set_title(name)
            if place % columns == 0 or along != before:
                ax.set_ylabel("‖∂L/∂$h_t$‖" if along == "time" else "‖δ‖")
            before = along
            drawn |= panel(ax, column, summary, runs, theory, last - first)
        for ax in axes[len(names) :]:
            ax.set_visible(False)
        handles = [
            Line2D([], [], color=style.COLORS[place], marker=style.MARKERS[place], label=label)
            for label, place in labels.items()
        ]
        handles += [handle for name, handle in key().items() if name in drawn]
        height = legend(figure, handles, "lower")
        figure.set_figheight(rows * (PANEL + 0.45) + 0.2 + LINE * height)
    return figure


def architecture_rates(reading: Reading) -> Figure:
    """Every run's rate per layer, of recurrent nets per step, beside theory's; a row for each.

    Points are the change over the body divided by the layers or steps crossed, means over seeds
    with their 95 % interval; diamonds theory's; both over the places that theory covers.
    Raises InputError as ``describe`` does.
    """
    table, prediction = reading.table, reading.prediction
    rates = _rates(table, prediction)
    with style.context():
        figure = Figure(figsize=(style.WIDTH, 1.1 + 0.24 * len(rates)))
        ax = figure.subplots()
        y = np.arange(len(rates))[::-1]
        lines = sorted(rates["name"].unique())
        for place, name in enumerate(lines):
            of = (rates["name"] == name).to_numpy()
            mean, low, high = (rates.loc[of, c].to_numpy(float) for c in ("mean", "low", "high"))
            look = {"color": style.COLORS[place], "marker": style.MARKERS[place], "ls": "none"}
            margins = np.nan_to_num([mean - low, high - mean])
            ax.errorbar(mean, y[of], xerr=margins, capsize=3, **look, label=f"measured: {name}")
        theory = rates["predicted"].to_numpy(float)
        marks = {"marker": "d", "ls": "none", "ms": 8, "mfc": "none", "mec": "black", "mew": 1.1}
        ax.plot(theory, y, **marks, label="theory")
        ax.axvline(0, color="0.35", linewidth=0.8, zorder=0)
        ax.set_yticks(y, rates["label"], fontsize=style.TEXT)
        ax.set_ylim(-0.7, len(rates) - 0.3)
        ax.set_xlabel("decades of the gradient's norm per layer or step, going backward")
        ax.tick_params(axis="x", labelsize=style.TEXT)
        handles = [
            Line2D([], [], color=style.COLORS[k], marker=style.MARKERS[k], ls="none", label=name)
            for k, name in enumerate(lines)
        ]
        if np.isfinite(theory).any():
            handles.append(Line2D([], [], **marks, label="theory"))
        legend(figure, handles, "upper")
    return figure


def architecture_profiles_caption(reading: Reading) -> str:
    """Which runs keep the gradient from end to end of the body, and the extremes."""
    table, prediction = reading.table, reading.prediction
    rates = _rates(table, prediction, reading.kept_within).dropna(subset="change")
    kept = rates[rates["trend"] == "kept"]
    low, high = (rates.loc[rates["change"].agg(how)] for how in ("idxmin", "idxmax"))
    return (
        f"Of {len(rates)} nets: {counted(rates['trend'], reading.kept_within)}. "
        f"Kept: {', '.join(kept['label']) or 'none'}. Extremes: {low['label']} "
        f"({low['change']:z.1f} decades over {low['crossed']} {low['unit']}s) and {high['label']} "
        f"({high['change']:z.1f} decades over {high['crossed']} {high['unit']}s). "
        f"{table['seed'].nunique()} seeds."
    )


def architecture_rates_caption(reading: Reading) -> str:
    """Every rate with its interval and theory's, and how often they agree."""
    table, prediction = reading.table, reading.prediction
    rates = _rates(table, prediction)
    findings = []
    for _, row in rates.iterrows():
        text = f"{row['label']} no seed with finite norms"
        if pd.notna(row["mean"]):
            text = f"{row['label']} {row['mean']:z.4f} [{row['low']:z.4f}, {row['high']:z.4f}]"
        theory = row["predicted"]
        findings.append(text + (f", theory {theory:z.4f}" if np.isfinite(theory) else ""))
    text = "Decades per layer, of rnn, lstm and gru per step, mean over seeds [95 % interval]: "
    text += "; ".join(findings) + "."
    known = rates[np.isfinite(rates["predicted"]) & rates["low"].notna()]
    if len(known):
        worst = (known["mean"] - known["predicted"]).abs()
        text += (
            f" Theory's rate is off by at most {worst.max():.2g} "
            f"({known.loc[worst.idxmax(), 'label']})."
        )
    found = tally(rates["agreement"], AGREEMENTS)
    return f"{text} Theory: {', '.join(f'{word} {n}' for word, n in found.items())}."


def _networks(table: pd.DataFrame) -> list[str]:
    present = set(table["network"])
    return [name for name in ORDER if name in present] + sorted(present - set(ORDER))


def _view(table: pd.DataFrame, prediction: pd.DataFrame | None, network: str):
    """A network's rows, its predictions, the column of its flow and the axis."""
    mine = table[table["network"] == network]
    theory = None
    if prediction is not None:
        theory = prediction[prediction["run"].isin(mine["run"])]
    steps = single_steps(mine)
    if len(steps):
        return steps, None if theory is None else single_steps(theory), COTANGENT, "time"
    return whole_layers(mine), None if theory is None else whole_layers(theory), DELTA, "layer"


def _rates(
    table: pd.DataFrame, prediction: pd.DataFrame | None, kept_within: float = KEPT_WITHIN
) -> pd.DataFrame:
    """One row per run: its name, rate, theory's, change over the body, way travelled, verdict."""
    rows = []
    for network in _networks(table):
        mine, theory, *_ = _view(table, prediction, network)
        for run in describe(mine, ["init"])[0]:
            of = mine[mine["run"] == run.id]
            curve = None if theory is None else theory[theory["run"] == run.id]
            found = judge(of, curve, kept_within)
            moved, predicted, crossed = found.change, 0.0, found.crossed
            if found.difference is not None:  # both where theory covers the body
                moved, predicted = found.difference, found.predicted
                crossed = found.covered[1] - found.covered[0]
            shown = {name: getattr(moved, name) + predicted for name in ("mean", "low", "high")}
            rows.append(
                {
                    **{"network": network, "name": run.name, "label": f"{network}, {run.name}"},
                    **{name: value / max(crossed, 1) for name, value in shown.items()},
                    "predicted": found.predicted / max(crossed, 1),
                    **{"unit": found.along, "change": found.change.mean, "crossed": found.crossed},
                    **{"trend": found.trend, "agreement": found.agreement},
                }
            )
    return pd.DataFrame(rows)


STUDY = Study(
    "At which rate does every architecture lose or gain the gradient, and does theory say so?",
    "He et al. 2015; LeCun et al. 1998; the sources of each architecture's own study",
    (
        Drawing(
            "architecture_profiles",
            lambda reading: "Every architecture's gradient",
            architecture_profiles,
            architecture_profiles_caption,
        ),
        Drawing(
            "architecture_rates",
            lambda reading: "Every architecture's rate beside theory's",
            architecture_rates,
            architecture_rates_caption,
        ),
    ),
    rank=64,
)
