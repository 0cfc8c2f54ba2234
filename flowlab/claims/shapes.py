"""What shapes say, and what they leave open: S3, S13, S16."""

from math import inf

import numpy as np

from flowlab.claims import compare
from flowlab.claims.claim import CONDITIONAL, FAILS, HOLDS, claim
from flowlab.claims.trial import square
from flowlab.layers import Linear
from flowlab.lessons import shapes, sharding

STATED = {"Y": (3, 2), "dW": (2, 2), "db": (2,), "dX": (3, 2)}
DIFFERENT = [(3, 4, 5), (5, 3, 4), (4, 5, 3)]
COINCIDENT = [(3, 3, 4), (4, 3, 3), (3, 4, 3), (3, 3, 3)]
# Where a copy to all devices is transposed into a sum over them.
ALL_REDUCED = {
    *(("data, sum", "backward"), ("data, mean", "backward")),
    *(("column", "backward"), ("row", "forward")),
    *(("column, then row", "forward"), ("column, then row", "backward")),
}


@claim(
    "S3",
    "With n = 3, d1 = d2 = 2 and dY of ones: Y (3,2), dW (2,2), db (2,), dX (3,2) check first.",
    "the text",
)
def worked_example(trial):
    """Shapes as stated; values against einsum and finite differences. Nothing is random."""
    example = shapes.worked_example(3, 2, 2)
    as_stated = {name: example[name].shape for name in STATED} == STATED
    errors = list(shapes.differences(example).values()) if as_stated else [inf]
    result = compare.identity("relative error of Y, dX, dW, db", errors)
    return result.finding(
        "The shapes are as stated and the values are those of einsum and of finite differences, to "
        f"{result.measured:.0e} of the largest."
        if as_stated
        else "The shapes of the worked example are not those stated."
    )


@claim(
    "S13",
    "Shapes alone determine the formulas of the gradients.",
    "the text",
    CONDITIONAL,
)
def shapes_alone(trial):
    """Products of up to two factors that are linear in dY, of which the layer's gradient is one."""
    different = [_remaining(trial, *size) for size in DIFFERENT]
    coincident = [_remaining(trial, *size) for size in COINCIDENT]
    most, most_coincident = max(different), max(coincident)
    errors = [_distance(trial, *size) for size in DIFFERENT + COINCIDENT]
    found = compare.identity("relative error of the adjoint product", errors)
    count = compare.Comparison(
        "products of the right shape, dimensions all different", 1, most, 0.5
    )
    if FAILS in (count.verdict, found.verdict):
        verdict = FAILS
    else:
        verdict = CONDITIONAL if min(coincident) > 1 else HOLDS
    return count.finding(
        f"Of the products linear in dY the right shape leaves {most} where n, d1 and d2 all "
        f"differ, but up to {most_coincident} where they coincide; the adjoint test then finds "
        f"the layer's gradient, to {found.measured:.0e}. Without linearity in dY even X fits dX.",
        verdict,
    )


def _remaining(trial, *size: int) -> int:
    """The most products that shapes and linearity leave for one of the gradients."""
    table = shapes.derive(*size, seed=trial.seed)
    return int(table.groupby("gradient")["linear"].sum().max())


def _distance(trial, n: int, d1: int, d2: int) -> float:
    """How far the product that passes the adjoint test is from the layer's gradient."""
    table = shapes.derive(n, d1, d2, seed=trial.seed)
    chosen = table[table["adjoint"]]
    if list(chosen["gradient"]) != list(shapes.GRADIENTS):
        return inf  # none passes, or several
    layer, random = Linear(d2), trial.random()
    parameters = trial.parameters(layer, (n, d1))
    x, dy = (random.standard_normal((trial.seeds, n, d)) for d in (d1, d2))
    got = trial.run(layer, x, parameters, dy)
    errors = []
    for gradient, formula in zip(chosen["gradient"], chosen["formula"], strict=True):
        value = got.dx if gradient == "dX" else got.gradients[shapes.GRADIENTS[gradient]]
        arrays = zip(x, parameters["W"], dy, strict=True)
        expected = np.stack([shapes.evaluate(formula, X=X, W=W, dY=dY) for X, W, dY in arrays])
        errors.append(np.sqrt(square(value - expected) / square(expected)).max())
    return float(np.max(errors))


@claim(
    "S16",
    "The logic of shapes and transposes serves layouts in distributed training.",
    "the text; Shoeybi et al. 2019, section 3",
)
def split_layers(trial):
    """Unequal parts on 2 and 3 devices; every all-reduce is left out once."""
    tables = [sharding.compare(7, 5, 6, count, trial.seed) for count in (2, 3)]
    result = compare.identity("relative error of split layers", [t["error"] for t in tables])
    reduced = [t[t["elements"] > 0] for t in tables]
    placed = all(set(zip(r["split"], r["direction"], strict=True)) == ALL_REDUCED for r in reduced)
    least = min(r["without"].min(skipna=False) for r in reduced)
    verdict = result.verdict if placed and least > 0.01 else FAILS
    return result.finding(
        f"Gradients summed over unequal sharding, and layers split by columns and rows, equal the "
        f"whole to {result.measured:.0e}, with all-reduces where the transpose puts them; leaving "
        f"one out is wrong by {least:.0%} or more."
        if verdict == HOLDS
        else f"Split layers are off by {result.measured:.0e} with their all-reduces and by "
        f"{least:.0e} without one, or the all-reduces stand elsewhere than the transpose says.",
        verdict,
    )
