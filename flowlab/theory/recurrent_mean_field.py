"""Recurrent cells at large width: sampled units, each a Gaussian process of its own.

With N units and weights that mix them, a gate's preactivation over time is a Gaussian process with
the covariance

    C_z(t, s) = sigma2_in C_x(t, s) + g2 C_h(t - 1, s - 1) + sigma2_b,    C_h = E h_t h_s,

independent for every gate and unit; C_x(t, s) = x_t x_s/features are an example's own inputs and
sigma2_b the biases, the same at every step. C_h is the mean over units, which the cell's equations
make out of their processes: so one samples some thousand units, one step after the other, and
keeps what persists in time, inputs that are alike and states that remember (Sompolinsky, Crisanti &
Sommers 1988; Chen, Pennington & Schoenholz 2018; Gilboa et al. 2019). Backward a state's cotangent
W' (gates' cotangents) is a process with the covariance g2 sum_gates E da_{t+1} da_{s+1}, taken
independent of the forward pass: the same weights at every step make it coherent over time, as long
as powers of a Gaussian matrix are like independent draws. Recurrent weights that are a multiple of
the identity do not mix units: each is a chain of its own, which sampling solves exactly.

Results are means over the sample: right to about a hundredth of a log rate.
"""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_triangular
from scipy.special import expit

from flowlab.errors import InputError, unknown
from flowlab.theory.activations import ActivationFunction

CELLS = ("rnn", "lstm", "gru")
_UNITS = 512  # of each example


@dataclass(frozen=True)
class RecurrentLayer:
    """Second moments of a layer's parameters.

    sigma2_in: fan_in Var(W_ih); g2: N Var(W_hh), or the square of what multiplies the identity if
    ``identity``; sigma2_b: of both biases together; forget_bias: added to an LSTM's forget gates.
    """

    sigma2_in: float
    g2: float
    sigma2_b: float = 0.0
    identity: bool = False
    forget_bias: float = 0.0


@dataclass(frozen=True)
class SampledFlow:
    """Along T steps from h_0 = 0, read at the last.

    square: (T,) E h_t^2, mean over examples; log_square: (T,), mean log of ||dL/dh_t||^2 over
    ||dL/dh_T||^2, of all examples together; tail: (T,), by how much the log of its mean is above
    that, where units that never mix differ by orders of magnitude.
    """

    square: np.ndarray
    log_square: np.ndarray
    tail: np.ndarray


def sampled_flow(
    cell: str,
    layers: list[RecurrentLayer],
    inputs: np.ndarray,
    activation: ActivationFunction | None = None,
    members: int = 4096,
) -> SampledFlow:
    """States through layers of one ``cell`` (`CELLS`) and cotangents of the last one's states.

    inputs: (examples, T, T), x_t x_s/features of each example; activation: of ``rnn``;
    members: units times examples of a net, over which the norm is taken. Raises `InputError` for
    another cell and for inputs of another shape.
    """
    if cell not in CELLS:
        raise unknown("cell", cell, CELLS)
    if inputs.ndim != 3 or inputs.shape[1] != inputs.shape[2]:
        raise InputError(f"inputs must have the shape (examples, T, T); got {inputs.shape}")
    rng = np.random.default_rng(0)
    size = max(_UNITS, 2 * inputs.shape[1])
    for layer in layers:
        units = {"rnn": _PlainUnits, "lstm": _LSTMUnits, "gru": _GRUUnits}[cell](
            layer, inputs, size, rng
        )
        units.forward(activation)
        inputs = units.h[:, 1:] @ units.h[:, 1:].transpose(0, 2, 1) / size
    square = np.einsum("ett->t", inputs) / len(inputs)
    return SampledFlow(square, *units.backward(members))


class _Process:
    """A Gaussian process sampled step by step from its covariance: Cholesky's factor by rows."""

    def __init__(self, rng, examples, steps, shape):
        self.shape, size = shape, int(np.prod(shape))
        normals = rng.standard_normal((examples, size, steps))
        # With exact second moments: the sample then fluctuates in what is not linear alone.
        if size > steps:
            normals = np.linalg.qr(normals)[0] * np.sqrt(size)
        self.normals = normals.transpose(0, 2, 1).copy()
        self.factor = np.zeros((examples, steps, steps))
        self.t = 0

    def step(self, row):
        """The next values (examples, *shape) from their covariances with all so far, themselves
        last: (examples, t + 1)."""
        t, low = self.t, self.factor
        for known, values in zip(low, row, strict=True) if t else ():
            known[t, :t] = solve_triangular(known[:t, :t], values[:t], lower=True)
        # A millionth more on the diagonal keeps the factor stable where steps outnumber features.
        own = row[:, t]
        rest = own * (1 + 1e-6) - np.square(low[:, t, :t]).sum(axis=1)
        low[:, t, t] = np.sqrt(np.maximum(rest, np.maximum(1e-8 * own, 1e-180)))
        self.t += 1
        values = low[:, t, None, : t + 1] @ self.normals[:, : t + 1]
        values *= (own > 0)[:, None, None]
        return values.reshape(len(row), *self.shape)


