"""Digits: which norms are above the rounding of what they were made from.

A sum of n terms that are right to a relative ε is wrong by about ε √n times the root sum of squares
of its terms (random walk; Higham 2002, "Accuracy and Stability of Numerical Algorithms", section
2.8). Where terms cancel, as the gradient of a bias before batch norm does, the sum may be no larger
than that: its digits are lost. So a cotangent is followed on its way back with the absolute error
that it has gathered, and each result is compared with its own.

Errors are first-order and statistical: operations multiply a cotangent and its error alike, except
where a layer says that it takes a difference (``Primitive.terms``). What falls below the smallest
number of the type is an error too.

All numbers are log2, of one block's units, arrays (seeds, layers).
"""

from dataclasses import dataclass, field, replace

import numpy as np

from flowlab.layer import Layer
from flowlab.measurement.quantities import Report

OK, LOST, NONFINITE = range(3)  # what a row's status is at least, apart from exact zeros
# A result is known where it is more than 2^2 times its error.
MARGIN = 2.0


@dataclass(frozen=True)
class Cotangent:
    """A cotangent's norm and error, and the errors of its parts where it has some.

    ``sloped``: has it passed what may fall below any float, so that a zero need not be exact?
    """

    norm: np.ndarray
    error: np.ndarray
    sloped: np.ndarray | bool = False
    parts: np.ndarray | None = None

    def times(self, factor: float) -> "Cotangent":
        with np.errstate(divide="ignore"):
            power = np.log2(abs(np.float64(factor)))
        return Cotangent(self.norm + power, self.error + power, self.sloped)

    def plus(self, other: "Cotangent") -> "Cotangent":
        """The sum of two, as if at right angles."""
        norm = 0.5 * np.logaddexp2(2 * self.norm, 2 * other.norm)
        return Cotangent(norm, np.maximum(self.error, other.error), self.sloped | other.sloped)

    def part(self, k: int) -> "Cotangent":
        """Of part k the norm is not known here; it is an exact zero where its error is."""
        if self.parts is None:
            return self
        return Cotangent(self.parts[..., k], self.parts[..., k], sloped=True)


@dataclass
class Lost:
    """Of one operation, where digits are lost: of its delta, dx, and gradients (..., gradients)."""

    delta: np.ndarray
    dx: np.ndarray
    gradients: np.ndarray | None = None
    examples: np.ndarray | None = None


class Block:
    """One block's operations, followed backward.

    ``rows`` is how many terms a gradient sums, ``size`` the elements of a cotangent; ``biases``
    says of each operation's gradients, in forward order, which are sums of dy alone.
    """

    def __init__(
        self, block: Layer, rows: int, size: int, biases: list[list[bool]], dtype: np.dtype
    ):
        held = np.finfo(dtype)
        self.block, self.biases = block, biases
        self.eps = np.log2(float(held.eps))
        self.of_sum = self.eps + 0.5 * np.log2(rows)
        self.least = np.log2(held.smallest_subnormal) + 0.5 * np.log2(size)

    def follow(
        self,
        norm: np.ndarray,
        relative: np.ndarray,
        reports: list[Report],
        known: np.ndarray,
        moderate: bool,
    ) -> tuple[np.ndarray, list[Lost]]:
        """(error of the block's dx, what is :class:`Lost` of operations), in forward order.

        ``norm`` is the cotangent's of the block's output, ``relative`` its error over it. Slopes
        that change at 0 are believed where the block's values are ``known``; zeros besides where
        weights are ``moderate``, so that products of several are floats.
        """
        walk = _Walk(self, list(zip(reports, self.biases, strict=True)), known, known & moderate)
        with np.errstate(invalid="ignore"):
            error = np.where(np.isposinf(relative), np.inf, norm + relative)
            passed = walk.through(self.block, Cotangent(norm, error))
        return passed.error, walk.lost[::-1]


@dataclass
class _Walk:
    """One way back through a block."""

    block: Block
    waiting: list  # reports of operations, with their biases, that have not been met
    known: np.ndarray
    trusted: np.ndarray
    lost: list[Lost] = field(default_factory=list)

    def through(self, layer: Layer, cotangent: Cotangent) -> Cotangent:
        if layer.children:
            return layer.passed(cotangent, self.through)
        if not layer.has_rows:
            if layer.kinked:
                error = np.where(self.known, cotangent.error, np.inf)
                cotangent = replace(cotangent, error=error)
            return replace(cotangent, sloped=cotangent.sloped | layer.saturates)
        return self.operation(layer, cotangent, *self.waiting.pop())

    def operation(
        self, layer: Layer, cotangent: Cotangent, report: Report, biases: list[bool]
    ) -> Cotangent:
        delta, dx = report.norms[..., 0], report.norms[..., 1]
        error = np.maximum(cotangent.error, self.block.least)
        # The sum over steps of a recurrent layer has passed its slopes.
        sloped = cotangent.sloped | layer.saturates
        zero = np.isneginf(delta)
        exact = np.isneginf(cotangent.norm) | np.logical_not(sloped)
        exact = zero & exact & ~np.isposinf(error)
        error = np.where(exact, -np.inf, error)
        relative = np.where(zero, np.where(exact, -np.inf, np.inf), error - delta)
        unknown = _below(delta, error)
        here = Lost(unknown, unknown)
        self.lost.append(here)
        if biases:
            gradients = report.norms[..., 2:]
            each = gradients if report.examples is None else report.examples
            terms = each if report.of_gradients is None else report.of_gradients
            terms = np.where(biases, delta[..., None], terms)
            of_sum = terms + np.maximum(relative, self.block.of_sum)[..., None]
            vanished = np.isneginf(gradients) & ~(zero | self.trusted)[..., None]
            vanished |= unknown[..., None]
            here.gradients = vanished | _below(gradients, of_sum)
            here.examples = vanished | _below(each, of_sum)
        error, parts = np.maximum(dx + relative, self.block.least), None
        if report.of_dx is None:
            error = np.where(np.isneginf(dx) & (self.trusted | exact), -np.inf, error)
        elif report.of_dx.ndim == dx.ndim:
            error = np.maximum(error, report.of_dx + self.block.eps)
            error = np.where(np.isneginf(report.of_dx), -np.inf, error)
        else:
            # Of parts the norms are not known: no more than their terms and the whole.
            of_part = np.minimum(report.of_dx, dx[..., None]) + relative[..., None]
            parts = np.maximum(of_part, report.of_dx + self.block.eps)
            parts = np.maximum(parts, self.block.least)
            parts = np.where(np.isneginf(report.of_dx), -np.inf, parts)
            parts = np.where(unknown[..., None], np.inf, parts)
            error = parts.max(axis=-1)
        error = np.where(unknown, np.inf, error)
        here.dx = unknown | _below(dx, error)
        vanished = np.isneginf(dx) & here.dx  # as large as its error, for what is known
        return Cotangent(np.where(vanished, error, dx), error, vanished, parts)


def _below(norm: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Is a result no more than its error? An exact zero without an error is known."""
    return (norm <= error + MARGIN) & ~np.isneginf(error)
