"""Transformers block by block: the gradient's norm, tokens that grow alike, who gets the gradient.

Panels are pairs of ``placement`` and ``skip``, or placements with a line for each skip.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from flowlab.analysis.statistics import profile
from flowlab.analysis.verdicts import judge
from flowlab.errors import InputError
from flowlab.figures import style
from flowlab.figures.labels import End, label_ends
from flowlab.figures.panels import GREY, INTERVAL, LINE, ROW, key, legend, panel
from flowlab.figures.runs import NamedRun, describe, named_by, whole_layers
from flowlab.figures.shown import Shown
from flowlab.schema import DELTA
from flowlab.studies.study import Drawing, Reading, Study

PANEL = 1.8  # inches, the height of a panel of two
HEIGHT = 2.4  # inches, of one
NOTE = {"ha": "right", "color": GREY, "fontsize": style.TEXT}
WEIGHTS = {"Q": "", "K": "...", "V": "///", "O": "xx"}  # and their hatches
COSINE, ENTROPY = "token_cosine", "attention_entropy"


def deepest(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the greatest depth."""
    return table[table["depth"] == table["depth"].max()]


def blocks_delta(reading: Reading) -> Figure:
    """‖δ‖ against layer, a panel for each placement of the norm, a line for each skip.

    Curves are means over seeds, bands their 95 % interval and ±1 sd, dashes theory where
    there is a prediction. Raises InputError for a table without ``placement``.
    """
    table, prediction = reading.table, reading.prediction
    with style.context():
        figure, axes, parts = _placements(table, 1, HEIGHT)
        drawn, limits, summaries = set(), [], []
        first, last = int(table["layer"].min()), int(table["layer"].max())
        for ax, (placement, rows) in zip(axes[0], parts, strict=True):
            runs, summary = _runs(rows), profile(rows, DELTA)
            style.layers(ax, first, last)
            ax.set_title(f"{placement}-norm")
            drawn |= panel(ax, DELTA, summary, runs, prediction, last - first)
            limits.append(ax.get_ylim())
            summaries.append((ax, runs, summary))
        (low, high), starts = np.array(limits).T, {}
        for ax, runs, summary in summaries:
            style.decades(ax, low.min(), high.max())
            starts[ax] = _starts(ax, runs, summary)
            if "theory" not in drawn:
                ax.text(0.98, 0.04, "no prediction", **NOTE, transform=ax.transAxes)
        axes[0][0].set_ylabel("‖δ‖")
        handles = [handle for name, handle in key().items() if name in drawn]
        figure.set_figheight(figure.get_figheight() + LINE * legend(figure, handles, "lower"))
        label_ends(figure, starts, "left")
    return figure


def _starts(ax: Axes, runs: list[NamedRun], summary: pd.DataFrame) -> list[End]:
    """Where each run's line begins: at its first layer, or among the marks at the upper edge."""
    starts, low, high, marked = [], *ax.get_ylim(), 0
    for place, run in enumerate(runs):
        rows = summary[summary["run"] == run.id]
        if rows.empty:
            continue
        layer, level = rows[["layer", "mean"]].iloc[0]
        if rows["n_nonfinite"].iat[0]:
            marked += 1
            if not np.isfinite(level):
                level = high - ROW * (marked - 0.6) * (high - low)
        starts.append(End(layer, level, run.label, style.COLORS[place]))
    return starts


def blocks_delta_finding(reading: Reading) -> str:
    """By how much ‖δ‖ changes over the body at each placement and skip, and where that is lost."""
    known, lost, layers = [], [], 0
    for placement, rows in _by_placement(reading.table):
        changes, gone = [], []
        for run in _runs(rows):
            found = judge(rows[rows["run"] == run.id], None, reading.kept_within)
            layers = found.crossed
            unit = "" if known or changes else " decades"
            change = f"{found.change.mean:z.1f}{unit} ({run.label})".replace("-", "−")
            changes += [change] if found.change.n else []
            gone += [] if found.change.n else [run.label]
        known += [f"by {' and '.join(changes)} with {placement}-norm"] if changes else []
        lost += [f"{' and '.join(gone)} with {placement}-norm"] if gone else []
    if not known:
        return "No change of ‖δ‖ is known"
    text = f"Over {layers} layers back ‖δ‖ changes {', '.join(known)}"
    return text + (f"; it is not known for {', '.join(lost)}" if lost else "")


