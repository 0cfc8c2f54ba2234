"""Measurement: an ensemble of networks, a batch forward, a cotangent backward, one table.

Exponents (see :mod:`flowlab.numerics.scale`): the cotangent is brought back to about 1 after every
block and its power of two is carried beside it; the same forward where the chain is positively
homogeneous. So the rows of any depth are true, and ``status`` says where they cannot be: where
numbers left the float range, or are below the rounding of what they were made from
(see :mod:`flowlab.measurement.rounding`).
"""

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from threading import Lock
from typing import Protocol

import numpy as np
import pandas as pd

from flowlab.initializers import Initializer
from flowlab.layer import Scaled, Workspace
from flowlab.layers.loss import LOSSES
from flowlab.measurement.norms import Norms, Observer, Watcher, range_of
from flowlab.measurement.passes import LONGEST, Backward, Drawn, Forward, Passes, Sink, Source
from flowlab.measurement.quantities import columns
from flowlab.measurement.rounding import LOST, NONFINITE, OK
from flowlab.measurement.scan import Scans
from flowlab.measurement.setup import LOWEST, Batches, Setup, gib, of_rows, prepare, size
from flowlab.measurement.table import axes_of, of_pass
from flowlab.networks import Network
from flowlab.numerics import random
from flowlab.numerics.blas import one_thread
from flowlab.numerics.scale import LOG10_2, log2_norm, renormalise
from flowlab.settings import Settings

# The stream of the upstream cotangent, beyond every layer.
_UPSTREAM_LAYER = 2**32 - 1
# Elements of a layer, all seeds of a part together.
_PART_ELEMENTS = 2**18

# What nobody works at, kept from one measurement to the next, each with so many bytes at most: to
# get fresh memory from the system takes as long as a shallow net.
_desks: list[tuple[Workspace, Scans]] = []
_KEPT_BYTES = 2**28

Progress = Callable[[int, int], None]


def measure(
    settings: Settings,
    progress: Progress | None = None,
    batches: Batches | None = None,
    observe: Observer | None = None,
    network: Network | None = None,
    watch: Watcher | None = None,
    rewritten: str | None = None,
) -> pd.DataFrame:
    """One row per (seed, layer, op) with the log10 Frobenius norms over the whole batch.

    Seeds are processed in parts that fit ``settings.memory_gib``; neither the parts nor the number
    of threads change a bit. ``progress(done, total)`` is called as blocks are passed.
    ``batches`` replaces the inputs that the settings name; ``observe`` is shown every operation
    with parameters on the way back, by several threads.
    ``network`` replaces the one that the settings describe. Its table has a run and a ``network``
    of its own, and no settings of an architecture, so that no prediction is taken for it; unless it
    is ``rewritten`` from the settings' network, known as the run of that name.
    ``watch(seeds, layer)``, called by several threads, gives a watch of that layer's pullback.
    Raises InputError for settings that break a rule or need more memory than they allow.
    """
    setup = prepare(settings, batches, network)
    parts = _parts(setup)
    count = Count(progress, 2 * len(setup.network.blocks) * len(parts))

    def one(part: tuple[np.ndarray, float]) -> tuple[np.ndarray, ...]:
        with _desk() as (workspace, scans):
            return _measured(setup, *part, workspace, scans, observe, watch, count)

    # Threads take parts of the ensemble, each with one BLAS thread: no barrier between layers.
    with one_thread(), ThreadPoolExecutor(threads(settings)) as pool:
        measured = list(pool.map(one, parts))
    _trim()
    arrays = (np.concatenate(arrays) for arrays in zip(*measured, strict=True))
    axes = axes_of(settings, network if rewritten is None else None)
    if rewritten is not None:
        axes["run"] = rewritten
    return of_pass(axes, setup.rows, setup.seeds, columns(), *arrays)


