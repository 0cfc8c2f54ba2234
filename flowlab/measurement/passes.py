"""Passes: a batch forward and a cotangent backward through an ensemble of networks.

Parameters come from a *source*, drawn from streams or held in memory; what becomes of gradients is
a *sink*'s matter, which turns them into norms or holds them. All arrays have a leading axis of
seeds, S. Values are scaled: beside its array each network carries a power of two
(:data:`flowlab.layer.Scaled`), so that no depth leaves the float range.

Equal layers in a row are a *stretch*. Long ones are passed by a compiled loop over their recorded
kernel calls (:mod:`flowlab.measurement.scan`), and layer by layer where that would not be the same.

The way back reads the *tape* of the way forward. Where a whole tape does not fit, the stretches are
cut into *segments*: on the way forward only the input of a segment is kept, and on the way back it
is passed forward once more, with the same bits, to make its tape again.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, pairwise
from typing import Protocol

import numpy as np

from flowlab.initializers import Initializer
from flowlab.layer import (
    Layer,
    Nest,
    Parameter,
    Scaled,
    Shape,
    Workspace,
    leaves,
    map_leaves,
    unfolded,
)
from flowlab.measurement.quantities import of_output, registered
from flowlab.measurement.scan import Scans, Stack, single
from flowlab.networks import Network
from flowlab.networks.describe import described
from flowlab.numerics.scale import log2_norm, shift, shifted

# Fewer equal layers are passed in Python before their loop would be compiled.
WORTH_COMPILING = 24
# Layers passed in one compiled call: few enough for a live progress bar.
LONGEST = 256


class Source(Protocol):
    """Where the parameters of a pass come from; equal ``recipe``, equal kernel calls."""

    recipe: Hashable

    def given(self, start: int, count: int) -> Nest:
        """What belongs to each layer of a stretch, a nest of Stacks (S, count, ...)."""

    def parameters(
        self, declared: Nest, given: Nest, exponent: np.ndarray, workspace: Workspace
    ) -> Nest:
        """One block's parameters, a nest like ``declared`` of arrays (S, ...).

        ``given`` is that block's part of what :meth:`given` returned; biases are divided by
        2^exponent, exponent (S,). By kernels alone, so that it can be recorded.
        """

    def moderate(self, parameters: Iterable[Parameter], most: float) -> bool:
        """Is the size of all these parameters' elements within 2^±most, or 0?"""


class Drawn:
    """Parameters drawn anew in each pass: those of layer l under seed s depend on both alone."""

    def __init__(self, initializer: Initializer, seeds: np.ndarray, dtype: np.dtype):
        self.initializer, self.seeds, self.dtype = initializer, seeds, dtype
        self.recipe = repr(initializer.settings), initializer.scheme

    def given(self, start: int, count: int) -> Nest:
        layers = np.arange(start, start + count) + 1
        pairs = np.broadcast_arrays(self.seeds[:, None], layers[None, :])
        return tuple(Stack(np.ascontiguousarray(of)) for of in pairs)

    def parameters(
        self, declared: Nest, given: Nest, exponent: np.ndarray, workspace: Workspace
    ) -> Nest:
        seeds, layer = given
        drawn = []
        for role, (_, parameter) in enumerate(leaves(declared)):
            array = workspace.take((len(seeds), *parameter.shape), self.dtype)
            self.initializer.draw(parameter, seeds, layer, role, array)
            if parameter.role == "bias" and self.initializer.deviation(parameter) > 0:
                shift(array, exponent, -1)
            drawn.append(array)
        remaining = iter(drawn)
        return map_leaves(lambda _: next(remaining), declared)

    def moderate(self, parameters: Iterable[Parameter], most: float) -> bool:
        deviations = map(self.initializer.deviation, parameters)
        return all(abs(math.log2(own)) <= most for own in deviations if own)


