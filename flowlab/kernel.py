"""``@kernel``: the one way in which flowlab uses Numba.

A kernel is written for one network, with its shapes in NumPy's generalized-ufunc notation::

    @kernel("(n,i),(i,o),(o)->(n,o)")
    def linear_forward(x, W, b, y):
        np.dot(x, W, y)
        y += b

It is *called* on an ensemble: every array has a leading axis with one entry per seed. Kernels hold
no lock while they run, so threads work on parts of an ensemble side by side. Arrays left of the
arrow are read, arrays right of it are written, and trailing arguments beyond the signature are
constants shared by the ensemble. ``(...)`` stands for any axes, the same wherever it occurs; the
signature ``"...,...->..."`` declares a scalar function that is mapped over arrays of one shape.
"""

import inspect
import os
import re
from functools import cached_property

import numpy as np
from numba import njit

from flowlab.errors import InputError


class ShapeError(InputError):
    """A shape that does not fit: layer, axis, expected and received."""


def jit(function):
    """Compile a scalar helper for use inside kernels."""
    return njit(function, error_model="numpy", fastmath={"contract"})


class Kernel:
    """A function of one network's arrays, lifted over an ensemble of networks.

    ``single`` is the compiled function of one network, for use inside other kernels; ``run`` is the
    lifted function without checks; calling the kernel checks shapes first.
    """

    def __init__(self, function, signature: str, fastmath):
        self.name = function.__name__
        self.signature = signature.replace(" ", "")
        self.argument_names = tuple(inspect.signature(function).parameters)
        reads, writes = (_dimensions(side) for side in self.signature.split("->"))
        self.n_reads, self.dimensions = len(reads), reads + writes
        self.elementwise = self.signature.startswith("...")
        self._function, self._fastmath = function, fastmath

    @cached_property
    def single(self):
        return njit(
            self._function,
            error_model="numpy",
            fastmath=self._fastmath,
            cache=_has_file(self._function) and not self.elementwise,
        )

    @cached_property
    def run(self):
        # Numba's disk cache refuses closures over compiled functions, so the lifted function is
        # generated as source that belongs to the kernel's own file: cached and invalidated with it.
        names = [f"a{i}" for i in range(len(self.dimensions))]
        constants = self.argument_names[len(self.dimensions) :]
        if self.elementwise:
            constants = self.argument_names[self.n_reads :]
            reads, writes = names[: self.n_reads], names[self.n_reads :]
            flat = "".join(f"        r{n} = {n}[s].reshape({n}[s].size)\n" for n in names)
            call = ", ".join([f"r{n}[i]" for n in reads] + list(constants))
            body = (
                f"{flat}        for i in range(r{writes[0]}.size):\n"
                f"            r{writes[0]}[i] = single({call})\n"
            )
        else:
            written = names[self.n_reads :]
            views = [
                f"{n}[s:s+1]" if not d and n in written else f"{n}[s]"
                for n, d in zip(names, self.dimensions, strict=True)
            ]
            body = f"        single({', '.join(views + list(constants))})\n"
        name = f"{self.name}_ensemble"
        source = (
            f"def {name}({', '.join(names + list(constants))}):\n"
            f"    for s in range(a0.shape[0]):\n{body}"
        )
        namespace = {"single": self.single, "__name__": self._function.__module__}
        exec(compile(source, self._function.__code__.co_filename, "exec"), namespace)
        return njit(
            namespace[name],
            nogil=True,
            error_model="numpy",
            cache=_has_file(self._function),
        )

    def __call__(self, *arguments) -> None:
        """Check every named dimension against its first occurrence, then run.

        Raises ShapeError naming the kernel, the array, the axis, the expected and received length.
        """
        self.check(arguments)
        self.run(*arguments)

    def check(self, arguments) -> None:
        """Raise ShapeError unless the arrays fit the signature."""
        bound: dict[str, tuple[int, str]] = {}
        ensemble = any_shape = None
        count = len(self.dimensions)
        names = list(self.argument_names[:count])
        if self.elementwise:
            names = [*self.argument_names[: self.n_reads], "the output"]
        if len(arguments) < count:
            raise ShapeError(f"{self.name} takes {count} arrays; got {len(arguments)}")
        for name, dims, array in zip(names, self.dimensions, arguments[:count], strict=True):
            if not isinstance(array, np.ndarray):
                raise ShapeError(f"{self.name}: {name} must be an array; got {array!r}")
            if not array.flags.c_contiguous:
                raise ShapeError(f"{self.name}: {name} must be C-contiguous; got strided data")
            shape = array.shape
            if dims is Ellipsis:
                any_shape = any_shape or array.shape
                dims = tuple(f"{k}" for k in range(1, len(any_shape)))
            if len(shape) != len(dims) + 1:
                raise ShapeError(
                    f"{self.name}: {name} must have {len(dims) + 1} axes "
                    f"(seeds{''.join(', ' + d for d in dims)}); got shape {shape}"
                )
            for axis, length in zip(("seeds", *dims), shape, strict=True):
                ensemble = length if ensemble is None else ensemble
                expected, origin = bound.setdefault(axis, (length, name))
                if length != expected:
                    raise ShapeError(
                        f"{self.name}: axis {axis} of {name} must be {expected}, "
                        f"as in {origin}; got {length}"
                    )


def kernel(signature: str, *, reassociate: bool = False):
    """Declare a kernel by its shapes; see the module's text.

    ``reassociate`` lets sums vectorise. Full ``fastmath`` is never used: it would make
    ``isnan`` and ``isfinite`` lie.
    """
    fastmath = {"contract", "reassoc"} if reassociate else {"contract"}
    return lambda function: Kernel(function, signature, fastmath)


def _dimensions(side: str) -> tuple:
    if side.startswith("..."):
        return (Ellipsis,) * len(side.split(","))
    groups = re.findall(r"\(([^)]*)\)", side)
    return tuple(
        Ellipsis if group == "..." else tuple(name for name in group.split(",") if name)
        for group in groups
    )


def _has_file(function) -> bool:
    return os.path.exists(function.__code__.co_filename)
