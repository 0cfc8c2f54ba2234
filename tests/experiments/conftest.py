"""What the tests of commands share."""

from types import SimpleNamespace

import pytest

from experiments.benchmarks import timing


@pytest.fixture
def said():
    """What a suite of the benchmark says that it is at, line by line."""
    return []


@pytest.fixture
def clock(monkeypatch):
    """A clock of the benchmark that is moved by ``spend(seconds)`` alone."""
    now = SimpleNamespace(time=0.0)

    def spend(seconds):
        now.time += seconds

    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now.time))
    return spend