class Held:
    """Parameters held in memory: of each stretch by its first block, nests of (S, count, ...)."""

    recipe = ()

    def __init__(self, parameters: dict[int, Nest]):
        self.held = parameters

    @classmethod
    def drawn(cls, source: Drawn, passes: "Passes") -> "Held":
        """What ``source`` draws, bit for bit, kept for the stretches of ``passes``."""
        held = {}
        for start, count in passes.stretches():
            declared = passes.network.blocks[start].declare(passes.shapes[start]).parameters
            seeds, layers = (stack.base.reshape(-1) for stack in source.given(start, count))
            own = Drawn(source.initializer, seeds, source.dtype)
            zero = np.zeros(len(seeds), np.int64)
            drawn = own.parameters(declared, (seeds, layers), zero, Workspace())
            held[start] = map_leaves(
                lambda array, count=count: array.reshape(-1, count, *array.shape[1:]), drawn
            )
        return cls(held)

    def given(self, start: int, count: int) -> Nest:
        first = max(at for at in self.held if at <= start)
        at = slice(start - first, start - first + count)
        return map_leaves(lambda array: Stack(array[:, at]), self.held[first])

    def parameters(
        self, declared: Nest, given: Nest, exponent: np.ndarray, workspace: Workspace
    ) -> Nest:
        roles = iter([parameter.role for _, parameter in leaves(declared)])

        def own(array: np.ndarray) -> np.ndarray:
            if next(roles) != "bias":
                return array
            out = workspace.take(array.shape, array.dtype)
            shifted(array, exponent, out, -1)
            return out

        return map_leaves(own, given)

    def moderate(self, parameters: Iterable[Parameter], most: float) -> bool:
        for _, array in (leaf for nest in self.held.values() for leaf in leaves(nest)):
            each = array.reshape(array.shape[0] * array.shape[1], -1)
            rms = log2_norm(each) - 0.5 * math.log2(each.shape[1])
            if not (np.isneginf(rms) | (np.abs(rms) <= most)).all():
                return False
        return True


class Sink(Protocol):
    """What becomes of the gradients of a pass."""

    def pull(
        self, index: int, block: Layer, scaled: Scaled, tape: Nest, workspace: Workspace
    ) -> tuple[Scaled, np.ndarray, Nest]:
        """(cotangent of the block's input, its log2 norms (S,), what is found: a nest of arrays).

        Of block ``index`` from 0, by kernels alone where it is to be recorded.
        """


class Gradients:
    """A sink that holds gradients, as :class:`Held` does parameters: nests of (S, count, ...).

    ``exponents`` are (of the cotangent, of the input), each (S, count): a gradient's true value is
    what is held times 2^(the first), of weights and scales times 2^(the second), too.
    """

    def __init__(self):
        self.held: dict[int, Nest] = {}
        self.exponents: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def pull(
        self, index: int, block: Layer, scaled: Scaled, tape: Nest, workspace: Workspace
    ) -> tuple[Scaled, np.ndarray, Nest]:
        scaled, gradients, norms = block.pullback_scaled(scaled, tape, workspace)
        return scaled, norms, gradients

    def keep(self, stretch: "Backward") -> None:
        """Hold what was found on the way back over a stretch."""
        self.held[stretch.start] = map_leaves(lambda stack: stack.base[:, ::-1], stretch.found)
        own = stretch.exponents[:, -2::-1], stretch.forward.exponents
        self.exponents[stretch.start] = own

    def true(self, network: Network, shape: Shape) -> list[dict[str, np.ndarray]]:
        """Every block's gradients by path, (S, ...), without exponents; beyond floats inf or 0."""
        found = []
        for place in network.walk(shape):
            start = max(at for at in self.held if at < place.layer)
            of_dy, of_x = (e[:, place.layer - 1 - start] for e in self.exponents[start])
            declared = dict(leaves(place.block.declare(place.shape).parameters))
            own = {}
            for path, held in leaves(self.held[start]):
                array = np.array(held[:, place.layer - 1 - start], order="C")
                with_input = declared[path].role in ("weight", "scale")
                shift(array, of_dy + of_x if with_input else of_dy)
                own[path] = array
            found.append(own)
        return found


@dataclass(frozen=True)
class Forward:
    """A stretch on its way forward: blocks ``start`` (from 0) ... ``start + count - 1``.

    ``tape`` is a nest of Stacks; ``exponents`` (S, count) are those of the blocks' inputs;
    ``norms`` (S, count) log2 norms of their outputs beside these; ``more`` quantities of the
    outputs by column, each (S, count); ``output`` the scaled output of the last block, an array of
    ``size`` elements for each network. Of a segment that is to be passed again there is neither
    tape nor output, but a ``checkpoint``, its scaled input.
    """

    start: int
    count: int
    tape: Nest | None
    exponents: np.ndarray
    norms: np.ndarray
    more: dict[str, np.ndarray]
    output: Scaled | None
    size: int
    checkpoint: Scaled | None = None


@dataclass(frozen=True)
class Backward:
    """The same stretch on its way back, arrays (S, count) of its last block first.

    ``exponents`` (S, count + 1) are those of the cotangents of the blocks' outputs, and of the
    first block's input; ``norms`` log2 norms of the cotangents of the blocks' inputs beside those
    of their outputs; ``found`` is what the sink found, a nest of Stacks; ``output`` the scaled
    cotangent of the first block's input.
    """

    forward: Forward
    exponents: np.ndarray
    norms: np.ndarray
    found: Nest
    output: Scaled

    @property
    def start(self) -> int:
        return self.forward.start


