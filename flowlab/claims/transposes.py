"""The linear layer and its transpose: S1, A1, A2, A5."""

import re
from math import inf

import numpy as np

from flowlab.claims import compare
from flowlab.claims.claim import claim
from flowlab.claims.trial import inner, square
from flowlab.kernel import ShapeError
from flowlab.layers import Linear

N, D1, D2 = 3, 5, 4


def _linear(trial, n=N, d1=D1, d2=D2, **options):
    """x, W, b, dY and one pass through Y = XW + b."""
    layer = Linear(d2)
    random = trial.random()
    parameters = trial.parameters(layer, (n, d1), **options)
    count = len(parameters["W"])
    x = random.standard_normal((count, n, d1))
    dy = random.standard_normal((count, n, d2))
    return x, parameters, dy, trial.run(layer, x, parameters, dy)


@claim(
    "S1",
    "dW = XᵀdY, dX = dY Wᵀ, db = Σ_batch dY have the shapes of W, X, b; a mismatch shows at once.",
    "the text",
)
def shapes(trial):
    """Values against einsum; then every axis of every array is lengthened in turn."""
    x, p, dy, got = _linear(trial, sigma_b=0.5)
    expected = (
        (got.dx, x, np.einsum("sno,sio->sni", dy, p["W"])),
        (got.gradients["W"], p["W"], np.einsum("sni,sno->sio", x, dy)),
        (got.gradients["b"], p["b"], dy.sum(axis=1)),
    )
    errors = [
        np.sqrt(square(gradient - law) / square(law)).max()
        if gradient.shape == array.shape
        else inf
        for gradient, array, law in expected
    ]
    values = compare.identity("relative error of dX, dW, db", errors)
    refused, tried = _refusals(x, p, dy, got)
    pairs = compare.Comparison("mismatched shapes refused by name", tried, refused, 0.5)
    both = compare.worst((values, pairs))
    return pairs.finding(
        f"dX, dW and db have the shapes of X, W and b and differ from their formulas by at most "
        f"{values.measured:.0e} of the norm; of {tried} mismatched shapes the kernels refused "
        f"{refused}, each with the name of the array and the axis.",
        both.verdict,
    )


def _refusals(x, p, dy, got) -> tuple[int, int]:
    """How many lengthened axes both kernels refuse, naming the array and the axis; of how many."""
    layer = Linear(D2)
    forward = {"x": x, "W": p["W"], "b": p["b"], "y": got.y}
    gradients = {"dx": got.dx, "dW": got.gradients["W"], "db": got.gradients["b"]}
    pullback = {"x": x, "W": p["W"], "dy": dy, **gradients}
    refused = tried = 0
    for kernel, arrays in ((layer.forward_kernel, forward), (layer.pullback_kernel, pullback)):
        for (name, array), axes in zip(arrays.items(), kernel.dimensions, strict=True):
            named = (axis for axis in axes if axis != "...")  # no axes of tokens here
            for index, axis in enumerate(named, 1):
                padding = [(0, int(k == index)) for k in range(array.ndim)]
                wrong = arrays | {name: np.pad(array, padding)}
                tried += 1
                try:
                    kernel(*wrong.values())
                except ShapeError as error:
                    # The array that comes first sets the length, a later one is then refused.
                    refused += bool(re.search(rf"axis {axis} of .*\b{name}\b", str(error)))
    return refused, tried


@claim(
    "A1",
    "⟨dY, XW⟩ = ⟨dX, X⟩ = ⟨dW, W⟩ and ⟨dY, 1bᵀ⟩ = ⟨db, b⟩.",
    "the adjoint of a bilinear map",
)
def pairings(trial):
    """Relative to ‖dY‖‖XW‖ and ‖dY‖‖1bᵀ‖."""
    x, p, dy, got = _linear(trial, sigma_b=0.5)
    product, bias = x @ p["W"], np.broadcast_to(p["b"][:, None], dy.shape)
    size = np.sqrt(square(dy) * square(product))
    errors = [
        compare.relative(inner(got.dx, x), inner(dy, product), size),
        compare.relative(inner(got.gradients["W"], p["W"]), inner(dy, product), size),
        compare.relative(
            inner(got.gradients["b"], p["b"]), inner(dy, bias), np.sqrt(square(dy) * square(bias))
        ),
    ]
    result = compare.identity("relative difference of the pairings", errors)
    return result.finding(
        f"In {len(x)} layers the pairings of dX with X, dW with W and db with b equal those of dY "
        f"to {result.measured:.0e}."
    )


@claim(
    "A2",
    "E‖dX‖² = n_in·Var(W)‖dY‖²; for iid dY of variance v E‖dW‖² = v·n_out‖X‖², E‖db‖² = v·n_out·B.",
    "He et al. 2015; second moments",
)
def second_moments(trial):
    """All three as ratios of 1, over the ensemble; He, so fan_in·Var(W) = 2."""
    n, d1, d2 = 4, 16, 24
    x, _, dy, got = _linear(trial, n, d1, d2, times=16)
    ratios = {
        "dX": square(got.dx) / (2.0 * square(dy)),
        "dW": square(got.gradients["W"]) / (d2 * square(x)),
        "db": square(got.gradients["b"]) / (d2 * n),
    }
    parts = {k: compare.mean(f"E‖{k}‖² over its law", v, 1.0) for k, v in ratios.items()}
    shown = ", ".join(f"{part.measured:.3f} for {k}" for k, part in parts.items())
    return compare.worst(parts.values()).finding(
        f"Over {len(x)} draws the mean squared norms, divided by their laws, are {shown}."
    )


@claim(
    "A5",
    "‖XᵀD‖² = Σ_ij (XXᵀ)_ij (DDᵀ)_ij; for the bias, X is a column of ones.",
    "Goodfellow 2015; Li et al. 2021",
)
def ghost_norm(trial):
    """The norms of dW and db from Gram matrices alone."""
    x, _, dy, got = _linear(trial)
    gram = dy @ dy.transpose(0, 2, 1)
    ghost = inner(x @ x.transpose(0, 2, 1), gram)
    errors = [
        compare.relative(square(got.gradients["W"]), ghost),
        compare.relative(square(got.gradients["b"]), gram.sum(axis=(1, 2)), square(dy)),
    ]
    result = compare.identity("relative difference of ‖dW‖²", errors)
    return result.finding(
        f"The Gram matrices of inputs and cotangents give ‖dW‖² and ‖db‖² without forming dW, to "
        f"{result.measured:.0e}."
    )
