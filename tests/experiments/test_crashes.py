"""Sweeps that are killed, interrupted, out of space: nothing kept is lost, torn or made twice.

``pytest tests/experiments/test_crashes.py --kills 50`` kills many sweeps, each at another moment of
its life.
"""

import os
import random
import shutil
import signal
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest

from experiments import results
from experiments.sweep import work
from flowlab.storage.experiment import PARTS, Experiment
from tests.support.sweeping import Sweep, assert_same, assert_within, before_measuring, kept

SMALL = ["-m", "width=8", "batch_size=8", "data=gaussian"]
AXES = ["depth=2,3,4,5,6,8,10,20", "activation=relu,tanh,identity"]
WORKERS = "hydra.launcher.workers=2"
SWEEP = [*SMALL, "seeds=2", *AXES, WORKERS]
EVENTS = 2 * 24  # each condition begins and ends


def states(folder: Path) -> dict[str, tuple]:
    """What changes when a file is made anew."""
    found = {path: os.stat(folder / path) for path in kept(folder)}
    return {path: (state.st_ino, state.st_mtime_ns) for path, state in found.items()}


def seeds(tables: dict) -> set[tuple]:
    """Every network that some run has."""
    axes = ["depth", "activation", "seed"]
    found = [table[axes] for path, table in tables.items() if "/runs/" in path]
    return set(pd.concat(found).itertuples(index=False, name=None)) if found else set()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of SWEEP, uninterrupted."""
    folder = tmp_path_factory.mktemp("whole")
    assert Sweep(folder, *SWEEP).end()[0] == 0
    assert len(kept(folder)) == 48
    return folder


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """The folder of SWEEP with one seed instead of two."""
    folder = tmp_path_factory.mktemp("narrow")
    assert Sweep(folder, *SMALL, "seeds=1", *AXES, WORKERS).end()[0] == 0
    return folder


@pytest.fixture(scope="module")
def expected(whole):
    return kept(whole)


@pytest.fixture
def call(call):
    """As for other tests, with one process."""
    return lambda *arguments: call(*arguments, "hydra.launcher.workers=1")


# --- Killed at any moment -------------------------------------------------------------------------


def test_a_killed_sweep_loses_nothing(
    attempt, request, whole, expected, tmp_path, record_property, capsys
):
    rng = random.Random(attempt)
    kind = ("worker", "parent", "everything")[attempt % 3]
    before = ("nothing", "nothing", "narrower", "nothing", "same")[attempt % 5]
    record_property("kill", "attempt")
    record_property("kill", kind)
    old, arguments = {}, SWEEP
    if before != "nothing":
        source = whole if before == "same" else request.getfixturevalue("narrow")
        shutil.copytree(source / "results", tmp_path / "results")
        old = kept(tmp_path)
    if before == "same":
        arguments = [*SWEEP, "overwrite=true"]
    try:
        sweep = Sweep(tmp_path, *arguments)
        # Golden sections spread the moments evenly however many they are.
        struck = _strike(sweep, kind, attempt * 0.6180339887 % 1, rng)
        if not struck:
            record_property("kill", "late")
        code, _, errors = sweep.end()
        if kind == "worker":
            assert (code, errors) == (0, "")
        try:
            found = kept(tmp_path)
        except Exception:
            record_property("kill", "torn")
            raise
        with _noted(record_property, "loss"):
            if kind == "worker":  # others did what it was at
                assert_same(found, expected)
            assert_within(found, expected | (old if before == "narrower" else {}))
            assert seeds(old) <= seeds(found)
            for part in PARTS:
                tables = [table for path, table in found.items() if f"/{part}/" in path]
                if tables:
                    folder = pd.read_parquet(tmp_path / "results/single" / part)
                    assert len(folder) == sum(map(len, tables))
            runs = {Path(path).name for path in found if "/runs/" in path}
            assert runs <= {Path(path).name for path in found if "/theory/" in path}
        listed = results.main([f"results_dir={tmp_path / 'results'}"])
        output = capsys.readouterr()
        begun = any((tmp_path / "results").glob("*/sweeps"))
        assert (listed, output.err) == (0, "") if begun else listed == 2, output
        earlier = states(tmp_path)
        code, _, errors = Sweep(tmp_path, *arguments).end()
        assert (code, errors) == (0, "")
        with _noted(record_property, "loss"):
            assert_same(kept(tmp_path), expected)
            if before != "same":
                later = states(tmp_path)
                again = [p for p in earlier if "/runs/" in p and p in later]
                assert {p: later[p] for p in again} == {p: earlier[p] for p in again}
        assert not list((tmp_path / "results/.sweeps").iterdir())
    except BaseException:
        record_property("kill", "failed")
        raise


def _strike(sweep: Sweep, kind: str, moment: float, rng: random.Random, last: int = EVENTS) -> bool:
    """Kill at a moment between 0, the start, and 1, the end; False if the end came before."""
    starting = 0.2 if kind != "worker" else 0.0  # of all moments, those before the first event
    if moment < starting:
        time.sleep(moment / starting * 3)
    else:
        events = int((moment - starting) / (1 - starting) * last)
        if not sweep.until(lambda: sweep.events() >= events):
            return False
        time.sleep(rng.uniform(0, 0.05))
    if kind == "worker":
        workers: list[int] = []
        if not sweep.until(lambda: workers.extend(sweep.workers()) or workers):
            return False
        targets = [rng.choice(workers)]
    else:
        targets = [sweep.pid]
    try:
        for pid in targets:
            (os.killpg if kind == "everything" else os.kill)(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def _noted(record_property, what: str):
    try:
        yield
    except BaseException:
        record_property("kill", what)
        raise


def test_a_run_that_another_sweep_replaced_is_measured_anew(call, tmp_path, monkeypatch):
    assert call(*SMALL, "depth=2,3", "seeds=2")[0] == 0
    expected = kept(tmp_path)
    shutil.rmtree(tmp_path / "results")
    assert call(*SMALL, "depth=2,3", "seeds=1")[0] == 0
    original = work.Work._condition

    def late(self, condition, *more):
        Experiment("results/single").remove(condition["extend"])
        return original(self, condition, *more)

    monkeypatch.setattr(work.Work, "_condition", late)
    code, _, errors = call(*SMALL, "depth=2,3", "seeds=2")
    assert (code, errors) == (0, "")
    assert_same(kept(tmp_path), expected)


DIES = """
import os
from flowlab.storage import experiment as store
store.Experiment.remove = lambda self, runs: os.kill(os.getpid(), 9)
"""


def test_a_replaced_run_gives_way_though_its_process_died(call, tmp_path):
    assert call(*SMALL, "depth=2,3", "seeds=2")[0] == 0
    expected = kept(tmp_path)
    shutil.rmtree(tmp_path / "results")
    assert call(*SMALL, "depth=2,3", "seeds=1")[0] == 0
    wider = [*SMALL, "depth=2,3", "seeds=2"]
    assert Sweep(tmp_path, *wider, "hydra.launcher.workers=1", hook=DIES).end()[0] == -9
    assert len(kept(tmp_path)) == 6  # two narrow runs and a wide one, each with its prediction
    code, output, errors = call(*wider)
    assert (code, errors) == (0, "") and "1 measured" in output
    assert_same(kept(tmp_path), expected)


# --- Trained --------------------------------------------------------------------------------------

TRAINED = [*SMALL, "seeds=3", "depth=3,4,5", "training=sgd,adam", "training.lr=0.1,0.01"]
TRAINED += ["training.steps=20"]


@pytest.fixture(scope="module")
def curves(tmp_path_factory):
    """The tables of TRAINED, made by one process."""
    folder = tmp_path_factory.mktemp("curves")
    assert Sweep(folder, *TRAINED, "hydra.launcher.workers=1").end()[0] == 0
    found = kept(folder)
    assert sum("/curves/" in path for path in found) == len(found) / 3 == 12
    return found


@pytest.mark.parametrize(
    "how",
    [
        [WORKERS, "hydra.sweeper.part=1"],
        [WORKERS, "hydra.sweeper.part=5", "threads=2"],
        ["hydra/launcher=basic", "threads=3"],
        ["hydra.launcher.workers=1", "memory_gib=0.001", "threads=1"],
    ],
)
def test_trained_tables_are_the_same_however_they_are_made(how, curves, tmp_path):
    assert Sweep(tmp_path, *TRAINED, *how).end()[0] == 0
    assert_same(kept(tmp_path), curves)


def test_a_killed_sweep_of_trained_runs_resumes_to_equal_bits(
    attempt, curves, tmp_path, record_property
):
    rng = random.Random(attempt)
    sweep = Sweep(tmp_path, *TRAINED, WORKERS)
    record_property("kill", "attempt")
    kind = ("everything", "worker", "parent")[attempt % 3]
    record_property("kill", kind)
    if not _strike(sweep, kind, 0.3 + 0.7 * (attempt * 0.6180339887 % 1), rng, 2 * 12):
        record_property("kill", "late")
    sweep.end()
    with _noted(record_property, "loss"):
        found = kept(tmp_path)
        assert_within(found, curves)
        runs, curved = (
            {Path(path).name for path in found if f"/{part}/" in path}
            for part in ("runs", "curves")
        )
        assert runs <= curved
        earlier = states(tmp_path)
        code, _, errors = Sweep(tmp_path, *TRAINED, WORKERS).end()
        assert (code, errors) == (0, "")
        assert_same(kept(tmp_path), curves)
        later = states(tmp_path)
        assert all(later[path] == state for path, state in earlier.items() if "/runs/" in path)


DIES_BETWEEN = """
import os
original = os.replace
def replace(source, target, *more):
    if "/PART/" in str(target):
        os.kill(os.getpid(), 9)
    return original(source, target, *more)
