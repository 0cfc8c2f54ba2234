"""What the exact batch law costs: on top of a plain measurement, and beside per-example gradients.

Shared machines are noisy: forms take turns, and the law's share is counted in processor time over
all threads, which waits for nobody.
"""

import importlib.util
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pandas as pd

import flowlab
from experiments.benchmarks.timing import Say, spread
from flowlab.analysis.batch_law import law
from flowlab.layers import Linear
from flowlab.measurement.setup import Batches
from flowlab.networks import build

PLAIN, LAW, MATERIALISED = "plain measurement", "with the law", "torch.func.vmap(grad)"
_CHUNK = 32  # examples whose gradients PyTorch holds at once


def rows(
    say: Say,
    width: int = 256,
    depth: int = 50,
    batch: int = 1024,
    seeds: int = 4,
    rounds: int = 3,
    threads: int = 2,
) -> Iterator[dict]:
    """Time and memory of the law, one row per form.

    ``seconds`` is the median wall time for each net, ``ratio`` the median over rounds of the
    processor time to that of the plain measurement, ``low`` and ``high`` its extremes,
    ``megabytes`` what the per-example quantities occupy. PyTorch, where it is
    installed, forms the gradients of one net in chunks, once.
    """
    settings = flowlab.make(
        **{"width": width, "depth": depth, "batch_size": batch, "seeds": seeds},
        data="gaussian",
        reduction="sum",
        threads=threads,
    )

    def plain():
        with _without_law():
            return flowlab.measure(settings)

    forms = {PLAIN: plain, LAW: lambda: law(flowlab.measure(settings))}
    wall, busy = ({name: [] for name in forms} for _ in range(2))
    for turn in range(rounds + 1):
        for name in sorted(forms, reverse=turn % 2 == 0):
            say(f"{name}, round {turn} of {rounds}" if turn else f"{name}, first call")
            begun = time.perf_counter(), time.process_time()
            forms[name]()
            if turn:  # the first compiles
                wall[name].append((time.perf_counter() - begun[0]) / seeds)
                busy[name].append((time.process_time() - begun[1]) / seeds)
    for name in forms:
        ratios = spread(np.array(busy[name]) / np.array(busy[PLAIN]))
        megabytes = 0.0 if name == PLAIN else 16e-6 * depth
        yield _row(name, np.median(wall[name]), ratios, rounds, megabytes)
    if importlib.util.find_spec("torch"):
        say(MATERIALISED)
        seconds, processor, megabytes = _materialised(settings, threads)
        yield _row(MATERIALISED, seconds, 3 * [processor / np.median(busy[PLAIN])], 1, megabytes)


def _row(form, seconds, ratios, rounds, megabytes) -> dict:
    named = dict(zip(("ratio", "low", "high"), map(float, ratios), strict=True))
    row = {"seconds": float(seconds), **named, "rounds": rounds, "megabytes": megabytes}
    return row | {"form": form}


def report(table: pd.DataFrame) -> str:
    """The finding in one sentence."""
    rows = table.set_index("form")
    if LAW not in rows.index:
        return f"The batch law was not timed beside {PLAIN}."
    text = f"The batch law takes {rows.loc[LAW, 'ratio']:.2f} times a plain measurement"
    if MATERIALISED in rows.index:
        faster = rows.loc[MATERIALISED, "seconds"] / rows.loc[LAW, "seconds"]
        text += (
            f", {faster:.0f} times less than forming the examples' gradients by "
            f"{MATERIALISED}, which holds {rows.loc[MATERIALISED, 'megabytes']:.0f} MB at once"
        )
    return f"{text}."


@contextmanager
def _without_law():
    kernel, Linear.example_norms = Linear.example_norms, None
    try:
        yield
    finally:
        Linear.example_norms = kernel


def _materialised(settings, threads) -> tuple[float, float, float]:
    """Seconds, processor seconds and megabytes for Σ‖g_i‖² and ‖Σg_i‖² of one net's layers."""
    import torch

    (features,) = Batches(settings).example
    network = build(settings, 10)
    sizes = [features, *(settings.width for _ in network.blocks[:-1]), 10]
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    parameters = [
        (torch.randn(i, o, generator=generator) * (2 / i) ** 0.5, torch.zeros(o))
        for i, o in pairwise(sizes)
    ]
    x = torch.randn(settings.batch_size, features, generator=generator)
    labels = torch.randint(10, (settings.batch_size,), generator=generator)

    def loss(parameters, x, label):
        for W, b in parameters[:-1]:
            x = torch.relu(x @ W + b)
        W, b = parameters[-1]
        return torch.nn.functional.cross_entropy(x @ W + b, label)

    each = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))

    def run(rows):
        squares, total = [], []
        for start in range(0, rows, _CHUNK):
            part = slice(start, start + _CHUNK)
            flat = [g for pair in each(parameters, x[part], labels[part]) for g in pair]
            squares.append(torch.stack([(g * g).sum() for g in flat]))
            sums = [g.sum(0) for g in flat]
            total = [a + b for a, b in zip(total, sums, strict=True)] if total else sums
        return torch.stack(squares).sum(0), [(t * t).sum() for t in total]

    run(_CHUNK)
    begun = time.perf_counter(), time.process_time()
    run(settings.batch_size)
    elapsed = time.perf_counter() - begun[0], time.process_time() - begun[1]
    elements = sum(W.numel() + b.numel() for W, b in parameters)
    return *elapsed, 4e-6 * elements * min(_CHUNK, settings.batch_size)
