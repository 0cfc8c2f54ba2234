"""Weights and biases in a batch: S5 and the laws B2 to B4."""

from itertools import combinations
from math import comb

import numpy as np

from flowlab.analysis import batch_law
from flowlab.analysis.statistics import mean_interval
from flowlab.claims import compare
from flowlab.claims.claim import CONDITIONAL, FAILS, HOLDS, OPEN, claim
from flowlab.claims.trial import square
from flowlab.layers import Activation, Linear, SoftmaxCrossEntropy

NET = {"depth": 4, "width": 24, "activation": "relu", "init": "he", "upstream": "loss"}
D1, D2, CLASSES = 16, 12, 10


@claim(
    "B2",
    "The expectation over all subsets of size B is B·mean(diag K) + B(B − 1)·mean(off-diag K), "
    "from the examples' norms and the norm of their sum alone.",
    "second moments of a random subset",
)
def every_subset(trial):
    """Every subset of six examples through the layer itself, against the law of the six."""
    n = 6
    layer, x, p, dy = trial.draw([Linear(D2)], (n, D1))
    got = trial.run(layer, x, p, dy)
    examples = np.empty((len(x), 2))
    Linear.example_norms.run(x, dy, examples)
    errors = []
    for place, name in enumerate(batch_law.PARAMETERS):
        diagonal, total = 4.0 ** examples[:, place], square(got.gradients[f"0.{name}"])
        off = (total - diagonal) / (n * (n - 1))
        for size in range(1, n + 1):
            measured = 0.0
            for rows in combinations(range(n), size):
                part = trial.run(layer, x[:, rows].copy(), p, dy[:, rows].copy())
                measured = measured + square(part.gradients[f"0.{name}"]) / comb(n, size)
            law = size * diagonal / n + size * (size - 1) * off
            errors.append(compare.relative(measured, law, size**2 * diagonal / n))
    result = compare.identity("relative difference from the mean over all subsets", errors)
    return result.finding(
        f"Over all {2**n - 1} subsets of {n} examples the mean squared norms of dW and db equal "
        f"the law, read from one backward pass, to {result.measured:.0e}."
    )


def _constant_upstream(trial, n: int, mean: float):
    """Squared norms of dW and db of a linear layer, upstream all ones, inputs of that mean."""
    layer, x, p, dy = trial.draw([Linear(D2)], (n, D1))
    got = trial.run(layer, x + mean, p, np.ones_like(dy))
    return {name: square(got.gradients[f"0.{name}"]) for name in batch_law.PARAMETERS}


@claim(
    "S5",
    "Bias gradients sum over examples, making bias updates batch-size-dependent in a way that "
    "weight updates are not.",
    "the text",
    FAILS,
)
def biases_alone(trial):
    """It fails if doubling the batch doubles both; where they look different, zero means do it."""
    layers = [Linear(D2), Activation("tanh"), Linear(D2)]
    chain, x, p, dy = trial.draw(layers, (8, D1))
    once = trial.run(chain, x, p, dy).gradients
    twice = trial.run(chain, *(np.repeat(x, 2, axis=1), p, np.repeat(dy, 2, axis=1))).gradients
    errors = [compare.relative(square(twice[path]), 4 * square(once[path])) for path in once]
    result = compare.identity("distance of the doubled batch's ‖dW‖², ‖db‖² from 4 times", errors)
    slopes = {}
    for mean in (0.0, 2.0):
        few, many = (_constant_upstream(trial, n, mean) for n in (4, 256))
        for name in batch_law.PARAMETERS:
            slopes[name, mean] = np.log(many[name].mean() / few[name].mean()) / np.log(64) / 2
    expected = {("W", 0.0): 0.5, ("b", 0.0): 1.0, ("W", 2.0): 1.0, ("b", 2.0): 1.0}
    seen = all(abs(slopes[key] - value) < 0.1 for key, value in expected.items())
    refuted = result.verdict == HOLDS and seen
    return result.finding(
        "db is dW for a feature that is always 1, under the same law: with every example twice "
        f"both are doubled (to {result.measured:.0e}). They look different where the noise scales "
        f"do: under a constant upstream gradient ‖db‖ grows as n^{slopes['b', 0.0]:.2f} and ‖dW‖ "
        f"as n^{slopes['W', 0.0]:.2f} for zero-mean inputs, but as n^{slopes['W', 2.0]:.2f} for "
        "inputs of mean 2.",
        FAILS if refuted else OPEN,
    )


