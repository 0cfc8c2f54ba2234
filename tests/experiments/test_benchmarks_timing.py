"""Races: who is timed how often, ratios that are right, and rows that an interrupt leaves."""

from functools import partial

import pytest

from experiments.benchmarks import timing

OURS = "flowlab"


@pytest.fixture
def forms(clock):
    """Makes forms that take so many seconds, underscores standing for spaces."""
    return lambda **seconds: {
        name.replace("_", " "): partial(clock, own) for name, own in seconds.items()
    }


def test_ratios_are_times_over_ours(forms, said):
    given = forms(flowlab=4.0, torch_a=5.0, jax_b=2.0)
    found = {row["form"]: row for row in timing.race(given, 5, OURS, said.append)}
    assert {name: row["ratio"] for name, row in found.items()} == pytest.approx(
        {"flowlab": 1, "torch a": 1.25, "jax b": 0.5}
    )
    for row in found.values():
        assert row["seconds"] == row["first"] == pytest.approx(4 * row["ratio"])
        assert row["low"] == row["ratio"] == row["high"] and row["rounds"] == 5


def test_the_spread_is_that_of_rounds(clock, said):
    times = iter([9.0, 9.0, 2.0, 1.0, 4.0])  # two calls, then three rounds
    given = {OURS: partial(clock, 2.0), "torch": lambda: clock(next(times))}
    found = {row["form"]: row for row in timing.race(given, 3, OURS, said.append)}
    row = found["torch"]
    assert [row[name] for name in ("low", "ratio", "high", "seconds", "first")] == [0.5, 1, 2, 2, 9]


def test_the_slow_of_a_library_are_timed_once_and_their_rows_come_first(forms, said):
    given = forms(torch_slow=3.0, torch_fast=0.4, flowlab=0.4, jax_only=5.0)
    rows = timing.race(given, 4, OURS, said.append)
    row = next(rows)
    assert (row["form"], row["rounds"]) == ("torch slow", 1)
    assert not [line for line in said if "round" in line]  # before any round was made
    assert {row["form"]: row["rounds"] for row in rows} == dict.fromkeys(
        ["flowlab", "torch fast", "jax only"], 4
    )


def test_what_there_is_no_time_for_has_an_empty_row(forms, said):
    given = forms(flowlab=1.0, torch_a=1.0, torch_b=1.0, jax_a=1.0, floor=1.0)
    found = list(timing.race(given, 9, OURS, said.append, 0.5, ("floor",)))
    (left,) = (row for row in found if not row["rounds"])
    assert left["form"] == "torch b"
    assert left["seconds"] != left["seconds"] and left["ratio"] != left["ratio"]
    assert {row["rounds"] for row in found if row["rounds"]} == {3}  # the least
    assert set(timing.best(found)) == {"flowlab", "torch", "jax", "floor"}


def test_an_interrupt_leaves_the_rounds_made(clock, said):
    calls = []

    def torch():
        calls.append(1)
        if len(calls) == 5:  # the first call, the first timing, two rounds
            raise KeyboardInterrupt
        clock(1.0)

    rows = timing.race({OURS: partial(clock, 1.0), "torch": torch}, 5, OURS, said.append)
    assert [next(rows)["rounds"] for _ in range(2)] == [2, 2]
    with pytest.raises(KeyboardInterrupt):
        next(rows)


def test_repeats_are_doubled_until_a_call_is_long_enough(clock):
    assert timing.enough(lambda repeats: clock(0.1 * repeats), 0.75) == 8


def test_the_fastest_of_each_library():
    rows = [
        {"form": "torch a", "ratio": 2.0, "rounds": 3},
        {"form": "torch.compile", "ratio": 1.5, "rounds": 3},
        {"form": "torch b", "ratio": 1.2, "rounds": 1},  # by chance: others were faster then
        {"form": "jax", "ratio": float("nan"), "rounds": 0},
    ]
    assert timing.best(rows) == {"torch": rows[1]}
