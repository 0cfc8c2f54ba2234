"""Loss and accuracy of examples that are held out, batch norm with its running statistics."""

from collections.abc import Iterator

import numpy as np

from flowlab.layer import Layer, Nest, Workspace, primitives
from flowlab.layers import BatchNorm
from flowlab.layers.loss import LOSSES
from flowlab.measurement.ensemble import entered
from flowlab.measurement.passes import Held, Passes
from flowlab.measurement.scan import Scans
from flowlab.measurement.setup import Setup
from flowlab.networks.rewrite import rewrite

# Examples that are evaluated at a time, at least; where fewer are held out, all.
_AT_ONCE = 128
MOMENTUM = 0.1  # share of a batch in running statistics, PyTorch's default


class Running:
    """Running means and variances of batch norm, as of PyTorch: they start at 0 and 1.

    A batch enters with a share of 0.1, its variance without bias (Ioffe and Szegedy 2015,
    algorithm 2). ``values`` are those of each stretch's normalizations, pairs of (S, count, c)
    float64.
    """

    def __init__(self):
        self.values: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}

    def update(self, statistics: dict[int, list[tuple[np.ndarray, np.ndarray]]]) -> None:
        """Take in a batch's means and unbiased variances."""
        for start, pairs in statistics.items():
            if start not in self.values:
                like = [np.zeros(mean.shape) for mean, _ in pairs]
                self.values[start] = [(zero, zero + 1.0) for zero in like]
            for running, batch in zip(self.values[start], pairs, strict=True):
                for own, new in zip(running, batch, strict=True):
                    own += MOMENTUM * (new - own)

    def of(self, start: int, dtype: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Those of a stretch's normalizations in forward order, in the network's type."""
        for pair in self.values.get(start, ()):
            yield tuple(np.ascontiguousarray(values, dtype) for values in pair)


class Evaluation:
    """How well the networks of ``seeds`` do on what is held out."""

    def __init__(self, setup: Setup, seeds: np.ndarray, workspace: Workspace, scans: Scans):
        self.setup, self.seeds = setup, seeds
        self.held_out = setup.batches.held_out
        size = min(self.held_out, max(_AT_ONCE, setup.settings.batch_size))
        shape = (size, *setup.shape[1:])
        fixed: dict[Layer, Layer] = {}
        self.network = rewrite(setup.network, lambda primitive, _: _fixed(primitive, fixed))
        shapes = [place.shape for place in self.network.walk(shape)]
        self.passes = Passes(self.network, shapes, workspace, scans, quantities=False)
        self.size = size

    def __call__(self, held: Held, running: Running) -> tuple[np.ndarray, np.ndarray]:
        """(loss, accuracy), each (S,): means over the examples, whatever the run's reduction."""
        settings, count = self.setup.settings, self.held_out
        blocks = self.network.blocks
        source = Held(
            {
                start: _with(nest, primitives(blocks[start]), running.of(start, settings.dtype))
                for start, nest in held.held.items()
            }
        )
        loss = LOSSES[settings.loss]("sum")
        total, right = np.zeros(len(self.seeds)), np.zeros(len(self.seeds))
        for first in range(0, count, self.size):
            rows = np.arange(first, min(first + self.size, count))
            # The last batch is filled up, so that every batch has one shape.
            filled = np.resize(rows, self.size)
            x, labels = self.setup.batches.evaluated(self.seeds, filled)
            x, exponent, _ = entered(x, settings.dtype, self.passes.homogeneous)
            for stretch in self.passes.forward((x, exponent), source):
                y, exponent, *_ = stretch.output
            own = np.ascontiguousarray(y[:, : len(rows)], np.float64)
            labels = labels[:, : len(rows)]
            total += loss_of(loss, own, exponent, labels)
            if labels.ndim == 2:
                right += (own.argmax(axis=2) == labels).sum(axis=1)
            self.passes.workspace.reset()
        total /= count if settings.loss == "cross_entropy" else count * self.setup.outputs
        classes = labels.ndim == 2
        accuracy = np.where(np.isfinite(total), right / count, np.nan)
        return total, accuracy if classes else np.full(len(total), np.nan)


def loss_of(loss, y: np.ndarray, exponent: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The loss (S,) of outputs y 2^exponent (S, n, K), in float64."""
    y = y.astype(np.float64, copy=False)
    targets = loss.given(labels, y.shape[2], y.dtype) | {"exponent": exponent}
    return loss.forward(y, targets, Workspace())[0]


def _fixed(primitive: Layer, known: dict[Layer, Layer]) -> Layer:
    """The same with fixed statistics, where it is a batch normalization."""
    if not isinstance(primitive, BatchNorm):
        return primitive
    if primitive not in known:
        known[primitive] = BatchNorm(False, primitive.eps, primitive.channels_last)
    return known[primitive]


def _with(nest: Nest, own: Iterator[Layer], running: Iterator) -> Nest:
    """A block's parameters with the running statistics beside those of each batch norm."""
    if not isinstance(nest, dict):
        return tuple(_with(inner, own, running) for inner in nest)
    if not isinstance(next(own), BatchNorm):
        return nest
    mean, variance = next(running)
    return nest | {"mean": mean, "variance": variance}
