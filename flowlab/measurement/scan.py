"""Scans: the kernel calls of one layer, recorded once and compiled into a loop over layers.

A layer's pass is a fixed sequence of kernel calls on arrays of fixed shapes, and the hidden layers
of a deep net repeat it. Between two kernels Python costs more than a small kernel itself, and
threads wait for one another there. So the pass is recorded as it runs for one layer, and a
:meth:`Program.scan` makes the same calls, in the same order and so with the same bits, for a whole
run of layers: network by network, each layer's arrays still warm from the one before.

The recorded step has the form of a scan, ``step(carry, xs) -> (carry, ys)``: ``carry`` (a tuple of
arrays) is handed from layer to layer, ``xs`` and ``ys`` (nests of arrays) belong to one layer.
"""

import hashlib
import os
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from threading import Lock

import numpy as np

from flowlab.kernel import generate, recorded
from flowlab.layer import Nest, leaves, map_leaves

Carry = tuple[np.ndarray, ...]
_KEPT = 256
_compiled: dict[str, Callable] = {}
_lock = Lock()


@dataclass(frozen=True)
class Stack:
    """Arrays of a run of layers: layer l's are ``base[:, first + l]``, shape (seeds, ...)."""

    base: np.ndarray
    first: int = 0

    def at(self, layer: int) -> np.ndarray:
        """A contiguous copy of one layer's array, (seeds, ...)."""
        return np.ascontiguousarray(self.base[:, self.first + layer])


