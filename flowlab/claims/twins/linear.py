"""The twin of linear maps."""

from flowlab.claims.twins.twin import Instance, Timed, twin
from flowlab.layers.linear import Linear


def mapped(torch, x, p):
    """x W + b of an ensemble, x (S, n, ..., i)."""
    y = torch.baddbmm(p["b"][:, None], x.flatten(1, -2), p["W"])
    return y.view(*x.shape[:-1], -1)


def _square(shape):
    return Linear(shape[-1])


twin(
    Linear,
    jax=lambda jax, layer, x, p: x @ p["W"] + p["b"],
    torch=lambda torch, layer, x, p: torch.nn.functional.linear(x, p["W"].mT, p["b"]),
    ensemble=lambda torch, layer, x, p: mapped(torch, x, p),
    small={
        "linear": Instance(Linear(5), (4, 3)),
        "linear on tokens": Instance(Linear(4), (3, 5, 6)),
    },
    timed={
        "linear": Timed(_square, ((128, 128), (128, 1024)), (4, 8)),
        "linear on tokens": Timed(_square, ((16, 32, 128), (8, 128, 256)), (2, 3, 8)),
    },
)
