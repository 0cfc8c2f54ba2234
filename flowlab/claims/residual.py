"""Residual nets: the laws R2 to R5."""

from math import log, nan, sqrt

import numpy as np

from flowlab import theory
from flowlab.claims import compare
from flowlab.claims.claim import claim
from flowlab.claims.trial import inner, log_growth, square
from flowlab.layer import Chain
from flowlab.layers import Activation, Linear, Residual, Scale

WIDTH = 64


@claim(
    "R2",
    "Of a linear branch, var ln‖δ‖² ≈ L(4a² + 2a⁴)/((1 + a²)²N): no blow-up at a² = 1/L.",
    "second moments of one block",
)
def variance_of_log(trial):
    """At a = 1/√L and a = 1, width 32; first order in 1/N, so the allowance is 2/N of it."""
    width, blocks = 32, 16
    parts = {}
    for scaling, a in (("scaled", blocks**-0.5), ("identity", 1.0)):
        table = trial.measure(
            16, depth=blocks + 1, width=width, activation="identity", init="lecun", skip=scaling
        )
        law = blocks * (4 * a**2 + 2 * a**4) / ((1 + a**2) ** 2 * width)
        plain = 2 * blocks / width
        parts[scaling] = compare.variance(
            "variance of ln ‖δ_1‖²/‖δ_L‖²", log_growth(table), law, 2 / width * law, plain
        )
    scaled, identity = parts["scaled"], parts["identity"]
    return scaled.finding(
        f"Over {blocks} linear blocks of width {width} the variance of ln‖δ‖² is "
        f"{scaled.measured:.3f} at a² = 1/L (theory {scaled.predicted:.3f}) and "
        f"{identity.measured:.2f} at a = 1 (theory {identity.predicted:.2f}), where a plain "
        f"linear net has {2 * blocks / width:.2f}.",
        compare.worst(parts.values()).verdict,
    )


@claim(
    "R3",
    "ReZero (α = 0): the Jacobian is the identity, dW = 0 and dα = ⟨δ, f⟩.",
    "Bachlechner et al. 2020",
)
def rezero(trial):
    """Exact at initialization; the branch's output is computed here by hand."""
    width, blocks = 6, 5
    block = Residual(Chain([Activation("relu"), Linear(width), Scale()]))
    chain, x, parameters, dy = trial.draw([block] * blocks, (3, width))
    got = trial.run(chain, x, parameters, dy)
    f = [np.maximum(x, 0) @ parameters[k][1]["W"] for k in range(blocks)]
    alpha = [
        compare.relative(
            got.gradients[f"{k}.2.alpha"],
            inner(dy, f[k]),
            np.sqrt(square(dy) * square(f[k])),
        )
        for k in range(blocks)
    ]
    weights = [np.abs(got.gradients[f"{k}.1.W"]).max((1, 2)) for k in range(blocks)]
    errors = [np.abs(got.dx - dy).max((1, 2)), *weights, *alpha]
    result = compare.identity("worst error of dX = dY, dW = 0, dα = ⟨δ, f⟩", errors)
    return result.finding(
        f"Through {blocks} ReZero blocks the cotangent arrives as it left, no weight receives a "
        f"gradient, and dα is ⟨δ, f⟩, all to {result.measured:.0e}."
    )


def one_step(trial, blocks: int, factor: float) -> np.ndarray:
    """‖change of the output‖ by one step of the weights of size η, over η‖∂L/∂y‖‖φ(x)‖², per seed.

    Branches of two He maps, the first times ``factor``, the last at zero. η is small enough for
    first order, where the change is η‖∂L/∂y‖ Σ_l ‖h_l‖² with E‖h_l‖² = factor²‖φ(x)‖².
    """
    width, eta = 32, 1e-6
    relu = Activation("relu")
    block = Residual(Chain([relu, Linear(width, factor), relu, Linear(width, 0.0)]))
    chain, x, parameters, dy = trial.draw([block] * blocks, (1, width))
    got = trial.run(chain, x, parameters, dy)
    stepped = tuple(
        tuple(
            {"W": p["W"] - eta * got.gradients[f"{k}.{j}.W"], "b": p["b"]} if p else p
            for j, p in enumerate(branch)
        )
        for k, branch in enumerate(parameters)
    )
    change = trial.run(chain, x, stepped, dy).y - got.y
    return np.sqrt(square(change) / square(dy)) / (eta * square(np.maximum(x, 0)))