def blocks_delta_caption(reading: Reading) -> str:
    """The change of log10‖δ‖ over the body in each panel."""
    table, prediction = reading.table, reading.prediction
    findings = []
    for placement, rows in _by_placement(table):
        parts = []
        for run in describe(rows, ["skip"])[0]:
            mine = rows[rows["run"] == run.id]
            curve = None if prediction is None else prediction[prediction["run"] == run.id]
            found = judge(mine, curve, reading.kept_within)
            text = f"{run.name} {found.change:z.2f}, {found.trend}"
            if found.agreement != "no theory":
                text += f", theory {found.predicted:z.2f} ({found.agreement})"
            parts.append(text)
        findings.append(f"{placement}-norm: {'; '.join(parts)}")
    return (
        "Change of log10‖δ‖ over the body going backward, mean over seeds [95 % interval]. "
        f"{'. '.join(findings)}. Depth {table['depth'].iat[0]}."
    )


def rank_collapse(reading: Reading) -> Figure:
    """Token cosine above, attention entropy below, by layer; panels and lines as blocks_delta's.

    The cosine is the mean over pairs of one example's tokens behind each layer, 1 where they have
    all become one; the entropy that of a row of attention over the log of the number of tokens, 1
    where all are attended alike. Bands are 95 % intervals. Theory has no say.
    """
    table = reading.table
    with style.context():
        figure, axes, parts = _placements(table, 2, PANEL)
        first, last = int(table["layer"].min()), int(table["layer"].max())
        ends = {ax: [] for ax in axes.flat}
        for column, (placement, rows) in enumerate(parts):
            runs = _runs(rows)
            for ax, (quantity, values) in zip(axes[:, column], _readings(rows), strict=True):
                summary = profile(values, quantity)
                for place, run in enumerate(runs):
                    of = summary[summary["run"] == run.id]
                    _curve(ax, of, place, run.label)
                    known = of.dropna(subset="mean")
                    if len(known):
                        end = known["layer"].iat[-1], known["mean"].iat[-1]
                        ends[ax].append(End(*end, run.label, style.COLORS[place]))
                style.layers(ax, first, last)
                ax.tick_params(axis="y", labelsize=style.TEXT)
            axes[0, column].set_title(f"{placement}-norm")
            axes[0, column].set_xlabel("")
        for panels in axes:
            low = min(0.0, *(ax.dataLim.intervaly[0] for ax in panels))
            for ax in panels:
                ax.set_ylim(low - 0.03 * (low < 0), 1.03)
        axes[0, 0].set_ylabel("token cosine")
        axes[1, 0].set_ylabel("entropy / log tokens")
        band = Patch(facecolor="0.35", **INTERVAL, label="95 % interval of the mean; no prediction")
        figure.set_figheight(figure.get_figheight() + LINE * legend(figure, [band], "lower"))
        label_ends(figure, ends)
    return figure


def rank_collapse_finding(reading: Reading) -> str:
    """The cosine of two tokens behind the last block at each placement and skip."""
    parts = []
    for placement, rows in _by_placement(reading.table):
        means = profile(*reversed(_readings(rows)[0]))
        last = means.dropna(subset="mean").groupby("run")["mean"].last()
        runs = [run for run in _runs(rows) if run.id in last]
        ends = [f"{last[run.id]:z.2f} ({run.label})".replace("-", "−") for run in runs]
        parts.append(f"{', '.join(ends)} with {placement}-norm")
    return f"Behind the last block two tokens have cosine {'; '.join(parts)}"


