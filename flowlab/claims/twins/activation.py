"""Twins of the activations."""

from flowlab.claims.twins.twin import Instance, Timed, twin
from flowlab.layers.activation import ACTIVATIONS, Activation


def _in_jax(jax, layer, x, p):
    match layer.name:
        case "identity":
            return x
        case "tanh":
            return jax.numpy.tanh(x)
        case "erf":
            return jax.scipy.special.erf(x)
        case "gelu":
            return jax.nn.gelu(x, approximate=False)
    return getattr(jax.nn, layer.name)(x)


def _in_torch(torch, layer, x, p):
    if layer.name == "identity":
        return x
    if layer.name in ("tanh", "erf", "sigmoid"):
        return getattr(torch, layer.name)(x)
    return getattr(torch.nn.functional, layer.name)(x)


def _timed(name: str) -> Timed:
    return Timed(lambda shape: Activation(name), ((128, 128), (128, 1024)), (4, 8))


twin(
    Activation,
    jax=_in_jax,
    torch=_in_torch,
    small={name: Instance(Activation(name), (4, 3)) for name in ACTIVATIONS},
    timed={name: _timed(name) for name in ("relu", "tanh", "sigmoid", "gelu", "silu")},
)
