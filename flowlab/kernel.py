"""``@kernel``: the one way in which flowlab uses Numba.

A kernel is written for one network, with its shapes in NumPy's generalized-ufunc notation::

    @kernel("(n,i),(i,o),(o)->(n,o)")
    def linear_forward(x, W, b, y):
        np.dot(x, W, y)
        y += b

It is *called* on an ensemble: every array has a leading axis with one entry per seed. Kernels hold
no lock while they run, so threads work on parts of an ensemble side by side. Arrays left of the
arrow are read, arrays right of it are written, and trailing arguments beyond the signature are
constants shared by the ensemble. Dots stand for any axes, the same wherever they occur: ``(...)``
or ``(n,...,i)``; the signature ``"...,...->..."`` declares a scalar function that is mapped over
arrays of one shape.
"""

import inspect
import os
import re
from collections.abc import Callable
from contextlib import contextmanager
from functools import cached_property, partial
from threading import local

import numpy as np
from numba import jit as numba_jit
from numba import njit
from numba.extending import intrinsic

from flowlab import vectors
from flowlab.cache import keep
from flowlab.errors import InputError
from flowlab.numba_private import CPUDispatcher, cgutils, make_array

vectors.settle()  # before the first function is compiled

# Kernels are called from Python and from one another alone: no C wrappers to compile as well.
OPTIONS = {"error_model": "numpy", "no_cfunc_wrapper": True}

outer = partial(njit, **OPTIONS)  # compiles what Python calls


class ShapeError(InputError):
    """A shape that does not fit: layer, axis, expected and received."""


class Inner(CPUDispatcher):
    """A compiled function for use inside kernels, without the code by which Python calls it.

    That is a sixth of what there is to compile. Python calls a twin, compiled for the purpose.
    """

    def add_overload(self, cres):
        self.overloads[tuple(cres.signature.args)] = cres  # and not where Python's calls are found

    def _compile_for_args(self, *arguments, **named):
        return self._twin

    @cached_property
    def _twin(self):
        options = {**self.targetoptions, "no_cpython_wrapper": False}
        return numba_jit(**options)(self.py_func)


def inner(function, **options):
    """Compile a function for use inside kernels."""
    compiled = njit(function, no_cpython_wrapper=True, **OPTIONS, **options)
    compiled.__class__ = Inner
    return compiled


def jit(function, *, inline: bool = False):
    """Compile a helper for use inside kernels, in place of every call if ``inline``."""
    return inner(function, fastmath={"contract"}, forceinline=inline)


@intrinsic
def borrowed(context, array):
    """For use inside kernels: an array whose views are not counted as references.

    Counting takes longer than a short row's work. The array itself must outlive the views.
    """

    def generated(context, builder, signature, values):
        view = make_array(array)(context, builder, values[0])
        view.meminfo = cgutils.get_null_value(view.meminfo.type)
        return view._getvalue()

    return array(array), generated


_names: set[tuple[str, str]] = set()


def _kept_beside(function) -> str:
    """The file beside which compiled code is kept, or "" where it must not be.

    Kept code is found by file and name, which the functions that a factory makes
    share, as do two of one name; what is typed in a notebook has no file.
    """
    file, name = function.__code__.co_filename, function.__name__
    alone = "<" not in function.__qualname__ and (file, name) not in _names
    _names.add((file, name))
    return file if alone and os.path.exists(file) else ""


class Kernel:
    """A function of one network's arrays, lifted over an ensemble of networks.

    ``single`` is the compiled function of one network's arrays, for use inside other kernels;
    ``run`` is the lifted function without checks; calling the kernel checks shapes first. ``home``
    is the module, and the file beside which compiled code is kept ("" where it is not).
    """

    def __init__(self, function, signature: str, fastmath):
        self.name = function.__name__
        self.signature = signature.replace(" ", "")
        self.argument_names = tuple(inspect.signature(function).parameters)
        reads, writes = (_dimensions(side) for side in self.signature.split("->"))
        self.n_reads, self.dimensions = len(reads), reads + writes
        self.elementwise = self.signature.startswith("...")
        skipped = self.n_reads if self.elementwise else len(self.dimensions)
        self.constants = self.argument_names[skipped:]
        self.home = (function.__module__, _kept_beside(function))
        self.function, self._fastmath = function, fastmath

    @cached_property
    def single(self):
        own = inner(self.function, fastmath=self._fastmath)
        if not self.elementwise:
            return keep(own, self.home[1])
        names = [f"_a{i}" for i in range(len(self.dimensions))]
        reads = ", ".join([f"{n}[_i]" for n in names[: self.n_reads]] + list(self.constants))
        lines = [f"{n} = {n}.reshape({n}.size)" for n in names]
        lines += [f"for _i in range({names[-1]}.size):", f"    {names[-1]}[_i] = _scalar({reads})"]
        arguments = names + list(self.constants)
        given = {"_scalar": own}
        return generate(f"{self.name}_map", arguments, lines, given, *self.home, compiled=inner)

    @cached_property
    def compiled(self):
        """The function over the ensemble."""
        vectors.check()
        names = [f"_a{i}" for i in range(len(self.dimensions))]
        one, scalar = "[_s]", "[_s:_s+1]"
        views = [n + (scalar if self.writes_scalar(k) else one) for k, n in enumerate(names)]
        given = ", ".join([*views, *self.constants])
        lines = ["for _s in range(_a0.shape[0]):", f"    _single({given})"]
        name, arguments = f"{self.name}_ensemble", [*names, *self.constants]
        return generate(name, arguments, lines, {"_single": self.single}, *self.home)

    def writes_scalar(self, position: int) -> bool:
        """Is this argument a scalar result, which the kernel receives as an array of length 1?"""
        return position >= self.n_reads and self.dimensions[position] == ()

    def run(self, *arguments) -> None:
        """Run over the ensemble without checks; a recording (see ``recorded``) takes note."""
        calls = getattr(_recording, "calls", None)
        if calls is not None:
            calls.append((self, arguments))
        self.compiled(*arguments)

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
        inner = None  # how many axes the dots of (n,...,i) stand for
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
            elif "..." in dims:
                inner = max(len(shape) - len(dims), 0) if inner is None else inner
                at = dims.index("...")
                dots = tuple(f"{k}" for k in range(at + 1, at + 1 + inner))
                dims = (*dims[:at], *dots, *dims[at + 1 :])
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


_recording = local()


@contextmanager
def recorded():
    """Collects the kernel calls that this thread makes meanwhile, as (kernel, arguments)."""
    _recording.calls = []
    try:
        yield _recording.calls
    finally:
        _recording.calls = None


def generate(
    name: str,
    arguments: list[str],
    lines: list[str],
    namespace: dict,
    module: str,
    file: str,
    compiled: Callable = outer,
):
    """Compile generated source as a function of ``module``, whose source is ``file``.

    ``compiled`` makes a compiled function of one.

    Numba's disk cache refuses closures over compiled functions, but it keeps a function whose
    source says that it stands in an existing file, and drops it when that file changes.
    """
    body = "".join(f"    {line}\n" for line in lines)
    source = f"def {name}({', '.join(arguments)}):\n{body}"
    namespace = {**namespace, "__name__": module}
    exec(compile(source, file, "exec"), namespace)
    return keep(compiled(namespace[name], nogil=True), file)


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
