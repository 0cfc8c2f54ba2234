"""Exact identities of whole networks: A3, A10, A11, A13."""

from itertools import pairwise

import numpy as np

from flowlab.claims import compare
from flowlab.claims.claim import FAILS, OPEN, claim
from flowlab.claims.trial import inner, log_growth, square
from flowlab.layer import Workspace
from flowlab.layers import Activation, Linear
from flowlab.numerics import scale

_WIDTHS = (7, 6, 4)


def _relu_net(trial, **options):
    layers = [Linear(_WIDTHS[0])]
    for width in _WIDTHS[1:]:
        layers += [Activation("relu"), Linear(width)]
    return trial.draw(layers, (3, 5), **options)


@claim(
    "A3",
    "In a bias-free ReLU net ⟨W_l, dW_l⟩ = ⟨f, ∂L/∂f⟩ for every l, and neurons balance.",
    "Du et al. 2018",
)
def balance(trial):
    """Relative to ‖f‖‖∂L/∂f‖ over the net, to the largest neuron in a layer."""
    chain, x, parameters, dy = _relu_net(trial)
    got = trial.run(chain, x, parameters, dy)
    layers = range(0, 2 * len(_WIDTHS), 2)
    products = [parameters[k]["W"] * got.gradients[f"{k}.W"] for k in layers]
    size = np.sqrt(square(got.y) * square(dy))
    errors = [compare.relative(product.sum((1, 2)), inner(got.y, dy), size) for product in products]
    for before, after in pairwise(products):
        neurons = np.abs(before.sum(1) - after.sum(2)).max(1)
        errors.append(neurons / np.abs(before.sum(1)).max(1).clip(min=1e-3 * size))
    result = compare.identity("relative difference", errors)
    return result.finding(
        f"In {len(x)} nets every layer's ⟨W, dW⟩ equals ⟨f, ∂L/∂f⟩, and every hidden neuron's "
        f"incoming Σ w·dw its outgoing one, to {result.measured:.0e}."
    )


def clip_by_norm(gradients: dict, most: float) -> dict:
    """g·min(1, most/‖g‖) over all arrays, each network by itself (Pascanu et al. 2013)."""
    norm = np.sqrt(sum(square(g) for g in gradients.values()))
    factor = np.minimum(1.0, most / norm)
    return {k: (factor * g.T).T for k, g in gradients.items()}


@claim(
    "A10",
    "Clipping by norm keeps the gradient's direction and the layers' ratios; by value rotates it.",
    "Pascanu et al. 2013, algorithm 1",
)
def clipping(trial):
    """Clipped to half the norm, and to half the largest entry."""
    chain, x, parameters, dy = _relu_net(trial)
    gradients = trial.run(chain, x, parameters, dy).gradients
    weights = {k: g for k, g in gradients.items() if k.endswith("W")}
    norm = np.sqrt(sum(square(g) for g in weights.values()))
    clipped = clip_by_norm(weights, 0.5 * norm)
    by_layer = [np.sqrt(square(clipped[k]) / square(weights[k])) for k in weights]
    cut = {k: np.clip(g, *(0.5 * np.abs(g).max() * np.array([-1, 1]))) for k, g in weights.items()}
    errors = [1 - _cosine(weights, clipped), *(ratio - 0.5 for ratio in by_layer)]
    result = compare.identity("change of direction and of ratios", errors)
    turned = np.degrees(np.arccos(_cosine(weights, cut)))
    return result.finding(
        f"Clipping by norm left direction and layer ratios unchanged to {result.measured:.0e}; "
        f"clipping by value turned the gradient by {turned.mean():.0f}° on average.",
        result.verdict if turned.max() > 1 else FAILS,
    )


def _cosine(a: dict, b: dict) -> np.ndarray:
    product = sum(inner(a[k], b[k]) for k in a)
    return product / np.sqrt(sum(square(v) for v in a.values()) * sum(map(square, b.values())))


@claim("A11", "Orthogonal linear nets preserve ‖δ‖ exactly.", "Saxe et al. 2013")
def orthogonal(trial):
    """Depth 60, float64: each layer may round once."""
    table = trial.measure(
        depth=60, width=24, activation="identity", init="orthogonal", dtype="float64"
    )
    result = compare.identity("|ln ‖δ_1‖²/‖δ_L‖²|", log_growth(table), 60 * compare.ROUNDING)
    return result.finding(
        f"Through 60 orthogonal linear layers ‖δ‖² changed by a factor within {result.measured:.0e}"
        " of 1."
    )


@claim(
    "A13",
    "δ may be multiplied by 2^−k after each layer, k accumulated: the same bits as without.",
    "linearity of the pullback in binary floating point",
)
def exponents(trial):
    """Tanh nets whose cotangents shrink by about 2^7 a layer, with and without renormalising."""
    layers = [Linear(12), Activation("tanh")] * 12
    chain, x, parameters, dy = trial.draw(layers, (2, 12), "lecun", gain=2.0**-7)
    workspace = Workspace(np.nan)
    _, tape = chain.forward(x, parameters, workspace)
    plain, _ = chain.pullback(dy, tape, workspace)
    carried, exponent = dy, np.zeros(len(dy), np.int64)
    for layer, entry in zip(reversed(chain.layers), reversed(tape), strict=True):
        carried, _ = layer.pullback(carried, entry, workspace)
        exponent = exponent + scale.renormalise(carried, scale.log2_norm(carried))
    restored = np.ldexp(carried, exponent[:, None, None])
    different = int((restored.view(np.int64) != plain.view(np.int64)).sum())
    result = compare.Comparison("entries whose bits differ", 0, different, 0.5)
    return result.finding(
        f"Of {plain.size} entries, carried through 24 layers beside an exponent that reached "
        f"{exponent.min()}, {different} differ in any bit from those of the plain pass.",
        result.verdict if (exponent < -16).all() else OPEN,
    )
