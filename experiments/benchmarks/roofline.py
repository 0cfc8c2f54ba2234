"""Where each kernel stands under the roof: operations, bytes, time, share of the peak in use.

A kernel cannot take less time than its operations at the machine's peak, nor than its bytes at the
memory's (Williams, Waterman and Patterson 2009, "Roofline: an insightful visual performance model
for multicore architectures"). Both peaks are measured in the same run, by one thread: the product
of two large float32 matrices, and y = a + s b over arrays as large as those that the kernel works
on, since a cache feeds more than memory does.

Bytes are those of the arrays that a kernel reads or writes, each counted once. Operations are those
of the formulas: products exactly; of elementary functions and of drawing, whose integer operations
count as well, what the source has for an element. ``share`` is the least possible time over the
time.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import scipy.linalg.cython_blas  # noqa: F401  loaded early, so that its threads can be limited
from threadpoolctl import threadpool_limits

from experiments.benchmarks.probe import (
    THREE,
    WITH_GRAM,
    gram_products,
    operands,
    three_products,
)
from experiments.benchmarks.timing import Say, elapsed, enough
from flowlab.claims import twins
from flowlab.kernel import kernel
from flowlab.layer import Layer, Workspace, leaves, map_leaves
from flowlab.layers.linear import TILE
from flowlab.numerics.random import fill_normal
from flowlab.numerics.scale import log2_norm

FLOPS, BYTES = "operations", "bytes"
PRODUCT, TRIAD = "product of large matrices", "y = a + s b in memory"
_LONG_ENOUGH = 0.004  # seconds that a timed call takes at least
_LARGE = (256, 512, 1024)  # rows and columns of the matrices, of which the fastest counts
_IN_MEMORY = 2**23  # elements of an array that no cache holds
_NOISE = 1.1  # of a share that should be one at most
# Operations for an element, counted in the source of formulas in float32.
_DRAWN = 85  # 20 rounds of Threefry and half a pair of Box and Muller
_FORWARD = {"relu": 1, "tanh": 32, "gelu": 75, "layer norm": 7}
_PULLBACK = {"relu": 1, "tanh": 70, "gelu": 80, "layer norm": 11}


@kernel("(n,i),(i,o)->(n,o)")
def product(a, b, c):
    np.dot(a, b, c)


@kernel("(n),(n)->(n)")
def triad(a, b, y, factor):
    for i in range(y.size):
        y[i] = a[i] + factor * b[i]


@dataclass(frozen=True)
class KernelWork:
    """A kernel on its arrays: what to call, and how much that is."""

    name: str
    run: Callable[[], object]
    operations: float
    bytes: int


def rows(say: Say, width: int = 256, batch: int = 128, rounds: int = 7) -> Iterator[dict]:
    """A row per kernel of one net: ``operations``, ``bytes``, ``microseconds``, and what they make.

    ``intensity`` is operations for a byte, ``limit`` what takes longer at its peak, and ``share``
    how much of that peak is in use. The first rows are the peaks.
    """
    with threadpool_limits(1, user_api="blas"):
        peaks = []
        for several in ([_product(size) for size in _LARGE], [_triad(_IN_MEMORY, TRIAD)]):
            say(several[0].name)
            timed = [(_seconds(work, 2 * rounds), work) for work in several]
            peaks.append(min(timed, key=lambda one: one[0] / one[1].operations))
        flops, memory = peaks[0][1].operations / peaks[0][0], peaks[1][1].bytes / peaks[1][0]
        for seconds, work in peaks:
            yield placed(work, seconds, flops, memory)
        bandwidths: dict[int, float] = {}
        for work in works(width, batch):
            say(work.name)
            # As large as the kernel's arrays, to a factor of two.
            size = min(2 ** round(math.log2(work.bytes / 12)), _IN_MEMORY)
            if size not in bandwidths:
                streamed = _triad(size)
                bandwidths[size] = streamed.bytes / _seconds(streamed, rounds)
            yield placed(work, _seconds(work, rounds), flops, bandwidths[size])


def report(table: pd.DataFrame) -> str:
    """The peaks, and the kernels that use least of what limits them."""
    of = table.set_index("kernel")
    kernels = of.drop([PRODUCT, TRIAD], errors="ignore")
    parts = []
    if PRODUCT in of.index:
        parts.append(f"One thread reaches {of.loc[PRODUCT, 'gflops']:.0f} GFLOP/s")
    if TRIAD in of.index:
        parts.append(f"and {of.loc[TRIAD, 'gbytes']:.0f} GB/s from memory")
    text = f"{' '.join(parts)}." if parts else ""
    for limit in (FLOPS, BYTES):
        own = kernels[kernels["limit"] == limit].sort_values("share")
        if len(own):
            named = [f"{name} {share:.0%}" for name, share in own["share"].items()]
            text += f" Limited by {limit}: {', '.join(named)}."
    if (kernels["share"] > _NOISE).any():
        text += " Some use more than the peak: others kept the machine busy while it was measured."
    return text.strip()


def works(width: int, batch: int) -> Iterator[KernelWork]:
    """Every kernel that is timed: of the probe's passes, then of other layers."""
    n, w = batch, width
    tiles = [min(TILE, n - first) for first in range(0, n, TILE)]
    pairs = (n * n + sum(rows * rows for rows in tiles)) // 2
    rng = np.random.default_rng(0)
    for name, products, count in (
        (THREE, three_products, 6 * n * w * w),
        (WITH_GRAM, gram_products, 4 * n * w * w + 4 * pairs * w),
    ):
        arrays = operands(products, 1, w, n)
        yield KernelWork(name, partial(products.run, *arrays), count, _size(arrays))
    yield from _layer("linear", (n, w), 2 * n * w * w + n * w, 4 * n * w * w + n * w)
    x, dy = (rng.standard_normal((1, n, w), np.float32) for _ in range(2))
    linear, out = twins.timed()["linear"][1].layer((n, w)), np.empty((1, 2))
    norms = partial(linear.example_norms.run, x, dy, out)
    yield KernelWork("norms of examples", norms, 4 * n * w + 2 * n, _size([x, dy]))
    yield KernelWork("log2 norm", partial(log2_norm, x), 2 * n * w, _size([x]))
    W = np.empty((1, w * w), np.float32)
    draw = partial(fill_normal.run, np.zeros(1, np.int64), np.ones(1, np.int64), W, 1.0, 0)
    yield KernelWork("normals drawn", draw, _DRAWN * w * w, _size([W]))
    for name in ("relu", "tanh", "gelu"):
        yield from _layer(name, (n, w), _FORWARD[name] * n * w, _PULLBACK[name] * n * w)
    shape = 32, 16, 32, 32
    taps = 9 * shape[1] ** 2 * shape[0] * shape[2] * shape[3]  # 3 by 3, as many channels out as in
    yield from _layer("conv2d", shape, 2 * taps, 4 * taps)
    shape, size = (16, 32, w), 16 * 32 * w
    of_norm = (own["layer norm"] * size for own in (_FORWARD, _PULLBACK))
    yield from _layer("layer norm", shape, *of_norm)