os.replace = replace
"""


@pytest.mark.parametrize("part", ["theory", "runs"])
def test_a_sweep_killed_between_two_files_of_a_run_trains_it_anew(part, curves, tmp_path):
    alone = ["hydra.launcher.workers=1"]
    hook = DIES_BETWEEN.replace("PART", part)
    assert Sweep(tmp_path, *TRAINED, *alone, hook=hook).end()[0] == -9
    left = {path.split("/")[2] for path in kept(tmp_path)}
    assert left == {"curves"} | ({"theory"} if part == "runs" else set())
    assert Experiment(tmp_path / "results/single").index() == {}
    assert Sweep(tmp_path, *TRAINED, *alone).end()[0] == 0
    assert_same(kept(tmp_path), curves)


def test_a_trained_run_whose_curve_is_lost_is_trained_anew(call, tmp_path):
    few = [*SMALL, "seeds=2", "depth=2,3", "training=sgd", "training.steps=3"]
    assert call(*few)[0] == 0
    expected = kept(tmp_path)
    lost, torn = sorted((tmp_path / "results/single/curves").iterdir())
    lost.unlink()
    assert call(*few)[1].count("1 measured") == 1
    assert_same(kept(tmp_path), expected)
    torn.write_bytes(torn.read_bytes()[:100])
    code, output, errors = call(*few)
    assert (code, errors) == (0, "") and "1 measured" in output and "1 kept from before" in output
    assert_same(kept(tmp_path), expected)


# --- Signals --------------------------------------------------------------------------------------

SLOW = before_measuring("time.sleep(3600 if settings.depth == 4 else 0)")


@pytest.mark.parametrize("moment", [0, 20], ids=["starting", "midway"])
def test_an_interrupted_sweep_says_what_is_kept(moment, expected, tmp_path):
    sweep = Sweep(tmp_path, *SWEEP)
    if moment:
        sweep.until(lambda: sweep.events() >= moment)
    else:  # while the server of processes, which those of the terminal's group are, imports
        sweep.until(lambda: len(sweep.members()) > 2)
        time.sleep(0.2)
    os.killpg(sweep.pid, signal.SIGINT)
    code, _, errors = sweep.end()
    assert code == 130 and len(errors.splitlines()) == 1, errors
    found = kept(tmp_path)
    held = sum("/runs/" in path for path in found)
    if "of 24 runs are done and kept" in errors:
        done = int(errors.split()[1])
        assert done <= held <= done + 2  # two were at it
    else:  # before there was a plan
        assert not moment and held == 0
        assert errors == "interrupted: nothing unfinished was kept\n"
    assert_within(found, expected)
    if moment:
        code, output, _ = Sweep(tmp_path, *SWEEP).end()
        assert code == 0 and f"{held} kept from before" in output
        assert_same(kept(tmp_path), expected)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_workers_leave_with_their_parent_in_the_midst_of_work(how, tmp_path):
    sweep = Sweep(tmp_path, *SMALL, "depth=2,4", "activation=relu,tanh", WORKERS, hook=SLOW)
    assert sweep.until(lambda: len(sweep.workers()) == 2 and sweep.events() >= 4)
    sweep.process.send_signal(how)
    assert sweep.end()[0] == -how
    assert len(kept(tmp_path)) <= 4


DEADLY = before_measuring("settings.depth == 4 and os.kill(os.getpid(), 9)")


def test_a_condition_that_kills_its_process_is_named_and_the_rest_completes(tmp_path):
    arguments = [*SMALL, "depth=2,3,4,5,6", "activation=relu,tanh", WORKERS]
    code, output, errors = Sweep(tmp_path, *arguments, hook=DEADLY).end()
    assert code == 2 and len(errors.splitlines()) == 1, errors
    assert "2 of 10 conditions could not run" in errors
    for activation in ("relu", "tanh"):
        assert f"depth=4 activation={activation}: 3 processes died over it" in errors
    assert "8 measured" in output and "2 failed" in output
    assert len(kept(tmp_path)) == 16
    assert not list((tmp_path / "results/.sweeps").iterdir())


# --- Disks and clocks -----------------------------------------------------------------------------


@contextmanager
def mounted(folder: Path, *options: str):
    folder.mkdir()
    made = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"a disk cannot be mounted here: {made.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("size", [4, 24, 300])
def test_a_full_disk_tears_nothing_and_the_rest_follows(size, expected, tmp_path):
    options = ["-t", "tmpfs", "-o", f"size={size}k", "tmpfs"]
    with mounted(tmp_path / "results", *options):
        code, _, errors = Sweep(tmp_path, *SWEEP).end()
        assert code == 2 and len(errors.splitlines()) == 1, errors
        assert "No space left on device" in errors
        found = kept(tmp_path)
        assert len(found) < 48 and (size < 300 or found)
        assert_within(found, expected)
        if size == 300:
            options = ["-o", "remount,size=64m", str(tmp_path / "results")]
            subprocess.run(["mount", *options], check=True)
            earlier = states(tmp_path)
            assert Sweep(tmp_path, *SWEEP).end()[0] == 0
            later = states(tmp_path)
            assert {path: later[path] for path in earlier if "/runs/" in path} == {
                path: state for path, state in earlier.items() if "/runs/" in path
            }
            assert_same(kept(tmp_path), expected)


def test_a_folder_that_is_read_only_is_refused_in_one_line(call, whole, tmp_path):
    with mounted(tmp_path / "results", "--bind", "-o", "ro", str(whole / "results")):
        code, _, errors = call(*SWEEP[:-1])
        assert code == 2 and len(errors.splitlines()) == 1, errors
        assert "results_dir must be writable" in errors and "Read-only" in errors
        assert results.main(["results_dir=results"]) == 0


def test_clocks_that_jump_lose_nothing(call, whole, expected, tmp_path, monkeypatch):
    shutil.copytree(whole / "results", tmp_path / "results")
    runs = sorted((tmp_path / "results/single/runs").glob("*.parquet"))
    for number, path in enumerate(runs):
        pair = [path, path.parent.parent / "theory" / path.name]
        for one in pair:
            if number % 2:
                one.unlink()
            else:
                os.utime(one, (0, 0) if number % 4 else (2**32, 2**32))
    earlier, calls, real = states(tmp_path), [], time.time

    def jumping():
        calls.append(None)
        return real() - (1e9 if len(calls) > 5 else -1e9)

    monkeypatch.setattr(time, "time", jumping)
    code, output, errors = call(*SWEEP[:-1])
    assert (code, errors) == (0, "") and "12 measured" in output and "12 kept" in output
    later = states(tmp_path)
    assert {path: later[path] for path in earlier} == earlier
    assert_same(kept(tmp_path), expected)
