"""Timing side by side: machines are noisy, so only ratios within one run mean anything."""

import sys
import time
from collections.abc import Callable

import numpy as np
import pandas as pd


def race(forms: dict[str, Callable[[], object]], rounds: int, ours: str) -> pd.DataFrame:
    """Time every form once in each round, in rotating order.

    Returns a row per form: first call (``first_s``, compilation included), median seconds, and the
    ratio of its time to ``ours`` over rounds: median, lowest and highest.
    """
    first, times = {}, {name: [] for name in forms}
    for name, form in forms.items():
        begun = time.perf_counter()
        form()
        first[name] = time.perf_counter() - begun
        print(f"  {name}: first call {first[name]:.1f} s", file=sys.stderr, flush=True)
        form()
    names = list(forms)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            begun = time.perf_counter()
            forms[name]()
            times[name].append(time.perf_counter() - begun)
    rows = []
    for name in names:
        ratio = np.array(times[name]) / np.array(times[ours])
        rows.append(
            {
                "form": name,
                "first_s": first[name],
                "median_s": np.median(times[name]),
                "ratio": np.median(ratio),
                "ratio_low": ratio.min(),
                "ratio_high": ratio.max(),
            }
        )
    return pd.DataFrame(rows)
