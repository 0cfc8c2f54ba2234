"""Rates of mean-field theory along a plain net: S6, M1."""

from functools import partial
from math import log, sqrt

from flowlab import theory
from flowlab.claims import compare
from flowlab.claims.claim import HOLDS, claim
from flowlab.claims.trial import log_growth

WIDTH, DEPTH = 64, 32
SCHEMES = {"xavier": 1.0, "he": 2.0, "torch_default": 1 / 3}  # their σ_w² between equal widths
RATES = {
    "xavier": ("identity", "relu", "leaky_relu", "sigmoid", "selu", "erf", "gelu"),
    "he": ("identity", "relu", "tanh", "sigmoid", "erf"),
    "torch_default": ("identity", "relu", "tanh", "selu"),
}
EXACT = ("identity", "relu")  # laws exact at any width


def growth_law(activation: str, sigma_w2: float, sigma_b2: float, width: int, depth: int):
    """Mean, variance and theory's own error of ln‖δ_1‖² − ln‖δ_L‖², from an input of variance 1.

    Σ log χ(q_l) along the trajectory with the finite-width steps; their own error is 0.3 κ/N a
    layer, except where the step's law is exact.
    """
    qs = theory.q_trajectory(activation, sigma_w2 + sigma_b2, sigma_w2, sigma_b2, depth - 1)
    steps = [theory.step_mean_variance(activation, width, q=q) for q in qs]
    mean = sum(log(theory.chi(activation, q, sigma_w2)) for q in qs) + sum(m for m, _ in steps)
    variance = sum(v for _, v in steps)
    return mean, variance, 0.0 if activation in EXACT else 0.3 * variance


def rate(trial, activation, init, sigma_w2, sigma_b2=0.0, width=WIDTH, depth=DEPTH, against=None):
    """The measured rate of ‖δ‖² per layer against its law."""
    table = trial.measure(depth=depth, width=width, activation=activation, init=init)
    law = growth_law(activation, sigma_w2, sigma_b2, width, depth)
    against = float("nan") if against is None else against
    return compare.rate("‖δ‖² per layer", log_growth(table), depth - 1, *law, against)


@claim("S6", "Gradients vanish or explode through successive transposes.", "the text")
def vanish_or_explode(trial):
    """ReLU nets at half, once and twice He's variance."""
    parts = {
        s: rate(trial, "relu", {"name": "normal", "sigma_w": sqrt(s)}, s, against=rival)
        for s, rival in ((1.0, 1.0), (2.0, 0.5), (4.0, 1.0))
    }
    low, middle, high = (part.measured for part in parts.values())
    return compare.worst(parts.values()).finding(
        f"Going backward through ReLU layers, ‖δ‖² is multiplied by {low:.3f} per layer at "
        f"σ_w² = 1, {middle:.3f} at 2 and {high:.2f} at 4; over 100 layers the first and the last "
        f"make 10^{100 * log(low) / log(10):.0f} and 10^{100 * log(high) / log(10):.0f}."
    )


def _mean_field_rate(trial, activation, init):
    sigma_w2 = SCHEMES[init]
    sigma_b2 = 1 / (3 * WIDTH) if init == "torch_default" else 0.0
    result = rate(trial, activation, init, sigma_w2, sigma_b2)
    q = theory.q_fixed_point(activation, sigma_w2, sigma_b2)
    limit = f"{theory.chi(activation, q, sigma_w2):.4f} at the fixed point of q"
    if activation in ("identity", "relu", "leaky_relu"):
        limit = f"{theory.chi(activation, 1.0, sigma_w2):.4f} at any q"
    return result.finding(
        f"Under {init} a net of {activation} and width {WIDTH} multiplies ‖δ‖² by "
        f"{result.measured:.4f} per layer going backward; theory along the trajectory of q gives "
        f"{result.predicted:.4f}, and in the limit of infinite width {limit}."
    )


for _init, _activations in RATES.items():
    for _activation in _activations:
        claim(
            f"M1-{_init}-{_activation}",
            f"Under {_init} a layer of {_activation} multiplies ‖δ‖² by χ = σ_w² E φ'².",
            "Poole et al. 2016; Schoenholz et al. 2017; Hanin & Nica 2018",
            HOLDS,
        )(partial(_mean_field_rate, activation=_activation, init=_init))
