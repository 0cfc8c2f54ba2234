"""Each layer's forward and backward against PyTorch and JAX: the same work, the same threads.

An ensemble of networks in float32 passes one layer forward and the cotangents of its input and
parameters back. flowlab's threads take equal parts of the ensemble, one BLAS thread each. PyTorch
runs eagerly in every way a skilled user might, on all networks at once or one after another, with
threads inside its operations or with a part of the ensemble for each; JAX compiles all networks by
``vmap`` or one after another. The fastest form of each peer counts.

A timed call makes many passes, and threads that work on parts of the ensemble, flowlab's or
PyTorch's, make all of theirs without waiting for one another: a measurement, too, gives each thread
its part once and not layer by layer, and waking a thread takes longer than a small layer. The
results of a pass are dropped before the next, so that every library finds its memory warm.
"""

import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, pairwise, repeat

import numpy as np
import pandas as pd
import scipy.linalg.cython_blas  # noqa: F401  loaded early, so that its threads can be limited
from threadpoolctl import ThreadpoolController

from experiments.benchmarks.timing import Say, best, enough, race
from flowlab.claims import twins
from flowlab.claims.twins import Timed, Twin
from flowlab.errors import unknown
from flowlab.layer import Workspace, leaves, map_leaves

OURS = "flowlab"
CASES = twins.timed()
_LONG_ENOUGH = 0.01  # seconds that a timed call takes at least


def rows(
    say: Say,
    only=tuple(CASES),
    seeds: int = 4,
    rounds: int = 5,
    threads: int = 2,
    seconds: int = 70,
) -> Iterator[dict]:
    """Rows per layer and input shape of one network: flowlab's and the fastest of each peer.

    See :func:`race`; ``seconds`` are for a pass of the ensemble. ``only`` names the layers.
    ``seconds``, shared by the cases that are left, are about what is spent in all. Raises
    InputError for a name that is not in CASES.
    """
    for name in only:
        if name not in CASES:
            raise unknown("only", name, CASES)
    cases = [(name, shape) for name in only for shape in CASES[name][1].shapes]
    end = time.perf_counter() + seconds
    blas = ThreadpoolController().select(user_api="blas")
    with blas.limit(limits=1), ThreadPoolExecutor(threads) as pool:
        for index, (name, shape) in enumerate(cases):
            size = "x".join(map(str, shape))
            say(f"{name} {size}")
            forms = forms_of(*CASES[name], shape, seeds, threads, pool)
            share = max(end - time.perf_counter(), 0) / (len(cases) - index)
            repeats = enough(forms[OURS], _LONG_ENOUGH)
            forms = {form: partial(run, repeats) for form, run in forms.items()}

            def saying(what, name=name, size=size):
                say(f"{name} {size}: {what}")

            found = list(race(forms, rounds, OURS, saying, share))
            for row in [*best(found).values(), *(row for row in found if not row["rounds"])]:
                each = {key: row[key] / repeats for key in ("seconds", "first")}
                yield {"layer": name, "size": size, **row, **each}


def report(table: pd.DataFrame) -> str:
    """Where flowlab is behind, in one sentence."""
    peers = table[(table["form"] != OURS) & (table["rounds"] > 0)]
    left = sum(table["rounds"] == 0)
    more = f" {left} forms were left out for want of time: their rows are empty." if left else ""
    behind = peers[peers["ratio"] < 1].sort_values("ratio")
    if not len(peers):
        return "No peer is installed."
    if not len(behind):
        return f"flowlab is behind nowhere.{more}"
    named = [f"{r.layer} {r.size} ({r.ratio:.2f} of {r.form})" for r in behind.itertuples()]
    return f"flowlab is behind in {len(named)} of {len(peers)} rows: {', '.join(named)}.{more}"


def forms_of(twin: Twin, case: Timed, shape, seeds: int, threads: int, pool) -> dict[str, Callable]:
    """Every way to do the work, as a function of the number of passes.

    A form works on all ``seeds`` networks, and gives a list over networks or parts of them: y, dx
    and the parameters' cotangents, as it has them, of the last pass.
    """
    layer, draw = case.layer(shape), np.random.default_rng(0)
    declared = layer.declare(shape)

    def normal(shape, scale=1.0):
        return (scale * draw.standard_normal((seeds, *shape))).astype(np.float32)

    if case.below:
        x = draw.integers(0, case.below, (seeds, *shape)).astype(np.float32)
    else:
        x = normal(shape)
    p = map_leaves(lambda a: normal(a.shape, a.fan_in**-0.5), declared.parameters)
    dy = normal(declared.output)
    forms = {OURS: _flowlab(layer, x, p, dy, threads, pool)}
    if importlib.util.find_spec("torch"):
        forms |= _torch(twin, layer, x, p, dy, threads, pool, whole_numbers=case.below > 0)
    if importlib.util.find_spec("jax"):
        forms |= _jax(twin, layer, x, p, dy, threads)
    return forms