@contextmanager
def _desk() -> Iterator[tuple[Workspace, Scans]]:
    """Buffers and programs for one thread, as an earlier part or measurement left them."""
    try:
        desk = _desks.pop()
    except IndexError:
        desk = Workspace(), Scans()
    try:
        yield desk
    finally:
        desk[0].reset()
        _desks.append(desk)


def forget() -> None:
    """Let go of the buffers and programs that are kept of earlier measurements."""
    _idle()


def _trim() -> None:
    """Let go of buffers that are too large to be kept."""
    idle = _idle()
    for workspace, _ in idle:
        if workspace.nbytes > _KEPT_BYTES:
            workspace.clear()
    _desks.extend(idle)


def _idle() -> list[tuple[Workspace, Scans]]:
    """What nobody works at, which nobody else can take from now on."""
    idle = []
    with suppress(IndexError):
        while True:
            idle.append(_desks.pop())
    return idle


def _measured(
    setup: Setup,
    seeds: np.ndarray,
    most: float,
    workspace: Workspace,
    scans: Scans,
    observe: Observer | None,
    watch: Watcher | None,
    count: Callable[[int], None],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Values and status of the rows of a part, and of the steps of its recurrent layers."""
    settings, dtype = setup.settings, np.dtype(setup.settings.dtype)
    one_by_one = observe is not None or watch is not None
    passes = Passes(
        *(setup.network, setup.shapes, workspace, scans), recorded=not one_by_one, most=most
    )
    source = Drawn(Initializer(settings.init), seeds, dtype)
    norms = Norms(setup, seeds, source, observe, watch)
    round_trip(setup, seeds, passes, source, norms, *setup.batches(seeds), count)
    norms.finish()
    return readings(norms)


def readings(norms: Norms) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Values in the units of the table and status of rows, and of the steps of recurrent layers."""
    units = np.array([LOG10_2 if "log10" in name else 1.0 for name in columns()])
    found = norms.steps.found()
    return norms.values * units, norms.status, norms.steps.values, found


class Visitor(Sink, Protocol):
    """A sink that is also shown what happens on the way."""

    def begin(self, x: np.ndarray, known: np.ndarray) -> None:
        """The input (S, ...), of which ``known`` (S,) is found."""

    def put_forward(self, stretch: Forward) -> None:
        """A stretch on its way forward."""

    def turn(self, dy: np.ndarray, known: np.ndarray) -> None:
        """The cotangent of the output, of which ``known`` (S,) is found."""

    def put_backward(self, stretch: Backward) -> None:
        """A stretch on its way back."""

    known: np.ndarray  # (S,), of the output


def round_trip(
    setup: Setup,
    seeds: np.ndarray,
    passes: Passes,
    source: Source,
    visitor: Visitor,
    x: np.ndarray,
    labels: np.ndarray,
    count: Callable[[int], None] = lambda blocks: None,
) -> Scaled:
    """A batch forward and its cotangent back, shown to ``visitor``; the scaled output."""
    x, exponent, known = entered(x, setup.settings.dtype, passes.homogeneous)
    visitor.begin(x, known)
    passed = []
    for stretch in passes.forward((x, exponent), source):
        passed.append(stretch)
        visitor.put_forward(stretch)
        count(stretch.count)
    y, exponent, *_ = passed[-1].output
    scaled, known = upstream(
        setup.settings, seeds, y, exponent, labels, visitor.known, passes.workspace
    )
    visitor.turn(scaled[0], known)
    for stretch in passes.backward(scaled, passed, source, visitor):
        visitor.put_backward(stretch)
        count(stretch.forward.count)
    return y, exponent


def entered(
    x: np.ndarray, dtype: str, homogeneous: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(x in the run's type, its exponents, what is found of it (S,)), for inputs of any size."""
    exponent = np.zeros(len(x), np.int64)
    norms = log2_norm(x)
    known = range_of(norms, -np.inf)
    if homogeneous:
        x = x.copy()
        exponent = renormalise(x, norms, exponent)
        return x.astype(dtype, copy=False), exponent, known
    if x.dtype != dtype:
        with np.errstate(over="ignore", under="ignore"):
            x = x.astype(dtype)
        rms = log2_norm(x) - 0.5 * math.log2(x[0].size)
        known = np.maximum(known, range_of(rms, LOWEST[dtype]))
        known[np.isneginf(rms) & ~np.isneginf(norms)] = LOST
    return x, exponent, known


def upstream(
    settings: Settings,
    seeds: np.ndarray,
    y: np.ndarray,
    exponent: np.ndarray,
    labels: np.ndarray,
    known: np.ndarray,
    workspace: Workspace,
) -> tuple[Scaled, np.ndarray]:
    """The scaled cotangent of the output y 2^exponent, and what is known of it (S,)."""
    known = np.where(known == NONFINITE, known, OK)  # of underflow slopes and losses know
    if settings.upstream == "loss":
        loss = LOSSES[settings.loss](settings.reduction)
        targets = loss.given(labels, y.shape[2], y.dtype) | {"exponent": exponent}
        scaled = loss.cotangent(y, targets, workspace)
        if loss.never_zero(y.shape[2]):
            known[(known == OK) & np.isneginf(log2_norm(scaled[0]))] = LOST
        return scaled, known
    dy = workspace.take(y.shape, y.dtype)
    weight = 1.0 / settings.batch_size if settings.reduction == "mean" else 1.0
    if settings.upstream == "ones":
        dy.fill(weight)
    else:
        layer = np.full(len(seeds), _UPSTREAM_LAYER)
        random.fill_normal.run(seeds, layer, dy.reshape(len(dy), -1), weight, 0)
    return (dy, np.zeros_like(exponent)), known


class Count:
    """Counts block passes over all threads and reports them."""

    def __init__(self, progress: Progress | None, total: int):
        self.progress, self.total, self.done = progress, total, 0
        self.lock = Lock()

    def __call__(self, count: int) -> None:
        if self.progress is not None:
            with self.lock:
                self.done += count
                self.progress(self.done, self.total)


def threads(settings: Settings) -> int:
    """How many threads a run may use."""
    return settings.threads or len(os.sched_getaffinity(0))


def split(setup: Setup, one_seed: float, rows: float, most: float = math.inf) -> list[np.ndarray]:
    """Seeds in as few parts as keep every thread busy and together fit the memory budget.

    ``one_seed`` is what a seed needs while it is passed, in GiB, and ``rows`` what it needs of the
    table; a part has ``most`` seeds at most, but one.
    """
    seeds = setup.seeds
    fit = min(share(setup, rows) // one_seed, most)
    workers = min(threads(setup.settings), len(seeds))
    rounds = math.ceil(len(seeds) / (workers * max(1, fit)))
    return np.array_split(seeds, min(workers * rounds, len(seeds)))


def share(setup: Setup, rows: float) -> float:
    """GiB that a thread may have beside the rows of all seeds, ``rows`` GiB each."""
    workers = min(threads(setup.settings), len(setup.seeds))
    return (setup.settings.memory_gib - rows * len(setup.seeds)) / workers


def _parts(setup: Setup) -> list[tuple[np.ndarray, float]]:
    """Seeds in parts, each with the elements that the tape of a segment may have.

    Enough seeds to hide the cost of Python between kernels, few enough to reuse warm memory. Fresh
    memory is dear, too: a segment is no longer than a stretch.
    """
    settings, blocks = setup.settings, len(setup.network.blocks)
    own = size(settings, setup.batches, setup.network if setup.own else None)
    rows = of_rows(own.rows)
    fits = share(setup, rows) / gib(settings, 1)
    one_seed = own.tape if own.tape <= fits else own.least
    parts = split(setup, gib(settings, one_seed), rows, _PART_ELEMENTS * blocks // own.tape)
    return [(part, own.segment(fits / len(part), LONGEST)) for part in parts]
