"""The whole probe against PyTorch and JAX: weights drawn, forward, backward, every layer's norms.

Each form does the same work for an ensemble of plain ReLU nets under He with Gaussian inputs and a
Gaussian cotangent: per layer and net the norms of h, δ, dX, dW and db, float32, on the same number
of threads. flowlab finds the norms of the examples' own gradients besides. Peers are written in
every way a skilled user might; the fastest of each counts.

The floor is the time of the products that a pass needs, on warm operands and nothing else: three
for each layer, or, since ‖XᵀD‖² = Σ (XXᵀ)∘(DDᵀ), two and half of two Gram products where the batch
is below the width. The faster of both counts.
"""

import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import scipy.linalg.cython_blas  # noqa: F401  loaded early, so that its threads can be limited
from threadpoolctl import threadpool_limits

import flowlab
from experiments.benchmarks import nets_jax, nets_torch
from experiments.benchmarks.timing import Say, best, race
from flowlab.kernel import kernel
from flowlab.layers.linear import TILE, sum_over_pairs

OURS = "flowlab"
THREE, WITH_GRAM = "products: three", "products: two, half Grams"
_SEEDS_UP_TO = 256  # wider nets have fewer: as many as these have weights
_KEYS = ["width", "batch", "seeds", "depth"]


def rows(
    say: Say,
    widths=(64, 128, 256, 512, 1024),
    batches=(128, 32),
    seeds: int = 16,
    depth: int = 50,
    rounds: int = 7,
    threads: int = 2,
    compiled: int = 1,
    seconds: int = 220,
) -> Iterator[dict]:
    """A row per width, batch and form; see :func:`race`.

    All widths have the first of ``batches``, the largest has the others, too. Nets wider than 256
    are fewer than ``seeds``, in proportion. ``compiled`` says whether ``torch.compile`` takes part.
    ``seconds``, shared by the cases that are left, are about what is spent in all.
    """
    cases = [(width, batches[0]) for width in widths]
    cases += [(max(widths), batch) for batch in batches[1:]]
    end = time.perf_counter() + seconds
    for index, (width, batch) in enumerate(cases):
        nets = max(1, seeds * _SEEDS_UP_TO // max(width, _SEEDS_UP_TO))
        shape = width, nets, depth, batch
        say(f"width {width}, batch {batch}: making ready")
        forms = forms_of(*shape, threads, compiled)
        share = max(end - time.perf_counter(), 0) / (len(cases) - index)
        at = dict(zip(_KEYS, (width, batch, nets, depth), strict=True))

        def saying(what, width=width, batch=batch):
            say(f"width {width}, batch {batch}: {what}")

        for row in race(forms, rounds, OURS, saying, share, (THREE, WITH_GRAM)):
            yield at | row


def forms_of(width, seeds, depth, batch, threads, compiled) -> dict[str, Callable[[], object]]:
    """Every form by its name; of peers, those that are installed."""
    shape, gram = (width, seeds, depth, batch), batch < width
    forms = {OURS: flowlabs(*shape, threads), THREE: floor(three_products, *shape, threads)}
    if gram:
        forms[WITH_GRAM] = floor(gram_products, *shape, threads)
    if importlib.util.find_spec("torch"):
        forms |= torchs(*shape, threads, gram, compiled)
    if importlib.util.find_spec("jax"):
        os.environ.setdefault("NPROC", str(threads))  # of its pool, if it has not started
        forms |= nets_jax.forms(*shape, gram)
    return forms


def flowlabs(width, seeds, depth, batch, threads):
    """The measurement as a call."""
    settings = flowlab.make(
        init="he",
        data="gaussian",
        upstream="gaussian",
        **{"width": width, "seeds": seeds, "depth": depth, "batch_size": batch},
        threads=threads,
    )
    return lambda: flowlab.measure(settings)


def torchs(width, seeds, depth, batch, threads, gram, compiled) -> dict[str, Callable]:
    """PyTorch's forms as calls."""
    import torch

    torch.set_num_threads(threads)
    nets = nets_torch.Nets(width, seeds, depth, batch)
    forms = nets_torch.forms(gram, bool(compiled)).items()
    return {name: lambda form=form: form(nets) for name, form in forms}


@kernel("(n,i),(i,o),(n,o)->(n,o),(n,i),(i,o)")
def three_products(x, W, dy, y, dx, dW):
    np.dot(x, W, y)
    np.dot(dy, W.T, dx)
    np.dot(x.T, dy, dW)


_over_pairs = sum_over_pairs.single


@kernel("(n,i),(i,o),(n,o)->(n,o),(n,i),(),(tile),(tile)")
def gram_products(x, W, dy, y, dx, of_dW, tile_x, tile_dy):
    np.dot(x, W, y)
    np.dot(dy, W.T, dx)
    _over_pairs(x, dy, of_dW, tile_x, tile_dy)  # the tiles on one side of the diagonal


def operands(products, nets: int, width: int, batch: int) -> list[np.ndarray]:
    """What the kernel of products reads, drawn, and the arrays that it writes."""
    lengths = {"n": batch, "i": width, "o": width, "tile": min(batch, TILE) ** 2}
    rng = np.random.default_rng(0)
    shapes = [(nets, *(lengths[axis] for axis in axes)) for axes in products.dimensions]
    arrays = [rng.standard_normal(shape, np.float32) for shape in shapes[: products.n_reads]]
    return arrays + [np.empty(shape, np.float32) for shape in shapes[products.n_reads :]]


def floor(products, width, seeds, depth, batch, threads):
    """The products of all layers and nets as a call."""
    parts = np.array_split(np.arange(seeds), min(seeds, 2 * threads))
    several = [operands(products, len(part), width, batch) for part in parts]

    def part(own):
        for _ in range(depth):
            products.run(*own)

    def run():
        with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
            list(pool.map(part, several))

    return run


def report(table: pd.DataFrame) -> str:
    """The ratios in words: the fastest form of each peer, and the share of the floor."""
    found = []
    for (width, batch), own in table.groupby(["width", "batch"], sort=False):
        of = {row["form"]: row for row in own.to_dict("records")}
        text = f"width {width}, batch {batch}:"
        floors = {name: of[name]["ratio"] for name in (THREE, WITH_GRAM) if name in of}
        if floors:
            name = min(floors, key=floors.get)
            text += f" {floors[name]:.0%} of the time is {name.replace(':', ' alone:')}"
            if floors[name] > 1:
                text += " (more than all: the pass needs fewer than these)"
        peers = best([row for name, row in of.items() if name not in (OURS, *floors)])
        for row in peers.values():
            text += (
                f"; {row['ratio']:.2f}x [{row['low']:.2f}, {row['high']:.2f}] faster than"
                f" {row['form']}"
            )
        left = [name for name, row in of.items() if not row["rounds"]]
        if left:
            text += f"; left out for want of time: {', '.join(left)}"
        found.append(text)
    return "\n".join(found)
