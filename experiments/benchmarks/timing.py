"""Timing side by side: machines are noisy, so only ratios within one run mean anything."""

import math
import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

Say = Callable[[str], None]  # what is being done now, in words

REACH = 1.5  # forms this much slower than the fastest of their library are timed once
_LEAST = 3  # rounds that are made, whatever they take
_SHORT = 1.0  # seconds that first timings of a form may take together
_CALLS = 3
_HEATS = 0.6  # of the time is for first calls and first timings


def race(
    forms: dict[str, Callable[[], object]],
    rounds: int,
    ours: str,
    say: Say,
    seconds: float = math.inf,
    always: tuple[str, ...] = (),
) -> Iterator[dict]:
    """Time forms of the same work, one row each, as soon as it is known.

    Every form is called once and then timed by itself, ``ours`` first. Those within REACH of the
    fastest of their library (the first word of their name), ``ours`` and those of ``always`` are
    then timed once in each of ``rounds`` rounds, in rotating order. A row holds the median
    ``seconds``, the ``ratio`` of its time to that of ``ours`` over rounds (median, ``low`` and
    ``high``), how many ``rounds`` it stands on, the seconds of the ``first`` call (compilation
    included) and the ``form``. A form slower than REACH has one round; where ``seconds`` in all do
    not suffice, those that come last are left out, which their row says by being empty; the first
    of each library never is.

    Where Ctrl-C ends the rounds, the rows of the rounds made so far are given before it goes on.
    """
    begun = time.perf_counter()
    names = [ours, *(name for name in forms if name != ours)]
    first, heat = {}, {}
    timed = set()
    for name in names:
        late = time.perf_counter() - begun > _HEATS * seconds
        if late and name not in (ours, *always) and library(name) in timed:
            yield left_out(name)
            continue
        timed.add(library(name))
        say(f"{name}, first call")
        first[name] = elapsed(forms[name])
        say(name)
        heat[name] = _heat(forms[name])
        for slow in _out_of_reach(heat, (ours, *always)):
            yield _row(slow, [heat.pop(slow)], [heat[ours]], first[slow])
    yield from _rounds({name: forms[name] for name in heat}, rounds, ours, say, seconds, first)


def _rounds(forms, rounds, ours, say, seconds, first) -> Iterator[dict]:
    names, begun = list(forms), time.perf_counter()
    times: dict[str, list[float]] = {name: [] for name in names}
    stopped = None
    try:
        for turn in range(rounds):
            if turn >= _LEAST and time.perf_counter() - begun > (1 - _HEATS) * seconds:
                break
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                say(f"{name}, round {turn + 1} of {rounds}")
                times[name].append(elapsed(forms[name]))
    except KeyboardInterrupt as interrupt:
        stopped = interrupt
    made = min(map(len, times.values()))
    for name in names if made else ():
        yield _row(name, times[name][:made], times[ours][:made], first[name])
    if stopped is not None:
        raise stopped


def left_out(name: str) -> dict:
    """The row of a form that there was no time for."""
    return _row(name, [], [], math.nan)


def _row(name: str, times: list[float], ours: list[float], first: float) -> dict:
    seconds = ratio = low = high = math.nan
    if times:
        ratios = np.array(times) / np.array(ours)
        seconds, ratio = float(np.median(times)), float(np.median(ratios))
        low, high = float(ratios.min()), float(ratios.max())
    spread = {"seconds": seconds, "ratio": ratio, "low": low, "high": high}
    return {**spread, "rounds": len(times), "first": first, "form": name}


def _out_of_reach(heat: dict[str, float], kept: tuple[str, ...]) -> list[str]:
    fastest: dict[str, float] = {}
    for name, seconds in heat.items():
        if name not in kept:
            fastest[library(name)] = min(seconds, fastest.get(library(name), math.inf))
    return [n for n in heat if n not in kept and heat[n] > REACH * fastest[library(n)]]


def library(form: str) -> str:
    """Whose form it is, ``torch`` or ``jax``: the first word of its name."""
    return form.replace(".", " ").split(maxsplit=1)[0]


def best(rows: list[dict]) -> dict[str, dict]:
    """The fastest row of each library, among those of most rounds; none that were left out."""
    found: dict[str, dict] = {}
    for row in sorted(rows, key=lambda row: (-row["rounds"], row["ratio"])):
        if row["rounds"]:
            found.setdefault(library(row["form"]), row)
    return found


def elapsed(work: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _heat(form: Callable[[], object]) -> float:
    """The fastest of a few calls; of one, where that takes long."""
    times = [elapsed(form)]
    while len(times) < _CALLS and sum(times) < _SHORT:
        times.append(elapsed(form))
    return min(times)


def enough(run: Callable[[int], object], seconds: float) -> int:
    """How many repeats, a power of two, make a call take so long."""
    run(1)
    repeats = 1
    while elapsed(partial(run, repeats)) < seconds:
        repeats *= 2
    return repeats


def spread(values) -> tuple[float, float, float]:
    """Median, lowest and highest."""
    return float(np.median(values)), float(np.min(values)), float(np.max(values))
