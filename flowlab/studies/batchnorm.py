"""What batch norm does to gradients of plain nets: a rate that the batch size sets."""

from math import log

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.interpolate import PchipInterpolator

from flowlab.analysis.statistics import over_seeds, seed_slopes
from flowlab.claims import compare
from flowlab.claims.claim import Finding
from flowlab.claims.trial import log_growth
from flowlab.figures import style
from flowlab.figures.labels import End, label_ends
from flowlab.figures.panels import THEORY
from flowlab.figures.runs import whole_layers
from flowlab.figures.shown import Shown
from flowlab.studies.study import Drawing, Reading, Study, finding, runs_with
from flowlab.theory import normalization
from flowlab.theory.normalization import batch_norm_rates

HEIGHT = 3.2  # inches
POINTS = 41  # of theory's line, fewer where batches are large
DOTS = 16  # up to here each whole batch size of theory has a dot
LEAST = 8  # examples from which the rate of a batch hardly differs from net to net


def rate_by_batch(reading: Reading) -> Figure:
    """Decades of ‖δ‖ per layer going backward against batch size, a line for each activation.

    Points are slopes over all hidden layers but the first, means over seeds with their 95 %
    interval; dashes are theory's rate at infinite width. Raises InputError as ``seed_slopes`` does.
    """
    rates, theory = _rates(reading.table), theoretical(reading.table)
    with style.context():
        figure = Shown(figsize=(style.WIDTH, HEIGHT))
        ax = figure.subplots()
        ends = []
        for place, (activation, rows) in enumerate(rates.groupby("activation")):
            color, marker = style.COLORS[place], style.MARKERS[place]
            margins = np.nan_to_num([rows["mean"] - rows["low"], rows["high"] - rows["mean"]])
            look = {"color": color, "marker": marker, "linestyle": "none", "capsize": 3}
            points, label = (rows["batch_size"], rows["mean"]), f"measured: {activation}"
            ax.errorbar(*points, margins, **look, label=label)
            curve = theory[theory["activation"] == activation].sort_values("batch_size")
            _theory(ax, curve["batch_size"].to_numpy(), curve["rate"].to_numpy(), place, activation)
            ends.append(End(*rows[["batch_size", "mean"]].iloc[-1], activation, color))
        sizes = np.sort(rates["batch_size"].unique())
        ax.set_xscale("log", base=2)
        ax.set_xticks(sizes, [f"{size}" for size in sizes])
        ax.minorticks_off()
        ax.axhline(0, color="0.35", linewidth=0.8, zorder=0)
        ax.set_ylim(bottom=min(0, ax.get_ylim()[0]))
        ax.set_xlabel("batch size $B$")
        ax.set_ylabel("decades of ‖δ‖ per layer")
        ax.tick_params(labelsize=style.TEXT)
        point = {"color": "0.35", "marker": "o", "linestyle": "none"}
        law = {"color": "black", "marker": ".", "markersize": 4, **THEORY}
        handles = [
            Line2D([], [], **point, label="measured, 95 % interval"),
            Line2D([], [], **law, label="theory, infinite width (a dot for each whole $B$)"),
        ]
        figure.legend(handles=handles, loc="outside lower left", ncols=2)
        label_ends(figure, {ax: ends})
    return figure


def _theory(ax: Axes, sizes: np.ndarray, rates: np.ndarray, place: int, name: str) -> None:
    """Dots at whole batch sizes, which alone exist, where they stand apart; a curve through all."""
    look = {"color": style.shade(style.COLORS[place])}
    if len(sizes) > 1:
        fine = np.geomspace(sizes[0], sizes[-1], 200)
        smooth = PchipInterpolator(np.log(sizes), rates)(np.log(fine))
        ax.plot(fine, smooth, **look, **THEORY)
    apart = sizes <= DOTS
    ax.plot(sizes[apart], rates[apart], ".", markersize=4, **look, label=f"theory: {name}")


def rate_by_batch_finding(reading: Reading) -> str:
    """The factor per layer in the smallest and the largest batch, and theory's error."""
    rates, growth = _beside_theory(reading), []
    for activation, rows in rates.groupby("activation"):
        ends = [f"{10 ** row['mean']:.3g} at B = {row['batch_size']}" for _, row in _ends(rows)]
        growth.append(f"{' and '.join(ends)} ({activation})")
    text = f"Batch norm multiplies ‖δ‖ per layer by {', '.join(growth)}"
    if rates["miss"].notna().any():
        text += f"; theory is within {rates['miss'].max():.1%}".replace("%", " %")
    return text


