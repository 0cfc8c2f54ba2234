"""A process that times some kernels once for each line on stdin; see :mod:`flowlab.vectors`."""

import json
import sys
import time

import numpy as np

from flowlab.kernel import kernel
from flowlab.numerics import elementary
from flowlab.numerics.random import fill_normal
from flowlab.numerics.scale import log2_norm


@kernel("...->...")
def _tanh(x):
    return elementary.tanh(x)


def main() -> None:
    values, out = np.full((1, 2**17), 0.5, np.float32), np.empty((1, 2**17), np.float32)
    zero = np.zeros(1, np.int64)
    trials = {
        "normals": lambda: fill_normal(zero, zero, out, 1.0, 0),
        "tanh": lambda: _tanh(values, out),
        "norm": lambda: log2_norm(values),
    }
    for trial in trials.values():
        trial()
    for _ in sys.stdin:
        seconds = {}
        for name, trial in trials.items():
            begun = time.perf_counter()
            trial()
            seconds[name] = time.perf_counter() - begun
        print(json.dumps(seconds), flush=True)
