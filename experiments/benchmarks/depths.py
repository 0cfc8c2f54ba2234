"""A sweep of depth, as a user has it done: in a fresh process, compilation included.

Twenty depths under four initializations, the probe's nets and norms. Each form has a process of its
own; the clock runs from its start. Peers draw and pass what
:mod:`~experiments.benchmarks.probe` has them draw and pass; JAX is given a gain as an argument, so
that it compiles once for each depth. ``torch.compile``, which takes ten seconds for each, takes no
part.

A peer goes through every third depth first, the deepest included, then through the others, and is
stopped when its share of the time is over. Depths that it has not come to are put between those
that were timed or, beyond them, on a straight line, which favours what grows faster, as unrolled
JAX's compilation does. Rows and conclusion say so: ``timed`` of ``depths`` were timed, ``deepest``
is the deepest of them, ``measured`` are the seconds spent.
"""

import importlib.util
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from experiments.benchmarks import depth_sweep, nets_jax, nets_torch
from experiments.benchmarks.children import arrives, child
from experiments.benchmarks.depth_sweep import KEPT, OURS
from experiments.benchmarks.timing import Say

PEERS = (nets_torch.BY_HAND, nets_jax.SCANNED, nets_torch.HOOKS, nets_jax.UNROLLED)
_STRIDE = 3
_FITTED = 3  # depths at the deep end that the line goes through
_LEAST = 3  # depths that are timed, however long they take


def rows(
    say: Say,
    width: int = 64,
    batch: int = 128,
    seeds: int = 16,
    count: int = 20,
    deepest: int = 1000,
    threads: int = 2,
    seconds: int = 45,
) -> Iterator[dict]:
    """A row per form: ``seconds`` of the whole sweep, and ``ratio`` to flowlab's.

    ``count`` depths from 2 to ``deepest`` are spaced evenly by their logarithms. flowlab has all
    the time that it needs, its kernels compiled from nothing; so has it once more with kernels kept
    on disk, as from the second command on. Peers share ``seconds``.
    """
    depths = spaced(count, deepest)
    shape = {"width": width, "batch": batch, "seeds": seeds, "threads": threads, "depths": depths}
    sample = depths[::-1][::_STRIDE][::-1]
    sampled = shape | {"depths": sample + [depth for depth in depths if depth not in sample]}
    with tempfile.TemporaryDirectory() as cache:
        for form in (OURS, KEPT):
            found = _child(form, shape, say, cache=cache)
            if form == OURS:
                ours = found.total
            yield _row(form, found, depths, ours)
    peers = [name for name in PEERS if importlib.util.find_spec(name.split()[0])]
    end = time.perf_counter() + seconds
    for left, form in zip(range(len(peers), 0, -1), peers, strict=True):
        found = _child(form, sampled, say, max(end - time.perf_counter(), 0) / left)
        yield _row(form, found, depths, ours)


def spaced(count: int, deepest: int) -> list[int]:
    """Depths from 2 to ``deepest``, evenly by their logarithms, each once."""
    return sorted({int(depth) for depth in np.geomspace(2, max(deepest, 2), count).round()})


@dataclass
class DepthTime:
    """What a process was seen to do: ``start`` until it began, then seconds for each depth."""

    start: float = math.nan
    seconds: dict[int, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        return self.start + sum(self.seconds.values())


def estimate(found: DepthTime, depths: list[int]) -> float:
    """Seconds of all depths, those not timed by the lines described above.

    NaN where fewer than two were timed.
    """
    timed = sorted(found.seconds.items())
    missing = np.array([depth for depth in depths if depth not in found.seconds])
    if not len(missing):
        return found.total
    if len(timed) < 2:
        return math.nan
    at, seconds = np.array(timed).T
    slope, _ = np.polyfit(at[-_FITTED:], seconds[-_FITTED:], 1)
    beyond = np.maximum(missing - at[-1], 0) * max(slope, 0.0)
    return found.total + float(np.sum(np.interp(missing, at, seconds) + beyond))


def _row(form: str, found: DepthTime, depths: list[int], ours: float) -> dict:
    seconds = estimate(found, depths)
    return {
        "seconds": seconds,
        "ratio": seconds / ours,
        "measured": found.total,
        "start": found.start,
        "depths": len(depths),
        "timed": len(found.seconds),
        "deepest": max(found.seconds, default=0),
        "form": form,
    }


def report(table: pd.DataFrame) -> str:
    """The ratios in words, and how much of them is estimated."""
    rows = table.set_index("form")
    if OURS not in rows.index:
        return "The sweep of depth was not timed."
    text = f"The sweep takes flowlab {rows.loc[OURS, 'seconds']:.0f} s, compilation included"
    if KEPT in rows.index:
        text += f", and {rows.loc[KEPT, 'seconds']:.0f} s with kernels kept"
    parts = [text]
    for form, row in rows.drop([OURS, KEPT], errors="ignore").to_dict("index").items():
        if math.isnan(row["seconds"]):
            parts.append(f"{form} did not get through two depths")
            continue
        text = f"{row['ratio']:.1f} times as long with {form}"
        if row["timed"] < row["depths"]:
            text += (
                f" ({1 - row['measured'] / row['seconds']:.0%} of it estimated from "
                f"{row['timed']} of {row['depths']} depths, up to {row['deepest']})"
            )
        parts.append(text)
    return "; ".join(parts) + "."


# --- processes ------------------------------------------------------------------------------------


def _child(form, shape, say, seconds=math.inf, cache=None) -> DepthTime:
    """A form's process, stopped after ``seconds`` once it is through with a few depths."""
    found, begun = DepthTime(), time.perf_counter()
    last = begun
    environment = {"NPROC": str(shape["threads"])}  # of JAX's pool
    if cache is not None:
        environment["NUMBA_CACHE_DIR"] = cache
    argument = {"form": form, **shape}
    with child(depth_sweep.__name__, argument, form, environment) as lines:
        for depth in (None, *shape["depths"]):
            say(f"{form}: {'starting a process' if depth is None else f'depth {depth}'}")
            left = begun + seconds - time.perf_counter()
            if arrives(lines, math.inf if len(found.seconds) < _LEAST else left) is None:
                break
            now = time.perf_counter()
            if depth is None:
                found.start = now - begun
            else:
                found.seconds[depth] = now - last
            last = now
    return found
