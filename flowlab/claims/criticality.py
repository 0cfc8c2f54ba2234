"""Where tanh nets are critical, and their fixed points: M2, M3, M4."""

from functools import partial
from math import exp, log, sqrt

import numpy as np

from flowlab import theory
from flowlab.claims import compare
from flowlab.claims.claim import claim
from flowlab.claims.rates import growth_law
from flowlab.claims.trial import log_growth

WIDTH, DEPTH, SETTLED = 96, 40, 16  # q is at its fixed point from layer SETTLED on
# σ_w² at which χ = 1, for each σ_b²; and (q*, χ₁) at σ_b² = .05 for each σ_w².
CRITICAL_LINE = {0.01: 1.42421, 0.05: 1.76096, 0.3: 2.50513}
FIXED_POINTS = {1.0: (0.1936, 0.7590), 1.5: (0.4180, 0.9386), 2.5: (1.0640, 1.1335)}


@claim(
    "M2",
    "Tanh at Xavier is critical: ‖δ_1‖²/‖δ_L‖² ≈ 0.71/L, a power law, not an exponential.",
    "Schoenholz et al. 2017; q ≈ 1/(2l) from tanh² ≈ q − 2q²",
)
def power_law(trial):
    """From q_1 = 1; the asymptotic law with the finite-width drift −κL/2N."""
    width, depth = 192, 48
    table = trial.measure(depth=depth, width=width, activation="tanh", init="xavier")
    mean, variance, allowance = growth_law("tanh", 1.0, 0.0, width, depth)
    infinite = mean + 0.5 * variance
    predicted = log(0.71 / depth) - 0.5 * variance
    # The asymptotic law is itself off at this depth, by what the trajectory says.
    allowance += abs(infinite - log(0.71 / depth))
    result = compare.mean(
        "ln ‖δ_1‖²/‖δ_L‖²", log_growth(table), predicted, sqrt(variance), allowance, against=0.0
    )
    infinite_ratio = exp(result.measured + 0.5 * variance)
    return result.finding(
        f"At depth {depth} ‖δ_1‖²/‖δ_L‖², corrected for width {width}, is {infinite_ratio:.4f} = "
        f"{depth * infinite_ratio:.2f}/L, near 0.71/L and far from both 1 and an exponential such "
        f"as ReLU's {0.5 ** (depth - 1):.0e} at the same initialization."
    )


def _settled(trial, sigma_w2, sigma_b2):
    init = {"name": "normal", "sigma_w": sqrt(sigma_w2), "sigma_b": sqrt(sigma_b2)}
    return trial.measure(depth=DEPTH, width=WIDTH, activation="tanh", init=init)


def _settled_rate(table, chi, q, against=float("nan")):
    """The rate of ‖δ‖² per layer beyond layer SETTLED against χ; theory's error is 0.3 κ/N."""
    steps = DEPTH - SETTLED
    drift, variance = theory.step_mean_variance("tanh", WIDTH, q=q)
    return compare.rate(
        "‖δ‖² per layer",
        log_growth(table, SETTLED),
        steps,
        steps * (log(chi) + drift),
        steps * variance,
        0.3 * steps * variance,
        against,
    )


def _critical(trial, sigma_b2):
    sigma_w2 = CRITICAL_LINE[sigma_b2]
    q = theory.q_fixed_point("tanh", sigma_w2, sigma_b2)
    result = _settled_rate(_settled(trial, sigma_w2, sigma_b2), 1.0, q)
    return result.finding(
        f"At (σ_w², σ_b²) = ({sigma_w2}, {sigma_b2}) ‖δ‖² changes by {result.measured:.4f} per "
        f"layer, against {result.predicted:.4f}: 1 less the drift of width {WIDTH}."
    )


for _sigma_b2, _sigma_w2 in CRITICAL_LINE.items():
    claim(
        f"M3-{_sigma_b2}",
        f"A tanh net with σ_b² = {_sigma_b2} is critical at σ_w² = {_sigma_w2}.",
        "Poole et al. 2016; Schoenholz et al. 2017",
    )(partial(_critical, sigma_b2=_sigma_b2))


def _fixed_point(trial, sigma_w2):
    q, chi = FIXED_POINTS[sigma_w2]
    table = _settled(trial, sigma_w2, 0.05)
    rate = _settled_rate(table, chi, q)
    hidden = table[(table["layer"] >= SETTLED) & (table["layer"] < DEPTH)]
    squares = 10 ** (2 * hidden["activation_log10_norm"]) / WIDTH
    per_seed = sigma_w2 * squares.groupby(hidden["seed"]).mean().to_numpy() + 0.05
    # q fluctuates by a relative √(2/N) a layer; the curvature of its map shifts the mean by O(1/N).
    variance = compare.mean("q*", per_seed, q, allowance=2 * q / WIDTH)
    both = compare.worst((rate, variance))
    return rate.finding(
        f"At σ_w² = {sigma_w2} the variance settles at q = {np.mean(per_seed):.4f} (theory {q}), "
        f"and ‖δ‖² changes by {rate.measured:.4f} per layer, against {rate.predicted:.4f} from "
        f"χ = {chi} at width {WIDTH}.",
        both.verdict,
    )


for _sigma_w2, (_q, _chi) in FIXED_POINTS.items():
    claim(
        f"M4-{_sigma_w2}",
        f"At σ_b² = 0.05, σ_w² = {_sigma_w2} a tanh net has q* = {_q} and χ = {_chi}.",
        "Poole et al. 2016; Schoenholz et al. 2017",
    )(partial(_fixed_point, sigma_w2=_sigma_w2))