class Program:
    """The recorded kernel calls of one ``step(carry, xs)``, ready to be scanned over layers."""

    def __init__(self, calls: list[tuple], carry: Carry, xs: Nest, result: tuple[Carry, Nest]):
        self._shapes: list[tuple] = []  # (shape, dtype) of one layer, seeds included
        self._slots: dict[int, int] = {}
        self._carry = [self._slot(array) for array in carry]
        self._xs = [self._slot(array) for _, array in leaves(xs)]
        self._carried = [self._slot(array) for array in result[0]]
        self._ys = map_leaves(self._slot, result[1])
        self._calls = [
            (
                kernel,
                [(self._slot(array), array.shape) for array in arguments[: len(kernel.dimensions)]],
                arguments[len(kernel.dimensions) :],
            )
            for kernel, arguments in calls
        ]
        self._constants = [c for _, _, constants in self._calls for c in constants]
        self._functions: dict[tuple, Callable] = {}

    def _slot(self, array: np.ndarray) -> int:
        address = array.__array_interface__["data"][0]
        if address not in self._slots:
            self._slots[address] = len(self._shapes)
            self._shapes.append((array.shape, array.dtype))
        return self._slots[address]

    def scan(
        self,
        carry: Carry,
        xs: Nest,
        count: int,
        take: Callable,
        keep: tuple[bool, ...],
        step: int = 1,
    ) -> tuple[list, Nest, list[np.ndarray]]:
        """The step for ``count`` layers: (stacks of the carry, stacks of ys, arrays to give back).

        ``xs`` is a nest of Stacks, read forward or, with ``step=-1``, from its last layer back;
        what is stacked in ``ys`` is then in that order too. A carry that is kept is a Stack of
        count + 1 entries, the first what was given; of another only the last value is returned.
        """
        seeds = len(carry[0])
        arrays: dict[int, np.ndarray] = {}
        index: dict[int, str] = {}
        firsts: list[int] = []
        carries = []
        for slot, out, given, kept in zip(self._carry, self._carried, carry, keep, strict=True):
            shape, dtype = self._shapes[out]
            if shape[1:] != given.shape[1:]:  # a single layer that changes the shape
                arrays[slot], arrays[out] = given[:, None], take((seeds, 1, *shape[1:]), dtype)
                index[slot] = index[out] = "l"
                carries.append(Stack(arrays[out], -1) if kept else arrays[out][:, 0])
                continue
            base = take((seeds, count + 1 if kept else 2, *given.shape[1:]), dtype)
            base[:, 0] = given
            arrays[slot], arrays[out] = base, base
            index[slot], index[out] = ("l", "l + 1") if kept else ("l & 1", "(l + 1) & 1")
            carries.append(Stack(base) if kept else base[:, count & 1])
        for slot, (_, stack) in zip(self._xs, leaves(xs), strict=True):
            if slot not in arrays:
                arrays[slot], index[slot] = stack.base, f"f{len(firsts)} + {step} * l"
                firsts.append(stack.first + (count - 1 if step < 0 else 0))
        for slot in sorted({slot for _, slot in leaves(self._ys)}):
            if slot not in arrays:
                shape, dtype = self._shapes[slot]
                arrays[slot], index[slot] = take((seeds, count, *shape[1:]), dtype), "l"
        spent = []
        for slot, (shape, dtype) in enumerate(self._shapes):
            if slot not in arrays:  # of no use after the layer: one buffer serves all
                arrays[slot], index[slot] = take((1, *shape[1:]), dtype), ""
                spent.append(arrays[slot])
        spent += [a.base for a in carries if isinstance(a, np.ndarray)]
        order = range(len(self._shapes))
        function = self._function([index[slot] for slot in order], len(firsts), step)
        function(*(arrays[slot] for slot in order), count, seeds, *firsts, *self._constants)

        stacks = {
            slot: Stack(array, 1 if index[slot] == "l + 1" else 0) for slot, array in arrays.items()
        }
        return carries, map_leaves(stacks.__getitem__, self._ys), spent

    def replay(self, carry: Carry, xs: Nest) -> tuple[Carry, Nest]:
        """(carry, ys) that the recorded calls alone give for one layer's arrays, call by call."""
        arrays = dict(zip(self._carry, map(np.copy, carry), strict=True))
        for slot, (_, array) in zip(self._xs, leaves(xs), strict=True):
            arrays.setdefault(slot, np.copy(array))
        for slot, (shape, dtype) in enumerate(self._shapes):
            arrays.setdefault(slot, np.full(shape, np.nan if dtype.kind == "f" else -1, dtype))
        for kernel, given, constants in self._calls:
            kernel.run(*(arrays[slot].reshape(shape) for slot, shape in given), *constants)
        carried = tuple(arrays[slot] for slot in self._carried)
        return carried, map_leaves(arrays.__getitem__, self._ys)

    def repeats(
        self,
        result: tuple[Carry, Nest],
        carry: Carry,
        xs: Nest,
        keep: tuple[bool, ...],
        step: int,
    ) -> bool:
        """Does a scan of the one layer that was recorded give ``result``, byte for byte?

        Whatever the step did outside kernels is missing from the recording.
        """
        stacked = map_leaves(lambda array: Stack(array[:, None]), xs)
        carries, ys, _ = self.scan(carry, stacked, 1, np.empty, keep, step)
        scanned = [c.at(1) if isinstance(c, Stack) else c for c in carries]
        pairs = list(zip(result[0], scanned, strict=True))
        found = map_leaves(lambda stack: stack.at(0), ys)
        pairs += [(a, b) for (_, a), (_, b) in zip(leaves(result[1]), leaves(found), strict=True)]
        return all(np.array(a).tobytes() == np.array(b).tobytes() for a, b in pairs)

    def _function(self, index: list[str], firsts: int, step: int) -> Callable:
        key = (*index, step)
        if key not in self._functions:
            self._functions[key] = self._compile(index, firsts, step)
        return self._functions[key]

    def _compile(self, index: list[str], firsts: int, step: int) -> Callable:
        names = [f"a{slot}" for slot in range(len(self._shapes))]
        # On the way back the last network first, whose arrays are still warm.
        seeds = "seeds" if step > 0 else "seeds - 1, -1, -1"
        lines = [f"for s in range({seeds}):", "    for l in range(count):"]
        namespace, constants, files = {}, [], set()
        for k, (kernel, arrays, given) in enumerate(self._calls):
            own = [f"c{len(constants) + i}" for i in range(len(given))]
            constants += own
            views = []
            for position, (slot, shape) in enumerate(arrays):
                at = ["s", index[slot]] if index[slot] else ["0"]
                written = kernel.writes_scalar(position)
                if len(shape) != len(self._shapes[slot][0]) and len(shape) == 2 and shape[1] == 1:
                    written = True  # a scalar that the kernel received as an array of one element
                    shape = self._shapes[slot][0]
                if written:
                    at[-1] = f"{at[-1]}:{at[-1]} + 1"
                view = f"a{slot}[{', '.join(at)}]"
                if shape != self._shapes[slot][0]:
                    view += f".reshape({', '.join(map(str, shape[1:]))})"
                views.append(view)
            lines.append(f"        k{k}({', '.join([*views, *own])})")
            namespace[f"k{k}"] = kernel.single
            files.add(kernel.home[1])
        # The name stands for the calls and for the state of the files that they come from.
        state = [f"{file}:{os.stat(file).st_mtime_ns}" for file in sorted(files) if file]
        called = [
            (kernel.name, kernel.home if kernel.home[1] else id(kernel.single))
            for kernel, _, _ in self._calls
        ]
        digest = hashlib.sha256(repr((lines, called, state)).encode()).hexdigest()[:16]
        arguments = [*names, "count", "seeds", *(f"f{k}" for k in range(firsts)), *constants]
        with _lock:
            if digest not in _compiled:
                file = "" if "" in files else __file__  # kept if all that it calls is
                _compiled[digest] = generate(
                    f"scan_{digest}", arguments, lines, namespace, __name__, file
                )
            return _compiled[digest]


