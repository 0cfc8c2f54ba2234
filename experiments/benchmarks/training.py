"""A training step against PyTorch and JAX: forward, backward and update of an ensemble of MLPs.

All forms train the same networks (ReLU, cross-entropy of digits, float32) on the same batches with
the same number of threads. Peers are written in every way a skilled user might: networks at once or
one after another, threads inside operations or with a part of the ensemble each, PyTorch's fused
and foreach optimizers, ``torch.func`` and ``torch.compile``, JAX by ``vmap`` or net by net with the
whole step compiled. The fastest of each peer counts.

A timed call makes several steps, so that threads which have nothing to wait for need not wait.
"""

import importlib.util
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import count

import numpy as np
import pandas as pd
import scipy.linalg.cython_blas  # noqa: F401  loaded early, so that its threads can be limited
from threadpoolctl import ThreadpoolController

import flowlab
from experiments.benchmarks.timing import Say, best, elapsed, enough, left_out, library, race
from flowlab.errors import unknown
from flowlab.layer import leaves
from flowlab.measurement.setup import prepare
from flowlab.optimizers import TrainingSettings
from flowlab.training.loop import Part

OURS, LOGGED = "flowlab", "flowlab, logged"
LR, MOMENTUM = 0.01, 0.9
OPTIMIZERS = {
    "sgd": {"name": "sgd", "lr": LR},
    "momentum": {"name": "sgd", "lr": LR, "momentum": MOMENTUM},
    "adam": {"name": "adam", "lr": LR / 10},
}
BATCHES = 8  # that peers go through in turn
_LONG_ENOUGH = 0.2  # seconds that a timed call takes at least
_HEATS = 0.5  # of the time is for heats
_SHORTLISTED = 2  # forms of each peer that are timed in turn with ours


@dataclass(frozen=True)
class Trainee:
    """``run(steps)`` trains on; ``weights()`` are the layers' W so far, each (S, i, o)."""

    run: Callable[[int], object]
    weights: Callable[[], list[np.ndarray]]


def rows(
    say: Say,
    widths=(64, 256),
    optimizers=("sgd", "adam"),
    seeds: int = 16,
    depth: int = 50,
    batch: int = 128,
    rounds: int = 5,
    threads: int = 2,
    compiled: int = 0,
    seconds: int = 50,
) -> Iterator[dict]:
    """Rows per width and optimizer: flowlab's and the fastest of each peer that is installed.

    See :func:`race`; ``seconds`` are for a step of the ensemble. In the row of the smallest width
    whose form is LOGGED, it is flowlab itself over the default budget with its logged steps, beside
    as many steps that are not. ``compiled`` says whether ``torch.compile`` takes part, which takes
    a minute for every width. ``seconds``, shared by the cases that are left, are about what is
    spent in all. Raises InputError for an unknown optimizer.
    """
    for name in optimizers:
        if name not in OPTIMIZERS:
            raise unknown("optimizers", name, OPTIMIZERS)
    cases = [(width, optimizer) for width in widths for optimizer in optimizers]
    end = time.perf_counter() + seconds
    shape = {"depth": depth, "batch_size": batch, "seeds": seeds}
    with _one_blas_thread(), ThreadPoolExecutor(threads) as pool:
        for index, (width, optimizer) in enumerate(cases):

            def saying(what, width=width, optimizer=optimizer):
                say(f"width {width}, {optimizer}: {what}")

            share = max(end - time.perf_counter(), 0) / (len(cases) - index + 1)
            settings = made(optimizer, width=width, **shape)
            forms = forms_of(settings, optimizer, threads, pool, compiled)
            for row in _raced(forms, rounds, saying, share):
                yield {"width": width, "optimizer": optimizer, **row}
        settings = made(optimizers[0], width=min(widths), **shape)
        for row in _logging(settings, rounds, threads, pool, say, end - time.perf_counter()):
            if row["form"] == LOGGED:
                yield {"width": min(widths), "optimizer": optimizers[0], **row}


