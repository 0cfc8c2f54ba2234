"""Twins of layers made of layers, and of the scale that residual branches end in."""

from flowlab.claims.twins.twin import Instance, composite, twin
from flowlab.layer import Chain
from flowlab.layers.activation import Activation
from flowlab.layers.fork import Fork
from flowlab.layers.linear import Linear
from flowlab.layers.residual import Residual, Scale


def _chain(np, inner, layer, x, p):
    for one, own in zip(layer.layers, p, strict=True):
        x = inner(one, x, own)
    return x


def _fork(np, inner, layer, x, p):
    branches = zip(layer.branches, p, strict=True)
    return np.stack([inner(one, x, own) for one, own in branches], 1)


composite(Chain, _chain)
composite(
    Residual,
    lambda np, inner, layer, x, p: layer.s * (x + layer.a * inner(layer.branch, x, p)),
    small={
        "residual": Instance(Residual(Chain([Activation("silu"), Linear(3)]), 0.3, 0.9), (4, 3))
    },
)
composite(Fork, _fork, small={"fork": Instance(Fork([Linear(6), Activation("tanh")]), (3, 5, 6))})
twin(
    Scale,
    jax=lambda jax, layer, x, p: p["alpha"] * x,
    torch=lambda torch, layer, x, p: p["alpha"] * x,
    small={"scale": Instance(Scale(), (4, 3))},
)
