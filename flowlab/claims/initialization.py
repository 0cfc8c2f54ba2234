"""What initial weights do: S7, the table of variances I1, and He's arguments I2 and I3."""

from functools import partial
from math import sqrt

import numpy as np

from flowlab.analysis.statistics import seed_slopes
from flowlab.claims import compare
from flowlab.claims.claim import FAILS, HOLDS, OPEN, claim
from flowlab.claims.trial import log_growth, square
from flowlab.layer import Chain
from flowlab.layers import Activation, Linear
from flowlab.theory.finite_width import he_relu_step

FAN_IN, FAN_OUT = 96, 32
# Var(W) between these fans, with the kurtosis of an entry (None: the norm is not random).
VARIANCES = {
    "lecun": ("1/n_in", 1 / FAN_IN, 3.0, "LeCun et al. 1998, section 4.6"),
    "he": ("2/n_in", 2 / FAN_IN, 3.0, "He et al. 2015, eq. 10"),
    "he_uniform": ("2/n_in", 2 / FAN_IN, 1.8, "He et al. 2015, eq. 10"),
    "xavier": ("2/(n_in + n_out)", 2 / (FAN_IN + FAN_OUT), 3.0, "Glorot & Bengio 2010, eq. 12"),
    "xavier_uniform": (
        "2/(n_in + n_out)",
        2 / (FAN_IN + FAN_OUT),
        1.8,
        "Glorot & Bengio 2010, eq. 16",
    ),
    "torch_default": ("1/(3 n_in)", 1 / (3 * FAN_IN), 1.8, "torch.nn.Linear"),
    "orthogonal": ("1/max(n_in, n_out)", 1 / FAN_IN, None, "Saxe et al. 2013"),
}


@claim(
    "S7",
    "Xavier/He set weights to have *variance* proportional to 1/√d to keep gradients stable.",
    "the text",
    FAILS,
)
def literal_reading(trial):
    """ReLU nets under Var(W) = 1/√d at two widths; √d/2 per layer is the exact law's prediction."""
    depth, widths = 8, (64, 144)
    quantity = "‖δ‖² per layer under Var(W) = 1/√d"
    stable, explained, rates = [], [], {}
    for width in widths:
        table = trial.measure(depth=depth, width=width, activation="relu", init="literal")
        logs = log_growth(table)
        drift, variance = ((depth - 1) * moment for moment in he_relu_step(width))
        stable.append(compare.rate(quantity, logs, depth - 1, drift, variance))
        law = drift + (depth - 1) * np.log(sqrt(width) / 2)
        explained.append(compare.rate(quantity, logs, depth - 1, law, variance))
        rates[width] = stable[-1].measured
    if all(part.verdict == HOLDS for part in explained):
        verdict = FAILS
    else:
        verdict = HOLDS if all(part.verdict == HOLDS for part in stable) else OPEN
    shown = " and ".join(f"{rate:.2f} at width {width}" for width, rate in rates.items())
    halves = " and ".join(f"{sqrt(width) / 2:g}" for width in widths)
    return stable[-1].finding(
        "It is the standard deviation that goes as 1/√d, the variance as 1/d: read literally, "
        f"‖δ‖² is multiplied by {shown} in every ReLU layer (√d/2 = {halves}, less the drift of "
        "finite width), so gradients explode.",
        verdict,
    )


def _variance(trial, scheme):
    formula, predicted, kurtosis, _ = VARIANCES[scheme]
    W = trial.parameters(Linear(FAN_OUT), (1, FAN_IN), scheme)["W"]
    squares = square(W) / W[0].size
    if kurtosis is None:
        sd, allowance = 0.0, compare.ROUNDING * predicted
    else:
        sd, allowance = predicted * sqrt((kurtosis - 1) / W[0].size), 0.0
    result = compare.mean("Var(W)", squares, predicted, sd, allowance)
    return result.finding(
        f"{W.size} weights drawn by {scheme} between {FAN_IN} and {FAN_OUT} units have variance "
        f"{result.measured:.6f}, {formula} = {predicted:.6f}: a standard deviation of "
        f"{sqrt(result.measured):.4f}."
    )


for _scheme, (_formula, _, _, _source) in VARIANCES.items():
    claim(f"I1-{_scheme}", f"{_scheme} draws weights of variance {_formula}.", _source)(
        partial(_variance, scheme=_scheme)
    )


@claim(
    "I2",
    "A ReLU layer multiplies ‖h‖² by Var·n_out/2 forward and ‖δ‖² by Var·n_in/2 backward.",
    "He et al. 2015, section 2.2; Glorot & Bengio 2010",
)
def unequal_widths(trial):
    """One He layer of a wide and a narrow input; both factors over their laws, so 1."""
    parts, shown = [], []
    for n_in, n_out in ((24, 72), (72, 24)):
        layer = Chain([Linear(n_out), Activation("relu")])
        chain, x, parameters, dy = trial.draw([layer], (1, n_in), times=8)
        got = trial.run(chain, x, parameters, dy)
        factors = square(got.y) / square(x), square(got.dx) / square(dy)
        for factor, law in zip(factors, (n_out / n_in, 1.0), strict=True):
            parts.append(compare.mean("factor over its law", factor / law, 1.0))
        shown.append(
            f"{n_in} to {n_out} units: ‖h‖² × {factors[0].mean():.3f} (law {n_out / n_in:.3f}), "
            f"‖δ‖² × {factors[1].mean():.3f} (law 1)"
        )
    return compare.worst(parts).finding(f"Under He, {'; '.join(shown)}.")


@claim(
    "I3",
    "For a single example under He, ‖dW_l‖² = ‖h_{l−1}‖²‖δ_l‖² is flat over depth.",
    "He et al. 2015, section 2.2; Hanin & Nica 2018",
)
def flat_profile(trial):
    """The slope of ln‖dW_l‖² over layers: forward and backward drifts cancel exactly."""
    table = trial.measure(4, depth=24, width=48, activation="relu", init="he")
    slopes = 2 * np.log(10) * seed_slopes(table, "dW_log10_norm").to_numpy()
    norms = table.set_index(["seed", "layer"])
    below = norms["activation_log10_norm"].groupby("seed").shift(1)
    product = (below + norms["delta_log10_norm"] - norms["dW_log10_norm"]).dropna()
    # Norms of float32 arrays: roundings of some 2^-24 in each of some ten operations.
    factors = compare.identity("", product, 1e-5)
    slope = compare.mean(
        "slope of ln‖dW_l‖² per layer backward", slopes, 0.0, against=he_relu_step(48)[0]
    )
    return slope.finding(
        f"From layer to layer ln‖dW_l‖² changes by {slope.measured:+.4f} on average, where ‖h‖² "
        f"and ‖δ‖² alone drift by {he_relu_step(48)[0]:.4f}; ‖dW‖ = ‖h‖‖δ‖ to "
        f"{factors.measured:.0e} decades.",
        compare.worst((slope, factors)).verdict,
    )