class Passes:
    """Ways through a network for S seeds at once.

    ``workspace`` and ``scans`` are a thread's own and may serve one pass after another.
    ``recorded`` says whether stretches may be passed by compiled loops, ``quantities`` whether
    those of blocks' outputs are measured; ``shortest`` is how many equal blocks in a row make
    stretches, by default 24; others are passed one by one. ``most`` is how many elements of one
    network the tape of a segment may have, unless a single block has more; by default the whole
    network is one segment. If there are several, the workspace is reset after each.
    """

    def __init__(
        self,
        network: Network,
        shapes: list[Shape],
        workspace: Workspace,
        scans: Scans,
        recorded: bool = True,
        quantities: bool = True,
        shortest: int | None = None,
        most: float = math.inf,
    ):
        self.most = most
        self.quantities, self.shortest = quantities, shortest or WORTH_COMPILING
        self.network, self.shapes = network, shapes
        self.workspace, self.scans, self.recorded = workspace, scans, recorded
        self.homogeneous = network.chain.homogeneous
        self._described: dict[Layer, Hashable] = {}

    def stretches(self) -> Iterator[tuple[int, int]]:
        """(first, count) of equal blocks with equal input shapes in a row, none too long."""
        kinds = list(zip(self.network.blocks, self.shapes, strict=True))
        start = 0
        for (block, _), alike in groupby(kinds):
            stop = start + len(list(alike))
            longest = 1
            if self.recorded and block.recorded and stop - start >= self.shortest:
                longest = max(1, int(min(LONGEST, self.most / self._elements(start))))
            for first in range(start, stop, longest):
                yield first, min(longest, stop - first)
            start = stop

    def _elements(self, index: int) -> int:
        return self.network.blocks[index].declare(self.shapes[index]).elements

    def segments(self) -> list[list[tuple[int, int]]]:
        """The stretches in groups whose tapes are kept at a time, the last of them filled first."""
        segments, kept = [], 0
        for start, count in reversed(list(self.stretches())):
            own = count * self._elements(start)
            if not segments or kept + own > self.most:
                segments.append([])
                kept = 0
            segments[-1].append((start, count))
            kept += own
        return [segment[::-1] for segment in reversed(segments)]

    def forward(self, scaled: Scaled, source: Source) -> Iterator[Forward]:
        """Stretch by stretch from the input to the output; the last segment keeps its tape."""
        segments = self.segments()
        for segment, following in pairwise(segments):
            checkpoint = scaled
            for forward in self._forward(segment, scaled, source):
                scaled = forward.output
                yield _without_tape(forward, checkpoint)
            scaled = map_leaves(np.copy, scaled)
            del forward  # which holds buffers
            self._release(segment, following)
        yield from self._forward(segments[-1], scaled, source)

    def backward(
        self, scaled: Scaled, passed: list[Forward], source: Source, sink: Sink
    ) -> Iterator[Backward]:
        """Stretch by stretch from the output to the input.

        ``passed``, the way forward, is used up; ``source`` is what it was made with.
        """
        segments = self.segments()[::-1]
        for segment, following in pairwise([*segments, None]):
            way = []
            while passed and passed[-1].start >= segment[0][0]:
                way.append(passed.pop())
            for backward in self._backward(segment, way, scaled, source, sink):
                scaled = backward.output
                yield backward if len(segments) == 1 else _own(backward)
            if following is not None:
                scaled = map_leaves(np.copy, scaled)
                del way, backward  # which hold buffers
                self._release(segment, following)

    def _forward(
        self, segment: list[tuple[int, int]], scaled: Scaled, source: Source
    ) -> Iterator[Forward]:
        step = partial(self._forward_step, source)
        kind = "forward", type(source), source.recipe
        for start, count in segment:
            given = source.given(start, count)
            for piece in self._over(kind, step, start, count, scaled, given, (True, True), 1):
                first, number, carries, (tape, (norms, more)), _ = piece
                scaled = tuple(carry.at(number) for carry in carries)
                yield Forward(
                    *(first, number, tape, carries[1].base[:, :-1], norms.base),
                    {column: stack.base for column, stack in more.items()},
                    *(scaled, carries[0].base[0, 0].size),
                )

    def _backward(
        self,
        segment: list[tuple[int, int]],
        way: list[Forward],
        scaled: Scaled,
        source: Source,
        sink: Sink,
    ) -> Iterator[Backward]:
        if way[0].checkpoint is None:
            tapes = [forward.tape for forward in way]
        else:
            again = self._forward(segment, way[0].checkpoint, source)
            tapes = [forward.tape for forward in again][::-1]
        step = partial(self._backward_step, sink)
        kind = "backward", type(sink)
        for forward, tape in zip(way, tapes, strict=True):
            start, count = forward.start, forward.count
            for piece in self._over(kind, step, start, count, scaled, tape, (False, True), -1):
                first, number, carries, (norms, found), spent = piece
                scaled = tuple(_last(carry, number) for carry in carries)
                part = forward if number == count else _one(forward, first)
                yield Backward(part, carries[1].base, norms.base, found, scaled)
                for array in spent:
                    self.workspace.give(array)

    def _release(self, segment: list[tuple[int, int]], following: list[tuple[int, int]]) -> None:
        """Take back all buffers of a segment, and keep them if they are what another needs."""
        of_one, of_other = (
            [(self.network.blocks[start], self.shapes[start], count) for start, count in stretches]
            for stretches in (segment, following)
        )
        if of_one == of_other:
            self.workspace.reset()
        else:
            self.workspace.clear()

    def _over(
        self,
        kind: tuple,
        step: Callable,
        start: int,
        count: int,
        carry: Scaled,
        xs: Nest,
        keep: tuple[bool, ...],
        direction: int,
    ) -> Iterator[tuple[int, int, list, Nest, list[np.ndarray]]]:
        """(first, count, carries, ys, spent) of a stretch: at once by its program, or in turn."""
        block, shape = self.network.blocks[start], self.shapes[start]
        if count > 1:
            key = (*kind, *self._kind(block), shape, len(carry[0]), carry[0].dtype)
            first = count - 1 if direction < 0 else 0
            own = partial(step, start)
            program = self.scans.program(key, own, carry, xs, first, keep, direction)
            if program is not None:
                take = self.workspace.take
                yield start, count, *program.scan(carry, xs, count, take, keep, direction)
                return
        for k in range(count)[::direction]:
            own = map_leaves(lambda stack, k=k: Stack(stack.base, stack.first + k), xs)
            passed = single(partial(step, start + k), carry, own, keep)
            yield start + k, 1, *passed
            carry = tuple(_last(one, 1) for one in passed[0])

    def _kind(self, block: Layer) -> tuple[Hashable, ...]:
        """What decides which kernels pass a block, beside its shapes, the source and the sink."""
        if block not in self._described:
            self._described[block] = repr(described(block))
        of_network = self.homogeneous, self.network.tokens
        return self._described[block], *of_network, self.quantities, registered()

    def _forward_step(
        self, source: Source, index: int, scaled: Scaled, given: Nest
    ) -> tuple[Scaled, Nest]:
        """(scaled input, what the source gave) -> (scaled output, (tape, (norms, quantities)))."""
        block = self.network.blocks[index]
        if not block.along_time:
            scaled = unfolded(scaled, block.homogeneous)
        x, exponent = scaled[:2]
        declared = block.declare(x.shape[1:]).parameters
        of_biases = np.zeros_like(exponent) if block.along_time else exponent
        parameters = source.parameters(declared, given, of_biases, self.workspace)
        comfort = None if self.homogeneous else math.inf
        scaled, tape, norms = block.forward_scaled(scaled, parameters, self.workspace, comfort)
        more = of_output(self.network, scaled[0]) if self.quantities else {}
        return scaled, (tape, (norms, more))

    def _backward_step(
        self, sink: Sink, index: int, scaled: Scaled, tape: Nest
    ) -> tuple[Scaled, Nest]:
        """(scaled cotangent, tape) -> (that of the input, (its norms, what the sink found))."""
        block = self.network.blocks[index]
        scaled, norms, found = sink.pull(index, block, scaled, tape, self.workspace)
        return scaled, (norms, found)


