"""How far a step moves the weights: norms of W and of the update, and the angle between them."""

import math

import numpy as np

from flowlab.kernel import kernel
from flowlab.layer import Nest, leaves, map_leaves
from flowlab.measurement.norms import Norms
from flowlab.numerics.scale import exponent

_OF_W = ("W_log10_norm", "update_log10_norm", "W_turn")


def copied(held: dict[int, Nest]) -> dict[int, Nest]:
    """Parameters as they are now."""
    return {start: map_leaves(np.copy, nest) for start, nest in held.items()}


def put(norms: Norms, before: dict[int, Nest], after: dict[int, Nest]) -> None:
    """Write what a step did to every operation's W into its rows."""
    at = [norms.at[name] for name in _OF_W]
    numbers = sorted(before)
    for start, stop in zip(numbers, [*numbers[1:], len(norms.rows)], strict=True):
        pairs = zip(leaves(before[start]), leaves(after[start]), strict=True)
        moved = [turn(old, new) for (_, old), (_, new) in pairs]
        for k in range(stop - start):
            first = norms.first_row[start + k]
            for place, number in _weights(norms, start):
                norms.values[:, first + place, at] = moved[number][:, k]


def _weights(norms: Norms, index: int):
    """(row, number of the leaf) of every weight or learned scale of a block."""
    block, shape = norms.network.blocks[index], norms.shapes[index]
    parameters = [p for _, p in leaves(block.declare(shape).parameters)]
    numbers = iter(k for k, p in enumerate(parameters) if p.role in ("weight", "scale"))
    for place, row in enumerate(norms.rows[index]):
        for _, column, _ in row.gradients:
            if column == "dW_log10_norm":
                yield place, next(numbers)


@kernel("(n),(n)->(sums)", reassociate=True)
def _moved(w, v, sums, down):
    """Σ w², Σ (v - w)² and Σ (v - w)(v + w), all times down²."""
    square = step = change = 0.0
    for i in range(w.size):
        a, b = down * np.float64(w[i]), down * np.float64(v[i])
        d = b - a
        square += a * a
        step += d * d
        change += d * (a + b)
    sums[0], sums[1], sums[2] = square, step, change


_sums = _moved.single


@kernel("(n),(n)->(found)")
def _turned(w, v, found):
    """log2 ‖w‖, log2 ‖v - w‖ and the angle between w and v.

    With r = ‖w‖ and s = ‖v‖, 4rs sin²(angle/2) = ‖v - w‖² - (s - r)², and s - r is
    Σ (v - w)(v + w)/(s + r), which is right for the smallest angles.
    """
    e = max(exponent(w), exponent(v))
    _sums(w, v, found, math.ldexp(1.0, -e))
    square, step, change = found[0], found[1], found[2]
    r, s = np.sqrt(square), np.sqrt(max(square + change, 0.0))
    beyond = max(step - (change / (r + s)) ** 2, 0.0)
    found[0], found[1] = 0.5 * np.log2(square) + e, 0.5 * np.log2(step) + e
    found[2] = 2 * np.arcsin(min(np.sqrt(beyond / (4 * r * s)), 1.0)) if r > 0 and s > 0 else np.nan


def turn(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """(log2 ‖w‖, log2 ‖v - w‖, angle in radians) of arrays w and v (S, count, ...): (S, count, 3).

    The angle is NaN where w or v is zero.
    """
    shape = before.shape[:2]
    w, v = (array.reshape(shape[0] * shape[1], -1) for array in (before, after))
    found = np.empty((len(w), 3))
    _turned.run(w, v, found)
    return found.reshape(*shape, 3)
