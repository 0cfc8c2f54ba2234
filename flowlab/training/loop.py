"""Training: an ensemble of networks, each with its own batches, from the first step to the last.

Seeds are independent, so that a part of the ensemble is trained by one thread from its first step
to its last, without a barrier; neither the parts nor the number of threads change a bit. A step is
the pass of a measurement (:mod:`flowlab.measurement`), parameters held and gradients kept, and an
update (:mod:`flowlab.training.updates`). Networks whose values leave the float range are
*diverged*: recorded with step and layer, while the others go on.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pandas as pd

from flowlab.errors import InputError
from flowlab.initializers import Initializer
from flowlab.layer import Nest, Workspace
from flowlab.layers.loss import LOSSES
from flowlab.measurement.ensemble import Count, Progress, readings, round_trip, split, threads
from flowlab.measurement.norms import Norms
from flowlab.measurement.passes import WORTH_COMPILING, Drawn, Held, Passes
from flowlab.measurement.quantities import columns
from flowlab.measurement.rounding import LOST
from flowlab.measurement.scan import Scans
from flowlab.measurement.setup import Batches, Setup, needed, prepare
from flowlab.measurement.table import axes_of, of_pass
from flowlab.networks import Network
from flowlab.numerics.blas import one_thread
from flowlab.numerics.scale import LOG10_2
from flowlab.settings import Settings
from flowlab.training import moves, noise
from flowlab.training.curvature import curvature
from flowlab.training.curve import DIVERGED, OK, of_training
from flowlab.training.evaluation import Evaluation, Running, loss_of
from flowlab.training.sinks import Logging, Stepping
from flowlab.training.updates import Updater

# Steps times equal layers for which compiling a loop over them takes less time than it saves.
_PAYS = 4000


@dataclass(frozen=True)
class Trained:
    """What a training leaves: the rows of its logged steps, and its curve."""

    table: pd.DataFrame
    curve: pd.DataFrame


def train(
    settings: Settings,
    progress: Progress | None = None,
    batches: Batches | None = None,
    network: Network | None = None,
) -> Trained:
    """Train one network for each seed, as ``settings.training`` says.

    ``table`` has the rows of :func:`flowlab.measurement.ensemble.measure` for every logged
    ``step``, of the parameters that the step starts from and its batch, with norms of W and of
    the step in W. ``curve`` has a row for each seed and logged step, with the columns of
    :mod:`flowlab.training.curve`. ``progress(done, total)`` counts steps over all parts;
    ``batches`` and ``network`` replace those that the settings describe. Raises InputError for
    settings without an optimizer, that break a rule or need more memory than they allow.
    """
    if not settings.trained:
        raise InputError("training must name an optimizer, sgd, adam or adamw; got none")
    setup = prepare(settings, batches, network)
    steps = settings.training.step_count(settings.batch_size, setup.batches.rows)
    parts = split(setup, *needed(settings, setup.batches, network))
    count = Count(progress, steps * len(parts))

    def one(seeds: np.ndarray) -> list[Log]:
        return Part(setup, seeds, steps).train(steps, count)

    with one_thread(), ThreadPoolExecutor(threads(settings)) as pool:
        logs = list(pool.map(one, parts))
    axes = axes_of(settings, network)
    return Trained(_table(setup, axes, logs), of_training(axes, setup.seeds, _curves(logs)))


@dataclass
class Log:
    """A logged step of a part: what :func:`flowlab.measurement.table.of_pass` takes, and its curve.

    ``curve`` are arrays (S,) by column.
    """

    step: int
    rows: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
    curve: dict[str, np.ndarray]


class Part:
    """Networks of ``seeds`` (S,) trained side by side, for ``steps`` or so.

    ``held`` are their parameters, changed in place by every step.
    """

    def __init__(self, setup: Setup, seeds: np.ndarray, steps: int = 1):
        settings = self.settings = setup.settings
        self.setup, self.seeds, self.dtype = setup, seeds, np.dtype(settings.dtype)
        self.workspace, self.scans = Workspace(), Scans()
        # Compiled once, a loop over equal layers pays in every step.
        self.shortest = min(WORTH_COMPILING, max(2, _PAYS // steps))
        self.passes = self._passes(settings.batch_size)
        self.logged = self._passes(settings.batch_size, quantities=True)
        source = Drawn(Initializer(settings.init), seeds, self.dtype)
        self.held = Held.drawn(source, self.passes)
        self.updater = Updater(
            settings.training, self.held.held, declared(self.passes), settings.batch_size
        )
        two = settings.training.two_batches
        self.quarter = self._passes(settings.batch_size // 4) if two else None
        self.running = Running()
        self.evaluation = Evaluation(setup, seeds, self.workspace, self.scans)
        self.loss = LOSSES[settings.loss](settings.reduction)
        self.diverged = np.zeros((2, len(seeds)), np.int64)  # step and layer, 0 while all is well
        self.clipped, self.since = np.zeros(len(seeds)), 0

    def train(self, steps: int, count: Callable[[int], None]) -> list[Log]:
        """All steps; what was logged."""
        logged = set(self.settings.training.logged(steps))
        logs = []
        for step in range(1, steps + 1):
            rate = self.settings.training.rate(step, steps, self.settings.batch_size)
            if step in logged:
                logs.append(self.log(step, rate))
            elif not self.diverged[0].all():
                self.step(step, rate)
            count(1)
        return logs

    def step(self, step: int, rate: float) -> None:
        """One step at a learning rate."""
        self._step(step, rate, self.passes, Stepping(len(self.seeds)))
        self.workspace.reset()

    def log(self, step: int, rate: float) -> Log:
        """The same, measured."""
        n = self.settings.batch_size
        norms = Norms(self.setup, self.seeds, self.held)
        before = moves.copied(self.held.held)
        of_quarter = self._norm_of_quarter(step) if self.quarter else None
        loss, found = self._step(step, rate, self.logged, Logging(norms), measured=True)
        norms.finish()
        self.workspace.reset()
        moves.put(norms, before, self.held.held)
        held_out = self.evaluation(self.held, self.running)
        bad, layer = self.diverged
        curve = {
            "examples": np.full(len(self.seeds), step * n),
            "epoch": np.full(len(self.seeds), step * n / self.setup.batches.rows),
            "learning_rate": np.full(len(self.seeds), rate),
            "training_loss": loss,
            **dict(zip(("held_out_loss", "held_out_accuracy"), held_out, strict=True)),
            "gradient_log10_norm": LOG10_2 * found.norm,
            "clipped": self.clipped / self.since,
            "clip_angle": np.arccos(found.cosine),
            "noise_scale": noise.exact(
                norms.values, norms.status == LOST, self.setup.rows, norms.at, n
            ),
            "diverged_step": np.where(bad > 0, bad, np.nan),
            "diverged_layer": np.where(bad > 0, layer, np.nan),
            "training_status": np.where(bad > 0, DIVERGED, OK),
        }
        if self.quarter is not None:
            mean = self.settings.reduction == "mean"
            scale = noise.two_batches(of_quarter, found.norm, n // 4, n, mean)
            curve["noise_scale_two_batches"] = scale
        if self.settings.training.sharpness:
            curve |= curvature(self.setup, self.seeds, step, before, self.updater)
        self.clipped[:], self.since = 0, 0
        return Log(step, readings(norms), curve)

    def _passes(self, n: int, quantities: bool = False) -> Passes:
        """Passes of ``n`` examples, in the same stretches for every n."""
        network, shape = self.setup.network, (n, *self.setup.shape[1:])
        return Passes(
            *(network, [place.shape for place in network.walk(shape)]),
            *(self.workspace, self.scans),
            quantities=quantities,
            shortest=self.shortest,
        )

    def _norm_of_quarter(self, step: int) -> np.ndarray:
        """log2 norm (S,) of the gradient of a batch's first quarter."""
        n, sink = self.settings.batch_size // 4, Stepping(len(self.seeds))
        x, labels = (of[:, :n] for of in self.setup.batches(self.seeds, step))
        x, labels = np.ascontiguousarray(x), np.ascontiguousarray(labels)
        round_trip(self.setup, self.seeds, self.quarter, self.held, sink, x, labels)
        norm = self.updater.norm(sink.held, sink.exponents)
        self.workspace.reset()
        return norm

    def _step(self, step: int, rate: float, passes: Passes, sink: Stepping, measured: bool = False):
        """The loss of the step's batch (S,), and what the updater did."""
        x, labels = self.setup.batches(self.seeds, step)
        y, exponent = round_trip(self.setup, self.seeds, passes, self.held, sink, x, labels)
        with np.errstate(over="ignore", invalid="ignore"):
            loss = loss_of(self.loss, y, exponent, labels)
        if sink.statistics:
            self.running.update(sink.statistics)
        found = self.updater(sink.held, sink.exponents, rate, measured)
        self.clipped += found.clipped
        self.since += 1
        last = len(self.setup.network.blocks)
        bad = np.where(sink.bad > 0, sink.bad, np.where(np.isfinite(loss), found.nonfinite, last))
        new = (bad > 0) & (self.diverged[0] == 0)
        self.diverged[0, new] = step
        self.diverged[1, new] = bad[new]
        return loss, found


def declared(passes: Passes) -> dict[int, Nest]:
    """The declared parameters of every stretch's blocks."""
    blocks, shapes = passes.network.blocks, passes.shapes
    return {at: blocks[at].declare(shapes[at]).parameters for at, _ in passes.stretches()}


def _table(setup: Setup, axes: dict, logs: list[list[Log]]) -> pd.DataFrame:
    """The rows of all parts, step by step."""
    frames = []
    for together in zip(*logs, strict=True):
        arrays = (np.concatenate(of) for of in zip(*(log.rows for log in together), strict=True))
        step = together[0].step
        frames.append(of_pass(axes, setup.rows, setup.seeds, columns(), *arrays, step=step))
    return pd.concat(frames, ignore_index=True)


def _curves(logs: list[list[Log]]) -> dict[int, dict[str, np.ndarray]]:
    """What was measured of all parts, by step and column."""
    return {
        together[0].step: {
            name: np.concatenate([log.curve[name] for log in together])
            for name in together[0].curve
        }
        for together in zip(*logs, strict=True)
    }
