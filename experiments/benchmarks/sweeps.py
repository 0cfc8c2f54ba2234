"""What a sweep costs beside its measurements, how it gains from workers, how fast it is read.

Bookkeeping is what a sweep takes beside measuring, predicting, judging and keeping its runs, for
each condition; Hydra's own sweeper and launcher run the same command. All is done in this process
but by the workers, in folders that are thrown away.
"""

import contextlib
import dataclasses
import io
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import chain

import numpy as np
import pandas as pd

import experiments.run
from experiments.benchmarks.timing import Say, elapsed, spread
from experiments.command import main
from experiments.sweep import work
from flowlab import runs
from flowlab.measurement.ensemble import measure
from flowlab.prediction import predict
from flowlab.settings import make
from flowlab.storage.experiment import Experiment, load
from flowlab.storage.versions import versions

TINY = {"width": 8, "batch_size": 8, "seeds": 1, "data": "gaussian"}
HYDRAS_JOBS = 50  # Hydra's default takes a hundred times as long for each
COLUMNS = ["run", "depth", "seed", "layer", "delta_log10_norm", "status"]


def rows(
    say: Say, jobs: int = 200, heavy: int = 6, kept: int = 2000, rounds: int = 2
) -> Iterator[dict]:
    """A row per number: ``value`` (median over rounds), ``low``, ``high``, ``unit``, ``quantity``.

    ``jobs`` small conditions for the bookkeeping, ``heavy`` ones of a second or two for the
    workers, ``kept`` runs for reading.
    """
    columns = ["value", "low", "high", "unit", "quantity"]
    parts = _bookkeeping(jobs, rounds, say), _scaling(heavy, rounds, say), _reading(kept, say)
    for name, *numbers, unit in chain(*parts):
        yield dict(zip(columns, (*numbers, unit, name), strict=True))


def report(table: pd.DataFrame) -> str:
    """The table's three answers in one sentence each; those that it has."""
    value = table.set_index("quantity")["value"]
    sentences = {
        "Hydra / flowlab": "A condition costs {bookkeeping:.2g} ms beside its measurement, "
        "{Hydra / flowlab:.0f} times less than under Hydra's own sweeper and launcher.",
        "two workers / one": "Two workers do {two workers / one:.2f} times the work of one.",
        "load, compacted": "Six columns of {runs read:.0f} runs ({rows read:.0f} rows) load in "
        "{load, single files:.2g} s, compacted in {load, compacted:.2g} s.",
    }
    return " ".join(text.format_map(value) for last, text in sentences.items() if last in value)


def _bookkeeping(jobs: int, rounds: int, say: Say) -> Iterator[tuple]:
    forms = {
        "bookkeeping": (jobs, ["hydra.launcher.workers=1"]),
        "bookkeeping of Hydra's default": (
            min(jobs, HYDRAS_JOBS),
            ["hydra/sweeper=basic", "hydra/launcher=basic"],
        ),
    }
    axes = [f"{key}={value}" for key, value in TINY.items()]
    found: dict[str, list[float]] = {name: [] for name in forms}
    with _quietly() as command, tempfile.TemporaryDirectory() as scratch, _timed() as spent:
        for turn in range(rounds + 1):
            for name, (count, how) in forms.items():
                spent.clear()
                say(f"{name}, round {turn} of {rounds}" if turn else f"{name}, first call")
                count = count if turn else min(count, 4)  # the first is for compilation
                seeds = f"seed=range({max(count // 4, 1)})"
                where = f"results_dir={scratch}/{turn}-{len(how)}", f"hydra.sweep.dir={scratch}"
                total = elapsed(
                    lambda more=(seeds, *where, *how): command("-m", *axes, "depth=2,3,4,5", *more)
                )
                if turn:
                    found[name].append(1e3 * (total - sum(spent)) / len(spent))
    ours, hydras = found.values()
    for name, values in found.items():
        yield name, *spread(values), "ms per condition"
    yield "Hydra / flowlab", *spread(np.array(hydras) / np.array(ours)), "ratio"


@contextlib.contextmanager
def _timed():
    """The seconds of every run measured and kept meanwhile."""
    spent: list[float] = []
    original = runs.run

    def run(*arguments, **options):
        begun = time.perf_counter()
        try:
            return original(*arguments, **options)
        finally:
            spent.append(time.perf_counter() - begun)

    for module in (work, runs):
        module.run = run
    try:
        yield spent
    finally:
        for module in (work, runs):
            module.run = original


def _scaling(heavy: int, rounds: int, say: Say) -> Iterator[tuple]:
    ratios = []
    with _quietly() as command, tempfile.TemporaryDirectory() as scratch:
        axes = ["depth=100", "width=256", "seeds=8", "data=gaussian", "threads=1"]
        for turn in range(rounds + 1):
            conditions = heavy if turn else 2  # the first is for compilation
            times = []
            for workers in (1, 2):
                say(f"{conditions} conditions, {workers} at once, round {turn} of {rounds}")
                arguments = (
                    *("-m", *axes, f"seed=range(0,{8 * conditions},8)"),
                    *(f"hydra.launcher.workers={workers}", "hydra.sweeper.part=1"),
                    f"results_dir={scratch}/{turn}-{workers}",
                )
                times.append(elapsed(lambda given=arguments: command(*given)))
            ratios += [times[0] / times[1]] if turn else []
    yield "two workers / one", *spread(ratios), "ratio"


def _reading(kept: int, say: Say) -> Iterator[tuple]:
    settings = make(**TINY | {"seeds": 16}, depth=18)
    table, prediction = measure(settings), predict(settings)
    with tempfile.TemporaryDirectory() as scratch:
        experiment = Experiment(scratch)
        say(f"keeping {kept} runs of {len(table)} rows")
        for k in range(kept):
            one = dataclasses.replace(settings, seed=16 * k)
            own = table.assign(run=one.run(), seed=table["seed"] + 16 * k)
            metadata = {"settings": one.resolved(), "versions": versions(), "command": ""}
            experiment.save(one.run(), own, prediction, metadata)
        yield "runs read", *(3 * [kept]), "runs"
        yield "rows read", *(3 * [kept * len(table)]), "rows"
        for name in ("single files", "compacted"):
            if name == "compacted":
                say("compacting")
                yield "compaction", *(3 * [elapsed(Experiment(scratch).compact)]), "s"
            say(f"reading, {name}")
            yield f"index, {name}", *_times(lambda: Experiment(scratch).index()), "s"
            yield f"load, {name}", *_times(lambda: load(scratch, COLUMNS)), "s"


@contextlib.contextmanager
def _quietly():
    """A function that runs the command with arguments, silently; it must succeed."""
    given = sys.argv

    def command(*arguments: str) -> None:
        sys.argv = ["experiments.run", *arguments]
        with contextlib.redirect_stdout(io.StringIO()):
            code = main(experiments.run.run, swept=True)
        if code:
            raise RuntimeError(f"experiments.run {' '.join(arguments)} ended with {code}")

    try:
        yield command
    finally:
        sys.argv = given


def _times(work: Callable[[], object], rounds: int = 3) -> tuple[float, float, float]:
    return spread([elapsed(work) for _ in range(rounds)])