def rank_collapse_caption(reading: Reading) -> str:
    """Cosine and entropy in the first layer and the last that have them."""
    table = reading.table
    findings = []
    for placement, rows in _by_placement(table):
        parts = []
        for run in describe(rows, ["skip"])[0]:
            ends = []
            for quantity, values in _readings(rows):
                means = profile(values[values["run"] == run.id], quantity)["mean"].dropna()
                ends.append(f"{means.iloc[0]:.3f} to {means.iloc[-1]:.3f}")
            parts.append(f"{run.name} cosine {ends[0]}, entropy {ends[1]}")
        findings.append(f"{placement}-norm: {'; '.join(parts)}")
    return (
        "From the first layer to the last: mean cosine of two tokens of an example, and attention's"
        f" entropy over the log of the number of tokens. {'. '.join(findings)}."
    )


def attention_shares(reading: Reading) -> Figure:
    """How ‖dW‖² of attention divides among Q, K, V and O by layer, a panel for each run.

    Shares of one net, averaged over seeds. Theory has no say. Raises InputError where a table has
    no attention.
    """
    table = reading.table
    shares = _shares(table)
    placements = [placement for placement, _ in _by_placement(table)]
    skips = sorted(table["skip"].unique())
    with style.context():
        size = (style.WIDTH, (PANEL - 0.3) * len(placements) + 0.6)
        figure = Shown(figsize=size)
        axes = figure.subplots(len(placements), len(skips), squeeze=False, sharey=True)
        for (i, j), ax in np.ndenumerate(axes):
            chosen = (shares["placement"] == placements[i]) & (shares["skip"] == skips[j])
            mean = shares[chosen].groupby("layer")[list(WEIGHTS)].mean()
            ax.set_title(f"{placements[i]}-norm, skip={skips[j]}")
            if mean.empty:
                ax.set_visible(False)
                continue
            if mean.dropna().empty:
                note = {**NOTE, "ha": "center", "transform": ax.transAxes}
                ax.text(0.5, 0.5, "gradients not known:\nbelow rounding", **note, va="center")
            bands = ax.stackplot(mean.index, mean.T, colors=style.COLORS, labels=WEIGHTS)
            for band, hatch in zip(bands, WEIGHTS.values(), strict=True):
                band.set(hatch=hatch, edgecolor="white", linewidth=0.4)
            style.layers(ax, int(mean.index[0]), int(mean.index[-1]))
            ax.set_xlim(mean.index[0], mean.index[-1])
            ax.set_ylim(0, 1)
            ax.tick_params(axis="y", labelsize=style.TEXT)
            if i < len(placements) - 1:
                ax.set_xlabel("")
            if j == 0:
                ax.set_ylabel("share of ‖dW‖²")
        handles = [
            Patch(facecolor=color, hatch=hatch, edgecolor="white", label=f"$W_{name}$")
            for (name, hatch), color in zip(WEIGHTS.items(), style.COLORS, strict=False)
        ]
        figure.set_figheight(size[1] + LINE * legend(figure, handles, "lower"))
    return figure


def attention_shares_finding(reading: Reading) -> str:
    """The share of queries and keys in the first and the last block, by skip."""
    shares = _shares(reading.table)
    both = (shares["Q"] + shares["K"]).groupby([shares[k] for k in ("placement", "skip", "layer")])
    means = both.mean().unstack("layer")
    ends = means.iloc[:, [0, -1]].dropna()
    parts = [
        f"{_span(of.iloc[:, 0])}{' in the first block' * (not place)} and "
        f"{_span(of.iloc[:, 1])}{' in the last' * (not place)} ({_no(skip)})"
        for place, (skip, of) in enumerate(ends.groupby("skip"))
    ]
    if not parts:
        return "The share of queries and keys in attention's ‖dW‖² is not known"
    return f"Queries and keys have a share of attention's ‖dW‖² of {', '.join(parts)}"


