"""Twins of the recurrent layers: a cell's equations stand once, for both frameworks."""

from collections.abc import Callable
from types import SimpleNamespace

from flowlab.claims.twins.twin import Instance, Timed, twin
from flowlab.layers.gru import GRU
from flowlab.layers.lstm import LSTM
from flowlab.layers.recurrent import Recurrence, Recurrent

_SHAPE = (3, 4, 2)


def _simple(f, layer, u, v, h, c):
    """A step's (h, c) from u = x W_ih + b_ih, v = h W_hh + b_hh and the state before.

    ``f`` holds a framework's functions.
    """
    return getattr(f, layer.activation)(u + v), c


def _lstm(f, layer, u, v, h, c):
    i, k, g, o = f.split(u + v, 4)
    k = k + layer.forget_bias if layer.forget_bias else k
    c = f.sigmoid(k) * c + f.sigmoid(i) * f.tanh(g)
    return f.sigmoid(o) * f.tanh(c), c


def _gru(f, layer, u, v, h, c):
    (r, z, n), (vr, vz, vn) = f.split(u, 3), f.split(v, 3)
    z, n = f.sigmoid(z + vz), f.tanh(n + f.sigmoid(r + vr) * vn)
    return n + z * (h - n), c


def _scanned(cell: Callable):
    """The recurrence in JAX; ``drive`` is added to all u, ``added`` (n, T, h) to the states."""

    def in_jax(jax, layer, x, p, drive=0.0, added=None):
        np = jax.numpy
        functions = SimpleNamespace(
            identity=lambda z: z,
            tanh=np.tanh,
            relu=jax.nn.relu,
            sigmoid=jax.nn.sigmoid,
            split=lambda a, n: np.split(a, n, -1),
        )
        n, steps, _ = x.shape
        zero = np.zeros((n, layer.features), x.dtype)
        along = {"u": (x @ p["W_ih"] + p["b_ih"] + drive).swapaxes(0, 1)}
        if added is not None:
            along["added"] = added.swapaxes(0, 1)
        if layer.truncation:
            along["cut"] = np.arange(steps) % layer.truncation == 0

        def one(state, now):
            if "cut" in now:
                cut = jax.lax.stop_gradient(state)
                state = tuple(np.where(now["cut"], a, b) for a, b in zip(cut, state, strict=True))
            h, c = cell(functions, layer, now["u"], state[0] @ p["W_hh"] + p["b_hh"], *state)
            h = h + now["added"] if "added" in now else h
            return (h, c), h

        return jax.lax.scan(one, (zero, zero), along)[1].swapaxes(0, 1)

    return in_jax


def _stepwise(cell: Callable):
    """The recurrence of an ensemble in PyTorch, which has none compiled."""

    def at_once(torch, layer, x, p):
        functions = SimpleNamespace(
            identity=lambda z: z,
            tanh=torch.tanh,
            relu=torch.relu,
            sigmoid=torch.sigmoid,
            split=lambda a, n: a.chunk(n, -1),
        )
        u = torch.baddbmm(p["b_ih"][:, None], x.flatten(1, 2), p["W_ih"])
        u = u.view(*x.shape[:3], -1).permute(2, 0, 1, 3).unbind(0)
        h = c = x.new_zeros(*x.shape[:2], layer.features)
        states = []
        for now in u:
            v = torch.baddbmm(p["b_hh"][:, None], h, p["W_hh"])
            h, c = cell(functions, layer, now, v, h, c)
            states.append(h)
        return torch.stack(states, 2)

    return at_once


def _compiled(name: Callable[[Recurrence], str], states: int = 1):
    """PyTorch's own function of that name, which starts from so many states."""

    def in_torch(torch, layer, x, p):
        b = p["b_ih"]
        if bias := getattr(layer, "forget_bias", 0.0):  # PyTorch's own starts at 0
            b = b + bias * (torch.arange(len(b)) // layer.features == 1)
        weights = [p["W_ih"].mT, p["W_hh"].mT, b, p["b_hh"]]
        start = [x.new_zeros(1, len(x), layer.features) for _ in range(states)]
        # Biases, one layer, no dropout, training, one direction, the batch first.
        options = (True, 1, 0.0, True, False, True)
        start = start if states > 1 else start[0]
        return getattr(torch, name(layer))(x, start, weights, *options)[0]

    return in_torch


def recurrence(kind: type[Recurrence], cell: Callable, torch, small: dict, timed: str) -> None:
    """Register a recurrent layer by its cell and PyTorch's own form of it."""
    shapes = ((32, 32, 64), (64, 64, 128))
    twin(
        kind,
        jax=_scanned(cell),
        torch=torch,
        ensemble=_stepwise(cell),
        small={name: Instance(layer, _SHAPE) for name, layer in small.items()},
        timed={timed: Timed(lambda shape: kind(shape[-1]), shapes, (2, 3, 8))},
    )


recurrence(
    Recurrent,
    _simple,
    _compiled(lambda layer: f"rnn_{layer.activation}"),
    {"rnn": Recurrent(3), "rnn (relu)": Recurrent(3, "relu")},
    "recurrent tanh",
)
recurrence(
    LSTM, _lstm, _compiled(lambda layer: "lstm", 2), {"lstm": LSTM(3, forget_bias=1.0)}, "lstm"
)
recurrence(GRU, _gru, _compiled(lambda layer: "gru"), {"gru": GRU(3)}, "gru")
