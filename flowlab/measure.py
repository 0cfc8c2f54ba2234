"""Measurement: an ensemble of networks, a batch forward, a cotangent backward, one table.

Exponents (see :mod:`flowlab.scale`): the cotangent is brought back to about 1 after every block and
its power of two is carried beside it; the same forward where the chain is positively homogeneous.
So the rows of any depth are true, and ``status`` says where they cannot be.
"""

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from threading import Lock, local

import numpy as np
import pandas as pd
import scipy.linalg.cython_blas  # noqa: F401  loaded early, so that its threads can be limited
from threadpoolctl import ThreadpoolController

from flowlab import data, random
from flowlab.initializers import Initializer
from flowlab.layer import Primitive, Shape, Watch, Workspace, leaves, map_leaves, primitives
from flowlab.layers.loss import LOSSES
from flowlab.networks import Network, build
from flowlab.program import record
from flowlab.scale import LOG10_2, log2_norm, log2_norms, renormalise, shift
from flowlab.settings import Settings
from flowlab.tables import EXAMPLES, NORMS

# The stream of the upstream cotangent, beyond every layer.
_UPSTREAM_LAYER = 2**32 - 1
COLUMNS = (*NORMS, *EXAMPLES)
ACTIVATION, DELTA, DX, DW, DB, DW_EXAMPLES, DB_EXAMPLES = range(len(COLUMNS))
# Below this log2 of the root mean square, entries begin to fall out of the type's normal range.
# Nets of fewer layers are measured before their programs would be compiled.
_WORTH_COMPILING = 16
# Elements of a layer, all seeds of a part together.
_PART_ELEMENTS = 2**17
_LOST = {"float32": -100.0, "float64": -960.0}

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Operation:
    """An operation with parameters as the backward pass meets it, for ``seeds`` (S,).

    True values are ``x`` 2^x_exponent and ``dy`` 2^dy_exponent, exponents (S,); the arrays are
    overwritten later. ``layer`` counts from 1 and ``op`` is its name, as in the table.
    """

    seeds: np.ndarray
    layer: int
    op: str
    primitive: Primitive
    x: np.ndarray
    dy: np.ndarray
    x_exponent: np.ndarray
    dy_exponent: np.ndarray


Observer = Callable[[Operation], None]


@dataclass(frozen=True)
class Row:
    """One row of a block: the operation's name and its fans."""

    op: str
    fan_in: int
    fan_out: int


class Batches:
    """The inputs of a run: one batch for each seed, drawn with that seed."""

    def __init__(self, settings: Settings):
        self.settings = settings
        first = self._load(settings.seed)
        first.batch(settings.batch_size, settings.seed)
        self._shared = None if first.independent else first
        self.features, self.classes = first.x.shape[1], first.n_classes

    def _load(self, seed: int) -> data.Dataset:
        settings = self.settings
        return data.load(settings.data, settings.width, settings.batch_size, seed)

    def __call__(self, seeds) -> tuple[np.ndarray, np.ndarray]:
        """Inputs (S, batch, features) in the run's dtype and labels (S, batch)."""
        size = self.settings.batch_size
        drawn = [(self._shared or self._load(seed)).batch(size, seed) for seed in seeds]
        x = np.stack([x for x, _ in drawn]).astype(self.settings.dtype)
        return x, np.stack([labels for _, labels in drawn])


def measure(
    settings: Settings,
    progress: Progress | None = None,
    batches: Batches | None = None,
    observe: Observer | None = None,
    network: Network | None = None,
    watch: Callable[[np.ndarray, int], Watch] | None = None,
) -> pd.DataFrame:
    """One row per (seed, layer, op) with the log10 Frobenius norms over the whole batch.

    Seeds are processed in parts that fit ``settings.memory_gib``; neither the parts nor the number
    of threads change a bit. ``progress(done, total)`` is called as blocks are passed.
    ``batches`` replaces the inputs that the settings name; ``observe`` is shown every operation
    with parameters on the way back, by several threads.
    ``network`` replaces the one that the settings describe, parameter for parameter;
    ``watch(seeds, layer)``, called by several threads, gives a watch of that layer's pullback.
    Raises InputError for settings that break a rule.
    """
    settings.validate()
    batches = batches or Batches(settings)
    outputs = batches.classes if settings.upstream == "loss" else None
    network = network or build(settings, outputs)
    shape = (settings.batch_size, batches.features)
    rows = layout(network, shape)
    seeds = np.arange(settings.seed, settings.seed + settings.seeds)
    parts = _parts(seeds, settings, network, shape)
    steps = _Steps(progress, 2 * settings.depth * len(parts))

    kept = local()  # each thread keeps its buffers and programs, from part to part

    def one(part):
        if not hasattr(kept, "workspace"):
            kept.workspace, kept.programs = Workspace(), {}
        ensemble = _Ensemble(settings, network, rows, part, kept, observe, watch)
        measured = ensemble.measure(*batches(part), steps)
        kept.workspace.reset()
        return measured

    # Threads take parts of the ensemble, each with one BLAS thread: no barrier between layers.
    with _blas().limit(limits=1), ThreadPoolExecutor(_threads(settings)) as pool:
        measured = list(pool.map(one, parts))
    values, lost = (np.concatenate(arrays) for arrays in zip(*measured, strict=True))
    return _tidy(settings, rows, seeds, values, lost)


