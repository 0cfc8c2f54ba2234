"""What each kind of skip connection does to the gradient as nets get deeper."""

from functools import partial
from math import log, sqrt

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from flowlab.claims import compare
from flowlab.claims.claim import CONDITIONAL, FAILS, HOLDS, OPEN, Finding
from flowlab.claims.trial import log_growth
from flowlab.figures import style
from flowlab.figures.panels import THEORY, legend
from flowlab.figures.ratios import SYMBOL, WORDS, ratios
from flowlab.studies.study import Drawing, Reading, Study, TableClaim, finding, first_run, runs_with

CLOSE = 1.0  # decades: half the height of the second panel
SCALES = {"inverse_sqrt_depth": "a = 1/√L", "inverse_depth": "a = 1/L"}
HEIGHT = 3.6  # inches
# Settings of each sum, in a table's terms.
SUMS = {
    "identity": {"skip": "identity"},
    "mix": {"skip": "mix"},
    "inverse_sqrt_depth": {"skip": "scaled", "branch_scale": "inverse_sqrt_depth"},
    "inverse_depth": {"skip": "scaled", "branch_scale": "inverse_depth"},
}
BLOCKS = 32  # of the small sweep


def skip_depth(reading: Reading) -> Figure:
    """log10 ‖δ_1‖/‖δ_L‖ against depth, a line for each kind of skip; near zero once more.

    Points are means over seeds with their 95 % interval; dashes are theory. The second panel is the
    first one between −1 and 1 decade. Raises InputError as ``ratios`` does.
    """
    table, prediction = reading.table, reading.prediction
    kinds = _kinds(table, prediction)
    with style.context():
        figure = Figure(figsize=(style.WIDTH, HEIGHT))
        whole, near = figure.subplots(1, 2)
        for ax in (whole, near):
            for (_, rows), color, marker in zip(kinds, style.COLORS, style.MARKERS, strict=False):
                _line(ax, rows, color, marker)
            ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            ax.set_xlabel("depth, layers")
            ax.tick_params(labelsize=style.TEXT)
        whole.set_ylabel(f"{SYMBOL}, decades")
        whole.set_title("all kinds")
        near.set_title(f"within ±{CLOSE:g} decade")
        near.set_ylim(-CLOSE, CLOSE)
        handles = [
            Line2D([], [], color=color, marker=marker, label=kind)
            for (kind, _), color, marker in zip(kinds, style.COLORS, style.MARKERS, strict=False)
        ]
        legend(figure, [*handles, Line2D([], [], color="black", **THEORY, label="theory")], "lower")
    return figure


def skip_caption(reading: Reading) -> str:
    """The ratio of every kind at the greatest depth, beside theory's."""
    table, prediction = reading.table, reading.prediction
    findings = []
    for kind, rows in _kinds(table, prediction):
        last = rows.iloc[-1]
        text = f"{kind} {last['mean']:z.2f} [{last['low']:z.2f}, {last['high']:z.2f}]"
        if np.isnan(last["mean"]):
            text = f"{kind} no seed with finite norms"
        law = last["predicted"]
        findings.append(f"{text}, theory " + ("silent" if np.isnan(law) else f"{law:z.2f}"))
    depth = table["depth"].max()
    start = f"{WORDS} at depth {depth}, mean over seeds [95 % interval] in decades: "
    return start + "; ".join(findings) + "."


def _kinds(table, prediction) -> list[tuple[str, pd.DataFrame]]:
    """(kind, its rows by depth), the kind most favourable to exploding first."""
    if "branch_scale" not in table:
        table = table.assign(branch_scale=None)
    rows = ratios(table, prediction, ["skip", "branch_scale", "depth"]).sort_values("depth")
    scales = rows["branch_scale"].map(SCALES).fillna("")
    rows["kind"] = (rows["skip"] + " " + scales.astype(str)).str.strip()
    kinds = [(str(kind), group) for kind, group in rows.groupby("kind")]
    return sorted(kinds, key=lambda pair: -pair[1]["mean"].fillna(-np.inf).iloc[-1])


def _line(ax: Axes, rows: pd.DataFrame, color: str, marker: str) -> None:
    mean = rows["mean"].to_numpy()
    margins = np.nan_to_num([mean - rows["low"], rows["high"] - mean])
    kind = rows["kind"].iat[0]
    look = {
        "color": color,
        "marker": marker,
        "capsize": 2,
        "elinewidth": 1,
        "label": f"mean: {kind}",
    }
    ax.errorbar(rows["depth"], mean, margins, **look)
    predicted = rows["predicted"].astype(float)
    if predicted.notna().any():
        shade = style.shade(color)
        ax.plot(rows["depth"], predicted, color=shade, **THEORY, label=f"theory: {kind}", zorder=3)


