"""Programs: kernel calls recorded once, compiled into one function, replayed on other arrays.

A block's pass is a fixed sequence of kernel calls on arrays of fixed shapes. Between two kernels
Python costs more than a small kernel itself, and threads would wait for one another there; so a
pass that is repeated (the hidden layers of a deep net) is recorded at its first block and replayed
at the others. A replay makes the same calls in the same order: the same bits.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from threading import Lock
from typing import Any

import numpy as np

from flowlab.kernel import generate, recorded

_compiled: dict[str, Callable] = {}
_lock = Lock()


class Program:
    """The recorded calls of ``function(*inputs)``; calling it replays them on other inputs."""

    def __init__(self, calls, inputs, result):
        self._slots: dict[int, int] = {}  # address -> slot
        self._shapes: list[tuple] = []
        self._inputs = [self._slot(array) for _, array in _arrays(inputs)]
        # Accessors as compiled expressions: walking the nests costs more than a small kernel.
        paths = ", ".join(f"inputs{path}" for path, _ in _arrays(inputs))
        self._flatten = eval(f"lambda inputs: ({paths},)")
        self._calls = [
            (
                kernel,
                [(self._slot(array), array.shape) for array in arguments[: len(kernel.dimensions)]],
                arguments[len(kernel.dimensions) :],
            )
            for kernel, arguments in calls
        ]
        self._rebuild = eval(f"lambda a: {_expression(result, self._slot)}")
        self._constants = [c for _, _, constants in self._calls for c in constants]
        self._function: Callable | None = None

    def _slot(self, array: np.ndarray) -> int:
        address = array.__array_interface__["data"][0]
        if address not in self._slots:
            self._slots[address] = len(self._shapes)
            self._shapes.append((array.shape, array.dtype))
        return self._slots[address]

    def __call__(self, inputs, take: Callable) -> tuple[Any, list[np.ndarray]]:
        """The result on other inputs of the same shapes, and the arrays taken for it."""
        arrays: list = [None] * len(self._shapes)
        for slot, array in zip(self._inputs, self._flatten(inputs), strict=True):
            arrays[slot] = array
        taken = []
        for slot, array in enumerate(arrays):
            if array is None:
                arrays[slot] = take(*self._shapes[slot])
                taken.append(arrays[slot])
        if self._function is None:
            self._function = self._compile()
        self._function(*arrays, *self._constants)
        return self._rebuild(arrays), taken

    def _compile(self) -> Callable:
        names = [f"a{k}" for k in range(len(self._shapes))]
        lines, namespace, constants, files = ["for s in range(a0.shape[0]):"], {}, [], set()
        for k, (kernel, arrays, given) in enumerate(self._calls):
            views = kernel.views([names[slot] for slot, _ in arrays])
            views = [
                view if shape == self._shapes[slot][0] else self._reshaped(slot, shape)
                for view, (slot, shape) in zip(views, arrays, strict=True)
            ]
            own = [f"c{len(constants) + i}" for i in range(len(given))]
            constants += own
            lines.append(f"    k{k}({', '.join([*views, *own])})")
            namespace[f"k{k}"] = kernel.single
            files.add(kernel.home[1])
        # The name stands for the calls and for the state of the files that they come from.
        state = [f"{file}:{os.stat(file).st_mtime_ns}" for file in sorted(files)]
        called = [(kernel.name, kernel.home) for kernel, _, _ in self._calls]
        digest = hashlib.sha256(repr((lines, called, state)).encode()).hexdigest()[:16]
        with _lock:
            if digest not in _compiled:
                _compiled[digest] = generate(
                    f"program_{digest}", names + constants, lines, namespace, __name__, __file__
                )
            return _compiled[digest]

    def _reshaped(self, slot: int, shape: tuple) -> str:
        """Source of network s of an array that a kernel received under another shape."""
        if self._shapes[slot][0][1:] == ():
            return f"a{slot}[s:s+1]"
        return f"a{slot}[s].reshape({', '.join(map(str, shape[1:]))})"


def record(function: Callable, *inputs) -> tuple[Any, Program]:
    """``function(*inputs)`` and its program; every array must be handed to kernels as it is."""
    with recorded() as calls:
        result = function(*inputs)
        return result, Program(calls, inputs, result)


def _arrays(nest, path: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """(path, array) of a nest, the path as source: ``[0]['x']``."""
    if isinstance(nest, np.ndarray):
        yield path, nest
    else:
        for key, item in nest.items() if isinstance(nest, dict) else enumerate(nest):
            yield from _arrays(item, f"{path}[{key!r}]")


def _expression(nest, slot: Callable[[np.ndarray], int]) -> str:
    """Source of a nest like this one made of the arrays a[slot]."""
    if isinstance(nest, np.ndarray):
        return f"a[{slot(nest)}]"
    if isinstance(nest, dict):
        return "{" + ", ".join(f"{k!r}: {_expression(v, slot)}" for k, v in nest.items()) + "}"
    return "(" + "".join(f"{_expression(item, slot)}, " for item in nest) + ")"
