"""Measurement of recurrent networks: exponents along time, and rows for single time steps.

A recurrent layer's states and cotangents leave any float range within a sequence, so layers hand
them on with a power of two for each step. The exponent that measurement carries between blocks is
then that of the last step, on the way back the largest.
"""

import numpy as np

from flowlab.layers.recurrent import Recurrence
from flowlab.measurement.passes import LOWEST, Ensemble, told
from flowlab.measurement.rounding import LOST, NONFINITE, OK
from flowlab.numerics.scale import log2_norm
from flowlab.schema import STATE_NORMS

_STATE, _DELTA, _COTANGENT = range(len(STATE_NORMS))


class ThroughTime(Ensemble):
    """A part of the ensemble; ``times`` (seeds, recurrent layers, steps, columns) are its steps."""

    scanned = False

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        layers = sum(isinstance(block.layers[0], Recurrence) for block in self.network.blocks)
        self.times = np.full((len(self.seeds), layers, self.shapes[0][1], len(STATE_NORMS)), np.nan)
        self.along = None  # exponents (seeds, steps) of what a recurrent layer passed on
        self.received: list[np.ndarray] = []  # exponents of each recurrent layer's input
        self.inputs: dict[int, np.ndarray] = {}  # log2 norms (seeds, steps) of its steps

    def forward_step(self, index, carry, xs):
        layer, *norms = self.network.blocks[index].layers
        if not isinstance(layer, Recurrence):
            self.along = None
            return super().forward_step(index, carry, xs)
        (x, exponent), (seeds, number) = carry, xs
        declared = self.network.blocks[index].declare(x.shape[1:]).parameters
        own, *of_norms = self.draw(declared, seeds, number, np.zeros_like(exponent))
        y, self.along, tape = layer.forward_along_time(
            x, self.each_step(exponent), own, self.workspace
        )
        self.received.append(exponent)
        self.times[:, index, :, _STATE] = tape["state_log2_norms"]
        norm, tapes = _together(tape["state_log2_norms"]), [tape]
        if norms:
            y, self.along = _with_exponents(y, self.along), np.zeros_like(self.along)
            for normalization, parameters in zip(norms, of_norms, strict=True):
                y, tape = normalization.forward(y, parameters, self.workspace)
                tapes.append(tape)
            norm = log2_norm(y)
        return (y, self.along[:, -1].copy()), (tapes, (norm - exponent,))

    def backward_step(self, index, tell, carry, tape):
        layer, *norms = self.network.blocks[index].layers
        if not isinstance(layer, Recurrence):
            self.along = None
            return super().backward_step(index, tell, carry, tape)
        (dy, exponent), reports = carry, []
        along = self.each_step(exponent)
        if norms:
            dy, along = _with_exponents(dy, along - exponent[:, None]), None
            for normalization, entry in zip(reversed(norms), reversed(tape[1:]), strict=True):
                dy, _ = normalization.pullback(
                    dy, entry, self.workspace, lambda *event: reports.append(told(*event))
                )
            along = np.repeat(exponent[:, None], dy.shape[2], axis=1)

        def watch(layer, tape, dy, dx, gradients):
            reports.append(self.report(index, exponent, layer, tape, dy, dx, gradients))

        entry = dict(tape[0])
        dx, self.along, _ = layer.pullback_along_time(dy, along, entry, self.workspace, watch)
        self.times[:, index, :, _DELTA] = entry["delta_log2_norms"]
        self.times[:, index, :, _COTANGENT] = entry["state_cotangent_log2_norms"]
        norm = _together(_step_norms(dx) + self.along)
        return (dx, self.along.max(axis=1)), (norm - exponent, tuple(reports))

    def each_step(self, exponent) -> np.ndarray:
        """Exponents (seeds, steps) of what arrives."""
        if self.along is not None:
            return self.along
        return np.repeat(exponent[:, None], self.times.shape[2], axis=1)

    def report(self, index, exponent, layer, tape, dy, dx, gradients):
        """What measurement writes of an operation, in the units of the block's exponents."""
        delta = _together(tape["delta_log2_norms"])
        passed = _together(_step_norms(dx) + tape["cotangent_exponents"])
        norms = np.stack([log2_norm(gradient) for gradient in gradients.values()], axis=1)
        norms += tape["gradient_exponents"]
        examples = np.empty(norms.shape)
        layer.example_norms.run(*(tape[k] for k in layer.example_norms_reads), dy, examples)
        for number, name in enumerate(gradients):
            if name.startswith("W"):  # true, where measurement counts the input's exponent itself
                norms[:, number] -= self.received[index]
                examples[:, number] -= self.received[index]
        every = np.column_stack([delta, passed, norms])
        terms = self.terms(index, tape, delta)
        shared = exponent[:, None]
        return every - shared, examples - shared, (), (), terms - shared

    def terms(self, index, tape, delta):
        """log2 norms (S, gradients) of a recurrent layer's terms, even over a step's examples."""
        examples = 0.5 * np.log2(tape["x"].shape[1])
        self.inputs[index] = _step_norms(tape["x"])
        inputs = self.inputs[index] + (tape["x_exponents"] - self.received[index][:, None])
        states, deltas = tape["state_log2_norms"], tape["delta_log2_norms"]
        of_input = _together(inputs + deltas) - examples
        nothing = np.full((len(deltas), 1), -np.inf)
        before = np.hstack([nothing, states[:, :-1]]) - self.received[index][:, None]
        of_state = _together(before + deltas) - examples
        return np.column_stack([of_input, of_state, delta, delta])

    def measure(self, x, labels, progress):
        values, status, _, _ = super().measure(x, labels, progress)
        return values, status, self.times, self.found()

    def found(self):
        """What is found of each step; norms that are not known become NaN."""
        left = np.isnan(self.times) | np.isposinf(self.times)
        found = np.where(left.any(axis=-1), NONFINITE, OK)
        above = np.zeros(len(left), bool)  # is what comes from the layer above lost?
        for number in reversed(range(self.times.shape[1])):
            layer = self.network.blocks[number].layers[0]
            if layer.homogeneous:
                continue
            times = self.times[:, number]
            size = 0.5 * np.log2(self.settings.batch_size * layer.features)
            states = times[..., _STATE]
            vanished = states - size < LOWEST[self.settings.dtype]
            # A state is an exact zero where its step's input is, and the state before.
            before = np.hstack([np.full((len(states), 1), -np.inf), states[:, :-1]])
            exact = np.isneginf(states) & np.isneginf(self.inputs[number]) & np.isneginf(before)
            times[..., _STATE][vanished & ~exact] = np.nan
            # The slope of saturated units can leave the float range: not an exact zero.
            saturated = np.isneginf(times[..., _DELTA]) & ~np.isneginf(times[..., _COTANGENT])
            later = np.logical_or.accumulate(saturated[:, ::-1], axis=1)[:, ::-1]
            later = np.hstack([later[:, 1:], np.zeros((len(above), 1), bool)]) | above[:, None]
            for column in (_DELTA, _COTANGENT):
                values = times[..., column]
                values[later & np.isneginf(values)] = np.nan
            times[..., _DELTA][saturated] = np.nan
            above = above | saturated.any(axis=1)
            gone = np.isnan(times).any(axis=-1) & (found[:, number] == OK)
            found[:, number][gone] = LOST
        return found


def _together(log2_norms: np.ndarray) -> np.ndarray:
    """log2 of the norm of all steps, of those of each: (seeds, steps) -> (seeds,)."""
    return 0.5 * np.logaddexp2.reduce(2 * log2_norms, axis=1)


def _step_norms(x: np.ndarray) -> np.ndarray:
    """log2 norms of each step of (seeds, n, steps, features): (seeds, steps)."""
    steps = np.ascontiguousarray(x.swapaxes(1, 2))
    return log2_norm(steps.reshape(-1, *steps.shape[2:])).reshape(steps.shape[:2])


def _with_exponents(x: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    """x[:, :, t] 2^exponents[:, t] as plain numbers, infinite or 0 beyond the float range."""
    with np.errstate(over="ignore", under="ignore"):
        return np.ldexp(x, exponents[:, None, :, None].astype(np.int32))
