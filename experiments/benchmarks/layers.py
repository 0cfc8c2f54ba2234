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
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, pairwise, repeat

import numpy as np
import pandas as pd
import scipy.linalg.cython_blas  # noqa: F401  loaded early, so that its threads can be limited
from threadpoolctl import ThreadpoolController

from experiments.benchmarks.timing import race
from flowlab.claims import twins
from flowlab.claims.twins import Timed, Twin
from flowlab.errors import unknown
from flowlab.layer import Workspace, leaves, map_leaves

OURS = "flowlab"
CASES = twins.timed()
_LONG_ENOUGH = 0.01  # seconds that a timed call takes at least


def layers(only=tuple(CASES), seeds: int = 4, rounds: int = 5, threads: int = 2) -> pd.DataFrame:
    """A row per layer, input shape of one network, and peer that is installed.

    ``seconds`` is flowlab's median for a pass of the ensemble, ``ratio`` the median over rounds of
    the peer's time to flowlab's, ``low`` and ``high`` its extremes, ``peer`` the peer's fastest
    form. ``only`` names the layers. Raises InputError for a name that is not in CASES.
    """
    for name in only:
        if name not in CASES:
            raise unknown("only", name, CASES)
    rows = []
    blas = ThreadpoolController().select(user_api="blas")
    with blas.limit(limits=1), ThreadPoolExecutor(threads) as pool:
        for name in only:
            for shape in CASES[name][1].shapes:
                print(f" {name} {shape}", file=sys.stderr)
                forms = forms_of(*CASES[name], shape, seeds, threads, pool)
                size = "x".join(map(str, shape))
                rows += _rows(forms, rounds, layer=name, size=size)
    columns = ["layer", "size", "seconds", "peer", "ratio", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def _rows(forms: dict[str, Callable], rounds: int, **named) -> list[dict]:
    repeats = _enough(forms[OURS])
    forms = {name: partial(form, repeats) for name, form in forms.items()}
    heats = race(forms, 3, OURS).set_index("form")
    peers = [heats[heats.index.str.startswith(peer)]["ratio"] for peer in ("torch", "jax")]
    fastest = [list(ratios.nsmallest(2).index) for ratios in peers if len(ratios)]
    final = {name: forms[name] for name in (OURS, *chain(*fastest))}
    found = race(final, rounds, OURS).set_index("form")
    named["seconds"] = found.loc[OURS, "median_s"] / repeats
    columns = {"ratio": "ratio", "ratio_low": "low", "ratio_high": "high"}
    ratios = found[[*columns]].rename(columns=columns)
    best = [ratios.loc[forms, "ratio"].idxmin() for forms in fastest]
    return [{**named, "peer": peer, **ratios.loc[peer]} for peer in best]


def _enough(form: Callable[[int], object]) -> int:
    """How many passes, a power of two, take long enough."""
    form(1)
    repeats, seconds = 1, 0.0
    while seconds < _LONG_ENOUGH:
        repeats *= 2
        begun = time.perf_counter()
        form(repeats)
        seconds = time.perf_counter() - begun
    return repeats


def report(table: pd.DataFrame) -> str:
    """Where flowlab is behind, in one sentence."""
    behind = table[table["ratio"] < 1].sort_values("ratio")
    if not len(behind):
        return "flowlab is behind nowhere."
    rows = [f"{r.layer} {r.size} ({r.ratio:.2f} of {r.peer})" for r in behind.itertuples()]
    return f"flowlab is behind in {len(rows)} of {len(table)} rows: {', '.join(rows)}."


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
