"""S14: shape checks, initialization and clipping, the same on every network."""

import numpy as np

from flowlab.analysis.verdicts import judge
from flowlab.claims import clipping, compare
from flowlab.claims.claim import FAILS, OPEN, claim
from flowlab.kernel import ShapeError
from flowlab.layer import Chain, Layer, Workspace, leaves, map_leaves, primitives
from flowlab.networks import build, example_shape, features
from flowlab.settings import NETWORKS, Settings, make

SOURCE = "the text"
STATEMENT = (
    "The same debugging principles (shape checks, clipping, initialization) apply across all "
    "architectures: "
)
BATCH, WIDTH, OUTPUTS = 4, 8, 5
LARGE = {"depth": 6, "width": 32, "batch_size": 32}  # of networks that are trained
GAIN, STEPS = 2.0, 20  # of training from weights that are too large
_RECURRENT = ("rnn", "lstm", "gru")


def axes(name: str) -> dict:
    """Settings of a small net of this architecture, otherwise with its own defaults."""
    sizes = {"depth": 3 if name in _RECURRENT else 5, "width": WIDTH, "batch_size": BATCH}
    return {"network": name, "data": "gaussian", **sizes}


def network(name: str) -> tuple[Chain, tuple[int, ...]]:
    """The small net as one chain with ``OUTPUTS`` outputs, and the shape of its input."""
    settings: Settings = make(**axes(name))
    shape = (BATCH, *example_shape(settings, features(settings)))
    return build(settings, OUTPUTS).chain, shape


def owners(layer: Layer, declared) -> list[Layer]:
    """The primitive that each leaf of ``declared`` belongs to, in order."""
    if isinstance(declared, dict):
        (own,) = primitives(layer)
        return [own] * len(declared)
    parts = layer.children
    if len(parts) == 1 and len(declared) != 1:  # a residual block hands its branch's on
        return owners(parts[0], declared)
    return [own for part, below in zip(parts, declared, strict=True) for own in owners(part, below)]


def lengthened(array: np.ndarray, axis: int) -> np.ndarray:
    """One element more along an axis, the last one again."""
    return np.concatenate([array, array.take([-1], axis)], axis)


def refusals(trial, name: str) -> list[bool]:
    """For every axis of every parameter and of dY: is a length too great refused by name?"""
    chain, shape = network(name)
    declared = chain.declare(shape).parameters
    parameters = trial.parameters(chain, shape)
    arrays, named = dict(leaves(parameters)), []
    x = trial.random().standard_normal((trial.seeds, *shape))

    def asked(wanted, action):
        try:
            action()
        except ShapeError as error:
            return all(word in str(error) for word in wanted)
        return False

    for (path, array), own in zip(arrays.items(), owners(chain, declared), strict=True):
        for axis in range(1, array.ndim):
            values = iter((arrays | {path: lengthened(array, axis)}).values())
            wrong = map_leaves(lambda _, values=values: next(values), parameters)
            wanted = (own.name, f"of {path.rpartition('.')[2]} must be {array.shape[axis]}")
            named.append(asked(wanted, lambda wrong=wrong: chain.forward(x, wrong, Workspace())))
    y, tape = chain.forward(x, parameters, Workspace())
    last = list(primitives(chain))[-1].name
    for axis in range(1, y.ndim):
        wanted, wrong = (last, f"of dy must be {y.shape[axis]}"), lengthened(y, axis)
        named.append(asked(wanted, lambda wrong=wrong: chain.pullback(wrong, tape, Workspace())))
    return named


@claim("S14-shapes", STATEMENT + "a wrong shape is refused by name.", SOURCE)
def shape_checks(trial):
    """Each axis of each parameter and of dY, one too long; two networks do."""
    two = type(trial)(trial.seed, 2)
    named = {name: refusals(two, name) for name in NETWORKS}
    total = sum(map(len, named.values()))
    missed = total - sum(map(sum, named.values()))
    shown = ", ".join(f"{len(got)} in {name}" for name, got in named.items())
    result = compare.Comparison("wrong shapes not refused by name", 0, missed, 0.5)
    return result.finding(
        f"Of {total} arrays that are one too long along one axis ({shown}), {missed} were not "
        "refused by the layer's name, the array's and the axis's length."
    )