def report(table: pd.DataFrame) -> str:
    """The ratio to the faster peer by width, where flowlab is behind, and what was left out."""
    logged = table[table["form"] == LOGGED]
    peers = table[~table["form"].isin([OURS, LOGGED]) & (table["rounds"] > 0)]
    text = []
    if len(peers):
        faster = peers.loc[peers.groupby(["width", "optimizer"], sort=False)["ratio"].idxmin()]
        parts = [f"{r.width} {r.optimizer} {r.ratio:.2f} ({r.form})" for r in faster.itertuples()]
        behind = sum(faster["ratio"] < 1)
        where = f"behind in {behind} of {len(faster)} rows" if behind else "behind nowhere"
        text.append(f"The faster peer's time to flowlab's: {', '.join(parts)}; flowlab is {where}.")
    if len(logged):
        cost = 100 * (logged["ratio"].iloc[0] - 1)
        text.append(f"Logging at the default spacing adds {cost:.1f} %.")
    if not table["form"].str.contains("compile").any():
        text.append("torch.compile took no part: compiled=1 lets it.")
    left = table.loc[table["rounds"] == 0, "form"]
    if len(left):
        text.append(f"Left out for want of time: {', '.join(left.unique())}.")
    return " ".join(text)


def made(optimizer: str, **shape) -> flowlab.Settings:
    """The settings of a training of the default net."""
    return flowlab.make(**shape, training=TrainingSettings(**OPTIMIZERS[optimizer], steps=10**6))


@contextmanager
def _one_blas_thread():
    with ThreadpoolController().select(user_api="blas").limit(limits=1):
        yield


def _raced(
    forms: dict[str, Callable[[], Trainee]], rounds: int, say: Say, seconds: float
) -> Iterator[dict]:
    """Each peer's fastest form beside ours: heats one after another, the fastest in turn."""
    begun = time.perf_counter()
    ours = forms[OURS]()
    repeats = enough(ours.run, _LONG_ENOUGH)
    heats, named = {}, {}
    for name, build in forms.items():
        if name == OURS:
            continue
        peer = library(name)
        if heats.get(peer) and time.perf_counter() - begun > _HEATS * seconds:
            yield left_out(name)
            continue
        say(name)
        heats.setdefault(peer, {})[name] = _heat(build, repeats)
    for peer in heats.values():
        for name in sorted(peer, key=peer.get)[:_SHORTLISTED]:
            named[name] = forms[name]().run
    final = {name: partial(run, repeats) for name, run in {OURS: ours.run, **named}.items()}
    left = seconds - (time.perf_counter() - begun)
    found = list(race(final, rounds, OURS, say, left, tuple(named)))
    for row in best(found).values():
        yield {**row, **{key: row[key] / repeats for key in ("seconds", "first")}}


def _logging(settings, rounds, threads, pool, say, seconds) -> Iterator[dict]:
    """The cost of logging: a training of the default budget with it and without."""
    setup = prepare(replace(settings, training=replace(settings.training, steps=None)))
    steps = setup.settings.training.step_count(setup.settings.batch_size, setup.batches.rows)
    parts = [Part(setup, seeds, steps) for seeds in np.array_split(setup.seeds, threads)]
    rate = setup.settings.training.lr

    def plain(part):
        for step in range(1, steps + 1):
            part.step(step, rate)

    def logged(part):
        part.train(steps, lambda number: None)

    forms = {
        name: lambda f=f: list(pool.map(f, parts)) for name, f in ((OURS, plain), (LOGGED, logged))
    }
    for row in race(forms, rounds, OURS, say, seconds, (LOGGED,)):
        yield {**row, **{key: row[key] / steps for key in ("seconds", "first")}}


def _heat(build: Callable[[], Trainee], repeats: int) -> float:
    """Seconds of a form that nobody else needs memory beside, the best of two calls."""
    form = build()
    return min([elapsed(lambda: form.run(repeats)) for _ in range(3)][1:])


def forms_of(
    settings: flowlab.Settings, optimizer: str, threads: int, pool, compiled: int
) -> dict[str, Callable[[], Trainee]]:
    """Builders of every form, each from the same start; those of peers that are installed."""
    setup = prepare(settings)
    start = Part(setup, setup.seeds).held.held
    layers = [[] for _ in setup.network.blocks]
    for first, nest in start.items():
        for k in range(next(a.shape[1] for _, a in leaves(nest))):
            layers[first + k] = [np.ascontiguousarray(a[:, k]) for _, a in leaves(nest)]
    batches = [setup.batches(setup.seeds, step) for step in range(1, BATCHES + 1)]
    data = [(x.astype(np.float32), labels) for x, labels in batches]
    given = layers, data, optimizer, threads, pool
    forms = {OURS: partial(_flowlab, setup, threads, pool)}
    if importlib.util.find_spec("torch"):
        forms |= {name: partial(form, *given) for name, form in TORCH.items()}
        if compiled:
            forms["torch compiled"] = partial(_torch_at_once, *given, kind="fused", compiled=True)
    if importlib.util.find_spec("jax"):
        forms |= {name: partial(form, *given) for name, form in JAX.items()}
    return forms


