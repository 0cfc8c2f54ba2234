"""A10: what clipping does to a gradient's direction and to its layers, by training's own update."""

import numpy as np

from flowlab.claims import compare
from flowlab.claims.claim import FAILS, claim
from flowlab.claims.trial import inner, square
from flowlab.layer import Parameter
from flowlab.layers import Activation, Linear
from flowlab.optimizers import TrainingSettings
from flowlab.training.updates import Updater

BOUND = 1e-9  # of clipping by norm, which adds 1e-6 to norms for all layers alike
_WIDTHS = (7, 6, 4)


def clipped(gradients: dict, kind: str, at: float) -> tuple[dict, np.ndarray]:
    """What training subtracts of gradients (S, ...) by path, and the cosine that it reports (S,).

    One step of gradient descent at learning rate 1 from parameters that are zero.
    """
    layers = {path: int(path.split(".")[0]) for path in gradients}
    starts = sorted(set(layers.values()))

    def nests(of):
        return {
            start: {p: of(gradients[p]) for p in layers if layers[p] == start} for start in starts
        }

    seeds = len(next(iter(gradients.values())))
    parameters = nests(lambda g: np.zeros_like(g)[:, None])
    declared = nests(lambda g: Parameter(g.shape[1:]))
    none = np.zeros((seeds, 1), np.int64)
    training = TrainingSettings("sgd", lr=1.0, clip=kind, clip_at=at)
    step = Updater(training, parameters, declared, batch_size=1)(
        nests(lambda g: np.ascontiguousarray(g)[:, None]), dict.fromkeys(starts, (none, none)), 1.0
    )
    return {path: -parameters[layers[path]][path][:, 0] for path in gradients}, step.cosine


def whole(gradients: dict) -> np.ndarray:
    """‖g‖² over all arrays, (seeds,)."""
    return sum(map(square, gradients.values()))


def cosine(a: dict, b: dict) -> np.ndarray:
    """The cosine of the angle between two gradients, (seeds,)."""
    return sum(inner(a[path], b[path]) for path in a) / np.sqrt(whole(a) * whole(b))


def unlike(gradients: dict, changed: dict) -> np.ndarray:
    """How far the arrays' shares of the norm differ before and after, (arrays, seeds)."""
    before, after = (
        np.sqrt([square(g) / whole(of) for g in of.values()]) for of in (gradients, changed)
    )
    return before - after


@claim(
    "A10",
    "Clipping by norm keeps the gradient's direction and the layers' ratios; by value rotates it.",
    "Pascanu et al. 2013, algorithm 1",
)
def clipping(trial):
    """By norm to half the least norm of the nets, by value to half the least of their largest."""
    layers = [Linear(_WIDTHS[0])]
    for width in _WIDTHS[1:]:
        layers += [Activation("relu"), Linear(width)]
    chain, x, parameters, dy = trial.draw(layers, (3, 5))
    gradients = trial.run(chain, x, parameters, dy).gradients
    short, _ = clipped(gradients, "norm", 0.5 * np.sqrt(whole(gradients).min()))
    largest = [np.abs(g).reshape(len(g), -1).max(axis=1) for g in gradients.values()]
    cut, reported = clipped(gradients, "value", 0.5 * np.max(largest, axis=0).min())
    errors = [1 - cosine(gradients, short), *unlike(gradients, short)]
    errors.append(reported - cosine(gradients, cut))
    shorter = np.sqrt(whole(short) / whole(gradients)).max()
    result = compare.identity("change of direction and of the layers' shares of ‖g‖", errors, BOUND)
    turned = np.degrees(np.arccos(cosine(gradients, cut)))
    return result.finding(
        f"Clipping by norm to {shorter:.2f} or less left direction and layer ratios unchanged to "
        f"{result.measured:.0e}; clipping by value turned the gradient by {turned.mean():.0f}° on "
        "average.",
        result.verdict if turned.max() > 1 and shorter < 0.6 else FAILS,
    )