@claim(
    "S14-initialization", STATEMENT + "one command measures what an initialization does.", SOURCE
)
def initialization(trial):
    """At He's variance: finite norms everywhere, and the change of ‖δ‖ with its interval.

    Along layers, in recurrent nets along time. A missing interval counts as a bad row.
    """
    bad, rows, shown = 0, 0, {}
    for name in NETWORKS:
        table = trial.measure(**axes(name))
        found = judge(table)
        change, crossed = found.change, found.crossed
        # Gradients that are zero in theory are lost to rounding, and rightly so.
        bad += int((~table["status"].isin(["ok", "lost"])).sum()) + int(not change.known)
        rows += len(table)
        half = (change.high - change.low) / 2
        shown[name] = f"{change.mean / crossed:+.3f} ± {half / crossed:.3f} in {name}"
    result = compare.Comparison("rows not finite, changes unknown", 0, bad, 0.5)
    return result.finding(
        f"The same command measured {len(shown)} architectures, {rows} rows with {bad} bad among "
        f"them; ‖δ‖ changes, in decades per layer or step going backward, by "
        f"{', '.join(shown.values())}."
    )


@claim(
    "S14-clipping",
    STATEMENT + "clipping by the global norm keeps direction and per-layer ratios, by value not.",
    "the text; Pascanu et al. 2013, algorithm 1",
)
def clipped_gradients(trial):
    """Each network's own gradients to a third of the norm, and to a tenth of the largest entry."""
    few = type(trial)(trial.seed, max(2, trial.seeds // 8))
    errors, turned, left = [], {}, []
    for name in NETWORKS:
        chain, shape = network(name)
        x = few.random().standard_normal((few.seeds, *shape))
        dy = few.random().standard_normal((few.seeds, *chain.declare(shape).output))
        gradients = few.run(chain, x, few.parameters(chain, shape), dy).gradients
        short, _ = clipping.clipped(gradients, "norm", np.sqrt(clipping.whole(gradients).min()) / 3)
        errors += [1 - clipping.cosine(gradients, short), *clipping.unlike(gradients, short)]
        left.append(np.sqrt(clipping.whole(short) / clipping.whole(gradients)).max())
        most = 0.1 * np.max([np.abs(g).max() for g in gradients.values()])
        cut, _ = clipping.clipped(gradients, "value", most)
        turned[name] = np.degrees(np.arccos(clipping.cosine(gradients, cut))).mean()
    result = compare.identity(
        "change of direction and of the layers' shares of ‖g‖", errors, clipping.BOUND
    )
    shown = ", ".join(f"{angle:.0f}° in {name}" for name, angle in turned.items())
    return result.finding(
        f"In {len(turned)} architectures clipping by the global norm left direction and per-layer "
        f"ratios unchanged to {result.measured:.0e}; clipping by value turned the gradient by "
        f"{shown}.",
        result.verdict if min(turned.values()) > 1 and max(left) < 0.4 else FAILS,
    )


@claim(
    "S14-training",
    STATEMENT + "clipped by its norm, a network that starts with weights too large does not "
    "diverge.",
    "the text; Pascanu et al. 2013",
)
def clipped_training(trial):
    """The same training of every network from twice the gain, with clipping by norm and without.

    On the whole clipped networks must come below the loss at initialization, and some network must
    diverge without clipping: else nothing is shown.
    """
    few = type(trial)(trial.seed, max(2, trial.seeds // 16))
    lost, falls, shown = {}, [], {}
    for name in NETWORKS:
        for clip in ("none", "norm"):
            training = {"name": "sgd", "lr": 0.1, "steps": STEPS, "log": STEPS, "clip": clip}
            init = {"name": "he", "gain": GAIN}
            curve = few.train(network=name, **LARGE, init=init, training=training).curve
            begin, end = (curve[curve["step"] == step] for step in (1, STEPS))
            lost[name, clip] = int((end["training_status"] != "ok").sum())
            losses = end["held_out_loss"].mean()
            if clip == "norm":
                falls.append(np.log(losses / begin["training_loss"].mean()))
            alive = end["training_status"] == "ok"
            shown[name, clip] = f"{losses:.2g}" if alive.all() else "diverged"
    clipped = sum(count for (_, clip), count in lost.items() if clip == "norm")
    alone = sum(count for (_, clip), count in lost.items() if clip == "none")
    result = compare.Comparison("clipped networks that diverge", 0, clipped, 0.5)
    verdict = result.verdict if alone else OPEN
    words = ", ".join(
        f"{shown[name, 'norm']} against {shown[name, 'none']} in {name}" for name in NETWORKS
    )
    return result.finding(
        f"From {GAIN:g} times the gain {alone} of {len(NETWORKS) * few.seeds} networks diverge in "
        f"{STEPS} steps without clipping and {clipped} with it; the held-out loss with clipping "
        f"against without: {words}.",
        verdict if np.mean(falls) < 0 else FAILS,
    )