def rate_by_batch_caption(reading: Reading) -> str:
    """Each activation's rate in the smallest and the largest batch, and theory's error."""
    rates, findings = _beside_theory(reading), []
    for activation, rows in rates.groupby("activation"):
        ends = [
            f"{row['mean']:.4f} [{row['low']:.4f}, {row['high']:.4f}]"
            + (f" (theory {row['rate']:.4f})" if pd.notna(row["rate"]) else "")
            + f" at B = {row['batch_size']}"
            for _, row in _ends(rows)
        ]
        findings.append(f"{activation} {' and '.join(ends)}")
    text = "With batch norm and no skips the gradient explodes; decades of ‖δ‖ per layer, "
    if not (rates["low"] > 0).all():
        text = "Decades of ‖δ‖ per layer going backward with batch norm and no skips, "
    text += f"mean over seeds [95 % interval]: {'; '.join(findings)}."
    if rates["miss"].notna().any():
        worst = rates.loc[rates["miss"].idxmax()]
        text += (
            f" Theory's factor per layer is off by {rates['miss'].median():.1%} in the median "
            f"point and by at most {worst['miss']:.1%} ({worst['activation']}, "
            f"B = {worst['batch_size']})."
        )
    return text


def _beside_theory(reading: Reading) -> pd.DataFrame:
    """Measured rates with theory's ``rate``, and by what share its factor ``miss``es theirs."""
    theory = theoretical(reading.table)
    rates = _rates(reading.table).merge(theory, "left", ["activation", "batch_size"])
    return rates.assign(miss=(10.0 ** (rates["mean"] - rates["rate"]) - 1).abs())


def _ends(rows: pd.DataFrame):
    """The rows of the smallest and the largest batch."""
    return rows.iloc[sorted({0, len(rows) - 1})].iterrows()


def theoretical(table: pd.DataFrame) -> pd.DataFrame:
    """Theory's rates at the measured batch sizes and between: activation, batch_size, rate."""
    sizes = table["batch_size"].unique()
    fine = np.geomspace(sizes.min(), sizes.max(), POINTS).round().astype(int)
    return batch_norm_rates(table["activation"].unique(), np.union1d(fine, sizes).tolist())


def _rates(table: pd.DataFrame) -> pd.DataFrame:
    """Slopes over the layers that batch norm follows, one row per run.

    Without the first, whose input is not an activation and gives its map another variance.
    """
    rows = whole_layers(table)
    rows = rows[(rows["layer"] > 1) & (rows["layer"] < rows["depth"])]
    runs = rows.groupby("run", observed=True)[["activation", "batch_size"]].first()
    measured = over_seeds(seed_slopes(rows, by="run")).set_index("run")
    return runs.join(measured).reset_index().sort_values(["activation", "batch_size"])


@finding(
    "S12-depth",
    "Plain nets with batch norm explode: ‖δ‖² grows by (B − 2)/(B − 3) per linear layer and by "
    "π/(π − 1) per ReLU layer at large B.",
    "Yang et al. 2019",
    runs=[
        {**{"depth": 16, "width": 256, "init": "he", "norm": "batch"}, **run}
        for run in (
            {"activation": activation, "batch_size": batch}
            for activation in ("identity", "relu")
            for batch in (8, 16, 64)
        )
    ],
    times=1 / 4,  # fluctuations are small
)
def explosion(reading: Reading) -> Finding:
    """From layer 2, whose input is normalized, to layer L − 2: at the output cotangents are iid.

    Theory's error is a drift of up to 0.1 B/N in the log of a layer.
    """
    rows = runs_with(reading.table, norm="batch", skip="none", upstream="gaussian")
    rows = rows[rows["activation"].isin(["identity", "relu"]) & (rows["batch_size"] >= LEAST)]
    rows = runs_with(rows, data="gaussian")
    parts, growth = [], {}
    runs = rows.groupby(["activation", "batch_size", "run"], sort=True)
    for (activation, batch, _), of in runs:
        depth, width = int(of["depth"].iat[0]), int(of["width"].iat[0])
        logs = log_growth(of[of["layer"] <= depth - 2], first=2)
        law = log(normalization.batch_norm_rate(activation, int(batch)))
        steps = depth - 4
        part = compare.rate(
            f"‖δ‖² per layer, {activation}, B = {batch}",
            *(logs, steps, steps * law),
            log_allowance=steps * 0.1 * batch / width,
            against=1.0 if activation == "relu" else np.nan,
        )
        parts.append(part)
        growth.setdefault(activation, []).append(f"{part.measured:.3f}")
    sizes = ", ".join(map(str, sorted(rows["batch_size"].unique())))
    words = {"relu": "ReLU", "identity": "linear"}
    rates = " and ".join(
        f"by {', '.join(growth[name])} per {word} layer"
        for name, word in words.items()
        if name in growth
    )
    return compare.worst(parts).finding(
        f"With batch norm of {sizes} examples ‖δ‖² grows {rates} going backward, at any weight "
        "variance: normalization that tames the forward pass makes a plain net's gradients explode."
    )


STUDY = Study(
    "How fast do gradients of plain nets grow under batch norm, and what sets the rate?",
    "Yang et al. 2019",
    (
        Drawing(
            "rate_by_batch",
            rate_by_batch_finding,
            rate_by_batch,
            rate_by_batch_caption,
        ),
    ),
    (explosion,),
    rank=62,
)
