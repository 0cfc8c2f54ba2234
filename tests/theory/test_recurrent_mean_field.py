"""Sampled recurrent units against laws in closed form and nets in plain NumPy."""

import numpy as np
import pytest
from scipy.special import gammaln

from flowlab.errors import InputError
from flowlab.theory import get_activation
from flowlab.theory.recurrent_mean_field import RecurrentLayer, _Process, sampled_flow

FRESH = np.stack([np.eye(8)] * 4)  # inputs drawn afresh at every step


def test_a_process_has_the_covariance_it_is_given():
    """Steps beyond the rank of the covariance included."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 6, 3))
    covariance = x @ x.transpose(0, 2, 1) / 3
    process = _Process(rng, 2, 6, (1, 4000))
    drawn = np.stack([process.step(covariance[:, t, : t + 1])[:, 0] for t in range(6)], axis=1)
    np.testing.assert_allclose(drawn @ drawn.transpose(0, 2, 1) / 4000, covariance, atol=1e-5)


def test_gates_without_recurrence_are_gates_alone():
    """g2 = 0: a GRU keeps E u^2 per step, an LSTM's state is read at once and nothing goes back."""
    u = 1 / (1 + np.exp(-np.random.default_rng(3).standard_normal(400_000)))
    flow = sampled_flow("gru", [RecurrentLayer(1.0, 0.0)], FRESH)
    np.testing.assert_allclose(np.diff(flow.log_square), -np.log(np.mean(u**2)), atol=0.08)
    assert flow.log_square[0] == pytest.approx(7 * np.log(np.mean(u**2)), abs=0.12)
    assert np.isneginf(
        sampled_flow("lstm", [RecurrentLayer(1.0, 0.0)], FRESH).log_square[:-1]
    ).all()


def test_identity_relu_follows_the_arcsine_law():
    """h_t = relu(h_{t-1} + x_t): a unit's gradient lives from where the walk was least.

    The place of the least of T steps is m with probability u_m u_{T-m}, u_m = C(2m, m)/4^m, for any
    symmetric continuous law of the steps (Sparre Andersen 1953).
    """
    m = np.arange(9)
    u = np.exp(gammaln(2 * m + 1) - 2 * gammaln(m + 1) - m * np.log(4))
    alive = np.minimum(np.cumsum(u * u[::-1])[1:], 1.0)
    flow = sampled_flow(
        "rnn", [RecurrentLayer(1.0, 1.0, identity=True)], FRESH, get_activation("relu")
    )
    se = np.sqrt((1 - alive) / alive / (4 * 512))
    assert np.all(np.abs(np.exp(flow.log_square + flow.tail) / alive - 1) < 4 * se + 0.01)


def lstm(x, weights, width):
    """Gates, cells and states of a net in plain NumPy, order i, f, g, o; x (T, features)."""
    w, v, b = weights
    h, c, tape = np.zeros(width), np.zeros(width), []
    for row in x:
        z = row @ w + h @ v + b
        i, f, o = (1 / (1 + np.exp(-z[k * width : (k + 1) * width])) for k in (0, 1, 3))
        g, before = np.tanh(z[2 * width : 3 * width]), c
        c = f * c + i * g
        h = o * np.tanh(c)
        tape.append((i, f, g, o, before, c))
    return tape, h


def test_lstm_by_nets_on_inputs_that_stay_the_same():
    """Alike inputs, biases and the cell's memory: within 4 standard errors and 2/N per step."""
    rng, width, steps, seeds = np.random.default_rng(5), 150, 6, 60
    x = np.repeat(rng.standard_normal((1, 20)), steps, axis=0)
    logs, squares = [], []
    for _ in range(seeds):
        w = rng.standard_normal((20, 4 * width)) / np.sqrt(20)
        v = rng.standard_normal((width, 4 * width)) / np.sqrt(width)
        tape, h = lstm(x, (w, v, 0.5 * rng.standard_normal(4 * width)), width)
        dh, dc, found = rng.standard_normal(width), np.zeros(width), []
        for i, f, g, o, before, c in reversed(tape):
            found.append(np.log(dh @ dh))
            y = np.tanh(c)
            dc = dc + dh * o * (1 - y * y)
            gates = dc * g * i * (1 - i), dc * before * f * (1 - f), dc * i * (1 - g * g)
            dh = v @ np.concatenate([*gates, dh * y * o * (1 - o)])
            dc = f * dc
        logs.append(found[-1] - found[0])
        squares.append(h @ h / width)
    flow = sampled_flow("lstm", [RecurrentLayer(1.0, 1.0, 0.25)], (x @ x.T / 20)[None])
    se = np.std(logs) / np.sqrt(seeds)
    assert np.mean(logs) == pytest.approx(flow.log_square[0], abs=4 * se + 2 * steps / width + 0.05)
    se = np.std(squares) / np.sqrt(seeds)
    assert np.mean(squares) == pytest.approx(flow.square[-1], abs=4 * se + 0.03 * flow.square[-1])


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: sampled_flow("lstms", [RecurrentLayer(1.0, 1.0)], FRESH), "did you mean lstm"),
        (lambda: sampled_flow("gru", [RecurrentLayer(1.0, 1.0)], FRESH[0]), r"\(examples, T, T\)"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(InputError, match=message):
        call()
