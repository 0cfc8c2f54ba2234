"""flowlab's elementary functions beside others: time for an element, and error in ulps.

One thread goes over an array that the first cache holds. Others are the C library's functions
called from Numba, NumPy's loops (SciPy's for the sigmoid and GELU; on AVX-512 machines NumPy's are
Intel's) and Intel's SVML where it is installed, in its usual and in its accurate variant. SVML has
no sigmoid and no GELU: they are made of its exponential and its normal distribution function.

An ulp is the spacing of the array's numbers at the true value; true values are SciPy's in float64
for float32, and mpmath's for float64. Arguments are spread over all that the function is used on.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pandas as pd
import scipy.special
from numba import njit

from experiments.benchmarks import svml
from experiments.benchmarks.timing import Say, enough, race
from flowlab.errors import unknown
from flowlab.kernel import kernel
from flowlab.layers.activation import gelu_forward, sigmoid_forward, tanh_forward
from flowlab.numerics import elementary

OURS, LIBM, NUMPY = "flowlab", "C library", "NumPy"
SVML, ACCURATE = "SVML", "SVML, accurate"
SIZE = 4096  # elements, a multiple of all vectors
_LONG_ENOUGH = 0.003  # seconds that a timed call takes at least
_POINTS = {"float32": 20_000, "float64": 500}  # mpmath takes its time
_SQRT_HALF = math.sqrt(0.5)

Unary = Callable[[np.ndarray, np.ndarray], object]  # f(x, y) writes y


@kernel("...->...")
def exp_map(x):
    return elementary.exp(x)


@kernel("...->...")
def expm1_map(x):
    return elementary.expm1(x)


@kernel("...->...")
def log1p_map(x):
    return elementary.log1p(x)


@kernel("...->...")
def exp_libm(x):
    return math.exp(x)


@kernel("...->...")
def expm1_libm(x):
    return math.expm1(x)


@kernel("...->...")
def log1p_libm(x):
    return math.log1p(x)


@kernel("...->...")
def tanh_libm(x):
    return math.tanh(x)


@kernel("...->...")
def sigmoid_libm(x):
    return elementary.like(x, 1) / (elementary.like(x, 1) + math.exp(-x))


@kernel("...->...")
def gelu_libm(x):
    half = elementary.like(x, 0.5)
    return half * x * math.erfc(elementary.like(x, -_SQRT_HALF) * x)


KERNELS = {
    "exp": (exp_map, exp_libm),
    "expm1": (expm1_map, expm1_libm),
    "tanh": (tanh_forward, tanh_libm),
    "sigmoid": (sigmoid_forward, sigmoid_libm),
    "gelu": (gelu_forward, gelu_libm),
    "log1p": (log1p_map, log1p_libm),
}
# Where results are normal numbers in float32, too.
RANGES = {
    "exp": (-80.0, 80.0),
    "expm1": (-80.0, 80.0),
    "tanh": (-10.0, 10.0),
    "sigmoid": (-80.0, 80.0),
    "gelu": (-10.0, 10.0),
    "log1p": (0.0, 1.0),
}


def _gelu_numpy(x, y):
    scipy.special.ndtr(x, y)
    y *= x


NUMPYS: dict[str, Unary] = {
    "exp": np.exp,
    "expm1": np.expm1,
    "tanh": np.tanh,
    "sigmoid": scipy.special.expit,
    "gelu": _gelu_numpy,
    "log1p": np.log1p,
}


def rows(
    say: Say,
    functions=tuple(KERNELS),
    dtypes=tuple(_POINTS),
    rounds: int = 7,
    seconds: int = 30,
) -> Iterator[dict]:
    """A row per function, type and form: ``ns`` for an element and ``ulp``, the largest error.

    ``ratio`` is the form's time to flowlab's, see :func:`race`. ``seconds`` are shared by all.
    Raises InputError for an unknown function or type.
    """
    for name, known in (("functions", KERNELS), ("dtypes", _POINTS)):
        for one in functions if name == "functions" else dtypes:
            if one not in known:
                raise unknown(name, one, known)
    cases = [(name, dtype) for dtype in dtypes for name in functions]
    for name, dtype in cases:
        say(f"{name} in {dtype}")
        forms = forms_of(name, dtype)
        low, high = RANGES[name]
        x = np.clip(2 * np.random.default_rng(0).standard_normal(SIZE), low, high).astype(dtype)
        y = np.empty_like(x)
        once = {form: partial(_repeated, run, x, y) for form, run in forms.items()}
        repeats = enough(once[OURS], _LONG_ENOUGH)
        calls = {form: partial(run, repeats) for form, run in once.items()}
        share = seconds / len(cases)
        point, true = points(name, dtype)

        def saying(what, name=name, dtype=dtype):
            say(f"{name} in {dtype}: {what}")

        for row in race(calls, rounds, OURS, saying, share, tuple(forms)):
            ns = 1e9 * row["seconds"] / (repeats * SIZE)
            found = {key: row[key] for key in ("ratio", "low", "high", "rounds", "form")}
            error = ulps(forms[row["form"]], point, true)
            yield {"function": name, "dtype": dtype, "ns": ns, "ulp": error, **found}


def report(table: pd.DataFrame) -> str:
    """Whether writing the functions by hand is worth it, and against what."""
    ours = table[table["form"] == OURS].set_index(["function", "dtype"])
    others = table[table["form"] != OURS].set_index(["function", "dtype"])
    if not len(others):
        return "No other function was timed."
    fast = others.sort_values("ratio").groupby(level=[0, 1], sort=False).head(1)
    behind = fast[fast["ratio"] < 1]
    text = f"flowlab's functions are within {ours['ulp'].max():.1f} ulp and "
    if len(behind):
        where = [
            f"{name} in {dtype} ({row.ratio:.2f} of its time by {row.form}, {row.ulp:.1f} ulp)"
            for (name, dtype), row in zip(behind.index, behind.itertuples(), strict=True)
        ]
        text += f"slower in {len(behind)} of {len(fast)} cases: {', '.join(where)}. "
    else:
        text += "the fastest in all cases. "
    ahead = fast["ratio"][fast["ratio"] >= 1]
    if len(ahead):
        where = "Elsewhere the" if len(behind) else "The"
        text += f"{where} fastest of the others takes {ahead.min():.1f} to {ahead.max():.1f} times "
        text += "as long. "
    if 2 * len(behind) <= len(fast):
        text += "To write them by hand is justified"
        text += "." if not len(behind) else " for most."
    else:
        text += "To write them by hand is no longer justified by speed."
    if not table["form"].isin([SVML, ACCURATE]).any():
        text += f" SVML is not installed: {svml.HOW}"
    return text


def forms_of(name: str, dtype: str) -> dict[str, Unary]:
    """Every form by its name."""
    own, libm = (_flat(one) for one in KERNELS[name])
    forms = {OURS: own, LIBM: libm, NUMPY: NUMPYS[name]}
    if svml.installed():
        forms |= {SVML: _svml(name, dtype, False), ACCURATE: _svml(name, dtype, True)}
    return forms


def _flat(own) -> Unary:
    return lambda x, y: own.compiled(x[None], y[None])


def _svml(name: str, dtype: str, accurate: bool) -> Unary:
    if name not in ("sigmoid", "gelu"):
        return svml.mapped(name, dtype, accurate)
    inner = svml.mapped("exp" if name == "sigmoid" else "cdfnorm", dtype, accurate)

    @njit(error_model="numpy", fastmath={"contract"})
    def sigmoid(x, y):
        for i in range(x.size):
            y[i] = -x[i]
        inner(y, y)
        for i in range(x.size):
            y[i] = elementary.like(x[i], 1) / (elementary.like(x[i], 1) + y[i])

    @njit(error_model="numpy")
    def gelu(x, y):
        inner(x, y)
        for i in range(x.size):
            y[i] *= x[i]

    return sigmoid if name == "sigmoid" else gelu


def _repeated(run: Unary, x, y, repeats: int) -> None:
    for _ in range(repeats):
        run(x, y)


def points(name: str, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """(arguments, true values) spread evenly over the range, and by logarithms towards zero."""
    (low, high), count = RANGES[name], _POINTS[dtype] // 2
    near = np.geomspace(1e-6, high, count)
    near[1::2] *= 1 if low == 0 else -1
    x = np.concatenate([np.linspace(low, high, count), np.maximum(near, low)]).astype(dtype)
    if dtype == "float64":
        return x, _by_mpmath(name, x)
    wide, true = x.astype(np.float64), np.empty(len(x))
    NUMPYS[name](wide, true)
    return x, true


def _by_mpmath(name: str, x: np.ndarray) -> np.ndarray:
    """True values, rounded to longdouble where that is wider."""
    import mpmath

    functions = {
        "sigmoid": lambda v: 1 / (1 + mpmath.exp(-v)),
        "gelu": lambda v: v * mpmath.ncdf(v),
    }
    function = functions.get(name) or getattr(mpmath, name)
    with mpmath.workdps(40):
        values = [function(mpmath.mpf(float(v))) for v in x]
        highs = [float(v) for v in values]
        lows = [float(v - high) for v, high in zip(values, highs, strict=True)]
    return np.array(highs, np.longdouble) + np.array(lows, np.longdouble)


def ulps(run: Unary, x: np.ndarray, true: np.ndarray) -> float:
    """The largest error of f(x, y), in spacings of x's type at the true values."""
    count = -(-len(x) // SIZE) * SIZE  # of whole vectors
    padded = np.resize(x, count)
    y = np.empty_like(padded)
    run(padded, y)
    spacing = np.spacing(np.abs(true).astype(x.dtype)).astype(np.float64)
    return float(np.max(np.abs(y[: len(x)].astype(true.dtype) - true) / spacing))
