"""Updates against torch.optim and plain NumPy, on arrays of several networks, layers and shapes."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from flowlab.kernel import jit
from flowlab.layer import Parameter, leaves, map_leaves
from flowlab.optimizers import TrainingSettings
from flowlab.training import clipping, updates

STEPS, SEEDS = 20, 3
LABELS = Parameter((6,), role="target")
# Two linear layers in a row between a convolution and a loss; nests of one layer by stretch.
DECLARED = {
    0: {"W": Parameter((4, 3, 2, 2)), "b": Parameter((4,), role="bias")},
    1: ({"W": Parameter((4, 5))}, {"gain": Parameter((5,), role="gain")}),
    3: ({"W": Parameter((5, 2)), "b": Parameter((2,), role="bias")}, {"labels": LABELS}),
    4: {"alpha": Parameter((), role="scale")},
}
COUNTS = {0: 1, 1: 2, 3: 1, 4: 3}
PATHS = [
    (start, path, layer)
    for start, declared in DECLARED.items()
    for path, parameter in leaves(declared)
    for layer in range(COUNTS[start])
    if parameter.role != "target"
]


def drawn(seeds=SEEDS, dtype=np.float64):
    """Parameters of networks, by stretch; those of a seed depend on it alone."""

    def one(parameter, count):
        draws = [
            np.random.default_rng(seed).normal(size=(count, *parameter.shape)) for seed in seeds
        ]
        return np.stack(draws).astype(dtype)

    seeds = range(seeds) if isinstance(seeds, int) else seeds
    return {
        start: map_leaves(partial(one, count=COUNTS[start]), declared)
        for start, declared in DECLARED.items()
    }


def gradient(W, step, seed, at):
    """A gradient that depends on the parameter: of network, step and place alone."""
    noise = np.random.default_rng([seed, step, *map(ord, str(at))]).normal(size=W.shape)
    return 0.3 * W + noise


def without(nest, remaining):
    """A nest with the arrays that remain in the order of its leaves, and no target."""
    if isinstance(nest, tuple):
        return tuple(without(part, remaining) for part in nest)
    return {name: next(remaining) for name, leaf in nest.items() if leaf.role != "target"}


def held(parameters, step, seeds, backward, far=0):
    """(gradients, exponents) as a sink holds them: beside powers of two, maybe last layer first."""
    gradients, exponents = {}, {}
    for start, count in COUNTS.items():
        draw = np.random.default_rng(start + step)
        of_dy, of_x = (
            draw.integers(-9, 9, (1, count)) + np.zeros((len(seeds), 1), int) for _ in "ab"
        )
        roles = {path: parameter.role for path, parameter in leaves(DECLARED[start])}
        found = {}
        for path, W in leaves(parameters[start]):
            if roles[path] == "target":
                continue
            true = np.empty_like(W)
            for s, seed in enumerate(seeds):
                for layer in range(count):
                    true[s, layer] = gradient(W[s, layer], step, seed, (start, path, layer))
            e = of_dy + of_x if roles[path] in ("weight", "scale") else of_dy
            own = np.ldexp(true, -e.reshape(*e.shape, *[1] * (W.ndim - 2))).astype(W.dtype)
            found[path] = np.ascontiguousarray(own[:, ::-1])[:, ::-1] if backward else own
        gradients[start] = without(DECLARED[start], iter(found.values()))
        exponents[start] = of_dy + far, of_x
    return gradients, exponents


def trained(training, steps=STEPS, seeds=SEEDS, dtype=np.float64, backward=True, batch_size=32):
    """(parameters, the last step) after some steps."""
    seeds = range(seeds) if isinstance(seeds, int) else seeds
    parameters = drawn(seeds, dtype)
    updater = updates.Updater(training, parameters, DECLARED, batch_size)
    for step in range(1, steps + 1):
        rate = training.rate(step, steps, batch_size)
        shown = updater(*held(parameters, step, seeds, backward), rate, norm=True)
    return parameters, shown


def by_torch(training, clipped, **options):
    """What torch.optim makes of the same parameters, one network after another."""
    form = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    parameters = drawn()
    arrays = {start: dict(leaves(nest)) for start, nest in parameters.items()}
    for seed in range(SEEDS):
        own = {at: torch.tensor(arrays[at[0]][at[1]][seed, at[2]]) for at in PATHS}
        optimizer = form[training.name](own.values(), lr=training.lr, **options)
        for step in range(1, STEPS + 1):
            optimizer.param_groups[0]["lr"] = training.rate(step, STEPS, 32)
            for at, W in own.items():
                W.grad = torch.tensor(gradient(W.numpy(), step, seed, at))
            clipped(own)
            optimizer.step()
        for (start, path, layer), W in own.items():
            arrays[start][path][seed, layer] = W.numpy()
    return parameters


def furthest(ours, theirs):
    """The largest relative difference of two arrays in norm."""
    largest = 0.0
    for start in DECLARED:
        for (_, a), (_, b) in zip(leaves(ours[start]), leaves(theirs[start]), strict=True):
            largest = max(largest, np.linalg.norm(a - b) / np.linalg.norm(b))
    return largest


def unclipped(own):
    pass


def norm_clipped(own, at=2.0):
    torch.nn.utils.clip_grad_norm_(own.values(), at)


def layer_clipped(own, at=1.0):
    for layer in {start + at for start, _, at in own}:
        several = [W for (start, _, at), W in own.items() if start + at == layer]
        torch.nn.utils.clip_grad_norm_(several, at)


def value_clipped(own, at=0.5):
    torch.nn.utils.clip_grad_value_(own.values(), at)


SGD = {"name": "sgd", "lr": 0.05}
ADAM = {"name": "adam", "lr": 0.01}
ADAMW = {"name": "adamw", "lr": 0.01}
CASES = {
    "sgd": SGD,
    "decay": SGD | {"weight_decay": 0.1},
    "momentum": SGD | {"momentum": 0.9},
    "momentum, decay": SGD | {"momentum": 0.9, "weight_decay": 0.1},
    "nesterov": SGD | {"momentum": 0.8, "nesterov": True},
    "nesterov, decay": SGD | {"momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
    "adam": ADAM,
    "adam, betas": ADAM | {"beta1": 0.7, "beta2": 0.9, "eps": 1e-3},
    "adam, decay": ADAM | {"weight_decay": 0.2, "eps": 0.1},
    "adamw": ADAMW | {"weight_decay": 0.2},
    "adamw, betas": ADAMW | {"weight_decay": 0.5, "beta1": 0.5, "beta2": 0.8, "eps": 0.1},
}


def options(given):
    """The options of torch.optim for settings of training."""
    chosen = {"weight_decay": given.get("weight_decay", 0.0)}
    if given["name"] == "sgd":
        return chosen | {k: given[k] for k in ("momentum", "nesterov") if k in given}
    betas = given.get("beta1", 0.9), given.get("beta2", 0.999)
    return chosen | {"betas": betas, "eps": given.get("eps", 1e-8)}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_option_of_every_optimizer_is_that_of_torch(case):
    training = TrainingSettings(**case)
    training.validate()
    ours, shown = trained(training)
    assert furthest(ours, by_torch(training, unclipped, **options(case))) < 1e-12
    assert not shown.clipped.any() and not shown.nonfinite.any() and (shown.cosine == 1).all()


@pytest.mark.parametrize("name", ["nesterov, decay", "adam, decay", "adamw, betas"])
@pytest.mark.parametrize(
    "schedule",
    [
        {"schedule": "cosine", "warmup": 5},
        {"schedule": "step", "decay_every": 4, "decay_factor": 0.5},
    ],
    ids=["cosine", "step"],
)
def test_the_rate_of_every_step_is_taken(name, schedule):
    training = TrainingSettings(**CASES[name], **schedule)
    ours, _ = trained(training)
    assert furthest(ours, by_torch(training, unclipped, **options(CASES[name]))) < 1e-12


CLIPPINGS = {
    "norm": (norm_clipped, 2.0),
    "layer": (layer_clipped, 1.0),
    "value": (value_clipped, 0.5),
}


@pytest.mark.parametrize("name", ["sgd", "nesterov, decay", "adam, decay", "adamw"])
@pytest.mark.parametrize("kind", CLIPPINGS)
def test_clipping_is_that_of_torch(name, kind):
    clipped, at = CLIPPINGS[kind]
    training = TrainingSettings(**CASES[name], clip=kind, clip_at=at)
    ours, shown = trained(training)
    assert furthest(ours, by_torch(training, clipped, **options(CASES[name]))) < 1e-12
    assert shown.clipped.all()


def test_a_rule_of_stochastic_differential_equations_changes_adam():
    training = TrainingSettings(**ADAM, rule="sde", rule_batch=8)
    ours, _ = trained(training)
    as_torch = {"betas": (0.6, 0.996), "eps": 5e-9}
    assert furthest(ours, by_torch(training, unclipped, **as_torch)) < 1e-12


def unitwise(W, G, at):
    """Adaptive clipping as the paper writes it, unit by unit."""
    out = np.array(G)
    if W.ndim < 2:
        rows = [()] if W.ndim == 0 else [(i,) for i in range(len(W))]
    else:
        rows = [(slice(None), j) for j in range(W.shape[1])] if W.ndim == 2 else range(len(W))
    for unit in rows:
        norm, largest = np.linalg.norm(G[unit]), at * max(np.linalg.norm(W[unit]), 1e-3)
        if norm > largest:
            out[unit] = largest * G[unit] / norm
    return out


def test_adaptive_clipping_is_that_of_the_paper():
    training = TrainingSettings(**SGD, clip="adaptive", clip_at=0.4)
    ours, shown = trained(training, steps=STEPS)
    theirs = drawn()
    for step in range(1, STEPS + 1):
        before, after = [], []
        for start, path, layer in PATHS:
            W = dict(leaves(theirs[start]))[path]
            for seed in range(SEEDS):
                G = gradient(W[seed, layer], step, seed, (start, path, layer))
                bounded = unitwise(W[seed, layer], G, 0.4)
                before.append((seed, G.ravel()))
                after.append((seed, bounded.ravel()))
                W[seed, layer] -= 0.05 * bounded
    assert furthest(ours, theirs) < 1e-12
    for seed in range(SEEDS):
        one, other = (np.concatenate([v for s, v in of if s == seed]) for of in (before, after))
        cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
        assert 0.3 < cosine < 0.99  # units were turned
        np.testing.assert_allclose(shown.cosine[seed], cosine, rtol=1e-12)


@pytest.mark.parametrize("kind", CLIPPINGS)
def test_a_step_shows_the_norm_and_the_angle(kind):
    clipped, at = CLIPPINGS[kind]
    _, shown = trained(TrainingSettings(**SGD, clip=kind, clip_at=at), steps=1)
    parameters = drawn()
    for seed in range(SEEDS):
        own = {}
        for start, path, layer in PATHS:
            W = torch.tensor(dict(leaves(parameters[start]))[path][seed, layer])
            W.grad = torch.tensor(gradient(W.numpy(), 1, seed, (start, path, layer)))
            own[start, path, layer] = W
        before = torch.cat([W.grad.ravel() for W in own.values()])
        clipped(own)
        after = torch.cat([W.grad.ravel() for W in own.values()])
        norm = before.norm().item()
        np.testing.assert_allclose(np.exp2(shown.norm[seed]), norm, rtol=1e-13)
        cosine = (before @ after / after.norm() / norm).item()
        np.testing.assert_allclose(
            shown.cosine[seed], cosine, rtol=1e-6 if kind == "norm" else 1e-12
        )
        assert kind == "norm" or cosine < 0.999


ALL = [
    case | clip
    for case in (CASES["nesterov, decay"], CASES["adam, decay"])
    for clip in ({}, *({"clip": kind, "clip_at": 0.5} for kind in (*CLIPPINGS, "adaptive")))
]


@pytest.mark.parametrize("case", ALL, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_becomes_of_a_network_depends_on_it_alone(case, dtype):
    training = TrainingSettings(**case)
    together, shown = trained(training, 4, seeds=5, dtype=dtype)
    for seed in (0, 3, 4):
        alone, own = trained(training, 4, seeds=[seed], dtype=dtype, backward=False)
        for start in DECLARED:
            for (_, a), (_, b) in zip(leaves(together[start]), leaves(alone[start]), strict=True):
                assert a.dtype == dtype and a[seed].tobytes() == b[0].tobytes()
        for name in ("norm", "cosine", "clipped", "nonfinite"):
            assert getattr(shown, name)[seed].tobytes() == getattr(own, name)[0].tobytes()


FAR = {"norm": 2.0, "layer": 1.0, "value": 0.5, "adaptive": 0.4}


@pytest.mark.parametrize("kind", FAR)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("far", [130, 1000, 5000, 100_000])
def test_a_gradient_beyond_any_float_is_clipped_as_one_within(kind, dtype, far):
    """Scaled up by 2^far, everything is clipped: what remains is the direction, or the sign."""
    training = TrainingSettings(name="sgd", lr=1.0, clip=kind, clip_at=FAR[kind])
    shown, changed = [], []
    for power in (30, far):
        parameters, before = drawn(2, dtype), drawn(2, dtype)
        updater = updates.Updater(training, parameters, DECLARED, 32)
        shown.append(updater(*held(parameters, 1, range(2), True, power), 1.0))
        changed.append(
            [
                a - b
                for s in DECLARED
                for (_, a), (_, b) in zip(leaves(parameters[s]), leaves(before[s]), strict=True)
            ]
        )
    near, beyond = shown
    np.testing.assert_allclose(beyond.norm - near.norm, far - 30, rtol=1e-14)
    np.testing.assert_allclose(beyond.cosine, near.cosine, rtol=1e-5)
    assert beyond.clipped.all() and not beyond.nonfinite.any()
    for a, b in zip(*changed, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)
    largest = max(np.abs(a).max() for a in changed[1])
    assert largest > 0.1  # neither nothing nor everything


@pytest.mark.parametrize("far", [-130, -5000])
def test_a_gradient_below_any_float_changes_nothing(far):
    parameters, before = drawn(dtype=np.float32), drawn(dtype=np.float32)
    updater = updates.Updater(TrainingSettings(**SGD, clip="norm"), parameters, DECLARED, 32)
    shown = updater(*held(parameters, 1, range(SEEDS), True, far), 1.0)
    assert not shown.clipped.any() and np.isfinite(shown.norm).all()
    assert furthest(parameters, before) == 0


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("clip", ["none", "layer", "value", "adaptive"])
@pytest.mark.parametrize("case", [SGD, SGD | {"momentum": 0.9}, ADAM], ids=str)
def test_the_first_layer_that_is_not_finite_is_named(case, clip, value):
    training = TrainingSettings(**case, clip=clip)
    parameters = drawn()
    updater = updates.Updater(training, parameters, DECLARED, 32)
    gradients, exponents = held(parameters, 1, range(SEEDS), True)
    gradients[4]["alpha"][1, 1] = gradients[1][1]["gain"][1, 1, 2] = value
    gradients[3][0]["W"][1, 0, 1, 1] = value
    gradients[4]["alpha"][2, 2] = value
    shown = updater(gradients, exponents, 0.1)
    assert shown.nonfinite.tolist() == (
        [0, 0, 0] if (clip, value) == ("value", np.inf) else [0, 3, 7]
    )
    before = drawn()
    assert not np.array_equal(parameters[0]["W"], before[0]["W"])
    updater(*held(parameters, 2, range(SEEDS), True), 0.1)
    assert np.isfinite(parameters[0]["W"]).all()


def test_a_norm_that_is_not_a_number_spoils_the_whole_network():
    """As in torch: the factor is no number."""
    parameters = drawn()
    updater = updates.Updater(TrainingSettings(**SGD, clip="norm"), parameters, DECLARED, 32)
    gradients, exponents = held(parameters, 1, range(SEEDS), True)
    gradients[3][0]["W"][1, 0, 1, 1] = np.nan
    assert updater(gradients, exponents, 0.1).nonfinite.tolist() == [0, 1, 0]
    assert (
        np.isnan(parameters[4]["alpha"][1]).all() and np.isfinite(parameters[4]["alpha"][0]).all()
    )


def test_targets_stay():
    parameters, before = drawn(), drawn()
    updater = updates.Updater(TrainingSettings(**ADAMW), parameters, DECLARED, 32)
    updater(*held(parameters, 1, range(SEEDS), True), 0.1)
    assert np.array_equal(parameters[3][1]["labels"], before[3][1]["labels"])
    assert list(updater.state[3]) == ["0.W", "0.b"]


def test_a_norm_that_nobody_needs_is_left_out():
    parameters = drawn()
    updater = updates.Updater(TrainingSettings(**SGD), parameters, DECLARED, 32)
    assert updater(*held(parameters, 1, range(SEEDS), True), 0.1).norm is None


@jit
def root_of_sum(u, w, mean, square, rest1, beta2, rest2, unbias1, unbias2, eps):
    mean = mean + rest1 * (u - mean)
    square = beta2 * square + rest2 * u * u
    return unbias1 * mean / np.sqrt(unbias2 * unbias2 * square + eps), mean, square


@jit
def dampened(u, w, trace, mu):
    trace = mu * trace + (1 - mu) * u
    return trace, trace


def changed(old, formula=None, numbers=None):
    """The chain with another formula, or other numbers, in one place."""

    def mutant(of):
        if of.formula is not old:
            return of
        return replace(of, formula=formula or of.formula, numbers=numbers or of.numbers)

    return lambda chain: tuple(map(mutant, chain))


def biased(step):
    return (*updates.adam_numbers(0.9, 0.999, 1e-8, step)[:3], 1.0, 1.0, 1e-8)


MUTANTS = {
    "eps inside the root": ("adam", {}, changed(updates.adam, root_of_sum)),
    "no bias correction": ("adam", {}, changed(updates.adam, numbers=biased)),
    "bias of the step before": (
        "adam",
        {},
        changed(updates.adam, numbers=lambda t: updates.adam_numbers(0.9, 0.999, 1e-8, t + 1)),
    ),
    "decay coupled": ("adamw", {}, lambda chain: chain[::-1]),
    "decay decoupled": ("adam, decay", {}, lambda chain: chain[::-1]),
    "decay after momentum": ("momentum, decay", {}, lambda chain: chain[::-1]),
    "no decay": ("decay", {}, lambda chain: chain[1:]),
    "plain momentum for nesterov": ("nesterov", {}, changed(updates.nesterov, updates.momentum)),
    "nesterov for plain momentum": ("momentum", {}, changed(updates.momentum, updates.nesterov)),
    "dampening": ("momentum", {}, changed(updates.momentum, dampened)),
    "clipped after decay": ("decay", {"clip": "value", "clip_at": 0.5}, lambda chain: chain[::-1]),
}


@pytest.mark.parametrize("name, more, mutant", MUTANTS.values(), ids=MUTANTS)
def test_a_wrong_optimizer_is_rejected(name, more, mutant, monkeypatch):
    own, training = updates.chain, TrainingSettings(**CASES[name], **more)
    monkeypatch.setattr(updates, "chain", lambda *given: mutant(own(*given)))
    ours, _ = trained(training)
    clipped = value_clipped if more else unclipped
    assert furthest(ours, by_torch(training, clipped, **options(CASES[name]))) > 1e-8


@pytest.mark.parametrize("name", ["TINY", "SMALLEST"])
def test_the_constants_of_clipping_are_those_of_their_sources(name):
    """clip_grad_norm_ adds 1e-6 to the norm; Brock et al. take 1e-3 for weights at zero."""
    W = {0: {"b": np.zeros((1, 1, 1))}}
    kind, at, expected = {"TINY": ("norm", 1e-6, 0.5e-6), "SMALLEST": ("adaptive", 1.0, 1e-3)}[name]
    training = TrainingSettings(name="sgd", clip=kind, clip_at=at)
    updater = updates.Updater(training, W, {0: {"b": Parameter((1,), role="bias")}}, 1)
    zero = np.zeros((1, 1), np.int64)
    size = 1e-6 if kind == "norm" else 1.0
    updater({0: {"b": np.full((1, 1, 1), size)}}, {0: (zero, zero)}, 1.0)
    np.testing.assert_allclose(W[0]["b"], -expected, rtol=1e-12)
    assert math.isclose(getattr(clipping, name), {"TINY": 1e-6, "SMALLEST": 1e-3}[name])
