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
from collections.abc import Callable

import numpy as np
import pandas as pd

import experiments.run
from experiments.command import main
from experiments.sweep import work
from flowlab.measurement.ensemble import measure
from flowlab.prediction import predict
from flowlab.settings import make
from flowlab.storage.experiment import Experiment, load
from flowlab.storage.versions import versions

TINY = {"width": 8, "batch_size": 8, "seeds": 1, "data": "gaussian"}
HYDRAS_JOBS = 50  # Hydra's default takes a hundred times as long for each
COLUMNS = ["run", "depth", "seed", "layer", "delta_log10_norm", "status"]


def sweeps(jobs: int = 1000, heavy: int = 96, runs: int = 10_000, rounds: int = 3) -> pd.DataFrame:
    """A row per number: ``quantity``, ``value`` (median over rounds), ``low``, ``high``, ``unit``.

    ``jobs`` small conditions for the bookkeeping, ``heavy`` ones of a second or two for the
    workers, ``runs`` for reading.
    """
    found = [_bookkeeping(jobs, rounds), _scaling(heavy, rounds), _reading(runs)]
    columns = ["quantity", "value", "low", "high", "unit"]
    return pd.DataFrame([row for rows in found for row in rows], columns=columns)


def report(table: pd.DataFrame) -> str:
    """The table's three answers in one sentence each."""
    value = table.set_index("quantity")["value"]
    return (
        f"A condition costs {value['bookkeeping']:.2g} ms beside its measurement, "
        f"{value['Hydra / flowlab']:.0f} times less than under Hydra's own sweeper and launcher. "
        f"Two workers do {value['two workers / one']:.2f} times the work of one. "
        f"Six columns of {value['runs read']:.0f} runs ({value['rows read'] / 1e6:.1f} million "
        f"rows) load in {value['load, single files']:.2g} s, compacted in "
        f"{value['load, compacted']:.2g} s."
    )


def _bookkeeping(jobs: int, rounds: int) -> list[tuple]:
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
                seeds = f"seed=range({count // 4})"
                where = f"results_dir={scratch}/{turn}-{len(how)}", f"hydra.sweep.dir={scratch}"
                total = _seconds(
                    lambda more=(seeds, *where, *how): command("-m", *axes, "depth=2,3,4,5", *more)
                )
                _say(f"{name}: {total:.1f} s for {len(spent)}, {sum(spent):.1f} s measuring")
                if turn:  # the first is for compilation
                    found[name].append(1e3 * (total - sum(spent)) / len(spent))
    ours, hydras = found.values()
    rows = [(name, *_spread(values), "ms per condition") for name, values in found.items()]
    return [*rows, ("Hydra / flowlab", *_spread(np.array(hydras) / np.array(ours)), "ratio")]


@contextlib.contextmanager
def _timed():
    """The seconds of every run measured and kept meanwhile."""
    spent: list[float] = []
    original = work.complete

    def complete(*arguments, **options):
        begun = time.perf_counter()
        try:
            return original(*arguments, **options)
        finally:
            spent.append(time.perf_counter() - begun)

    modules = (work, experiments.run)
    for module in modules:
        module.complete = complete
    try:
        yield spent
    finally:
        for module in modules:
            module.complete = original


def _scaling(heavy: int, rounds: int) -> list[tuple]:
    ratios = []
    with _quietly() as command, tempfile.TemporaryDirectory() as scratch:
        axes = ["depth=100", "width=256", "seeds=8", "data=gaussian", "threads=1"]
        for turn in range(rounds + 1):
            conditions = heavy if turn else 2  # the first is for compilation
            times = [
                _seconds(
                    lambda workers=workers, turn=turn, conditions=conditions: command(
                        *("-m", *axes, f"seed=range(0,{8 * conditions},8)"),
                        *(f"hydra.launcher.workers={workers}", "hydra.sweeper.part=1"),
                        f"results_dir={scratch}/{turn}-{workers}",
                    )
                )
                for workers in (1, 2)
            ]
            _say(f"{conditions} conditions: one worker {times[0]:.1f} s, two {times[1]:.1f} s")
            ratios += [times[0] / times[1]] if turn else []
    return [("two workers / one", *_spread(ratios), "ratio")]


def _reading(runs: int) -> list[tuple]:
    settings = make(**TINY | {"seeds": 16}, depth=18)
    table, prediction = measure(settings), predict(settings)
    with tempfile.TemporaryDirectory() as scratch:
        experiment = Experiment(scratch)
        _say(f"keeping {runs} runs of {len(table)} rows")
        for k in range(runs):
            one = dataclasses.replace(settings, seed=16 * k)
            own = table.assign(run=one.run(), seed=table["seed"] + 16 * k)
            metadata = {"settings": one.resolved(), "versions": versions(), "command": ""}
            experiment.save(one.run(), own, prediction, metadata)
        rows = [
            ("runs read", runs, runs, runs, "runs"),
            ("rows read", *(3 * [runs * len(table)]), "rows"),
        ]
        for name in ("single files", "compacted"):
            if name == "compacted":
                seconds = _seconds(Experiment(scratch).compact)
                rows.append(("compaction", *(3 * [seconds]), "s"))
            rows.append((f"index, {name}", *_times(lambda: Experiment(scratch).index()), "s"))
            rows.append((f"load, {name}", *_times(lambda: load(scratch, COLUMNS)), "s"))
            _say(f"{name} read")
    return rows


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


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _times(work: Callable[[], object], rounds: int = 3) -> tuple[float, float, float]:
    return _spread([_seconds(work) for _ in range(rounds)])


def _spread(values) -> tuple[float, float, float]:
    return float(np.median(values)), float(np.min(values)), float(np.max(values))


def _say(line: str) -> None:
    print(f"  {line}", file=sys.stderr, flush=True)
