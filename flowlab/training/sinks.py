"""What a pass leaves for the update after it: gradients, batch statistics, the first bad value.

:class:`Stepping` is all that a step needs; :class:`Logging` measures its rows, too.
"""

from dataclasses import replace

import numpy as np

from flowlab.layer import Arrays, Layer, Nest, Scaled, Workspace, primitives
from flowlab.layers import BatchNorm
from flowlab.measurement.norms import Norms
from flowlab.measurement.passes import Backward, Forward, Gradients


class Keeping:
    """A workspace that takes nothing back, so that gradients outlive those who watched them."""

    def __init__(self, workspace: Workspace):
        self.take = workspace.take

    def give(self, array: np.ndarray) -> None:
        pass


class Stepping(Gradients):
    """Gradients held for the update; ``bad`` (S,) is the layer of the first non-finite value, or 0.

    ``statistics`` are those of each stretch's batch normalizations in forward order, pairs of means
    and variances (S, count, c).
    """

    def __init__(self, seeds: int):
        super().__init__()
        self.bad = np.zeros(seeds, np.int64)
        self.statistics: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}

    def begin(self, x: np.ndarray, known: np.ndarray) -> None:
        self.known = known

    def put_forward(self, stretch: Forward) -> None:
        self._look(stretch.norms, np.arange(stretch.count) + stretch.start + 1)

    def turn(self, dy: np.ndarray, known: np.ndarray) -> None:
        pass

    def pull(
        self, index: int, block: Layer, scaled: Scaled, tape: Nest, workspace: Workspace
    ) -> tuple[Scaled, np.ndarray, Nest]:
        watch, statistics = self.watching(block)
        space = Keeping(workspace) if watch else workspace
        scaled, gradients, norms = block.pullback_scaled(scaled, tape, space, watch)
        return scaled, norms, (gradients, tuple(reversed(statistics)))

    def put_backward(self, stretch: Backward) -> None:
        gradients, statistics = stretch.found
        count = stretch.forward.count
        self._look(stretch.norms, stretch.start + count - np.arange(count))
        self.keep(replace(stretch, found=gradients))
        if statistics:
            self.statistics[stretch.start] = [
                tuple(of.base[:, ::-1] for of in pair) for pair in statistics
            ]

    def watching(self, block: Layer):
        """(a watch that collects batch statistics, or None where there are none; its list)."""
        found = []

        def watch(
            layer: Layer, tape: Arrays, dy: np.ndarray, dx: np.ndarray, gradients: Arrays
        ) -> None:
            if isinstance(layer, BatchNorm):
                found.append(layer.statistics(tape))

        normalized = any(isinstance(layer, BatchNorm) for layer in primitives(block))
        return (watch if normalized else None), found

    def _look(self, norms: np.ndarray, layers: np.ndarray) -> None:
        """Note the first of the ``layers`` (count,) whose norm (S, count) is not a number."""
        wrong = np.isnan(norms) | np.isposinf(norms)
        if wrong.any():
            first = np.where(wrong.any(axis=1), layers[wrong.argmax(axis=1)], 0)
            self.bad = np.where(self.bad > 0, self.bad, first)


class Logging(Stepping):
    """A step's gradients and, through ``norms``, its rows."""

    def __init__(self, norms: Norms):
        super().__init__(len(norms.seeds))
        self.norms = norms

    def begin(self, x: np.ndarray, known: np.ndarray) -> None:
        self.norms.begin(x, known)

    def put_forward(self, stretch: Forward) -> None:
        super().put_forward(stretch)
        self.norms.put_forward(stretch)
        self.known = self.norms.known

    def turn(self, dy: np.ndarray, known: np.ndarray) -> None:
        self.norms.turn(dy, known)

    def pull(
        self, index: int, block: Layer, scaled: Scaled, tape: Nest, workspace: Workspace
    ) -> tuple[Scaled, np.ndarray, Nest]:
        watch, statistics = self.watching(block)
        scaled, gradients, norms, found = self.norms.pulled(
            index, block, scaled, tape, Keeping(workspace), watch
        )
        return scaled, norms, (found, gradients, tuple(reversed(statistics)))

    def put_backward(self, stretch: Backward) -> None:
        found, *others = stretch.found
        self.norms.put_backward(replace(stretch, found=found))
        super().put_backward(replace(stretch, found=tuple(others)))
