"""Sharpness of networks in training: the loss of a batch as a function of all their parameters."""

from dataclasses import replace

import numpy as np

from flowlab.layer import Nest, Workspace, leaves, map_leaves
from flowlab.measurement.ensemble import round_trip
from flowlab.measurement.passes import Held, Passes
from flowlab.measurement.scan import Scans
from flowlab.measurement.setup import Setup
from flowlab.training.sharpness import adam_preconditioner, sharpness
from flowlab.training.sinks import Stepping
from flowlab.training.updates import Updater


class Landscape:
    """The loss of one batch, x (S, n, ...) and labels, over the parameters of S networks.

    A point is a row (S, P) for each network, in float64 whatever the type of the run.
    """

    def __init__(self, setup: Setup, seeds: np.ndarray, x: np.ndarray, labels: np.ndarray):
        self.setup = replace(setup, settings=replace(setup.settings, dtype="float64"))
        self.seeds, self.x, self.labels = seeds, x.astype(np.float64), labels
        shapes, self.workspace = self.setup.shapes, Workspace()
        self.passes = Passes(setup.network, shapes, self.workspace, Scans(), quantities=False)
        blocks = setup.network.blocks
        self.roles = {
            start: [p.role for _, p in leaves(blocks[start].declare(shapes[start]).parameters)]
            for start, _ in self.passes.stretches()
        }

    def point(self, held: dict[int, Nest]) -> np.ndarray:
        """Nests of arrays (S, count, ...) by stretch as rows (S, P)."""
        rows = [
            array.reshape(len(array), -1)
            for start in sorted(held)
            for _, array in leaves(held[start])
        ]
        return np.concatenate(rows, axis=1, dtype=np.float64)

    def held(self, point: np.ndarray, like: dict[int, Nest]) -> dict[int, Nest]:
        """The nests, shaped ``like`` these, of which :meth:`point` makes these rows."""
        at = 0

        def own(array: np.ndarray) -> np.ndarray:
            nonlocal at
            size = array[0].size
            at += size
            return np.ascontiguousarray(point[:, at - size : at]).reshape(array.shape)

        return {start: map_leaves(own, like[start]) for start in sorted(like)}

    def gradient(self, point: np.ndarray, like: dict[int, Nest]) -> np.ndarray:
        """The loss's true gradient (S, P) at a point; inf beyond floats."""
        sink, source = Stepping(len(self.seeds)), Held(self.held(point, like))
        round_trip(self.setup, self.seeds, self.passes, source, sink, self.x, self.labels)
        true = {start: self._true(start, sink) for start in sink.held}
        self.workspace.reset()
        return self.point(true)

    def _true(self, start: int, sink: Stepping) -> list[np.ndarray]:
        """A stretch's gradients without their exponents."""
        of_dy, of_x = sink.exponents[start]
        found = []
        for role, (_, array) in zip(self.roles[start], leaves(sink.held[start]), strict=True):
            exponent = of_dy + of_x if role in ("weight", "scale") else of_dy
            exponent = exponent.reshape(*exponent.shape, *[1] * (array.ndim - 2))
            with np.errstate(over="ignore", under="ignore"):
                found.append(np.ldexp(array, np.clip(exponent, -5000, 5000).astype(np.int32)))
        return found


def curvature(
    setup: Setup,
    seeds: np.ndarray,
    step: int,
    before: dict[int, Nest],
    updater: Updater,
) -> dict[str, np.ndarray]:
    """The curve's columns of sharpness at a step, each (S,), of the loss of the step's batch.

    ``before`` are the parameters that the step started from, ``updater`` is as the step left it, so
    that Adam's preconditioner is that of the step. Decay of weights is no part of the loss.
    """
    landscape = Landscape(setup, seeds, *setup.batches(seeds, step))
    point = landscape.point(before)

    def gradient(at: np.ndarray) -> np.ndarray:
        return landscape.gradient(at, before)

    found = {"sharpness": sharpness(gradient, point, seeds)}
    training = setup.settings.training
    if training.name != "sgd":
        squares = {
            start: {path: state["square"] for path, state in of.items()}
            for start, of in updater.state.items()
        }
        numbers = training.adam_numbers(setup.settings.batch_size)
        p = adam_preconditioner(landscape.point(squares), updater.taken, *numbers)
        found["preconditioned_sharpness"] = sharpness(gradient, point, seeds, p)
    return found
