"""Intel's short vector math library, called from Numba.

Numba's own way to it needs an LLVM that was patched for it, which that of llvmlite's wheels is not:
such a Numba finds the library and calls nothing of it. Here its functions are called by name, a
vector at a time. The package ``intel-cmplr-lib-rt`` brings the library.
"""

import ctypes.util
import os
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, files

import llvmlite.binding
import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from experiments.benchmarks.machine import machine
from flowlab.numba_private import cgutils, make_array

HOW = "pip install intel-cmplr-lib-rt"
_PACKAGES = ("intel-cmplr-lib-rt", "icc-rt")


@cache
def installed() -> bool:
    """Is the library there? If so it is loaded."""
    for path in (*_of_packages(), ctypes.util.find_library("svml")):
        if path is None:
            continue
        with suppress(RuntimeError):
            beside = os.path.join(os.path.dirname(path), "libintlc.so.5")  # which it calls
            if os.path.exists(beside):
                llvmlite.binding.load_library_permanently(beside)
            llvmlite.binding.load_library_permanently(str(path))
            return True
    return False


def _of_packages():
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            for file in files(package) or ():
                if file.name in ("libsvml.so", "svml_dispmd.dll"):
                    yield str(file.locate())


def mapped(name: str, dtype, accurate: bool = False) -> Callable:
    """``f(x, y)`` of flat arrays whose length is a multiple of a vector's.

    ``accurate`` takes the variant within about half a unit in the last place; the other one is
    within four.
    """
    dtype = np.dtype(dtype)
    lanes = machine()["bits"] // (8 * dtype.itemsize)
    letter = "f" if dtype == np.float32 else ""
    symbol = f"__svml_{name}{letter}{lanes}{'_ha' if accurate else ''}"
    element = ir.FloatType() if dtype == np.float32 else ir.DoubleType()
    vector = ir.VectorType(element, lanes)

    @intrinsic
    def step(context, x, y, at):
        def generated(context, builder, signature, values):
            places = [
                builder.bitcast(
                    builder.gep(make_array(own)(context, builder, value).data, [values[2]]),
                    vector.as_pointer(),
                )
                for own, value in zip(signature.args[:2], values, strict=False)
            ]
            kind = ir.FunctionType(vector, [vector])
            function = cgutils.get_or_insert_function(builder.module, kind, symbol)
            loaded = builder.load(places[0], align=dtype.itemsize)
            builder.store(builder.call(function, [loaded]), places[1], align=dtype.itemsize)

        return types.void(x, y, at), generated

    @njit
    def run(x, y):
        for at in range(0, x.size, lanes):
            step(x, y, at)

    return run