@claim(
    "R4",
    "Fixup (m = 2): one step changes the output equally at any depth; without L^−½, L times more.",
    "Zhang et al. 2019",
)
def fixup(trial):
    """The change over its law: 1 with the factor L^−½, L without; second order is below 1e-3."""
    depths = (4, 32)
    parts = {
        (blocks, scaled): compare.mean(
            "change of the output in one step",
            one_step(trial, blocks, blocks**-0.5 if scaled else 1.0),
            1.0 if scaled else blocks,
            allowance=1e-3 * (1.0 if scaled else blocks),
        )
        for scaled in (False, True)
        for blocks in depths
    }
    shown = {
        scaled: " and ".join(f"{parts[blocks, scaled].measured:.2f}" for blocks in depths)
        for scaled in (True, False)
    }
    return parts[depths[-1], True].finding(
        f"In units of η‖∂L/∂y‖‖φ(x)‖² one step moves the output by {shown[True]} at {depths[0]} "
        f"and {depths[1]} Fixup blocks, and by {shown[False]} without the factor L^−½.",
        compare.worst(parts.values()).verdict,
    )


@claim(
    "R5",
    "x + tanh(Wx) grows subexponentially: ln‖δ_1‖²/‖δ_L‖² → (8/(3√(2π)))σ_w√L.",
    "Yang & Schoenholz 2017",
)
def tanh_residual(trial):
    """At two depths, against Σ log(1 + σ_w² E φ'²) along the trajectory of q."""
    exponential = 4 * _tanh_law(16)[0]
    short, long = _tanh_growth(trial, 16), _tanh_growth(trial, 64, exponential)
    ratio = long.measured / short.measured
    return long.finding(
        f"64 blocks make ln‖δ_1‖²/‖δ_L‖² = {long.measured:.2f} (theory {long.predicted:.2f} at "
        f"width {WIDTH}; the limit law 8√L/(3√(2π)) = {8 * 8 / (3 * sqrt(2 * np.pi)):.2f}), which "
        f"is {ratio:.2f} times that of 16: twice would be √L, four times an exponential.",
        compare.worst((short, long)).verdict,
    )


def _tanh_growth(trial, blocks, against=nan):
    """ln‖δ_1‖²/‖δ_L‖² of ``blocks`` blocks against its law; theory's error is 0.3 variances."""
    block = Residual(Chain([Linear(WIDTH), Activation("tanh")]))
    chain, x, parameters, dy = trial.draw([block] * blocks, (1, WIDTH), "xavier")
    got = trial.run(chain, x, parameters, dy)
    infinite, variance = _tanh_law(blocks)
    return compare.mean(
        "ln ‖δ_1‖²/‖δ_L‖²",
        np.log(square(got.dx) / square(dy)),
        infinite - variance / 2,
        sqrt(variance),
        0.3 * variance,
        against,
    )


def _tanh_law(blocks):
    """Σ log(1 + χ(q_l)) at infinite width, and the variance (4χ + κχ²)/((1 + χ)²N) summed."""
    q, infinite, variance = 1.0, 0.0, 0.0
    for _ in range(blocks):
        chi, kappa = theory.chi("tanh", q, 1.0), theory.kappa("tanh", q)
        infinite += log(1 + chi)
        variance += (4 * chi + kappa * chi**2) / ((1 + chi) ** 2 * WIDTH)
        q += theory.q_map("tanh", q, 1.0)
    return infinite, variance
