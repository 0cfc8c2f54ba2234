"""The work of one form in a sweep of depth, in a process of its own.

It is started by :mod:`~experiments.benchmarks.depths` with JSON as its argument, and prints a line
once it has loaded what it needs, and another after each depth.
"""

import json
import math
import sys
from collections.abc import Callable

from experiments.benchmarks import nets_jax, nets_torch

OURS, KEPT = "flowlab", "flowlab, kernels kept"
# Initializations and the peers' gains: deviations are gain/√width.
INITS = {"he": math.sqrt(2), "xavier": 1.0, "lecun": 1.0, "normal": 1.2}


def work(form: str, width: int, batch: int, seeds: int, threads: int, depths: list[int]) -> None:
    """All depths under all initializations, from shallow to deep."""
    makers = {"flowlab": _flowlab, "torch": _torch, "jax": _jax}
    measure = makers[form.replace(",", " ").split()[0]](form, width, batch, seeds, threads)
    print("ready", flush=True)
    for depth in depths:
        once = measure(depth)
        for name, gain in INITS.items():
            once(name, gain)
        print(depth, flush=True)


def _flowlab(form, width, batch, seeds, threads) -> Callable:
    import flowlab

    shape = {"width": width, "batch_size": batch, "seeds": seeds, "threads": threads}

    def once(depth, name, gain):
        init = {"name": name, "sigma_w": gain} if name == "normal" else name
        flowlab.measure(init=init, depth=depth, data="gaussian", upstream="gaussian", **shape)

    return lambda depth: lambda name, gain: once(depth, name, gain)


def _torch(form, width, batch, seeds, threads) -> Callable:
    import torch

    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # as JAX does; norms below 1e-38 are lost either way
    run = nets_torch.forms(gram=batch < width, compiled=False)[form]
    return lambda depth: lambda _, gain: run(nets_torch.Nets(width, seeds, depth, batch, gain))


def _jax(form, width, batch, seeds, threads) -> Callable:
    import jax  # noqa: F401  before the clock of the first depth starts

    def measure(depth):
        run = nets_jax.forms(width, seeds, depth, batch, gram=batch < width)[form]
        return lambda _, gain: run(gain)

    return measure


if __name__ == "__main__":
    work(**json.loads(sys.argv[1]))
