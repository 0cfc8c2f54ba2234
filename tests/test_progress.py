"""What long work says of itself, by a clock that is set by hand."""

import sys
import time
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from flowlab import progress
from flowlab.compilation import Compilation
from flowlab.progress import Progress, duration, shown
from tests.support.compiling import uncached


@pytest.fixture(autouse=True)
def heard(monkeypatch):
    monkeypatch.delenv(progress.QUIET)


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(time=100.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now.time)
    return now


class Planned:
    """Compiling, as a test sets it."""

    kernels, busy, seconds = 0, False, 0.0

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass


def test_long_work_is_never_silent_and_short_work_always(monkeypatch, capsys):
    monkeypatch.setattr(progress, "PERIOD", 0.05)
    with Progress("reading"):
        pass
    assert capsys.readouterr().err == ""
    with Progress("reading") as at:
        at(3, 20_000)
        time.sleep(0.5)
        at.at("drawing")
        time.sleep(0.2)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "reading, 3 of 20,000 (0 s)" and lines[-1].startswith("drawing (")
    assert 2 <= len(lines) <= 14


def test_a_user_may_ask_for_quiet(monkeypatch, capsys):
    monkeypatch.setattr(progress, "PERIOD", 0.01)
    monkeypatch.setenv(progress.QUIET, "1")
    with Progress("reading"):
        time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_a_command_is_heard_of_within_two_seconds_of_its_start(monkeypatch, capsys):
    monkeypatch.setattr(progress, "heard", time.monotonic() - 1.9)
    with Progress("reading"):
        time.sleep(0.5)
    assert capsys.readouterr().err.startswith("reading (")


def test_no_estimate_is_made_of_compiling(clock):
    compiling = Planned()
    work = Progress("measuring", compiling)
    work.__enter__()
    try:
        work(0, 10)
        compiling.busy, compiling.kernels = True, 14
        clock.time, compiling.seconds = 160.0, 60.0
        work(1, 10)
        said = "compiling kernels (once), 14 so far; measuring, 1 of 10 (1 min 0 s)"
        assert work.text() == said
        compiling.busy = False
        assert work.text() == "measuring, 1 of 10 (1 min 0 s)"
        clock.time += 1.0
        work(2, 10)
        assert "left" not in work.text()  # of too short a time
        clock.time += 3.0
        work(4, 10)
        assert work.text() == "measuring, 4 of 10, 8 s left (1 min 4 s)"
        clock.time += 5.0
        assert "3 s left" in work.text()
        assert work.took() == "9.0 s, and 60.0 s to compile kernels, once"
        work.at("comparing", 0, 20)
        assert work.text() == "comparing, 0 of 20 (1 min 9 s)"
    finally:
        work.__exit__()


def test_compiling_is_counted_once_for_each_kernel():
    summed, heard = uncached(), []
    with Compilation(lambda *said: heard.append(said)) as compiled:
        assert (compiled.kernels, compiled.seconds, compiled.busy) == (0, 0.0, False)
        summed(np.ones((2, 3)), np.empty(2))
        assert compiled.busy  # a moment ago
        first = compiled.seconds
        summed(np.ones((2, 3)), np.empty(2))
    assert heard == [(0, True), (1, False)] and compiled.kernels == 1
    assert 0 < first == compiled.seconds
    summed(np.ones((2, 3), np.float32), np.empty(2, np.float32))
    assert compiled.kernels == 1  # nobody watches any more


def test_a_terminals_line_changes_and_goes(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(progress, "PERIOD", 0.01)
    monkeypatch.setenv("COLUMNS", "12")
    with Progress("reading a long line") as at:
        time.sleep(0.5)
        with at.aside():
            print("result")
    output, errors = capsys.readouterr()
    assert output == "result\n"
    assert errors.startswith("\r\x1b[2Kreading a l\r") and errors.endswith("\r\x1b[2K")


def test_a_notebook_shows_a_bar(monkeypatch, capsys):
    shows = []
    handle = SimpleNamespace(update=lambda content, raw: shows.append(content))
    display = ModuleType("IPython.display")
    display.display = lambda content, raw, display_id: shows.append(content) or handle
    notebook = ModuleType("IPython")
    notebook.get_ipython = lambda: SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", notebook)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr(progress, "PERIOD", 0.01)
    with Progress("<measuring>") as at:
        at(3, 10)
        time.sleep(0.5)
    assert shows[-2]["text/plain"].startswith("<measuring>, 3 of 10 (")
    bar = '<progress value="3" max="10"></progress> '
    assert shows[-2]["text/html"].startswith(f"{bar}&lt;measuring&gt;, 3 of 10 (")
    assert set(shows[-1].values()) == {""} and capsys.readouterr().err == ""


def test_python_asks_for_progress_by_a_word_or_brings_its_own():
    def own(done, total):
        pass

    for asked, given in ((None, None), (False, None), (own, own)):
        with shown(asked) as made:
            assert made is given
    with shown(True) as made:
        assert isinstance(made, Progress)


def test_durations_are_in_words():
    assert [duration(s) for s in (0.4, 59, 61, 3700)] == ["0 s", "59 s", "1 min 1 s", "1 h 1 min"]
