"""One point of :mod:`~experiments.benchmarks.growth`, in a process of its own.

The arrays of one measurement are counted, others are timed. It prints the peak in bytes, then the
seconds of each.
"""

import json
import sys
import time
import tracemalloc

import flowlab
from flowlab.measurement import ensemble


def work(settings: dict, rounds: int) -> None:
    """Measure ``rounds`` times what the settings describe, and once before."""
    made = flowlab.make(init="he", data="gaussian", upstream="gaussian", **settings)
    flowlab.measure(made)  # what is compiled and imported is no part of the peak
    ensemble.forget()  # nor may arrays that are kept be missing from it
    tracemalloc.start()
    flowlab.measure(made)
    print(tracemalloc.get_traced_memory()[1], flush=True)
    tracemalloc.stop()
    for _ in range(rounds):
        begun = time.perf_counter()
        flowlab.measure(made)
        print(time.perf_counter() - begun, flush=True)


if __name__ == "__main__":
    work(**json.loads(sys.argv[1]))
