"""Measurement: an ensemble of networks, a batch forward, a cotangent backward, one table.

Exponents (see :mod:`flowlab.numerics.scale`): the cotangent is brought back to about 1 after every
block and its power of two is carried beside it; the same forward where the chain is positively
homogeneous.
So the rows of any depth are true, and ``status`` says where they cannot be: where numbers left the
float range, or are below the rounding of what they were made from
(see :mod:`flowlab.measurement.rounding`).
"""

import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock, local
from typing import Any

import numpy as np
import pandas as pd

from flowlab import data
from flowlab.errors import InputError
from flowlab.initializers import Initializer
from flowlab.layer import Layer, Primitive, Shape, Watch, Workspace, leaves, map_leaves, primitives
from flowlab.layers.attention import token_cosine
from flowlab.layers.loss import LOSSES
from flowlab.measurement.rounding import LOST, MARGIN, NONFINITE, OK, Block, Report, told_of
from flowlab.measurement.scan import Stack, record, single
from flowlab.measurement.table import axes_of, of_pass
from flowlab.networks import Network, build, example_shape, features
from flowlab.numerics import random
from flowlab.numerics.blas import one_thread
from flowlab.numerics.scale import LOG10_2, log2_norm, log2_norms, renormalise, shift
from flowlab.schema import (
    EXAMPLE_NORMS,
    GAIN_EXAMPLE_NORMS,
    GAIN_NORMS,
    NORMS,
    READINGS,
    STATE_NORMS,
)
from flowlab.settings import SEQUENCES, Settings

# The stream of the upstream cotangent, beyond every layer.
_UPSTREAM_LAYER = 2**32 - 1
COLUMNS = (*NORMS, *EXAMPLE_NORMS, *GAIN_NORMS, *GAIN_EXAMPLE_NORMS, *READINGS)
ACTIVATION, DELTA, DX = range(3)
# A parameter's role: the columns of its gradient's norm and of its examples'.
_GRADIENTS = {
    "weight": ("dW_log10_norm", "dW_examples_log10_norm"),
    "scale": ("dW_log10_norm", "dW_examples_log10_norm"),
    "bias": ("db_log10_norm", "db_examples_log10_norm"),
    "gain": ("dgain_log10_norm", "dgain_examples_log10_norm"),
    "shift": ("dbias_log10_norm", "dbias_examples_log10_norm"),
}
# Gradients that are products of the cotangent and the input, in the units of both.
_OF_INPUT = [COLUMNS.index(name) for name in _GRADIENTS["weight"]]
_COSINE, _OF_DX = COLUMNS.index("token_cosine"), COLUMNS.index("statistics_log10_gain")
# Base-2 logarithms until the table is made.
_LOGARITHMS = np.array([LOG10_2 if "log10" in name else 1.0 for name in COLUMNS])
# Shorter runs of equal layers are passed in Python before their loop would be compiled.
_WORTH_COMPILING = 24
# Layers passed in one compiled call: few enough for a live progress bar.
_LONGEST_RUN = 256
# Elements of a layer, all seeds of a part together.
_PART_ELEMENTS = 2**17
# Below this log2 of the root mean square, entries begin to fall out of the type's normal range.
LOWEST = {"float32": -100.0, "float64": -960.0}
# Zeros are exact where the standard deviations of weights are within these powers of two.
_MODERATE = {"float32": 30.0, "float64": 240.0}
# How large inputs may be in each type: what they become in a layer must fit, too.
_LARGEST = {"float32": 1e37, "float64": 1e150}
_GIB = 2**30
_ROW_BYTES = 1024  # of a table in the making, as measured
_ALWAYS = 2**-6  # GiB that any run may have

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
    """One row of a block: the operation's name and fans, and what is told of it.

    ``operation`` counts the block's operations that have rows; ``gradients`` are (number of the
    gradient, its column, its examples' column).
    """

    op: str
    fan_in: int
    fan_out: int
    operation: int
    has_delta: bool
    has_dx: bool
    gradients: tuple[tuple[int, int, int], ...]
    readings: tuple[int, ...]


