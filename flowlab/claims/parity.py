"""S15: the same outputs and gradients as JAX and PyTorch, for every layer."""

from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from math import nan

import numpy as np

from flowlab.claims import compare, twins
from flowlab.claims.claim import HOLDS, OPEN, claim
from flowlab.claims.trial import Trial, square
from flowlab.claims.twins import SEEDS, Instance
from flowlab.layer import leaves, map_leaves


def in_jax(instance: Instance, x, parameters: dict, dy) -> dict:
    """y, dx and the gradients by path of every network, by ``jax.vjp`` in float64."""
    import jax

    moving = {k: p for k, p in parameters.items() if k not in instance.data}
    with jax.enable_x64(True):
        got = _compiled(instance)(x, moving, instance.data, dy)
        return {name: np.asarray(array) for name, array in got.items()}


@cache
def _compiled(instance: Instance):
    """Compiling takes longer than all else."""
    import jax

    def one(x, moving, fixed, dy):
        def f(x, moving):
            return twins.in_jax(instance.layer, x, nested(instance, {**moving, **fixed}))

        y, pull = jax.vjp(f, x, moving)
        dx, gradients = pull(dy)
        return {"y": y, "dx": dx, **gradients}

    return jax.jit(jax.vmap(one))


def in_torch(instance: Instance, x, parameters: dict, dy) -> dict:
    """y, dx and the gradients by path of every network, by ``torch.autograd`` in float64."""
    import torch

    networks = []
    for s in range(len(x)):
        given = {"dx": x[s], **{path: array[s] for path, array in parameters.items()}}
        p = {name: torch.tensor(np.array(array)) for name, array in given.items()}
        moving = {n: t.requires_grad_() for n, t in p.items() if n not in instance.data}
        y = twins.in_torch(instance.layer, p.pop("dx"), nested(instance, p))
        gradients = torch.autograd.grad(
            y, list(moving.values()), torch.tensor(np.array(dy[s])), materialize_grads=True
        )
        networks.append({"y": y.detach(), **dict(zip(moving, gradients, strict=True))})
    return {name: torch.stack([n[name] for n in networks]).numpy() for name in networks[0]}


def nested(instance: Instance, parameters: dict):
    """Parameters by path, of one network or an ensemble, in the nest that the layer declares."""
    declared = instance.layer.declare(instance.shape).parameters
    order = iter(path for path, _ in leaves(declared))
    return map_leaves(lambda _: parameters[next(order)], declared)


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
    small, instances = Trial(trial.seed, SEEDS), twins.instances()
    differences = {
        (framework, name): difference(small, instance, FRAMEWORKS[framework])
        for framework in names
        for name, instance in instances.items()
    }
    furthest = max(differences, key=lambda pair: np.nan_to_num(differences[pair], nan=np.inf))
    result = compare.identity(quantity, differences[furthest])
    peers = " and ".join(
        f"{ {'jax': 'JAX', 'torch': 'PyTorch'}[name] } {version(name)}" for name in names
    )
    return result.finding(
        f"Outputs and gradients of {len(instances)} layers were compared with {peers}; the largest "
        f"relative difference is {result.measured:.0e} ({furthest[1]}, {furthest[0]})."
    )


def difference(trial: Trial, instance: Instance, framework) -> float:
    """The worst relative difference of one layer's output and gradients from a framework's."""
    layer, random = instance.layer, trial.random()
    declared = layer.declare(instance.shape)
    x = random.standard_normal((SEEDS, *instance.shape))
    x = x if instance.inputs is None else instance.inputs
    dy = random.standard_normal((SEEDS, *declared.output))
    values = {
        path: instance.data.get(path, random.standard_normal((SEEDS, *parameter.shape)))
        for path, parameter in leaves(declared.parameters)
    }
    got = trial.run(layer, x, nested(instance, values), dy)
    ours = {"y": got.y, "dx": got.dx, **got.gradients}
    theirs = framework(instance, x, values, dy)
    norms = np.array([np.sqrt(square(expected)) for expected in theirs.values()])
    errors = [np.sqrt(square(ours[name] - expected)) for name, expected in theirs.items()]
    return float(np.max(errors / compare.sizes(norms, compare.ROUNDING)))