class Scans:
    """The programs of one thread, each proved to repeat the layer that it was recorded of.

    The last :data:`_KEPT` of them are kept.
    """

    def __init__(self):
        self._programs: dict[Hashable, Program | None] = {}

    def program(
        self,
        key: Hashable,
        step: Callable,
        carry: Carry,
        xs: Nest,
        layer: int,
        keep: tuple[bool, ...],
        direction: int,
    ) -> Program | None:
        """The program of ``step``, recorded on ``carry`` and that ``layer`` of ``xs``, of Stacks.

        None where its recorded kernel calls are not all that the step does. ``key`` must say all
        that decides which calls these are and their constants: equal keys are recorded once.
        """
        if key not in self._programs:
            xs = map_leaves(lambda stack: stack.at(layer), xs)
            copies = tuple(map(np.copy, carry)), map_leaves(np.copy, xs)
            result, program = record(step, *copies)
            repeats = program.repeats(result, carry, xs, keep, direction)
            while len(self._programs) >= _KEPT:
                del self._programs[next(iter(self._programs))]
            self._programs[key] = program if repeats else None
        return self._programs[key]


def single(
    step: Callable, carry: Carry, xs: Nest, keep: tuple[bool, ...]
) -> tuple[list, Nest, list[np.ndarray]]:
    """What :meth:`Program.scan` returns for one layer, by running the step as it stands.

    The step may hand on more arrays than it was given, or fewer; those beyond ``keep`` are kept.
    """
    out, ys = step(carry, map_leaves(lambda stack: stack.at(0), xs))
    carries = []
    for k, passed in enumerate(out):
        if k < len(keep) and not keep[k]:
            carries.append(passed)
        elif passed.ndim == 1:
            carries.append(Stack(np.stack([carry[k], passed], axis=1)))
        else:
            carries.append(Stack(passed[:, None], -1))
    return carries, map_leaves(lambda array: Stack(array[:, None]), ys), []


def record(step: Callable, carry: Carry, xs: Nest) -> tuple[Nest, Program]:
    """``step(carry, xs)`` and its program; every array must be handed to kernels as it is."""
    with recorded() as calls:
        result = step(carry, xs)
        return result, Program(calls, carry, xs, result)