class Batches:
    """The inputs of a run: one batch for each seed, drawn with that seed.

    ``example`` is the shape of one example as the network takes it, ``shape`` that of a batch;
    ``classes`` is how many outputs a loss compares with labels, of a regression its targets, and
    ``target_square`` the mean of ‖target‖² under squared error.
    """

    def __init__(self, settings: Settings):
        self.settings, self._shared = settings, None
        if settings.data.name == "gaussian":  # drawn with each seed
            count = settings.data.features or features(settings)
            self.classes, self.target_square = settings.data.classes, 1.0
        else:
            self._shared = shared = self._load(settings.seed)
            shared.batch(settings.batch_size, settings.seed)
            _check_range(shared, settings)
            count = shared.x.shape[1]
            self.classes, self.target_square = shared.n_classes, shared.target_square
        self.example = example_shape(settings, count)

    def _load(self, seed: int) -> data.Dataset:
        settings = self.settings
        regression = settings.upstream != "loss" or settings.loss == "squared_error"
        return data.load(settings.data, features(settings), settings.batch_size, seed, regression)

    @property
    def shape(self) -> Shape:
        return (self.settings.batch_size, *self.example)

    def __call__(self, seeds) -> tuple[np.ndarray, np.ndarray]:
        """Inputs (S, *shape); classes (S, batch) or targets (S, batch, K).

        Inputs are in the run's dtype, or in float64 where their size is beyond that type's comfort.
        """
        size = self.settings.batch_size
        drawn = [(self._shared or self._load(seed)).batch(size, seed) for seed in seeds]
        x = np.stack([x for x, _ in drawn])
        largest = np.log2(np.abs(x).max(), where=x.any(), out=np.zeros(()))
        if abs(largest) < -LOWEST[self.settings.dtype]:
            x = x.astype(self.settings.dtype)
        return x.reshape(len(x), *self.shape), np.stack([labels for _, labels in drawn])


def _check_range(dataset: data.Dataset, settings: Settings) -> None:
    """Raise InputError for inputs or targets that the run's type could not hold."""
    most = _LARGEST[settings.dtype]
    values = {"inputs": dataset.x} | ({"labels": dataset.labels} if dataset.labels.ndim > 1 else {})
    for what, array in values.items():
        largest = float(np.abs(array).max())
        if largest and not 1 / most <= largest <= most:
            other = " or dtype=float64" if 1e-150 <= largest <= 1e150 else ""
            raise InputError(
                f"{what} of {dataset.name} must have their largest size between {1 / most:g} and "
                f"{most:g} in dtype={settings.dtype}; got {largest:.3g}; data.standardise=true"
                f"{other} takes them"
            )


def needed(settings: Settings, batches: Batches) -> tuple[float, float]:
    """GiB of one network's parameters and activations, and of a table's rows for one seed.

    Nothing is allocated and no deep network built: layers between the ends are alike, so that two
    shallow nets show what a layer adds.
    """
    outputs = batches.classes if settings.upstream == "loss" else None
    shape = (settings.batch_size, *batches.example)
    item = np.dtype(settings.dtype).itemsize
    counts = []
    for more in (0, 1):
        depth = min(settings.depth, 4 + more)
        network = build(replace(settings, depth=depth), outputs)
        rows = sum(map(len, layout(network, shape)))
        if network.steps:
            rows += (depth - 1) * shape[1]
        counts.append((network.chain.declare(shape).elements, rows))
    beyond = max(settings.depth - 4, 0)
    elements, rows = (first + beyond * (last - first) for first, last in zip(*counts, strict=True))
    return item * elements / _GIB, _ROW_BYTES * rows / _GIB