def _last(carry: Stack | np.ndarray, count: int) -> np.ndarray:
    """What is handed on after ``count`` layers."""
    return carry.at(count) if isinstance(carry, Stack) else np.ascontiguousarray(carry)


def _one(forward: Forward, layer: int) -> Forward:
    """The part of a stretch that is one layer, without its tape."""
    k = layer - forward.start
    here = slice(k, k + 1)
    more = {column: values[:, here] for column, values in forward.more.items()}
    own = {"exponents": forward.exponents[:, here], "norms": forward.norms[:, here], "more": more}
    return replace(forward, start=layer, count=1, tape=None, **own)


def _without_tape(forward: Forward, checkpoint: Scaled) -> Forward:
    """A stretch whose arrays are its own, so that buffers can be used again."""
    own = {"exponents": forward.exponents.copy(), "norms": forward.norms.copy()}
    own["more"] = map_leaves(np.copy, forward.more)
    return replace(forward, tape=None, output=None, checkpoint=checkpoint, **own)


def _own(backward: Backward) -> Backward:
    """The same with arrays of its own, so that buffers can be used again."""
    own = {"exponents": backward.exponents.copy(), "norms": backward.norms.copy()}
    own["forward"] = replace(backward.forward, tape=None, output=None)
    own["found"] = map_leaves(lambda s: Stack(s.base.copy(), s.first), backward.found)
    return replace(backward, output=map_leaves(np.copy, backward.output), **own)