@claim(
    "B3",
    "With an all-ones upstream and zero-mean inputs ‖db‖ ∝ n and ‖dW‖ ∝ √n; with a uniform softmax "
    "and independent uniform labels E‖db‖² = B(1 − 1/K).",
    "x_i·x_j is 1 for a bias; p − y has mean 0",
)
def looks_more_linear(trial):
    """Means of squared norms over their laws; balanced labels, which cancel, in the sentence."""
    n = 64
    ones = _constant_upstream(trial, n, 0.0)
    label = trial.random().integers(CLASSES, size=(trial.seeds, n))
    uniform = _uniform_softmax(trial, label)
    balanced = _uniform_softmax(trial, np.tile(np.arange(CLASSES), (trial.seeds, 6)))
    parts = [
        # A mean of D1 χ² of one degree of freedom.
        compare.mean(
            "‖dW‖² over n·d1·d2", ones["W"] / (n * D1 * D2), 1.0, np.sqrt(2 / D1), against=n
        ),
        compare.identity("‖db‖² over n²·d2, less 1", ones["b"] / (n**2 * D2) - 1),
        compare.mean(
            *("‖db‖² over B(1 − 1/K)", uniform / (n * (1 - 1 / CLASSES)), 1.0),
            **{"sd": np.sqrt(2 / (CLASSES - 1)), "against": n},
        ),
        compare.identity("‖db‖² with balanced labels over B", balanced / (6 * CLASSES)),
    ]
    return compare.worst(parts).finding(
        f"Over {trial.seeds} draws of {n} examples the laws are met: {parts[0].measured:.3f} for "
        f"dW and {1 + parts[1].measured:.3f} for db under ones, {parts[2].measured:.3f} for db "
        f"under a uniform softmax; with exactly balanced labels db cancels "
        f"({parts[3].measured:.0e})."
    )


def _uniform_softmax(trial, label: np.ndarray) -> np.ndarray:
    """‖db‖² of the linear layer below a softmax of zero logits, for ``label`` (seeds, n)."""
    z = np.zeros((*label.shape, CLASSES))
    targets = {"label": label, "exponent": np.zeros(len(z), int)}
    dz = trial.run(SoftmaxCrossEntropy("sum"), z, targets, np.ones(len(z))).dx
    layer, x, p, _ = trial.draw([Linear(CLASSES)], (label.shape[1], D1))
    return square(trial.run(layer, x, p, dz).gradients["0.b"])


@claim(
    "B4",
    "A bias has a smaller noise scale than the weights beside it: B_s(b) < B_s(W).",
    "x_i·x_j is 1 for a bias and small for weights whose inputs have mean 0",
    CONDITIONAL,
)
def smaller_noise_scale(trial):
    """Alignments o/d = 1/(1 + B_s) of b less those of W, on digits under He and Xavier."""
    options = {**NET, "depth": 6, "width": 64, "data": "digits", "batch_size": 512}
    gaps = {}
    for init in ("he", "xavier"):
        rows = batch_law.law(trial.measure(**{**options, "init": init}))
        alignment = rows.pivot(index=["seed", "layer"], columns="parameter", values="alignment")
        gap = (alignment["b"] - alignment["W"]).unstack()
        gaps[init] = [mean_interval(gap[layer]) for layer in gap]
    he, last = min(gaps["he"], key=lambda g: g.low), gaps["xavier"][-1]
    verdict = OPEN
    if he.low > 0:
        verdict = CONDITIONAL if last.high < 0 else (HOLDS if last.low > 0 else OPEN)
    elif he.high < 0:
        verdict = FAILS
    result = compare.Comparison(
        "1/(1 + B_s) of b less that of W, under He", 0.0, he.mean, he.mean - he.low, he.low, he.high
    )
    return result.finding(
        f"On digits it holds in every layer under He (least {he:.4f}), not in the last layer under "
        f"Xavier ({last:.4f}): where logits are small and classes balance, the biases' gradients "
        "p − y nearly cancel, while inputs alike within a class keep the weights' from it.",
        verdict,
    )