def affordable(settings: Settings, batches: Batches, ensemble: bool = True) -> None:
    """Raise InputError where a run, or its layers without an ``ensemble``, needs too much memory.

    A run may have ``settings.memory_gib``, but 1/64 GiB always.
    """
    told = f"depth={settings.depth} width={settings.width} batch_size={settings.batch_size}"
    tokens = batches.example[0] if settings.network.name in SEQUENCES else 1
    # What a declaration may itself hold must fit before the network can be asked.
    gib = np.dtype(settings.dtype).itemsize * settings.width * tokens / _GIB
    most = max(settings.memory_gib, _ALWAYS)
    if gib <= most:
        network, row = needed(settings, batches)
        told += f" seeds={settings.seeds}" if ensemble else ""
        gib = network + row * settings.seeds if ensemble else row
    if gib > most:
        raise InputError(
            f"memory_gib must be at least {gib:,.2f} for {told}; got {settings.memory_gib:g}"
        )


def measure(
    settings: Settings,
    progress: Progress | None = None,
    batches: Batches | None = None,
    observe: Observer | None = None,
    network: Network | None = None,
    watch: Callable[[np.ndarray, int], Watch] | None = None,
    rewritten: str | None = None,
) -> pd.DataFrame:
    """One row per (seed, layer, op) with the log10 Frobenius norms over the whole batch.

    Seeds are processed in parts that fit ``settings.memory_gib``; neither the parts nor the number
    of threads change a bit. ``progress(done, total)`` is called as blocks are passed.
    ``batches`` replaces the inputs that the settings name; ``observe`` is shown every operation
    with parameters on the way back, by several threads.
    ``network`` replaces the one that the settings describe. Its table has a run of its own and
    ``network`` "own", and no settings of an architecture, so that no prediction is taken for it;
    unless it is ``rewritten`` from the settings' network, known as the run of that name.
    ``watch(seeds, layer)``, called by several threads, gives a watch of that layer's pullback.
    Raises InputError for settings that break a rule or need more memory than they allow.
    """
    settings.validate()
    batches = batches or Batches(settings)
    affordable(settings, batches)
    outputs = batches.classes if settings.upstream == "loss" else None
    own = network is not None and rewritten is None
    network = network or build(settings, outputs)
    shape = (settings.batch_size, *batches.example)
    rows, shapes = layout(network, shape), list(_input_shapes(network, shape))
    seeds = np.arange(settings.seed, settings.seed + settings.seeds)
    parts = _parts(seeds, settings, network, shape)
    steps = _Steps(progress, 2 * settings.depth * len(parts))

    kept = local()  # each thread keeps its buffers and programs, from part to part
    alone: set[Layer] = set()  # blocks that do more than a recording repeats

    def one(part):
        if not hasattr(kept, "workspace"):
            kept.workspace, kept.programs = Workspace(), {}
        while True:
            ensemble = kind(settings, network, shapes, rows, part, kept, alone, observe, watch)
            passed = 0

            def count(blocks):
                nonlocal passed
                passed += blocks
                steps(blocks)

            try:
                return ensemble.measure(*batches(part), count)
            except NotRepeated as found:
                alone.add(found.block)
                steps(-passed)
            finally:
                kept.workspace.reset()

    kind = Ensemble
    if network.steps:
        from flowlab.measurement.through_time import ThroughTime as kind

    # Threads take parts of the ensemble, each with one BLAS thread: no barrier between layers.
    with one_thread(), ThreadPoolExecutor(_threads(settings)) as pool:
        measured = list(pool.map(one, parts))
    arrays = (np.concatenate(arrays) for arrays in zip(*measured, strict=True))
    axes = axes_of(settings, network if own else None)
    if rewritten is not None:
        axes["run"] = rewritten
    return of_pass(axes, rows, seeds, COLUMNS, *arrays)


class NotRepeated(Exception):
    """A block whose recorded kernel calls are not all that it does."""

    def __init__(self, block: Layer):
        super().__init__(block.name)
        self.block = block


