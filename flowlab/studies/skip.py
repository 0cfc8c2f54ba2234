"""What each kind of skip connection does to the gradient as nets get deeper."""

from functools import partial
from math import log, sqrt

from flowlab.claims import compare
from flowlab.claims.claim import CONDITIONAL, FAILS, HOLDS, OPEN, Finding
from flowlab.claims.trial import log_growth
from flowlab.studies.study import (
    Reading,
    Study,
    TableClaim,
    chosen,
    finding,
    first_run,
    runs_with,
)

# Settings of each sum, in a table's terms.
SUMS = {
    "identity": {"skip": "identity"},
    "mix": {"skip": "mix"},
    "inverse_sqrt_depth": {"skip": "scaled", "branch_scale": "inverse_sqrt_depth"},
    "inverse_depth": {"skip": "scaled", "branch_scale": "inverse_depth"},
}
BLOCKS = 32  # of the small sweep


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
    (chosen("skip_by_depth"),),
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