class _Steps:
    """Counts block passes over all threads and reports them."""

    def __init__(self, progress: Progress | None, total: int):
        self.progress, self.total, self.done = progress, total, 0
        self.lock = Lock()

    def __call__(self) -> None:
        if self.progress is not None:
            with self.lock:
                self.done += 1
                self.progress(self.done, self.total)


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController().select(user_api="blas")


def _threads(settings: Settings) -> int:
    return settings.threads or len(os.sched_getaffinity(0))


def _parts(seeds, settings: Settings, network: Network, shape: Shape) -> list[np.ndarray]:
    """Seeds in parts that keep every thread busy and together fit the memory budget.

    Enough seeds to hide the cost of Python between kernels, few enough to reuse warm memory.
    """
    threads = min(_threads(settings), len(seeds))
    elements = network.chain.declare(shape).elements
    one_seed = elements * np.dtype(settings.dtype).itemsize
    fit = int(settings.memory_gib * 2**30 // (one_seed * threads))
    warm = _PART_ELEMENTS * settings.depth // elements
    rounds = -(-len(seeds) // (threads * max(1, min(fit, warm))))
    return np.array_split(seeds, min(threads * rounds, len(seeds)))


def layout(network: Network, shape: Shape) -> list[list[Row]]:
    """The rows of every block: its operations with parameters, in forward order.

    The last row of a block carries what belongs to the block: the norm of its output, and for a
    residual block the gradient of the sum rather than of the branch.
    """
    rows = []
    for block in network.blocks:
        declaration = block.declare(shape)
        layers = [layer for layer in primitives(block) if layer.trainable]
        names = [layer.name for layer in layers]
        rows.append([])
        for k, (layer, fans) in enumerate(zip(layers, _fans(declaration.parameters), strict=True)):
            repeated = names.count(layer.name) > 1
            number = f"_{names[: k + 1].count(layer.name)}" if repeated else ""
            rows[-1].append(Row(layer.name + number, *fans))
        shape = declaration.output
    return rows


def _fans(parameters) -> Iterator[tuple[int, int]]:
    """(fan_in, fan_out) of each operation with parameters, in forward order."""
    if isinstance(parameters, dict):
        if parameters:
            first = next(iter(parameters.values()))
            yield first.fan_in, first.fan_out
    else:
        for inner in parameters:
            yield from _fans(inner)


class _Ensemble:
    """A part of the ensemble on its way forward and back; arrays have a leading seed axis."""

    def __init__(self, settings, network, rows, seeds, kept, observe=None, watch=None):
        self.settings, self.network, self.seeds = settings, network, seeds
        self.rows, self.workspace, self.programs = rows, kept.workspace, kept.programs
        self.observe, self.watch = observe, watch
        self.watched = observe is not None or watch is not None
        self.shapes: list[Shape] = []  # of each block's input
        self.spent: list[np.ndarray] = []
        self.initializer = Initializer(settings.init)
        self.dtype = np.dtype(settings.dtype)
        self.homogeneous = network.chain.homogeneous
        self.independent = not network.chain.couples_examples
        self.first_row = np.cumsum([0] + [len(r) for r in rows])
        self.values = np.full((len(seeds), self.first_row[-1], len(COLUMNS)), np.nan)
        self.lost = np.zeros((len(seeds), self.first_row[-1]), bool)

    def measure(self, x, labels, progress):
        tapes, exponents, y = self.forward(x, progress)
        dy, exponent = self.upstream(y, labels, exponents[-1])
        self.backward(dy, exponent, tapes, exponents, progress)
        # Made from activations that are not known.
        self.values[self.lost, DW] = self.values[self.lost, DW_EXAMPLES] = np.nan
        return self.values * LOG10_2, self.lost

    def forward(self, x, progress):
        """Tapes and the exponents (depth + 1, S) of each block's input, and the output."""
        exponent = np.zeros(len(self.seeds), np.int64)
        exponents, tapes = [exponent], []
        out_of_range = np.zeros(len(self.seeds), bool)
        for index, block in enumerate(self.network.blocks):
            parameters = self.draw(block.declare(x.shape[1:]), index + 1, exponent)
            self.shapes.append(x.shape)
            x, tape, norms = self.repeated(_forward, index, x, parameters)
            last = self.first_row[index + 1] - 1
            self.values[:, last, ACTIVATION] = norms + exponent
            if self.homogeneous:
                exponent = exponent + renormalise(x, norms)
            else:
                rms = norms - 0.5 * math.log2(x[0].size)
                out_of_range |= np.isfinite(rms) & (rms < _LOST[self.settings.dtype])
                out_of_range |= ~np.isfinite(norms) & ~np.isneginf(norms)
                self.values[out_of_range, last, ACTIVATION] = np.nan
                self.lost[out_of_range, self.first_row[index] : last + 1] = True
            tapes.append(tape)
            exponents.append(exponent)
            progress()
        return tapes, exponents, x

    def draw(self, declaration, layer: int, exponent):
        """A block's parameters; biases in the units of its input, 2^exponent."""
        drawn = []
        for role, (_, parameter) in enumerate(leaves(declaration.parameters)):
            shape = (len(self.seeds), *parameter.shape)
            array = self.workspace.take(shape, self.dtype)
            self.initializer.draw(parameter, self.seeds, layer, role, array)
            if parameter.role == "bias" and self.initializer.deviation(parameter) > 0:
                shift(array, -exponent)
            drawn.append(array)
        remaining = iter(drawn)
        return map_leaves(lambda _: next(remaining), declaration.parameters)

    def upstream(self, y, labels, exponent):
        """The cotangent of the output and its exponent."""
        settings, zero = self.settings, np.zeros_like(exponent)
        if settings.upstream == "loss":
            loss = LOSSES[settings.loss](settings.reduction)
            targets = {"label": labels}
            if settings.loss == "squared_error":
                targets = {"target": np.eye(y.shape[2], dtype=self.dtype)[labels]}
            targets["exponent"] = exponent
            _, tape = loss.forward(y, targets, self.workspace)
            dy, _ = loss.pullback(np.ones(len(y), self.dtype), tape, self.workspace)
            return dy, loss.exponent_of_cotangent(exponent)
        dy = self.workspace.take(y.shape, self.dtype)
        weight = 1.0 / settings.batch_size if settings.reduction == "mean" else 1.0
        if settings.upstream == "ones":
            dy.fill(weight)
        else:
            flat = dy.reshape(len(dy), -1)
            random.fill_normal.run(self.seeds, flat, weight, _UPSTREAM_LAYER, 0)
        return dy, zero

    def backward(self, dy, exponent, tapes, exponents, progress):
        depth = len(self.network.blocks)
        norms = log2_norm(dy)
        underflowed = np.zeros(len(self.seeds), bool)
        for index in reversed(range(depth)):
            first, last = self.first_row[index], self.first_row[index + 1] - 1
            if self.watched:
                tell = self.tell(index, exponent, exponents[index])
                block = self.network.blocks[index]
                dx, reports, own = _backward(self.workspace, block, dy, tapes[index], tell)
            else:
                dx, reports, own = self.repeated(_backward, index, dy, tapes[index])
            self.write(index, reports, exponent, exponents[index])
            if self.network.residual[index]:
                self.values[:, last, DELTA] = norms + exponent
            if not self.homogeneous:
                # The slope of saturated units can leave the float range: not an exact zero.
                underflowed |= np.isneginf(self.values[:, last, DELTA]) & ~np.isneginf(norms)
                self.values[underflowed, first : last + 1, DELTA:] = np.nan
                self.lost[underflowed, first : last + 1] = True
            self.workspace.give(dy)
            dy, norms = dx, own[0] if own else reports[-1][0][:, 1]
            moved = renormalise(dy, norms)
            exponent, norms = exponent + moved, norms - moved
            progress()

    def repeated(self, step, index: int, x, rest):
        """``step`` on a block: recorded at the first block of its kind, replayed at the others."""
        block = self.network.blocks[index]
        key = (step, block, len(self.seeds), self.shapes[index])
        if self.settings.depth < _WORTH_COMPILING:
            return step(self.workspace, block, x, rest)
        if key not in self.programs:
            result, self.programs[key] = record(partial(step, self.workspace, block), x, rest)
            return result
        result, taken = self.programs[key]((x, rest), self.workspace.take)
        if step is _backward:
            dx = result[0]
            self.spent = [array for array in taken if array is not dx]
        return result

    def write(self, index: int, reports, exponent, input_exponent):
        """Norms of a block's operations, the last one first, into its rows."""
        for k, (norms, examples) in enumerate(reports):
            row = self.values[:, self.first_row[index + 1] - 1 - k]
            row[:, DELTA] = norms[:, 0] + exponent
            row[:, DX] = norms[:, 1] + exponent
            row[:, DW] = norms[:, 2] + exponent + input_exponent
            if norms.shape[1] > 3:
                row[:, DB] = norms[:, 3] + exponent
            if len(examples) and self.independent:
                row[:, DW_EXAMPLES] = examples[:, 0] + exponent + input_exponent
                if examples.shape[1] > 1:
                    row[:, DB_EXAMPLES] = examples[:, 1] + exponent
        for array in self.spent:
            self.workspace.give(array)
        self.spent = []

    def tell(self, index: int, exponent, input_exponent) -> Watch:
        """What passes a block's operations on to the caller's ``observe`` and ``watch``."""
        names = [row.op for row in self.rows[index]]
        other = self.watch(self.seeds, index + 1) if self.watch else None

        def watch(layer, tape, dy, dx, gradients):
            if other is not None:
                other(layer, tape, dy, dx, gradients)
            if gradients and self.observe is not None:
                self.observe(
                    Operation(
                        *(self.seeds, index + 1, names.pop(), layer, tape["x"], dy),
                        *(input_exponent, exponent),
                    )
                )

        return watch


def _forward(workspace, block, x, parameters):
    """Output, tape and the output's log2 norms."""
    y, tape = block.forward(x, parameters, workspace)
    return y, tape, log2_norm(y)


def _backward(workspace, block, dy, tape, tell: Watch | None = None):
    """Input cotangent, (norms, example norms) of each operation, and the norms of the former.

    ``norms`` (seeds, 3 or 4) are of dy, dx, dW and db; the input cotangent's own are left out where
    the last reported operation made it.
    """
    reports, seen = [], [None]

    def watch(layer, tape, dy, dx, gradients):
        if tell is not None:
            tell(layer, tape, dy, dx, gradients)
        seen[0] = dx if gradients else None
        if gradients:
            norms = log2_norms(dy, dx, *gradients.values())
            examples = ()
            if layer.example_norms is not None:
                examples = np.empty((len(dy), len(gradients)))
                layer.example_norms.run(tape["x"], dy, examples)
            reports.append((norms, examples))

    dx, _ = block.pullback(dy, tape, workspace, watch)
    # A residual block's sum may lie in the buffer of an operation of its branch.
    own = () if dx is seen[0] else (log2_norm(dx),)
    return dx, reports, own


def _tidy(settings: Settings, rows, seeds, values, lost) -> pd.DataFrame:
    """Arrays (seeds, rows, norms) as the table that DESIGN promises, one row per (seed, row)."""
    flat = [(layer, row) for layer, block in enumerate(rows, 1) for row in block]
    n = len(flat)
    status = np.where(np.isneginf(values).any(axis=2), "zero", "ok").astype("U9")
    status[lost | np.isposinf(values).any(axis=2)] = "nonfinite"
    columns = {
        "run": settings.run(),
        "experiment": settings.experiment,
        "network": settings.network.name,
        "init": settings.init.name,
        "data": settings.data.name,
    }
    for axis in ("depth", "width", "activation", "skip", "batch_size", "upstream", "reduction"):
        columns[axis] = getattr(settings, axis)
    columns |= {"dtype": settings.dtype, "seeds": settings.seeds}
    scale = settings.network.branch_scale if settings.skip == "scaled" else None
    columns["branch_scale"] = pd.array([scale] * len(seeds) * n, dtype="string")
    columns |= {axis: getattr(settings.init, axis) for axis in ("gain", "sigma_w", "sigma_b")}
    columns["seed"] = np.repeat(seeds, n)
    columns["layer"] = np.tile([layer for layer, _ in flat], len(seeds))
    for field in ("op", "fan_in", "fan_out"):
        columns[field] = np.tile([getattr(row, field) for _, row in flat], len(seeds))
    columns |= dict(zip(COLUMNS, values.reshape(-1, len(COLUMNS)).T, strict=True))
    columns["status"] = status.ravel()
    return pd.DataFrame(columns)
