"""What a sweep costs beside its measurements, how it gains from workers, how fast it is read.

Bookkeeping is a sweep's time less that of the same measurements made and kept one after another in
a plain loop, for each condition; Hydra's own sweeper and launcher run the same command. Everything
runs in this process but the workers, and into a folder that is thrown away.
"""

import contextlib
import dataclasses
import io
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.command import main
from experiments.run import run
from experiments.sweep.work import complete
from flowlab.measure import measure
from flowlab.prediction import predict
from flowlab.settings import make
from flowlab.store import Experiment, load
from flowlab.versions import versions

TINY = {"width": 8, "batch_size": 8, "seeds": 1, "data": "gaussian"}
HYDRAS_JOBS = 50  # Hydra's default takes a hundred times as long for each
COLUMNS = ["run", "depth", "seed", "layer", "delta_log10_norm", "status"]


def sweeps(jobs: int = 1000, heavy: int = 24, runs: int = 10_000, rounds: int = 3) -> pd.DataFrame:
    """A row per number: ``quantity``, ``value`` (median over rounds), ``low``, ``high``, ``unit``.

    ``jobs`` small conditions for the bookkeeping, ``heavy`` ones of about half a second for the
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
    ours, hydras = [], []
    few = min(HYDRAS_JOBS, jobs)
    with _quietly() as command, tempfile.TemporaryDirectory() as scratch:
        axes = [f"{key}={value}" for key, value in TINY.items()]
        conditions = [
            make(**TINY, depth=depth, seed=seed)
            for depth, seed in product((2, 3, 4, 5), range(-(-jobs // 4)))
        ]
        hydra = ["hydra/sweeper=basic", "hydra/launcher=basic"]
        for turn in range(rounds + 1):
            folder = Path(scratch) / str(turn)

            def swept(count, *more, folder=folder):
                seeds = f"seed=range({-(-count // 4)})"
                chosen = [*axes, "depth=2,3,4,5", seeds, f"results_dir={folder}/{len(more)}"]
                return _seconds(lambda: command("-m", *chosen, *more))

            def plain(count, folder=folder):
                chosen = [one for one in conditions if one.seed < -(-count // 4)]
                own = [dataclasses.replace(s, results_dir=f"{folder}/loop") for s in chosen]
                return _seconds(lambda: [complete(settings, "") for settings in own])

            one = swept(jobs, "hydra.launcher.workers=1") - plain(jobs)
            other = swept(few, *hydra) - plain(few)
            _say(f"{1e3 * one / jobs:.2f} ms, Hydra {1e3 * other / few:.1f} ms")
            if turn:  # the first is for compilation
                ours.append(1e3 * one / jobs)
                hydras.append(1e3 * other / few)
    ratios = np.array(hydras) / np.array(ours)
    return [
        ("bookkeeping", *_spread(ours), "ms per condition"),
        ("bookkeeping of Hydra's default", *_spread(hydras), "ms per condition"),
        ("Hydra / flowlab", *_spread(ratios), "ratio"),
    ]


def _scaling(heavy: int, rounds: int) -> list[tuple]:
    ratios = []
    with _quietly() as command, tempfile.TemporaryDirectory() as scratch:
        axes = ["depth=100", "width=128", "seeds=8", "data=gaussian", "threads=1"]
        for turn in range(rounds + 1):
            times = [
                _seconds(
                    lambda workers=workers, turn=turn: command(
                        *("-m", *axes, f"seed=range(0,{8 * heavy},8)"),
                        *(f"hydra.launcher.workers={workers}", "hydra.sweeper.part=1"),
                        f"results_dir={scratch}/{turn}-{workers}",
                    )
                )
                for workers in (1, 2)
            ]
            _say(f"one worker {times[0]:.1f} s, two {times[1]:.1f} s")
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
            code = main(run, swept=True)
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
