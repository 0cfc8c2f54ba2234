"""What a run is made of before anything is drawn: its batches, its network, its rows, its memory.

One :class:`Setup` is made for each run and read by all that measure it, predict it or look into it.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from flowlab import data
from flowlab.errors import InputError
from flowlab.layer import Shape, leaves
from flowlab.layers.loss import LOSSES
from flowlab.measurement.rows import Row, layout
from flowlab.networks import Network, build, example_shape, features
from flowlab.settings import SEQUENCES, Settings

# Below this log2 of the root mean square, entries begin to fall out of the type's normal range.
LOWEST = {"float32": -100.0, "float64": -960.0}
# How large inputs may be in each type: what they become in a layer must fit, too.
_LARGEST = {"float32": 1e37, "float64": 1e150}
_GIB = 2**30
_ROW_BYTES = 1024  # of a table in the making, as measured
_ALWAYS = 2**-6  # GiB that any run may have


class Batches:
    """The inputs of a run: one batch for each seed, drawn with that seed; of a training, many.

    ``example`` is the shape of one example as the network takes it, ``shape`` that of a batch;
    ``classes`` is how many outputs a loss compares with labels, of a regression its targets, and
    ``target_square`` the mean of ‖target‖² under squared error. ``rows`` is how many examples a
    training goes through in an epoch, None without one.
    """

    def __init__(self, settings: Settings):
        self.settings, self._shared, self.rows = settings, None, None
        if settings.data.name == "gaussian":  # drawn with each seed
            count = settings.data.features or features(settings)
            self.classes, self.target_square = settings.data.classes, 1.0
            self._sources = _Sources(settings, self._load)
        else:
            shared = self._load(settings.seed)
            if not settings.trained:
                shared.batch(settings.batch_size, settings.seed)
            _check_range(shared, settings)
            count = shared.x.shape[1]
            self.classes, self.target_square = shared.n_classes, shared.target_square
            self._sources = _Sources(settings, lambda _: shared, shared=True)
        if settings.trained:
            self.rows = len(self._sources(settings.seed)[0].x)
            if settings.batch_size > self.rows:
                raise InputError(
                    f"batch_size must be at most the {self.rows} training examples of "
                    f"{settings.data.name}; got {settings.batch_size}"
                )
            settings.training.step_count(settings.batch_size, self.rows)
        self.example = example_shape(settings, count)

    def _load(self, seed: int) -> data.Dataset:
        settings, size = self.settings, self.settings.batch_size
        if settings.trained:
            size = max(data.GAUSSIAN_EXAMPLES, 2 * size)
        values = settings.upstream != "loss" or LOSSES[settings.loss].of_values
        return data.load(settings.data, features(settings), size, seed, values)

    @property
    def shape(self) -> Shape:
        return (self.settings.batch_size, *self.example)

    def __call__(self, seeds: Iterable[int], step: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Inputs (S, *shape); classes (S, batch) or targets (S, batch, K), of a ``step`` from 1.

        Inputs are in the run's dtype, or in float64 where their size is beyond that type's comfort.
        A training cuts its batches from epochs in a row, each in an order of its own, so that step
        t takes the examples (t - 1) B ... t B - 1 that a seed goes through; else there is one step.
        """
        size = self.settings.batch_size
        if self.settings.trained:
            at = range((step - 1) * size, step * size)
            drawn = [self._sources.examples(seed, at) for seed in seeds]
        else:
            drawn = [self._sources(seed)[0].batch(size, seed) for seed in seeds]
        return self._arrays(drawn)

    @property
    def held_out(self) -> int:
        """How many examples are held out of a training."""
        return len(self._sources(self.settings.seed)[1].x)

    def evaluated(self, seeds: Iterable[int], rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """These of the examples that are held out, as a batch of each seed: (S, rows, ...)."""
        held = [self._sources(seed)[1] for seed in seeds]
        return self._arrays([(of.x[rows], of.labels[rows]) for of in held])

    def _arrays(self, drawn: list) -> tuple[np.ndarray, np.ndarray]:
        batches, labels = zip(*drawn, strict=True)
        largest = np.max([(x.max(), -x.min()) for x in batches])
        comfortable = largest == 0 or abs(np.log2(largest)) < -LOWEST[self.settings.dtype]
        dtype = self.settings.dtype if comfortable else np.result_type(*batches)
        x = np.empty((len(batches), *batches[0].shape), dtype)
        for own, batch in zip(x, batches, strict=True):
            own[...] = batch
        return x.reshape(*x.shape[:2], *self.example), np.stack(labels)


class _Sources:
    """The data of each seed: (what its batches are taken from, what is held out of a training)."""

    def __init__(self, settings: Settings, load, shared: bool = False):
        self.settings, self.load, self.shared = settings, load, shared
        self.kept: dict[int, tuple] = {}
        self.orders: dict[int, tuple[int, np.ndarray]] = {}

    def __call__(self, seed: int) -> tuple[data.Dataset, data.Dataset | None]:
        if not self.settings.trained:
            return self.load(seed), None
        key = 0 if self.shared else seed
        if key not in self.kept:
            self.kept[key] = self.load(seed).split(self.settings.training.held_out)
        return self.kept[key]

    def examples(self, seed: int, at: range) -> tuple[np.ndarray, np.ndarray]:
        """Those that a seed goes through at these places, epoch after epoch."""
        training, _ = self(seed)
        n, rows = len(training.x), []
        for epoch in range(at.start // n, (at.stop - 1) // n + 1):
            if self.orders.get(seed, (None,))[0] != epoch:
                self.orders[seed] = epoch, training.shuffled(epoch, seed)
            first = epoch * n
            order = self.orders[seed][1]
            rows.append(order[max(at.start - first, 0) : at.stop - first])
        rows = np.concatenate(rows)
        return training.x[rows], training.labels[rows]


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


@dataclass(frozen=True)
class Setup:
    """One run: its settings, its batches and its network; ``own`` if that is a user's."""

    settings: Settings
    batches: Batches
    network: Network
    own: bool = False

    @property
    def run(self) -> str:
        """The run's name."""
        return self.network.run(self.settings) if self.own else self.settings.run()

    @property
    def shape(self) -> Shape:
        """Of a batch."""
        return _shape(self.settings, self.batches)

    @property
    def outputs(self) -> int | None:
        """How many numbers a loss compares with each example's target; None without a loss."""
        return _outputs(self.settings, self.batches)

    @cached_property
    def rows(self) -> list[list[Row]]:
        """Every block's rows in the table, in forward order."""
        return layout(self.network, self.shape)

    @cached_property
    def shapes(self) -> list[Shape]:
        """The shape of every block's input."""
        return [place.shape for place in self.network.walk(self.shape)]

    @property
    def seeds(self) -> np.ndarray:
        """Every seed, int64 (S,)."""
        return np.arange(self.settings.seed, self.settings.seed + self.settings.seeds)


def prepare(
    settings: Settings,
    batches: Batches | None = None,
    network: Network | None = None,
    ensemble: bool = True,
) -> Setup:
    """The setup of a run; ``batches`` and ``network`` replace those that the settings describe.

    Raises InputError for settings that break a rule, and where the run, or its rows alone without
    an ``ensemble``, needs more memory than they allow.
    """
    settings.validate()
    batches = batches or Batches(settings)
    if network is not None:
        _check_own(network, settings, batches)
    affordable(settings, batches, ensemble, network)
    own = network is not None
    return Setup(settings, batches, network or build(settings, _outputs(settings, batches)), own)


def _check_own(network: Network, settings: Settings, batches: Batches) -> None:
    """Raise InputError where a user's network has no rows or another number of outputs."""
    shape = _shape(settings, batches)
    for number, rows in enumerate(layout(network, shape), 1):
        if not rows:
            raise InputError(
                f"block {number} of the network must hold an operation with parameters, such as "
                f"the map that its input comes from; got {network.blocks[number - 1].name}"
            )
    found, outputs = network.chain.declare(shape).output, _outputs(settings, batches)
    if outputs is not None and found != (settings.batch_size, outputs):
        raise InputError(
            f"the network must end in {outputs} outputs for upstream=loss; got shape {found[1:]}"
        )


def _shape(settings: Settings, batches: Batches) -> Shape:
    return (settings.batch_size, *batches.example)


def _outputs(settings: Settings, batches: Batches) -> int | None:
    return batches.classes if settings.upstream == "loss" else None


@dataclass(frozen=True)
class Size:
    """How much one network's pass keeps, in elements: a whole ``tape``, parameters included, that
    of the largest ``block``, and the largest ``carry`` from block to block. A training keeps
    ``more`` beside; ``rows`` are those of its table, of time steps included.
    """

    tape: int
    rows: int
    block: int
    carry: int
    more: int = 0

    @property
    def least(self) -> float:
        """What segments' inputs and the tape of one take together, where that is least."""
        return min(self.tape, self._shortest + self.carry * self.tape / self._shortest)

    def segment(self, most: float, layers: int) -> float:
        """How long the tape of a segment may be, so that all that is kept is ``most`` elements.

        Infinite where the whole tape has room; else of so many ``layers`` or fewer, but never
        shorter than where as little as possible is kept.
        """
        if self.tape <= most:
            return math.inf
        root = math.sqrt(max(most**2 / 4 - self.carry * self.tape, 0.0))
        return max(self._shortest, min(most / 2 + root, layers * self.block))

    @property
    def _shortest(self) -> float:
        return max(self.block, math.sqrt(self.carry * self.tape))


def size(settings: Settings, batches: Batches, network: Network | None = None) -> Size:
    """What a run keeps of each network; nothing is allocated.

    Unless a ``network`` is given no deep one is built: layers between the ends are alike, so that
    two shallow nets show what a layer adds.
    """
    if network is not None:
        return _size(network, settings, batches)
    found = []
    for more in (0, 1):
        depth = min(settings.depth, 4 + more)
        shallow = build(replace(settings, depth=depth), _outputs(settings, batches))
        found.append(_size(shallow, settings, batches))
    beyond, (first, last) = max(settings.depth - 4, 0), found
    grown = {
        name: getattr(first, name) + beyond * (getattr(last, name) - getattr(first, name))
        for name in ("tape", "rows", "more")
    }
    return replace(last, **grown)


def needed(
    settings: Settings, batches: Batches, network: Network | None = None
) -> tuple[float, float]:
    """GiB of one network's parameters and activations, and of a table's rows for one seed.

    A training holds gradients, the optimizer's state and, at logged steps, the parameters before
    the step as well; its table has rows of every logged step. What sharpness takes is not counted.
    """
    own = size(settings, batches, network)
    return gib(settings, own.tape + own.more), of_rows(own.rows)


def least(
    settings: Settings, batches: Batches, network: Network | None = None
) -> tuple[float, float]:
    """As :func:`needed` says, where as little as possible is kept of a network; of a training all.

    The rest is made again on the way back.
    """
    own = size(settings, batches, network)
    one = own.tape + own.more if settings.trained else own.least
    return gib(settings, one), of_rows(own.rows)


def gib(settings: Settings, elements: float) -> float:
    """Of so many numbers of the run's type."""
    return np.dtype(settings.dtype).itemsize * elements / _GIB


def of_rows(rows: int) -> float:
    """GiB of so many rows of a table."""
    return _ROW_BYTES * rows / _GIB


def _size(network: Network, settings: Settings, batches: Batches) -> Size:
    shape, training = _shape(settings, batches), settings.training
    rows = sum(map(len, layout(network, shape)))
    if network.steps:
        rows += (len(network.blocks) - 1) * shape[1]
    kinds = {(place.block, place.shape) for place in network.walk(shape)}
    block = max(block.declare(shape).elements for block, shape in kinds)
    carry = max(math.prod(shape) for _, shape in kinds)
    declared = network.chain.declare(shape)
    plain = Size(declared.elements, rows, block, carry)
    if not settings.trained:
        return plain
    parameters = sum(math.prod(leaf.shape) for _, leaf in leaves(declared.parameters))
    logged = training.logged_at_most(training.step_count(settings.batch_size, batches.rows))
    return replace(plain, more=(2 + training.state) * parameters, rows=rows * logged)


def affordable(
    settings: Settings, batches: Batches, ensemble: bool = True, network: Network | None = None
) -> None:
    """Raise InputError where a run, or its rows without an ``ensemble``, needs too much memory.

    A run may have ``settings.memory_gib``, but 1/64 GiB always.
    """
    run = f"depth={settings.depth} width={settings.width} batch_size={settings.batch_size}"
    tokens = batches.example[0] if settings.network.name in SEQUENCES else 1
    # What a declaration may itself hold must fit before the network can be asked.
    bound = gib(settings, settings.width * tokens)
    most = max(settings.memory_gib, _ALWAYS)
    if bound <= most:
        one, row = least(settings, batches, network)
        run += f" seeds={settings.seeds}" if ensemble else ""
        bound = one + row * settings.seeds if ensemble else row
    if bound > most:
        raise InputError(
            f"memory_gib must be at least {bound:,.2f} for {run}; got {settings.memory_gib:g}"
        )