def _flowlab(setup, threads, pool) -> Trainee:
    parts = [
        (Part(setup, seeds, 10**6), count(1)) for seeds in np.array_split(setup.seeds, threads)
    ]

    def some(given, steps):
        part, numbers = given
        for _ in range(steps):
            step = next(numbers)
            part.step(step, setup.settings.training.lr)

    def weights():
        found = []
        for start in parts[0][0].held.held:
            nests = [dict(leaves(part.held.held[start])) for part, _ in parts]
            W = np.concatenate([next(iter(nest.values())) for nest in nests])
            found += [W[:, k] for k in range(W.shape[1])]
        return found

    return Trainee(lambda steps: list(pool.map(partial(some, steps=steps), parts)), weights)


# --- PyTorch --------------------------------------------------------------------------------------


def _torch_optimizer(parameters, optimizer, kind):
    import torch

    given = {"lr": LR / 10 if optimizer == "adam" else LR, kind: True}
    if optimizer == "adam":
        return torch.optim.Adam(parameters, **given)
    return torch.optim.SGD(parameters, momentum=MOMENTUM * (optimizer == "momentum"), **given)


def _loss_at_once(weights, x, labels):
    """The sum over networks of their mean losses, layers as [W (S, i, o), b (S, 1, o)]."""
    import torch

    for number, (W, b) in enumerate(weights, 1):
        x = torch.baddbmm(b, x, W)
        x = torch.relu(x) if number < len(weights) else x
    loss = torch.nn.functional.cross_entropy(x.flatten(0, 1), labels.flatten(), reduction="sum")
    return loss / labels.shape[1]


def _loss_of_one(weights, x, labels):
    """The mean loss of one network, layers as [W (o, i), b (o,)]."""
    import torch

    for number, (W, b) in enumerate(weights, 1):
        x = torch.nn.functional.linear(x, W, b)
        x = torch.relu(x) if number < len(weights) else x
    return torch.nn.functional.cross_entropy(x, labels)


def _trainer(loss, weights, data, optimizer, kind, threads):
    """A function of the number of steps, for networks with one loss."""
    import torch

    parameters = [a for layer in weights for a in layer]
    update, turn = _torch_optimizer(parameters, optimizer, kind), count()

    def steps(number):
        torch.set_num_threads(threads)
        for _ in range(number):
            loss(weights, *data[next(turn) % BATCHES]).backward()
            update.step()
            update.zero_grad(set_to_none=True)

    return steps


def _torch_at_once(
    layers, data, optimizer, threads, pool, kind, split=False, compiled=False, functional=False
) -> Trainee:
    """All networks by batched products; ``split`` gives each thread a part of them."""
    import torch

    loss = _loss_at_once
    if functional:
        loss = _loss_by_vmap
    if compiled:
        loss = torch.compile(loss, dynamic=False)
    several = np.array_split(np.arange(len(layers[0][0])), threads if split else 1)
    runs, kept = [], []
    for part in several:
        own = [[torch.tensor(W[part]), torch.tensor(b[part][:, None])] for W, b in layers]
        own = [[a.requires_grad_() for a in layer] for layer in own]
        given = [(torch.tensor(x[part]), torch.tensor(labels[part])) for x, labels in data]
        runs.append(_trainer(loss, own, given, optimizer, kind, 1 if split else threads))
        kept.append(own)

    def weights():
        by_layer = zip(*kept, strict=True)
        return [torch.cat([W for W, _ in parts]).detach().numpy() for parts in by_layer]

    if split:
        return Trainee(lambda steps: list(pool.map(lambda run: run(steps), runs)), weights)
    return Trainee(runs[0], weights)


def _loss_by_vmap(weights, x, labels):
    import torch

    def one(weights, x, labels):
        weights = [(W.mT, b[0]) for W, b in weights]
        return _loss_of_one(weights, x, labels)

    return torch.func.vmap(one)(weights, x, labels).sum()