class _Steps:
    """Counts block passes over all threads and reports them."""

    def __init__(self, progress: Progress | None, total: int):
        self.progress, self.total, self.done = progress, total, 0
        self.lock = Lock()

    def __call__(self, count: int) -> None:
        if self.progress is not None:
            with self.lock:
                self.done += count
                self.progress(self.done, self.total)


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
    """The rows of every block: its operations with parameters or readings, in forward order.

    The last row of a block carries what belongs to the block: the norm of its output, and for a
    residual block the gradient of the sum rather than of the branch. A normalization has no delta:
    its input's is the map's before it.
    """
    rows, kinds = [], {}
    for block in network.blocks:
        if (block, shape) not in kinds:
            kinds[block, shape] = list(_rows(block, shape))
        rows.append(kinds[block, shape])
        shape = block.declare(shape).output
    return rows


def _rows(block: Layer, shape: Shape) -> Iterator[Row]:
    """The rows of one block; weights W_a and W_b of one operation have rows of their own."""
    declared = _by_primitive(block.declare(shape).parameters)
    told = [(p, own) for p, own in zip(primitives(block), declared, strict=True) if told_of(p)]
    names = [layer.name for layer, _ in told]
    for k, (layer, own) in enumerate(told):
        repeated = names.count(layer.name) > 1
        name = layer.name + (f"_{names[: k + 1].count(layer.name)}" if repeated else "")
        gradients = [(i, n, p) for i, (n, p) in enumerate(own.items()) if p.role != "target"]
        normalizes = any(p.role == "gain" for _, _, p in gradients)
        suffixes = list(dict.fromkeys(n.partition("_")[2] for _, n, _ in gradients)) or [""]
        for suffix in suffixes:
            mine = [(i, p) for i, n, p in gradients if n.partition("_")[2] == suffix]
            fans = (mine[0][1].fan_in, mine[0][1].fan_out) if mine else (1, 1)
            columns = []
            for i, p in mine:
                role = "shift" if normalizes and p.role == "bias" else p.role
                columns.append((i, *map(COLUMNS.index, _GRADIENTS[role])))
            yield Row(
                name + (f"_{suffix}" if suffix else ""),
                *fans,
                operation=k,
                has_delta=any(p.role in ("weight", "scale") for _, p in mine),
                gradients=tuple(columns),
                readings=tuple(map(COLUMNS.index, layer.readings)),
                has_dx=suffix == suffixes[0],  # the others' input is the layer's own state
            )


def _by_primitive(parameters) -> Iterator[dict]:
    """Each primitive's own parameters, in forward order, of a nest of them."""
    if isinstance(parameters, dict):
        yield parameters
    else:
        for inner in parameters:
            yield from _by_primitive(inner)


def _input_shapes(network: Network, shape: Shape) -> Iterator[Shape]:
    for block in network.blocks:
        yield shape
        shape = block.declare(shape).output


@dataclass(frozen=True)
class Run:
    """Equal layers ``start`` ... passed together: stacked tapes, exponents (S, count) of inputs."""

    start: int
    count: int
    tape: Any
    exponents: np.ndarray


