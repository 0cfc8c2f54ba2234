"""S15: the same outputs and gradients as JAX and PyTorch, for every layer."""

from importlib.metadata import version
from importlib.util import find_spec
from math import nan

import numpy as np

from flowlab.claims import compare
from flowlab.claims.claim import HOLDS, OPEN, claim
from flowlab.claims.examples import EXAMPLES, SEEDS, Example
from flowlab.claims.trial import Trial
from flowlab.layer import leaves, map_leaves


def in_jax(example: Example, x, parameters: dict, dy) -> dict:
    """y, dx and the gradients by path of one network, by ``jax.vjp`` in float64."""
    import jax

    moving = {k: p for k, p in parameters.items() if k not in example.data}
    fixed = {k: p for k, p in parameters.items() if k in example.data}
    with jax.enable_x64(True):
        y, pull = jax.vjp(lambda x, p: example.jax(jax, x, {**p, **fixed}), x, moving)
        dx, gradients = pull(jax.numpy.asarray(dy))
        return {k: np.asarray(a) for k, a in {"y": y, "dx": dx, **gradients}.items()}


def in_torch(example: Example, x, parameters: dict, dy) -> dict:
    """y, dx and the gradients by path of one network, by ``torch.autograd`` in float64."""
    import torch

    def tensor(array):
        array = np.array(array)
        return torch.tensor(array, requires_grad=array.dtype.kind == "f")

    x, p = tensor(x), {path: tensor(array) for path, array in parameters.items()}
    y = example.torch(torch, x, p)
    moving = {"dx": x} | {path: t for path, t in p.items() if path not in example.data}
    gradients = torch.autograd.grad(y, list(moving.values()), torch.tensor(np.array(dy)))
    named = {"y": y.detach(), **dict(zip(moving, gradients, strict=True))}
    return {k: tensor.numpy() for k, tensor in named.items()}


FRAMEWORKS = {"jax": in_jax, "torch": in_torch}


def installed() -> list[str]:
    """The frameworks that can be compared with on this machine."""
    return [name for name in FRAMEWORKS if find_spec(name) is not None]


@claim("S15", "Frameworks (PyTorch, JAX) implement these transposes.", "the text", HOLDS, OPEN)
def same_as_frameworks(trial):
    """The worst difference in norm, relative to the norm, in float64."""
    names = installed()
    quantity = "relative difference in float64"
    if not names:
        return compare.Comparison(quantity, 0.0, nan, compare.ROUNDING).finding(
            "Neither JAX nor PyTorch is installed, so there is nothing to compare with."
        )
    small = Trial(trial.seed, SEEDS)
    differences = {
        (framework, example.name): difference(small, example, FRAMEWORKS[framework])
        for framework in names
        for example in EXAMPLES.values()
    }
    furthest = max(differences, key=differences.get)
    result = compare.identity(quantity, differences[furthest])
    told = " and ".join(
        f"{ {'jax': 'JAX', 'torch': 'PyTorch'}[name] } {version(name)}" for name in names
    )
    return result.finding(
        f"Outputs and gradients of {len(EXAMPLES)} layers were compared with {told}; the largest "
        f"relative difference is {result.measured:.0e} ({furthest[1]}, {furthest[0]})."
    )


def difference(trial: Trial, example: Example, framework) -> float:
    """The worst relative difference of one layer's output and gradients from a framework's."""
    layer, random = example.layer, trial.random()
    x = random.standard_normal((SEEDS, *example.shape))
    dy = random.standard_normal((SEEDS, *layer.declare(example.shape).output))
    declared = dict(leaves(layer.declare(example.shape).parameters))
    values = {
        path: example.data.get(path, random.standard_normal((SEEDS, *parameter.shape)))
        for path, parameter in declared.items()
    }
    remaining = iter(values.values())
    nest = map_leaves(lambda _: next(remaining), layer.declare(example.shape).parameters)
    got = trial.run(layer, x, nest, dy)
    ours = {"y": got.y, "dx": got.dx, **got.gradients}
    worst = 0.0
    for s in range(SEEDS):
        theirs = framework(example, x[s], {path: a[s] for path, a in values.items()}, dy[s])
        for name, expected in theirs.items():
            error = np.linalg.norm(ours[name][s] - expected) / np.linalg.norm(expected)
            worst = max(worst, float(error))
    return worst
