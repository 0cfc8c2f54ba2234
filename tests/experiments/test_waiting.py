"""What commands say while one waits: modules loading, kernels compiled, a sweep's processes."""

import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.console import Loading
from experiments.sweep import progress, work
from experiments.sweep.progress import Elsewhere, Journal, Watcher
from experiments.sweep.work import Work, described, write_part
from flowlab.progress import QUIET
from flowlab.settings import make
from tests.support.compiling import uncached

SMALL = ["depth=3", "width=8", "batch_size=8", "seeds=2"]


@pytest.mark.parametrize("terminal", [False, True])
def test_loading_is_said_until_it_ends(monkeypatch, capsys, terminal):
    monkeypatch.delenv(QUIET)
    monkeypatch.setattr(Loading, "_PERIOD", 0.02)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    loading = Loading()
    begun = loading.heard
    while loading.heard == begun:
        time.sleep(0.01)
    assert loading.end() > begun
    said = capsys.readouterr().err
    assert "loading (" in said and said.endswith("\x1b[2K" if terminal else "\n")
    time.sleep(0.1)
    assert capsys.readouterr().err == ""


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(time=100.0)
    monkeypatch.setattr("time.monotonic", lambda: now.time)
    return now


def test_what_processes_compile_is_added_up(clock):
    elsewhere = Elsewhere()

    def take(journal, condition, event, kernels=None):
        more = {} if kernels is None else {"kernels": kernels}
        elsewhere.take(journal, {"condition": condition, "event": event, **more})
        return elsewhere.kernels, elsewhere.busy, elsewhere.seconds

    assert take("a", 0, "begun") == (0, False, 0.0)
    assert take("a", 0, "compiling", 4) == (4, True, 0.0)
    clock.time += 2.0
    assert take("b", 1, "compiling", 3) == (7, True, 2.0)
    clock.time += 3.0
    assert take("a", 0, "compiled", 5) == (8, True, 5.0)
    clock.time += 1.0
    assert take("b", 1, "begun") == (8, False, 6.0)  # anew, as its process had died
    clock.time += 1.0
    assert take("b", 1, "done") == (8, False, 6.0)


def test_a_sweep_estimates_by_what_was_measured_without_compiling(clock, tmp_path, monkeypatch):
    said = []
    watcher = Watcher(tmp_path, 10, 3, said.append)
    watcher._progress.__enter__()

    def take(condition, event, after, **more):
        clock.time += after
        watcher._take("a", {"condition": condition, "event": event, **more})
        return watcher._progress.text()

    assert watcher._progress.text() == "starting processes (0 s)"
    assert take(0, "begun", 0) == "measuring, 3 skipped, 0 of 10 (0 s)"
    compiling = "compiling kernels (once), 2 so far; measuring, 3 skipped, 0 of 10 (0 s)"
    assert take(0, "compiling", 0, kernels=2) == compiling
    assert "left" not in take(0, "compiled", 30, kernels=3)
    assert take(0, "done", 1).endswith("1 of 10 (31 s)")  # too short a time to go by
    assert take(1, "done", 4).endswith("2 of 10, 20 s left (35 s)")
    assert "1 failed" in take(2, "failed", 5)
    assert "1 failed" in take(2, "failed", 0)  # again, by a process that came too late
    assert [event["condition"] for event in said] == [0, 1, 2]
    assert set(watcher.outcomes) == {0, 1, 2}
    assert watcher._progress.took() == "10.0 s, and 30.0 s to compile kernels, once"


def test_workers_report_what_they_compile(tmp_path, monkeypatch):
    summed = uncached()

    def run(settings, command, extend):
        summed(np.ones((2, 3)), np.empty(2))
        verdict = SimpleNamespace(trend="kept")
        return SimpleNamespace(seconds=1000.0, verdict=verdict, curve=None)

    monkeypatch.setattr(work, "run", run)
    monkeypatch.setattr(work, "row", lambda verdict: {})
    (tmp_path / "journal").mkdir()
    settings = [make(depth=d, width=8, batch_size=8, results_dir=str(tmp_path)) for d in (2, 3)]
    write_part(tmp_path, 0, [described(k, s, ()) for k, s in enumerate(settings)], command="")
    assert Work(str(tmp_path)).part(0) is None
    events = list(Journal(tmp_path / "journal", 0).earlier())
    reported = [(event["condition"], event["event"]) for event in events]
    assert reported == [
        *((0, "begun"), (0, "compiling"), (0, "compiled"), (0, "done")),
        *((1, "begun"), (1, "done")),
    ]
    assert [event["kernels"] for event in events[1:3]] == [0, 1]
    assert events[3]["seconds"] == events[5]["seconds"] == 1000.0
    assert Work(str(tmp_path)).part(0) is None  # nothing is done again
    assert len(list(Journal(tmp_path / "journal", 0).earlier())) == len(events)


def test_a_run_counts_compiling_apart(call, monkeypatch):
    from experiments import run as module

    summed = uncached()

    original = module.runs.run

    def run(*arguments, **more):
        summed(np.ones((2, 3)), np.empty(2))
        return original(*arguments, **more)

    monkeypatch.setattr(module.runs, "run", run)
    code, output, errors = call(*SMALL)
    assert (code, errors) == (0, "")
    assert " s to compile kernels, once\n" in output


def test_sweeps_say_that_they_plan_and_measure(call, monkeypatch):
    monkeypatch.delenv(QUIET)
    monkeypatch.setattr("flowlab.progress.PERIOD", 0.01)
    monkeypatch.setattr(progress, "_POLL", 0.01)
    code, _, errors = call("-m", *SMALL, "depth=2,3")
    assert code == 0
    assert "planning the sweep" in errors and "measuring" in errors
