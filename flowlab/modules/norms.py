"""The norm of a user's array, its share of zeros, and what its type says of both.

A norm is a log2, accumulated in float64, so that it is true wherever the entries are. Entries
below the type's range are not there to be summed: :data:`LOWEST` is where that begins to show.
"""

import math

import numpy as np

from flowlab.errors import InputError
from flowlab.kernel import kernel
from flowlab.numerics.scale import log2_norm_single

# log2 of the smallest number above 0 in each type, of a complex one in its parts.
_SMALLEST = {"float16": -24, "bfloat16": -133, "float32": -149, "float64": -1074}
_SMALLEST |= {"complex64": -149, "complex128": -1074}
# log2 of the root mean square below which a type's arrays are said to underflow: 2^10 times the
# smallest number. Of normal entries there, one in two thousand is flushed to zero, and the others
# keep ten bits on average; the norm is still true to 1e-6, and further down no longer.
LOWEST = {name: power + 10 for name, power in _SMALLEST.items()}


@kernel("(n)->(two)", reassociate=True)
def _norm_and_zeros(x, out):
    total, zeros = 0.0, 0.0
    for i in range(x.size):
        v = np.float64(x[i])
        total += v * v
        zeros += 1.0 if v == 0.0 else 0.0
    if 1e-280 < total < 1e280:
        out[0] = 0.5 * np.log2(total)
    else:  # squares left float64's range, or the array is zero or not finite
        log2_norm_single(x, out[0:1])
    out[1] = zeros / x.size


def log2_norm_of(array: np.ndarray) -> tuple[float, float]:
    """(log2 of the Frobenius norm, share of exact zeros) of an array of numbers of any shape.

    The norm is -inf for zeros alone, +inf or NaN where the array holds such values, that of |z| for
    complex z. An empty array has the norm of zero and the share NaN. Types of fewer bits than
    float32 are read as float32, whole numbers as float64. Raises InputError for what holds no
    numbers, and for numbers wider than float64, whose range this one does not have.
    """
    dtype = array.dtype
    if dtype.kind == "c" and dtype.itemsize <= 16:
        parts = np.ascontiguousarray(array).view(f"f{dtype.itemsize // 2}")
        zeros = np.mean(array == 0) if array.size else np.nan
        return log2_norm_of(parts)[0], float(zeros)
    if dtype.kind not in "biufV" or dtype.names or dtype.itemsize > 8:
        raise _no_numbers(dtype)
    if dtype.kind in "biu":
        array = array.astype(np.float64)
    elif dtype.char not in "fd" or not dtype.isnative:
        try:
            array = array.astype(np.float64 if dtype.itemsize == 8 else np.float32)
        except (TypeError, ValueError):
            raise _no_numbers(dtype) from None
    out = np.empty((1, 2))
    # In the order of memory, so that a transposed array is read as it lies.
    _norm_and_zeros.run(array.ravel(order="K")[None], out)
    return float(out[0, 0]), float(out[0, 1])


def status_of(log2_norm: float, size: int, dtype: object) -> str:
    """ok, zero, underflow or nonfinite, of an array of ``size`` entries of the type ``dtype``.

    ``zero``: all entries are 0; ``underflow``: their root mean square is below :data:`LOWEST` of
    the type. ``dtype`` is NumPy's, PyTorch's or the name; types that are not listed do not
    underflow.
    """
    return word_of(log2_norm, room_of(log2_norm, size, dtype))


def room_of(log2_norm: float, size: int, dtype: object) -> float:
    """By how many powers of two the root mean square lies above :data:`LOWEST` of the type.

    inf of a norm that is zero or not finite, and of types that do not underflow.
    """
    if not math.isfinite(log2_norm):
        return math.inf
    lowest = LOWEST.get(str(dtype).rpartition(".")[2], -math.inf)
    return log2_norm - 0.5 * math.log2(size) - lowest


def word_of(log2_norm: float, room: float) -> str:
    """The status of a norm with so much room, as of :func:`status_of`."""
    if math.isnan(log2_norm) or log2_norm == math.inf:
        return "nonfinite"
    if log2_norm == -math.inf:
        return "zero"
    return "underflow" if room < 0 else "ok"


def log2_of_all(log2_norms: np.ndarray) -> float:
    """log2 of the norm of several arrays as one, from theirs (n,): the root of a sum of squares."""
    top = log2_norms.max()
    if np.isfinite(top):
        top = top + 0.5 * np.log2(np.exp2(2 * (log2_norms - top)).sum())
    return float(top)


def _no_numbers(dtype: np.dtype) -> InputError:
    return InputError(f"an array must hold numbers of at most 64 bits; got {dtype}")