def quick(scaling: str) -> dict:
    """The settings of the small sweep for one sum."""
    options = dict(SUMS[scaling])
    scale = options.pop("branch_scale", None)
    network = {"network": {"branch_scale": scale}} if scale == "inverse_depth" else {}
    return (
        {"depth": BLOCKS + 1, "width": 64, "activation": "relu", "init": "he"} | options | network
    )


def block_rate(reading: Reading, scaling: str) -> tuple[compare.Comparison, int, int]:
    """The rate of ‖δ‖² per block of He ReLU branches against s²(1 + a²), in the deepest such net.

    One block has relative variance v = (4a² + 5a⁴)/((1 + a²)²N), drift −v/2, with the branch's
    κ = 5; theory's own error is 0.3 v. The drift is that of one example; a batch has between none
    and that. Also the number of blocks and the width.
    """
    net = {"activation": "relu", "init": "he", "norm": "none", "upstream": "gaussian"}
    rows = first_run(runs_with(reading.table, **SUMS[scaling], **net), "depth", "width")
    width, blocks = int(rows["width"].iat[0]), int(rows["depth"].iat[0]) - 1
    a = {"inverse_sqrt_depth": blocks**-0.5, "inverse_depth": 1 / blocks}.get(scaling, 1.0)
    s = sqrt(0.5) if scaling == "mix" else 1.0
    variance = blocks * (4 * a**2 + 5 * a**4) / ((1 + a**2) ** 2 * width)
    drift, error = variance / 2, 0.3 * variance
    if rows["batch_size"].iat[0] > 1:
        drift /= 2
        error += drift
    law = blocks * log(s**2 * (1 + a**2)) - drift
    rate = compare.rate("‖δ‖² per block", log_growth(rows), blocks, law, variance, error)
    return rate, blocks, width


@finding(
    "S8",
    "Skip connections bypass the transpose chain and preserve gradient magnitude.",
    "the text",
    CONDITIONAL,
    runs=[quick(scaling) for scaling in SUMS],
)
def skips_preserve(reading: Reading) -> Finding:
    """Held with a condition if x + f(x) grows as 2^L and scaled sums do not."""
    parts, blocks, _ = zip(*(block_rate(reading, scaling) for scaling in SUMS), strict=True)
    changes = [abs(log(part.measured)) * of for part, of in zip(parts, blocks, strict=True)]
    preserved = [change < log(10) for change in changes[1:]]
    if all(part.verdict == HOLDS for part in parts) and all(preserved):
        verdict = CONDITIONAL
    elif changes[0] < log(10):
        verdict = HOLDS
    else:
        verdict = OPEN if any(preserved) else FAILS
    plain, mix, root, inverse = (p.measured**of for p, of in zip(parts, blocks, strict=True))
    return parts[0].finding(
        f"x + f(x) with He weights multiplies ‖δ‖² by {parts[0].measured:.2f} per block "
        f"({plain:.0e} over {blocks[0]}); what preserves it is scaling: over {blocks[1]} blocks "
        f"{mix:.2f} with (x + f)/√2, {root:.2f} with f/√L and {inverse:.2f} with f/L.",
        verdict,
    )


def _block_law(reading: Reading, scaling: str, total) -> Finding:
    result, blocks, width = block_rate(reading, scaling)
    return result.finding(
        f"{blocks} blocks multiply ‖δ‖² by {result.measured:.4f} each, {result.predicted:.4f} in "
        f"theory at width {width}: {result.measured**blocks:.3g} in all, where infinite width "
        f"gives {total(blocks)}."
    )


def block_claim(scaling: str, formula: str, total: str, value) -> TableClaim:
    """R1 of one sum: ``total`` is its law, ``value`` gives it in digits for a number of blocks."""
    return finding(
        f"R1-{scaling}",
        f"With χ_f = 1, L blocks {formula} multiply ‖δ‖² by {total}.",
        "Hanin & Rolnick 2018; second moments of one block",
        runs=[quick(scaling)],
    )(partial(_block_law, scaling=scaling, total=value))


STUDY = Study(
    "Which skip connections keep the gradient as nets get deeper?",
    "He et al. 2016; Hanin & Rolnick 2018; Zhang et al. 2019; Bachlechner et al. 2020",
    (
        Drawing(
            "skip_by_depth",
            lambda reading: "Skip connections against depth",
            skip_depth,
            skip_caption,
        ),
    ),
    (
        skips_preserve,
        block_claim("identity", "x + f(x)", f"2^{BLOCKS}", lambda L: f"2^{L} = {2.0**L:.1e}"),
        block_claim("mix", "(x + f(x))/√2", "1", lambda L: "1"),
        block_claim(
            "inverse_sqrt_depth",
            "x + f(x)/√L",
            "(1 + 1/L)^L",
            lambda L: f"(1 + 1/L)^L = {(1 + 1 / L) ** L:.3f}",
        ),
    ),
    rank=3,
)
