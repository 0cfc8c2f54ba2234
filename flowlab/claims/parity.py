"""S15: the same outputs and gradients as JAX and PyTorch, for every layer."""

from importlib.metadata import version
from importlib.util import find_spec
from math import nan

import numpy as np

from flowlab.claims import compare
from flowlab.claims.claim import HOLDS, OPEN, claim
from flowlab.claims.examples import EXAMPLES, SEEDS, Example
from flowlab.claims.trial import Trial, square
from flowlab.layer import leaves, map_leaves


def in_jax(example: Example, x, parameters: dict, dy) -> dict:
    """y, dx and the gradients by path of every network, by ``jax.vjp`` in float64."""
    import jax

    def one(x, moving, fixed, dy):
        y, pull = jax.vjp(lambda x, p: example.jax(jax, x, {**p, **fixed}), x, moving)
        dx, gradients = pull(dy)
        return {"y": y, "dx": dx, **gradients}

    moving = {k: p for k, p in parameters.items() if k not in example.data}
    with jax.enable_x64(True):
        got = jax.jit(jax.vmap(one))(x, moving, example.data, dy)
        return {name: np.asarray(array) for name, array in got.items()}


def in_torch(example: Example, x, parameters: dict, dy) -> dict:
    """y, dx and the gradients by path of every network, by ``torch.autograd`` in float64."""
    import torch

    def tensor(array):
        array = np.array(array)
        return torch.tensor(array, requires_grad=array.dtype.kind == "f")

    networks = []
    for s in range(len(x)):
        given = {"dx": x[s], **{path: array[s] for path, array in parameters.items()}}
        p = {path: tensor(array) for path, array in given.items()}
        y = example.torch(torch, p["dx"], p)
        moving = {path: t for path, t in p.items() if path not in example.data}
        gradients = torch.autograd.grad(
            y, list(moving.values()), torch.tensor(np.array(dy[s])), materialize_grads=True
        )
        networks.append({"y": y.detach(), **dict(zip(moving, gradients, strict=True))})
    return {name: torch.stack([n[name] for n in networks]).numpy() for name in networks[0]}


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
    furthest = max(differences, key=lambda pair: np.nan_to_num(differences[pair], nan=np.inf))
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
    x = x if example.inputs is None else example.inputs
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
    theirs = framework(example, x, values, dy)
    norms = np.array([np.sqrt(square(expected)) for expected in theirs.values()])
    errors = [np.sqrt(square(ours[name] - expected)) for name, expected in theirs.items()]
    return float(np.max(errors / compare.sizes(norms, compare.ROUNDING)))
