"""Exact identities of whole networks: A3, A11, A13."""

from itertools import pairwise

import numpy as np

from flowlab.claims import compare
from flowlab.claims.claim import OPEN, claim
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
