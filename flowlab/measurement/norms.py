"""The sink that turns a pass into rows: norms of every operation, and how far they are true."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from flowlab.layer import Arrays, Layer, Nest, Primitive, Scaled, Watch, Workspace, leaves
from flowlab.measurement.passes import Backward, Forward, Source
from flowlab.measurement.quantities import (
    Report,
    columns,
    of_operation,
    report,
    report_of,
)
from flowlab.measurement.rounding import LOST, MARGIN, NONFINITE, OK, Block, Lost
from flowlab.measurement.rows import GRADIENTS
from flowlab.measurement.scan import Stack
from flowlab.measurement.setup import LOWEST, Setup
from flowlab.measurement.steps import Steps
from flowlab.numerics.scale import log2_norm

# Gradients that are products of the cotangent and the input, in the units of both.
_OF_INPUT = GRADIENTS["weight"]
_OF_DX = "statistics_log10_gain"  # a reading that compares dx
# Zeros are exact where the standard deviations of weights are within these powers of two.
_MODERATE = {"float32": 30.0, "float64": 240.0}


@dataclass(frozen=True)
class Operation:
    """An operation with parameters as the backward pass meets it, for ``seeds`` (S,).

    True values are ``x`` 2^x_exponent and ``dy`` 2^dy_exponent, exponents (S,); the arrays are
    overwritten later. ``layer`` counts from 1 and ``op`` is its name, as in the table.
    """

    seeds: np.ndarray
    layer: int
    op: str
    primitive: Primitive
    x: np.ndarray
    dy: np.ndarray
    x_exponent: np.ndarray
    dy_exponent: np.ndarray


Observer = Callable[[Operation], None]
Watcher = Callable[[np.ndarray, int], Watch]


class Norms:
    """The rows of a part of the ensemble; ``seeds`` (S,).

    ``values`` (S, rows, columns) are log2 norms and readings, NaN where there is none or it is not
    known; ``status`` (S, rows) is OK, LOST or NONFINITE. ``observe`` is shown every operation with
    rows, ``watch(seeds, layer)`` gives a watch of that layer's pullback.
    """

    def __init__(
        self,
        setup: Setup,
        seeds: np.ndarray,
        source: Source,
        observe: Observer | None = None,
        watch: Watcher | None = None,
    ):
        network, self.settings = setup.network, setup.settings
        self.network, self.shapes, self.rows, self.seeds = network, setup.shapes, setup.rows, seeds
        self.observe, self.watch = observe, watch
        self.at = {name: k for k, name in enumerate(columns())}
        self.dtype = np.dtype(self.settings.dtype)
        self.lowest = LOWEST[self.settings.dtype]
        self.homogeneous = network.chain.homogeneous
        self.independent = not network.chain.couples_examples
        self.first_row = np.cumsum([0] + [len(rows) for rows in self.rows])
        # How many recurrent blocks each has before it.
        self.recurrent = np.cumsum([0] + [block.along_time for block in network.blocks])
        self.values = np.full((len(seeds), self.first_row[-1], len(self.at)), np.nan)
        self.status = np.full((len(seeds), self.first_row[-1]), OK, np.int8)
        self.moderate = self._moderate(source)
        self.followed: dict[tuple, Block] = {}
        self.received: dict[int, np.ndarray] = {}  # exponents (S,) of each block's input
        operations = [of for place in network.walk(setup.shape) for of, _ in place.operations]
        self.reads_gradients = any(map(of_operation, operations))
        recurrent = [layer for layer in operations if layer.along_time]
        steps, batch = setup.shape[1] if recurrent else 0, setup.shape[0]
        self.steps = Steps(recurrent, len(seeds), steps, batch, self.lowest)

    def _moderate(self, source: Source) -> bool:
        """Are weights so far from the ends of the float range that zeros are exact?"""
        blocks = {*zip(self.network.blocks, self.shapes, strict=True)}
        declared = (block.declare(shape).parameters for block, shape in blocks)
        parameters = (parameter for nest in declared for _, parameter in leaves(nest))
        return source.moderate(parameters, _MODERATE[self.settings.dtype])

    # --- forward ----------------------------------------------------------------------------------

    def begin(self, x: np.ndarray, known: np.ndarray) -> None:
        """Start with the input (S, ...), of which ``known`` (S,) is found."""
        self.before, self.known = log2_norm(x), known

    def put_forward(self, stretch: Forward) -> None:
        """The norms of a stretch's outputs into its last rows; where they are not known, NaN."""
        values, status = self._rows_of(stretch)
        norms = stretch.norms
        for k in range(stretch.count):
            self.received[stretch.start + k] = stretch.exponents[:, k]
        values[:, :, -1, self.at["activation_log10_norm"]] = norms + stretch.exponents
        found = range_of(norms - 0.5 * math.log2(stretch.size), self.lowest)
        if not (self.homogeneous and self.moderate):
            inputs = np.hstack([self.before[:, None], norms[:, :-1]])
            found[np.isneginf(norms) & ~np.isneginf(inputs)] = LOST
        found = _accumulated(self.known, found)
        values[found > OK, -1, self.at["activation_log10_norm"]] = np.nan
        np.maximum(status, found[:, :, None], out=status)
        for column, of_output in stretch.more.items():
            values[:, :, -1, self.at[column]] = of_output
        self.before, self.known = norms[:, -1], found[:, -1]

    # --- backward ---------------------------------------------------------------------------------

    def turn(self, dy: np.ndarray, known: np.ndarray) -> None:
        """Start on the way back with the cotangent of the output, of which ``known`` is found."""
        self.unknown = self.status > OK  # made from activations that are not known
        self.incoming = log2_norm(dy)
        known = np.maximum(known, range_of(self.incoming, -np.inf))
        self.error = np.where(known == LOST, np.inf, math.log2(np.finfo(self.dtype).eps))
        self.left = known == NONFINITE

    def pull(
        self, index: int, block: Layer, scaled: Scaled, tape: Nest, workspace: Workspace
    ) -> tuple[Scaled, np.ndarray, Nest]:
        other = self.watch(self.seeds, index + 1) if self.watch else None
        scaled, _, norms, found = self.pulled(index, block, scaled, tape, workspace, other, False)
        return scaled, norms, found

    def pulled(
        self,
        index: int,
        block: Layer,
        scaled: Scaled,
        tape: Nest,
        workspace: Workspace,
        other: Watch | None = None,
        made: bool = True,
    ) -> tuple[Scaled, Nest, np.ndarray, Nest]:
        """(cotangent of the block's input, gradients, its log2 norms, what is shown of it).

        ``other`` watches, too. The gradients are the workspace's again, if it takes them back, and
        need not be ``made`` where norms are enough.
        """
        found = []
        names = list({row.operation: row.op for row in self.rows[index]}.values())
        exponent = scaled[1]

        def watch(
            layer: Layer, tape: Arrays, dy: np.ndarray, dx: np.ndarray, gradients: Arrays
        ) -> None:
            if other is not None:
                other(layer, tape, dy, dx, gradients)
            if not layer.has_rows:
                return
            if self.observe is not None:
                place = self.seeds, index + 1, names.pop(), layer
                self.observe(Operation(*place, tape["x"], dy, self.received[index], exponent))
            found.append(report(layer, tape, dy, dx, gradients))
            if layer.along_time:
                self.steps.put(self.recurrent[index], tape)

        shown = other is not None or self.observe is not None
        if not (made or shown or self.reads_gradients):
            watch.measured = lambda layer, tape, dy, dx, measured: found.append(
                report_of(layer, tape, dx, measured)
            )
        scaled, gradients, norms = block.pullback_scaled(scaled, tape, workspace, watch)
        return scaled, gradients, norms, tuple(found)

    def put_backward(self, stretch: Backward) -> None:
        """The norms of a stretch's operations into its rows."""
        index, exponent, norms = stretch.start, stretch.exponents[:, :-1], stretch.norms
        received = stretch.forward.exponents[:, ::-1]
        values, status = (array[:, ::-1] for array in self._rows_of(stretch.forward))
        reports = [Report(*map(_opened, found)) for found in stretch.found]
        reports = reports[::-1]  # as in the forward pass
        # The cotangent of a block's output: what the layer before passed on, renormalised.
        passed = np.hstack([self.incoming[:, None], norms[:, :-1] - np.diff(exponent, axis=1)])
        found = range_of(np.stack([passed, norms]).max(axis=0), -np.inf) == NONFINITE
        left = _accumulated(self.left, found)
        known = status[:, :, -1] == OK  # as the forward pass left it
        error, lost = self._digits(index, passed, norms, reports, known)
        for k, row in enumerate(self.rows[index]):
            cells, state = values[:, :, k], status[:, :, k]
            own, gone = reports[row.operation], lost[row.operation]

            def put(
                column: str,
                measured: np.ndarray,
                unknown: np.ndarray,
                cells: np.ndarray = cells,
                state: np.ndarray = state,
            ) -> None:
                cells[..., self.at[column]] = np.where(unknown, np.nan, measured)
                state[unknown] = np.maximum(state[unknown], LOST)

            measured = own.norms + exponent[..., None]
            if row.has_delta:
                put("delta_log10_norm", measured[..., 0], gone.delta)
            if row.has_dx:
                put("dX_log10_norm", measured[..., 1], gone.dx)
            for number, column, of_examples in row.gradients:
                input_exponent = received if column in _OF_INPUT else 0
                gradient = measured[..., 2 + number] + input_exponent
                put(column, gradient, gone.gradients[..., number])
                if own.examples is not None and self.independent:
                    each = own.examples[..., number] + exponent + input_exponent
                    put(of_examples, each, gone.examples[..., number])
            for column, reading in zip(row.readings, own.readings or (), strict=True):
                put(column, reading, gone.dx & (column == _OF_DX))
            found = left | (range_of(own.norms.max(axis=-1), -np.inf) == NONFINITE)
            state[found] = NONFINITE
        if self.network.residual[index]:
            cells, state = values[:, :, -1], status[:, :, -1]
            unknown = error[:, :-1] + MARGIN >= 0
            cells[..., self.at["delta_log10_norm"]] = np.where(unknown, np.nan, passed + exponent)
            state[unknown] = np.maximum(state[unknown], LOST)
        values[left, :, self.at["delta_log10_norm"] :] = np.nan
        self.left, self.error = left[:, -1], error[:, -1]
        exponents = stretch.exponents
        self.incoming = norms[:, -1] - (exponents[:, -1] - exponents[:, -2])

    def finish(self) -> None:
        """What was made from activations that are not known becomes NaN."""
        for column in _OF_INPUT:
            self.values[self.unknown, self.at[column]] = np.nan

    def _rows_of(self, stretch: Forward) -> tuple[np.ndarray, np.ndarray]:
        """Views (S, layer, row, column) of a stretch's values and (S, layer, row) of its status."""
        rows = len(self.rows[stretch.start])
        first, last = (self.first_row[stretch.start + k] for k in (0, stretch.count))
        shape = (len(self.seeds), stretch.count, rows)
        # Reshaping a slice of one axis keeps it a view.
        values = self.values[:, first:last].reshape(*shape, -1)
        return values, self.status[:, first:last].reshape(shape)

    def _digits(
        self,
        index: int,
        passed: np.ndarray,
        norms: np.ndarray,
        reports: list[Report],
        known: np.ndarray,
    ) -> tuple[np.ndarray, list[Lost]]:
        """(relative errors (S, count + 1) of a stretch's cotangents, what operations lost)."""
        key = (self.network.blocks[index], self.shapes[index])
        if key not in self.followed:
            self.followed[key] = self._block(index)
        block = self.followed[key]
        least = np.full_like(passed, block.eps)
        own, lost = block.follow(passed, least, reports, known, self.moderate)
        with np.errstate(invalid="ignore"):
            own = np.fmax(own - norms, block.eps)
        errors = np.maximum.accumulate(np.hstack([self.error[:, None], own]), axis=1)
        if (errors[:, :-1] > block.of_sum).any():  # less changes nothing
            _, lost = block.follow(passed, errors[:, :-1], reports, known, self.moderate)
        return errors, lost

    def _block(self, index: int) -> Block:
        block, shape = self.network.blocks[index], self.shapes[index]
        size = math.prod(shape)
        features = shape[1] if len(shape) == 4 else shape[-1]
        kinds = {}
        for row in self.rows[index]:
            of_operation = kinds.setdefault(row.operation, {})
            for number, column, _ in row.gradients:
                of_operation[number] = column not in _OF_INPUT
        biases = [[own[k] for k in sorted(own)] for _, own in sorted(kinds.items())]
        return Block(block, size // features, size, biases, self.dtype)


def range_of(log2_norms: np.ndarray, lowest: float) -> np.ndarray:
    """OK, LOST below ``lowest`` or NONFINITE; an exact zero is OK."""
    lost = (log2_norms < lowest) & ~np.isneginf(log2_norms)
    found = np.where(lost, LOST, OK)
    found[np.isnan(log2_norms) | np.isposinf(log2_norms)] = NONFINITE
    return found


def _opened(part: Stack | tuple[Stack, ...]) -> np.ndarray | tuple[np.ndarray, ...] | None:
    """The arrays (S, count, ...) of one part of a report; None where there are none."""
    if isinstance(part, Stack):
        return part.base
    return tuple(reading.base for reading in part) or None


def _accumulated(first: np.ndarray, found: np.ndarray) -> np.ndarray:
    """The largest so far along a stretch's layers (S, count), after ``first`` (S,)."""
    return np.maximum.accumulate(np.hstack([first[:, None], found]), axis=1)[:, 1:]