class Ensemble:
    """A part of the ensemble on its way forward and back; arrays have a leading seed axis."""

    scanned = True  # may runs of equal blocks be passed in compiled loops?

    def __init__(
        self, settings, network, shapes, rows, seeds, kept, alone=(), observe=None, watch=None
    ):
        self.settings, self.network, self.seeds = settings, network, seeds
        self.rows, self.workspace, self.programs = rows, kept.workspace, kept.programs
        self.alone = alone
        self.observe, self.watch = observe, watch
        self.watched = observe is not None or watch is not None
        self.shapes = shapes  # of each block's input
        self.initializer = Initializer(settings.init)
        self.dtype = np.dtype(settings.dtype)
        self.homogeneous = network.chain.homogeneous
        self.independent = not network.chain.couples_examples
        self.first_row = np.cumsum([0] + [len(r) for r in rows])
        self.values = np.full((len(seeds), self.first_row[-1], len(COLUMNS)), np.nan)
        self.status = np.full((len(seeds), self.first_row[-1]), OK, np.int8)
        self.moderate = self._moderate()
        self.followed: dict[tuple, Block] = {}

    def _moderate(self) -> bool:
        """Are weights so far from the ends of the float range that zeros are exact?"""
        for block, shape in {*zip(self.network.blocks, self.shapes, strict=True)}:
            for _, parameter in leaves(block.declare(shape).parameters):
                deviation = self.initializer.deviation(parameter)
                if deviation and abs(math.log2(deviation)) > _MODERATE[self.settings.dtype]:
                    return False
        return True

    def measure(self, x, labels, progress):
        """Values and status of the rows, and of the steps of recurrent layers."""
        x, exponent, known = self.held(x)
        runs, y, exponent, known = self.forward(x, exponent, known, progress)
        unknown = self.status > OK  # made from activations that are not known
        dy, dy_exponent, known = self.upstream(y, labels, exponent, known)
        self.backward(dy, dy_exponent, runs, known, progress)
        for column in _OF_INPUT:
            self.values[unknown, column] = np.nan
        steps = np.empty((len(self.seeds), 0, 0, len(STATE_NORMS)))
        return self.values * _LOGARITHMS, self.status, steps, steps[..., 0]

    def held(self, x):
        """(x in the run's type, its exponents, what is known of it), for inputs of any size."""
        exponent = np.zeros(len(x), np.int64)
        norms = log2_norm(x)
        known = _range_of(norms, -np.inf)
        if self.homogeneous:
            x = x.copy()
            exponent = renormalise(x, norms, exponent)
            return x.astype(self.dtype, copy=False), exponent, known
        if x.dtype != self.dtype:
            with np.errstate(over="ignore", under="ignore"):
                x = x.astype(self.dtype)
            rms = log2_norm(x) - 0.5 * math.log2(x[0].size)
            known = np.maximum(known, _range_of(rms, LOWEST[self.settings.dtype]))
            known[np.isneginf(rms) & ~np.isneginf(norms)] = LOST
        return x, exponent, known

    def forward(self, x, exponent, known, progress):
        """The runs of layers passed, the output, its exponent (S,) and what is known of it."""
        carry, runs, sticky, before = (x, exponent), [], known, log2_norm(x)
        for start, count in self.stretches():
            layers = np.arange(start, start + count) + 1
            xs = [
                np.ascontiguousarray(np.broadcast_to(a, (len(self.seeds), count)))
                for a in (self.seeds[:, None], layers[None, :])
            ]
            step = partial(self.forward_step, start)
            carries, (tape, (norms, *seen)), _ = self.pass_over(
                "forward", step, start, carry, tuple(map(Stack, xs)), count, (True, True)
            )
            exponents = carries[1].base
            runs.append(Run(start, count, tape, exponents[:, :-1]))
            size = carries[0].base[0, 0].size
            sticky = self.write_forward(runs[-1], norms.base, before, sticky, size)
            before = norms.base[:, -1]
            for cosine in seen:
                values, _ = self.rows_of(runs[-1])
                values[:, :, -1, _COSINE] = cosine.base
            carry = carries[0].at(count), carries[1].at(count)
            progress(count)
        return runs, *carry, sticky

    def stretches(self) -> Iterator[tuple[int, int]]:
        """(first, count) of the runs of equal blocks with equal input shapes, none too long."""
        kinds = list(zip(self.network.blocks, self.shapes, strict=True))
        start = 0
        while start < len(kinds):
            stop = start + 1
            while stop < len(kinds) and kinds[stop] == kinds[start] and stop - start < _LONGEST_RUN:
                stop += 1
            one_by_one = self.watched or not self.scanned or kinds[start][0] in self.alone
            if one_by_one or stop - start < _WORTH_COMPILING:
                yield from ((layer, 1) for layer in range(start, stop))
            else:
                yield start, stop - start
            start = stop

    def pass_over(self, kind, step, block, carry, xs, count, keep, direction=1):
        """A step over a run of layers: as it stands for one, else recorded once and scanned.

        Raises NotRepeated where the recording does not give what the step itself does.
        """
        if count == 1:
            return single(step, carry, xs, keep)
        key = (kind, self.network.blocks[block], len(self.seeds), self.shapes[block])
        if key not in self.programs:
            first = count - 1 if direction < 0 else 0
            given = tuple(map(np.copy, carry)), map_leaves(lambda stack: stack.at(first), xs)
            result, program = record(
                step, tuple(map(np.copy, carry)), map_leaves(np.copy, given[1])
            )
            if not program.repeats(result, *given, keep, direction):
                raise NotRepeated(self.network.blocks[block])
            self.programs[key] = program
        return self.programs[key].scan(carry, xs, count, self.workspace.take, keep, direction)

    def forward_step(self, index, carry, xs):
        """(input, exponent), (seeds, layer) -> (output, exponent), (tape, (log2 norms, ...))."""
        (x, exponent), (seeds, layer) = carry, xs
        block = self.network.blocks[index]
        declared = block.declare(x.shape[1:]).parameters
        parameters = self.draw(declared, seeds, layer, exponent)
        y, tape = block.forward(x, parameters, self.workspace)
        norms = log2_norm(y)
        comfort = None if self.homogeneous else math.inf
        seen = (token_cosine(y),) if self.network.tokens and y.ndim == 4 else ()
        return (y, renormalise(y, norms, exponent, comfort)), (tape, (norms, *seen))

    def draw(self, declared, seeds, layer, exponent):
        """A block's parameters; biases in the units of its input, 2^exponent."""
        drawn = []
        for role, (_, parameter) in enumerate(leaves(declared)):
            array = self.workspace.take((len(seeds), *parameter.shape), self.dtype)
            self.initializer.draw(parameter, seeds, layer, role, array)
            if parameter.role == "bias" and self.initializer.deviation(parameter) > 0:
                shift(array, exponent, -1)
            drawn.append(array)
        remaining = iter(drawn)
        return map_leaves(lambda _: next(remaining), declared)

    def write_forward(self, run: Run, norms, before, sticky, size: int):
        """Norms (S, count) of a run's outputs into its last rows; where they are not known, NaN.

        ``before`` (S,) is the norm of the run's input, ``sticky`` what is known of it.
        """
        values, status = self.rows_of(run)
        values[:, :, -1, ACTIVATION] = norms + run.exponents
        found = _range_of(norms - 0.5 * math.log2(size), LOWEST[self.settings.dtype])
        if not (self.homogeneous and self.moderate):
            inputs = np.hstack([before[:, None], norms[:, :-1]])
            found[np.isneginf(norms) & ~np.isneginf(inputs)] = LOST
        found = _accumulated(sticky, found)
        values[found > OK, -1, ACTIVATION] = np.nan
        np.maximum(status, found[:, :, None], out=status)
        return found[:, -1]

    def rows_of(self, run: Run) -> tuple[np.ndarray, np.ndarray]:
        """Views (S, layer, row, column) of a run's values and (S, layer, row) of their status."""
        rows = len(self.rows[run.start])
        here = slice(self.first_row[run.start], self.first_row[run.start + run.count])
        shape = (len(self.seeds), run.count, rows)
        # Reshaping a slice of one axis keeps it a view.
        return self.values[:, here].reshape(*shape, -1), self.status[:, here].reshape(shape)

    def upstream(self, y, labels, exponent, known):
        """The cotangent of the output, its exponent and what is known of it."""
        settings = self.settings
        known = np.where(known == NONFINITE, known, OK)  # of underflow slopes and losses know
        if settings.upstream == "loss":
            loss = LOSSES[settings.loss](settings.reduction)
            targets = {"label": labels}
            if settings.loss == "squared_error":
                one_hot = labels if labels.ndim == 3 else np.eye(y.shape[2])[labels]
                targets = {"target": one_hot.astype(self.dtype)}
            targets["exponent"] = exponent
            dy, exponent = loss.cotangent(y, targets, self.workspace)
            if settings.loss == "cross_entropy" and y.shape[2] > 1:  # then p - y is never 0
                known[(known == OK) & np.isneginf(log2_norm(dy))] = LOST
            return dy, exponent, known
        dy = self.workspace.take(y.shape, self.dtype)
        weight = 1.0 / settings.batch_size if settings.reduction == "mean" else 1.0
        if settings.upstream == "ones":
            dy.fill(weight)
        else:
            flat = dy.reshape(len(dy), -1)
            layer = np.full(len(self.seeds), _UPSTREAM_LAYER)
            random.fill_normal.run(self.seeds, layer, flat, weight, 0)
        return dy, np.zeros_like(exponent), known

    def backward(self, dy, exponent, runs, known, progress):
        carry, incoming = (dy, exponent), log2_norm(dy)
        known = np.maximum(known, _range_of(incoming, -np.inf))
        error = np.where(known == LOST, np.inf, math.log2(np.finfo(self.dtype).eps))
        sticky = known == NONFINITE, error
        for run in reversed(runs):
            tell = self.tell(run.start, exponent, run.exponents[:, 0]) if self.watched else None
            step = partial(self.backward_step, run.start, tell)
            carries, (norms, reports), spent = self.pass_over(
                "backward", step, run.start, carry, run.tape, run.count, (False, True), -1
            )
            exponents = carries[1].base
            sticky = self.write_backward(
                Run(run.start, run.count, None, run.exponents[:, ::-1]),
                exponents[:, :-1],
                norms.base,
                reports,
                incoming,
                sticky,
            )
            carry = np.ascontiguousarray(carries[0]), carries[1].at(run.count)
            exponent = carry[1]
            incoming = norms.base[:, -1] - (exponents[:, -1] - exponents[:, -2])
            for array in spent:
                self.workspace.give(array)
            progress(run.count)

    def backward_step(self, index, tell, carry, tape):
        """(cotangent, exponent), tape -> (input cotangent, exponent), (its norms, reports)."""
        dy, exponent = carry
        reports = []

        def watch(layer, tape, dy, dx, gradients):
            if tell is not None:
                tell(layer, tape, dy, dx, gradients)
            if not layer.children and told_of(layer):
                reports.append(told(layer, tape, dy, dx, gradients))

        dx, _ = self.network.blocks[index].pullback(dy, tape, self.workspace, watch)
        norms = log2_norm(dx)
        return (dx, renormalise(dx, norms, exponent)), (norms, tuple(reports))

    def write_backward(self, run: Run, exponent, norms, reports, incoming, sticky):
        """Norms of a run's operations into its rows; all arrays (S, count), last layer first.

        ``incoming`` (S,) are the norms of the cotangent that reaches the run, ``sticky`` says where
        that left the float range, and its relative error.
        """
        values, status = (array[:, ::-1] for array in self.rows_of(run))
        reports = [Report(*(_opened(part) for part in report)) for report in reports]
        reports = reports[::-1]  # as in the forward pass
        # The cotangent of a block's output: what the layer before passed on, renormalised.
        passed = np.hstack([incoming[:, None], norms[:, :-1] - np.diff(exponent, axis=1)])
        left, error = sticky
        found = _range_of(np.stack([passed, norms]).max(axis=0), -np.inf) == NONFINITE
        left = _accumulated(left, found)
        known = status[:, :, -1] == OK  # as the forward pass left it
        error, lost = self._digits(run.start, passed, norms, reports, error, known)
        for k, row in enumerate(self.rows[run.start]):
            cells, state = values[:, :, k], status[:, :, k]
            report, gone = reports[row.operation], lost[row.operation]

            def put(column, measured, unknown, cells=cells, state=state):
                cells[..., column] = np.where(unknown, np.nan, measured)
                state[unknown] = np.maximum(state[unknown], LOST)

            measured = report.norms + exponent[..., None]
            if row.has_delta:
                put(DELTA, measured[..., 0], gone.delta)
            if row.has_dx:
                put(DX, measured[..., 1], gone.dx)
            for number, column, of_examples in row.gradients:
                input_exponent = run.exponents if column in _OF_INPUT else 0
                gradient = measured[..., 2 + number] + input_exponent
                put(column, gradient, gone.gradients[..., number])
                if report.examples is not None and self.independent:
                    each = report.examples[..., number] + exponent + input_exponent
                    put(of_examples, each, gone.examples[..., number])
            for column, reading in zip(row.readings, report.readings or (), strict=True):
                put(column, reading, gone.dx & (column == _OF_DX))
            found = left | (_range_of(report.norms.max(axis=-1), -np.inf) == NONFINITE)
            state[found] = NONFINITE
        if self.network.residual[run.start]:
            put(DELTA, passed + exponent, error[:, :-1] + MARGIN >= 0)
        values[left, :, DELTA:] = np.nan
        return left[:, -1], error[:, -1]

    def _digits(self, index, passed, norms, reports, error, known):
        """(relative errors (S, count + 1) along a run's cotangents, what is lost of operations)."""
        key = (self.network.blocks[index], self.shapes[index])
        if key not in self.followed:
            self.followed[key] = self._block(index)
        block = self.followed[key]
        least = np.full_like(passed, block.eps)
        own, lost = block.follow(passed, least, reports, known, self.moderate)
        with np.errstate(invalid="ignore"):
            own = np.fmax(own - norms, block.eps)
        errors = np.maximum.accumulate(np.hstack([error[:, None], own]), axis=1)
        if (errors[:, :-1] > block.of_sum).any():  # less changes nothing
            _, lost = block.follow(passed, errors[:, :-1], reports, known, self.moderate)
        return errors, lost

    def _block(self, index: int) -> Block:
        block, shape = self.network.blocks[index], self.shapes[index]
        size = math.prod(shape)
        features = shape[1] if len(shape) == 4 else shape[-1]
        kinds = {}
        for row in self.rows[index]:
            of_operation = kinds.setdefault(row.operation, {})
            for number, column, _ in row.gradients:
                of_operation[number] = column not in _OF_INPUT
        biases = [[own[k] for k in sorted(own)] for _, own in sorted(kinds.items())]
        return Block(block, size // features, size, biases, self.dtype)

    def tell(self, index: int, exponent, input_exponent) -> Watch:
        """What passes a block's operations on to the caller's ``observe`` and ``watch``."""
        names = list({row.operation: row.op for row in self.rows[index]}.values())
        other = self.watch(self.seeds, index + 1) if self.watch else None

        def watch(layer, tape, dy, dx, gradients):
            if other is not None:
                other(layer, tape, dy, dx, gradients)
            if not layer.children and told_of(layer) and self.observe is not None:
                self.observe(
                    Operation(
                        *(self.seeds, index + 1, names.pop(), layer, tape["x"], dy),
                        *(input_exponent, exponent),
                    )
                )

        return watch


def told(layer: Primitive, tape, dy, dx, gradients) -> tuple:
    """What a :class:`~.rounding.Report` holds of an operation; () for what there is not."""
    norms, examples = log2_norms(dy, dx, *gradients.values()), ()
    if layer.example_norms is not None and not layer.couples_examples:
        examples = np.empty((len(dy), len(gradients)))
        layer.example_norms.run(*(tape[k] for k in layer.example_norms_reads), dy, examples)
    of_dx, of_gradients = layer.terms(tape, dy)
    readings = layer.read(tape, dx, of_dx) if layer.readings else ()
    of_dx, of_gradients = (() if terms is None else terms for terms in (of_dx, of_gradients))
    return norms, examples, readings, of_dx, of_gradients


def _opened(part):
    """The arrays (S, count, ...) of one part of a report; None where there are none."""
    if isinstance(part, Stack):
        return part.base
    return tuple(reading.base for reading in part) or None


def _range_of(log2_norms: np.ndarray, lowest: float) -> np.ndarray:
    """OK, LOST below ``lowest`` or NONFINITE; an exact zero is OK."""
    lost = (log2_norms < lowest) & ~np.isneginf(log2_norms)
    found = np.where(lost, LOST, OK)
    found[np.isnan(log2_norms) | np.isposinf(log2_norms)] = NONFINITE
    return found


def _accumulated(first: np.ndarray, found: np.ndarray) -> np.ndarray:
    """The largest so far along a run's layers (S, count), after ``first`` (S,)."""
    return np.maximum.accumulate(np.hstack([first[:, None], found]), axis=1)[:, 1:]
