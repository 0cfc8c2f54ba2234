"""How a measurement's time and memory grow with depth, width, batch and seeds, each by itself.

Every point is a process of its own, since a process keeps arrays for later measurements. Memory is
the peak of all arrays and objects, which Python counts. Exponents are slopes of straight lines
through the logarithms; their 95 % intervals come from the spread over rounds. The last two points
alone give the slope at the upper end, where a power law is to be read off.

It times, and kept tables hold no times: so it is a suite of the benchmark and not a study.
"""

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy import stats

from experiments.benchmarks import growth_point
from experiments.benchmarks.children import arrives, child
from experiments.benchmarks.growth_figure import draw
from experiments.benchmarks.timing import Say

AXES = {"depth": "depth", "width": "width", "batch": "batch_size", "seeds": "seeds"}


def rows(
    say: Say,
    depth: int = 50,
    width: int = 64,
    batch: int = 64,
    seeds: int = 8,
    factors=(1, 2, 4, 8),
    rounds: int = 5,
    threads: int = 2,
) -> Iterator[dict]:
    """A row per point: what is swept ``along``, its value ``at``, seconds and megabytes.

    Axes start from the given values and are swept by ``factors`` of them. ``seconds`` is the median
    over rounds, ``low`` and ``high`` are their extremes, ``sd`` is the standard deviation of their
    natural logarithms; ``megabytes`` is the peak of a measurement.
    """
    base = {"depth": depth, "width": width, "batch": batch, "seeds": seeds}
    start = None
    for axis in base:
        for factor in factors:
            at = {**base, axis: factor * base[axis]}
            say(f"{axis} {at[axis]}")
            if factor != 1 or start is None:
                settings = {AXES[name]: value for name, value in at.items()}
                point = _point({**settings, "threads": threads}, rounds, f"{axis} {at[axis]}")
                start = point if factor == 1 else start
            else:
                point = start
            if point:
                yield {"along": axis, "at": at[axis], **point}


def _point(settings: dict, rounds: int, name: str) -> dict:
    argument = {"settings": settings, "rounds": rounds}
    with child(growth_point.__name__, argument, name, {}) as lines:
        numbers = [float(line) for line in iter(lambda: arrives(lines), None)]
    if len(numbers) < rounds + 1:
        return {}
    return summary(numbers[0], numbers[1:])


def summary(peak: float, seconds: list[float]) -> dict:
    """The columns of a point that took so many bytes and, over rounds, so many seconds."""
    deviation = float(np.std(np.log(seconds), ddof=1)) if len(seconds) > 1 else math.nan
    return {
        "seconds": float(np.median(seconds)),
        "low": min(seconds),
        "high": max(seconds),
        "sd": deviation,
        "rounds": len(seconds),
        "megabytes": 1e-6 * peak,
    }


def exponents(table: pd.DataFrame) -> pd.DataFrame:
    """A row per axis: exponents of ``time`` and ``memory``, over all points and the last two.

    ``time_half`` and ``upper_time_half`` are half the 95 % intervals. An axis of one point has no
    row.
    """
    found = []
    for axis, own in table.groupby("along", sort=False):
        own = own.sort_values("at")
        if len(own) < 2:
            continue
        x, upper = np.log(own["at"].to_numpy(float)), slice(-2, None)
        logs = np.log(own["seconds"].to_numpy()), np.log(own["megabytes"].to_numpy())
        sd, rounds = own["sd"].to_numpy(), int(own["rounds"].min())
        time, half = slope(x, logs[0], sd, rounds)
        upper_time, upper_half = slope(x[upper], logs[0][upper], sd[upper], rounds)
        found.append(
            {
                "along": axis,
                "time": time,
                "time_half": half,
                "upper_time": upper_time,
                "upper_time_half": upper_half,
                "memory": slope(x, logs[1])[0],
                "upper_memory": slope(x[upper], logs[1][upper])[0],
            }
        )
    return pd.DataFrame(found)


def slope(x, y, sd=None, rounds: int = 0) -> tuple[float, float]:
    """(slope of y over x by least squares, half its 95 % interval).

    y are means over rounds whose standard deviations are ``sd``; NaN where there is one round.
    """
    weights = (x - x.mean()) / np.sum((x - x.mean()) ** 2)
    if sd is None or rounds < 2:
        return float(weights @ y), math.nan
    error = math.sqrt(np.sum((weights * sd) ** 2) / rounds)
    return float(weights @ y), float(stats.t.ppf(0.975, rounds - 1) * error)


def report(table: pd.DataFrame) -> str:
    """The exponents in words."""
    found = exponents(table)
    if not len(found):
        return "No axis has two points."
    parts = []
    for row in found.itertuples():
        interval = "" if math.isnan(row.time_half) else f" ± {row.time_half:.2f}"
        upper = "" if math.isnan(row.upper_time_half) else f" ± {row.upper_time_half:.2f}"
        parts.append(
            f"{row.along}^{row.time:.2f}{interval} (at the upper end {row.upper_time:.2f}{upper}), "
            f"memory as {row.along}^{row.memory:.2f} ({row.upper_memory:.2f})"
        )
    return f"Time grows as {'; as '.join(parts)}."


def title(table: pd.DataFrame) -> str:
    """The finding in one line: exponents at the upper end."""
    found = exponents(table)
    time = ", ".join(f"{row.along}$^{{{row.upper_time:.2f}}}$" for row in found.itertuples())
    memory = ", ".join(f"{row.along}$^{{{row.upper_memory:.2f}}}$" for row in found.itertuples())
    return f"Time grows as {time};\nmemory as {memory}, at the upper ends"


def figure(table: pd.DataFrame):
    """The points and their lines: a panel for each axis, time above memory."""
    return draw(table, exponents(table), title(table)) if len(exponents(table)) else None