def _torch_net_by_net(layers, data, optimizer, threads, pool, kind, split=False) -> Trainee:
    """One network after another, as a module of linear layers would."""
    import torch

    runs, kept = [], []
    for s in range(len(layers[0][0])):
        own = [[torch.tensor(W[s].T.copy()), torch.tensor(b[s])] for W, b in layers]
        own = [[a.requires_grad_() for a in layer] for layer in own]
        given = [(torch.tensor(x[s]), torch.tensor(labels[s])) for x, labels in data]
        runs.append(_trainer(_loss_of_one, own, given, optimizer, kind, 1 if split else threads))
        kept.append(own)

    def weights():
        by_layer = zip(*kept, strict=True)
        return [np.stack([W.detach().numpy().T for W, _ in nets]) for nets in by_layer]

    def some(nets, steps):
        for run in nets:
            run(steps)

    if split:
        parts = [[runs[s] for s in part] for part in np.array_split(np.arange(len(runs)), threads)]
        return Trainee(lambda steps: list(pool.map(partial(some, steps=steps), parts)), weights)
    return Trainee(partial(some, runs), weights)


TORCH = {}
for _kind in ("fused", "foreach"):
    for _name, _form in (("at once", _torch_at_once), ("net by net", _torch_net_by_net)):
        TORCH[f"torch {_name}, {_kind}"] = partial(_form, kind=_kind)
        TORCH[f"torch {_name}, {_kind}, threads over nets"] = partial(_form, kind=_kind, split=True)
TORCH["torch.func.vmap"] = partial(_torch_at_once, kind="fused", functional=True)


# --- JAX ------------------------------------------------------------------------------------------


def _jax_step(optimizer):
    """(weights, state, step, x, labels) -> (weights, state) of one network."""
    import jax
    import jax.numpy as jnp

    def loss(weights, x, labels):
        for number, (W, b) in enumerate(weights, 1):
            x = x @ W + b
            x = jax.nn.relu(x) if number < len(weights) else x
        chosen = jnp.take_along_axis(x, labels[:, None], 1)[:, 0]
        return (jax.nn.logsumexp(x, 1) - chosen).mean()

    def step(weights, state, number, x, labels):
        gradients = jax.grad(loss)(weights, x, labels)
        if optimizer == "sgd":
            return jax.tree.map(lambda w, g: w - LR * g, weights, gradients), state
        if optimizer == "momentum":
            state = jax.tree.map(lambda m, g: MOMENTUM * m + g, state, gradients)
            return jax.tree.map(lambda w, m: w - LR * m, weights, state), state
        mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, state[0], gradients)
        square = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, state[1], gradients)
        rate = LR / 10 / (1 - 0.9**number)
        root = jnp.sqrt(1 - 0.999**number)
        new = jax.tree.map(
            lambda w, m, v: w - rate * m / (jnp.sqrt(v) / root + 1e-8), weights, mean, square
        )
        return new, (mean, square)

    return step


def _jax(layers, data, optimizer, threads, pool, at_once, split=False) -> Trainee:
    os.environ.setdefault("NPROC", str(threads))  # of its pool, if it has not started
    import jax
    import jax.numpy as jnp

    step = _jax_step(optimizer)
    if at_once:
        step = jax.vmap(step, in_axes=(0, 0, None, 0, 0))
    compiled = jax.jit(step, donate_argnums=(0, 1))
    nets = range(len(layers[0][0]))
    several = np.array_split(nets, threads if split else 1) if at_once else nets
    states = []
    for part in several:
        weights = [tuple(jnp.asarray(a[part]) for a in layer) for layer in layers]
        zeros = [jax.tree.map(jnp.zeros_like, weights) for _ in range(2)]
        state = {"sgd": (), "momentum": zeros[0], "adam": tuple(zeros)}[optimizer]
        given = [(jnp.asarray(x[part]), jnp.asarray(labels[part])) for x, labels in data]
        states.append([weights, state, given, 0])

    def some(own, steps):
        for _ in range(steps):
            weights, state, given, done = own
            x, labels = given[done % BATCHES]
            own[:2] = compiled(weights, state, np.float32(done + 1), x, labels)
            own[3] += 1
        jax.block_until_ready(own[0])

    def weights():
        join = np.concatenate if at_once else np.stack
        by_layer = zip(*(own[0] for own in states), strict=True)
        return [join([np.asarray(W) for W, _ in parts]) for parts in by_layer]

    if split:
        return Trainee(lambda steps: list(pool.map(partial(some, steps=steps), states)), weights)
    return Trainee(lambda steps: [some(own, steps) for own in states], weights)


JAX = {
    "jax vmap": partial(_jax, at_once=True),
    "jax vmap, threads over nets": partial(_jax, at_once=True, split=True),
    "jax net by net": partial(_jax, at_once=False),
    "jax net by net, threads over nets": partial(_jax, at_once=False, split=True),
}