def _parts(seeds: int, threads: int) -> list[slice]:
    bounds = np.linspace(0, seeds, min(seeds, threads) + 1).astype(int)
    return [slice(a, b) for a, b in pairwise(bounds)]


def _passes(once, inputs, repeats):
    for _ in range(repeats - 1):
        once(inputs)
    return once(inputs)


def _flowlab(layer, x, p, dy, threads, pool):
    parts = [
        (x[part], map_leaves(lambda a, part=part: a[part], p), dy[part], Workspace())
        for part in _parts(len(x), threads)
    ]

    def run(part):
        x, p, dy, workspace = part
        y, tape = layer.forward(x, p, workspace)
        dx, gradients = layer.pullback(dy, tape, workspace)
        workspace.reset()
        return y, dx, [a for _, a in leaves(gradients)]

    return lambda repeats: list(pool.map(partial(_passes, run), parts, repeat(repeats)))


def _torch(twin, layer, x, p, dy, threads, pool, whole_numbers) -> dict[str, Callable]:
    import torch

    single = partial(twin.torch, torch, layer)
    if twin.ensemble:
        batched = partial(twin.ensemble, torch, layer)
    elif not list(leaves(p)):  # examples of all networks are alike
        batched = lambda x, p: single(x.flatten(0, 1), p).unflatten(0, x.shape[:2])  # noqa: E731
    else:
        batched = torch.vmap(single)

    def inputs(part):
        own = map_leaves(lambda a: torch.tensor(a[part]).requires_grad_(), p)
        given = torch.tensor(x[part])
        given = given.long() if whole_numbers else given.requires_grad_()
        return given, own, torch.tensor(dy[part])

    def work(function, intra_op):
        def run(inputs):
            torch.set_num_threads(intra_op)
            x, p, dy = inputs
            y = function(x, p)
            moving = [*([] if whole_numbers else [x]), *(a for _, a in leaves(p))]
            gradients = torch.autograd.grad(y, moving, dy)
            return y, *((None, gradients) if whole_numbers else (gradients[0], gradients[1:]))

        return run

    def one_after_another(intra_op):
        return lambda several: [work(single, intra_op)(one) for one in several]

    halves = _parts(len(x), threads)
    whole, split = inputs(slice(None)), [inputs(part) for part in halves]
    nets = [inputs(s) for s in range(len(x))]
    parts = [nets[part] for part in halves]
    at_once, at_once_by_thread = work(batched, threads), work(batched, 1)
    each, each_by_thread = one_after_another(threads), one_after_another(1)
    return {
        "torch batched": lambda repeats: [_passes(at_once, whole, repeats)],
        "torch batched, threads over nets": lambda repeats: list(
            pool.map(partial(_passes, at_once_by_thread), split, repeat(repeats))
        ),
        "torch net by net": partial(_passes, each, nets),
        "torch net by net, threads over nets": lambda repeats: list(
            chain.from_iterable(pool.map(partial(_passes, each_by_thread), parts, repeat(repeats)))
        ),
    }


def _jax(twin, layer, x, p, dy, threads) -> dict[str, Callable]:
    os.environ.setdefault("NPROC", str(threads))  # of its pool, if it has not started
    import jax
    import jax.numpy as jnp

    def one(x, p, dy):
        y, pull = jax.vjp(partial(twin.jax, jax, layer), x, p)
        return y, *pull(dy)

    x, p, dy = jax.tree.map(jnp.asarray, (x, p, dy))
    nets = [jax.tree.map(lambda a, s=s: a[s], (x, p, dy)) for s in range(len(x))]
    batched, single = jax.jit(jax.vmap(one)), jax.jit(one)

    def all_at_once(whole):
        return [jax.block_until_ready(batched(*whole))]

    def one_after_another(nets):
        return jax.block_until_ready([single(*net) for net in nets])

    return {
        "jax vmap": partial(_passes, all_at_once, (x, p, dy)),
        "jax net by net": partial(_passes, one_after_another, nets),
    }