def _layer(name, shape, forward: float, pullback: float) -> Iterator[KernelWork]:
    """A layer's two passes as it makes them, with the operations of each."""
    layer: Layer = twins.timed()[name][1].layer(shape)
    declared, rng, workspace = layer.declare(shape), np.random.default_rng(0), Workspace()

    def normal(shape):
        return rng.standard_normal((1, *shape), np.float32)

    x, dy = normal(shape), normal(declared.output)
    p = map_leaves(lambda a: normal(a.shape), declared.parameters)
    y, tape = layer.forward(x, p, workspace)
    dx, gradients = layer.pullback(dy, tape, workspace)
    held = [a for _, a in leaves(p)]
    saved = [tape[key] for key in declared.saved] if isinstance(tape, dict) else []

    def forwards():
        y, tape = layer.forward(x, p, workspace)
        for array in (y, *(tape[key] for key in declared.saved)):
            workspace.give(array)

    def pullbacks():
        dx, gradients = layer.pullback(dy, tape, workspace)
        for array in (dx, *(a for _, a in leaves(gradients))):
            workspace.give(array)

    read = [a for key, a in tape.items() if key in layer.pullback_reads]
    written = [dx, *(a for _, a in leaves(gradients))]
    yield KernelWork(f"{name} forward", forwards, forward, _size([x, *held, y, *saved]))
    yield KernelWork(f"{name} pullback", pullbacks, pullback, _size([*read, dy, *written]))


def _size(arrays) -> int:
    return sum(array.nbytes for array in arrays)


def _product(size: int) -> KernelWork:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((1, size, size), np.float32) for _ in range(2))
    c = np.empty_like(a)
    return KernelWork(PRODUCT, partial(product.run, a, b, c), 2 * size**3, _size([a, b, c]))


def _triad(elements: int, name: str = "") -> KernelWork:
    a, b, y = (np.ones((1, elements), np.float32) for _ in range(3))
    return KernelWork(name, partial(triad.run, a, b, y, 0.5), 2 * elements, _size([a, b, y]))


def _seconds(work: KernelWork, rounds: int) -> float:
    """Of one call, the fastest of several: a peak is what can be reached."""

    def repeated(repeats):
        for _ in range(repeats):
            work.run()

    repeats = enough(repeated, _LONG_ENOUGH)
    return min(elapsed(partial(repeated, repeats)) for _ in range(rounds)) / repeats


def placed(work: KernelWork, seconds: float, flops: float, bandwidth: float) -> dict:
    """The row of a kernel that takes so many seconds under peaks per second."""
    least = {FLOPS: work.operations / flops, BYTES: work.bytes / bandwidth}
    limit = max(least, key=least.get)
    return {
        "operations": float(work.operations),
        "bytes": work.bytes,
        "us": 1e6 * seconds,
        "gflops": 1e-9 * work.operations / seconds,
        "gbytes": 1e-9 * work.bytes / seconds,
        "intensity": work.operations / work.bytes,
        "peak_gbytes": 1e-9 * bandwidth,
        "share": least[limit] / seconds,
        "limit": limit,
        "kernel": work.name,
    }