def attention_shares_caption(reading: Reading) -> str:
    """The share of queries and keys together in the first and the last block of each run."""
    table = reading.table
    shares = _shares(table)
    findings = []
    for (placement, skip), rows in shares.groupby(["placement", "skip"], sort=False):
        both = (rows["Q"] + rows["K"]).groupby(rows["layer"]).mean().dropna()
        if both.empty:
            findings.append(f"{placement}-norm, skip={skip}: not known")
            continue
        findings.append(
            f"{placement}-norm, skip={skip}: {both.iloc[0]:.2g} in layer {both.index[0]}, "
            f"{both.iloc[-1]:.2g} in layer {both.index[-1]}"
        )
    return (
        "Share of queries and keys together in ‖dW‖² of attention, mean over "
        f"{shares['seed'].nunique()} seeds; it falls as tokens grow alike. {'; '.join(findings)}."
    )


def _by_placement(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Placements of the norm, pre first, with their rows."""
    if "placement" not in table or table["placement"].isna().all():
        raise InputError("table must hold transformers; got no placement of a norm")
    rows = whole_layers(table)
    return sorted(((str(k), v) for k, v in rows.groupby("placement")), reverse=True)


def _placements(table: pd.DataFrame, rows: int, height: float):
    """A figure with a column for each placement, its axes and the parts of the table."""
    parts = _by_placement(table)
    figure = Shown(figsize=(style.WIDTH, rows * height + 0.8))
    axes = figure.subplots(rows, len(parts), squeeze=False, sharey="row")
    return figure, axes, parts


def _runs(rows: pd.DataFrame) -> list[NamedRun]:
    """A placement's runs, labelled by their skip where that sets them apart."""
    runs = named_by("skip", rows, describe(rows, ["skip"])[0])
    return [replace(run, label=_no(run.label)) for run in runs]


def _no(skip: str) -> str:
    """A skip as a line is named by it."""
    return "no skip" if skip == "none" else skip


def _span(values: pd.Series) -> str:
    low, high = (f"{values.agg(end):.2g}" for end in ("min", "max"))
    return low if low == high else f"{low}–{high}"


def _readings(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """(quantity, the rows that have it), the entropy in units of its largest value."""
    having = rows[rows[ENTROPY].notna()]
    largest = np.log(having["steps"].astype(float))
    return [
        (COSINE, rows[rows[COSINE].notna()]),
        (ENTROPY, having.assign(**{ENTROPY: having[ENTROPY] / largest})),
    ]


def _curve(ax: Axes, rows: pd.DataFrame, place: int, label: str) -> None:
    color, marker = style.COLORS[place], style.MARKERS[place]
    ax.fill_between(rows["layer"], rows["low"], rows["high"], color=color, **INTERVAL)
    every = max(1, len(rows) // 8)
    ax.plot(rows["layer"], rows["mean"], color=color, marker=marker, markevery=every, label=label)


def _shares(table: pd.DataFrame) -> pd.DataFrame:
    """One row per placement, skip, seed and layer with the share of each weight."""
    rows = whole_layers(table)
    rows = rows[rows["op"].isin(WEIGHTS)]
    if rows.empty:
        raise InputError("table must hold attention's weights Q, K, V and O; got none")
    keys = ["placement", "skip", "seed", "layer"]
    norms = rows.pivot(index=keys, columns="op", values="dW_log10_norm")
    squares = 10.0 ** (2 * norms.sub(norms.max(axis=1), axis=0))
    shares = squares.div(squares.sum(axis=1), axis=0)
    return shares.sort_index(level="placement", ascending=False).reset_index()


STUDY = Study(
    "Where should a transformer's normalization stand, and what becomes of its tokens in depth?",
    "Xiong et al. 2020; Dong et al. 2021; Noci et al. 2022",
    (
        Drawing(
            "blocks_delta",
            blocks_delta_finding,
            blocks_delta,
            blocks_delta_caption,
            deepest,
        ),
        Drawing(
            "rank_collapse",
            rank_collapse_finding,
            rank_collapse,
            rank_collapse_caption,
            deepest,
        ),
        Drawing(
            "attention_shares",
            attention_shares_finding,
            attention_shares,
            attention_shares_caption,
            deepest,
        ),
    ),
    rank=4,
)