class _Units:
    """One layer's sampled units: states h (examples, T + 1, units), h_0 = 0."""

    gates = 1

    def __init__(self, layer, inputs, size, rng):
        self.layer, self.size, self.rng = layer, size, rng
        self.examples, self.steps, _ = inputs.shape
        self.into = layer.sigma2_in * inputs
        self.h = np.zeros((self.examples, self.steps + 1, size))

    def process(self, gates=1):
        shape = (gates, self.size)
        return _Process(self.rng, self.examples, self.steps, shape)

    def recalled(self, t):
        """C_h(t, s) g2 for s up to t (0 without mixing), and what an identity brings instead."""
        if self.layer.identity:
            return 0.0, np.sqrt(self.layer.g2) * self.h[:, None, t]
        past = (self.h[:, : t + 1] @ self.h[:, t, :, None])[..., 0] / self.size
        return self.layer.g2 * past, 0.0

    def forward(self, activation):
        summed = self.process(self.gates)
        for t in range(self.steps):
            mixed, kept = self.recalled(t)
            row = self.into[:, t, : t + 1] + self.layer.sigma2_b + mixed
            self.advance(t, summed.step(row) + kept, activation)

    def backward(self, members):
        """Mean log of ||dh_t||^2 over ||dh_T||^2, and what its mean's log has above it, (T,)."""
        shape = (self.examples, 1, self.size)
        dh = self.rng.standard_normal(shape)[:, 0]
        dh /= np.sqrt(np.square(dh).mean())
        mixing, scale, found, tails = self.process(), 0.0, [0.0], [0.0]
        drawn = self.rng.integers(dh.size, size=(64, min(members, dh.size)))
        past = np.zeros((self.examples, self.steps, 4 * self.size))
        for t in reversed(range(1, self.steps)):
            direct, gates = self.pull(t, dh)
            if self.layer.identity:
                dh = direct + np.sqrt(self.layer.g2) * gates.sum(axis=1)
            else:
                k = mixing.t
                flat = gates.reshape(self.examples, -1)
                past[:, k, : flat.shape[1]] = flat
                row = (past[:, : k + 1] @ past[:, k, :, None])[..., 0] / self.size
                dh = direct + mixing.step(self.layer.g2 * row)[:, 0]
            square = np.square(dh).mean()
            if square == 0:  # no unit of the sample is alive
                found += [-np.inf] * t
                tails += [0.0] * t
                break
            found.append(scale + np.log(square))
            tails.append(0.0)
            if self.layer.identity:
                nets = np.square(dh).ravel()[drawn].mean(axis=1)
                if nets.any():
                    tails[-1] = float(np.log(square) - np.log(nets[nets > 0]).mean())
            if not 1e-60 < square < 1e60:  # all that is linear in the cotangent shrinks with it
                scale, factor = found[-1], 1 / np.sqrt(square)
                dh, past = dh * factor, past * factor
                mixing.factor *= factor
                self.rescale(factor)
        tails = np.array(tails[::-1])
        return np.array(found[::-1]) - tails, tails

    def rescale(self, factor):
        pass


class _PlainUnits(_Units):
    def advance(self, t, z, activation):
        if t == 0:
            self.slopes = np.empty((self.examples, self.steps, self.size))
        self.slopes[:, t] = activation.derivative(z[:, 0])
        self.h[:, t + 1] = activation.phi(z[:, 0])

    def pull(self, t, dh):
        return 0.0, (self.slopes[:, t] * dh)[:, None]


class _LSTMUnits(_Units):
    gates = 4

    def advance(self, t, z, _):
        if t == 0:
            self.c, self.opened = np.zeros_like(self.h), []
            self.dc = 0.0
        i, f, o = expit(z[:, 0]), expit(z[:, 1] + self.layer.forget_bias), expit(z[:, 3])
        g = np.tanh(z[:, 2])
        self.c[:, t + 1] = f * self.c[:, t] + i * g
        self.h[:, t + 1] = o * np.tanh(self.c[:, t + 1])
        self.opened.append((i, f, g, o))

    def pull(self, t, dh):
        i, f, g, o = self.opened[t]
        y = np.tanh(self.c[:, t + 1])
        dc = self.dc + dh * o * (1 - y * y)
        gates = (
            dc * g * i * (1 - i),
            dc * self.c[:, t] * f * (1 - f),
            dc * i * (1 - g * g),
            dh * y * o * (1 - o),
        )
        self.dc = f * dc
        return 0.0, np.stack(gates, axis=1)

    def rescale(self, factor):
        self.dc = self.dc * factor


class _GRUUnits(_Units):
    gates = 2  # of which input and state are added before the slope; the candidate's are not

    def forward(self, activation):
        summed, into, recall = self.process(2), self.process(), self.process()
        self.opened, bias = [], self.layer.sigma2_b
        for t in range(self.steps):
            mixed, kept = self.recalled(t)
            own = self.into[:, t, : t + 1]
            z = summed.step(own + bias + mixed) + kept
            m = (recall.step(bias / 2 + mixed + np.zeros_like(own)) + kept)[:, 0]
            r, u = expit(z[:, 0]), expit(z[:, 1])
            n = np.tanh(into.step(own + bias / 2)[:, 0] + r * m)
            self.h[:, t + 1] = (1 - u) * n + u * self.h[:, t]
            self.opened.append((r, u, n, m))

    def pull(self, t, dh):
        r, u, n, m = self.opened[t]
        dn = dh * (1 - u) * (1 - n * n)
        gates = (dn * m * r * (1 - r), dh * (self.h[:, t] - n) * u * (1 - u), dn * r)
        return u * dh, np.stack(gates, axis=1)
