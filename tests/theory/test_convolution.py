"""The border's cost and the fluctuations of convolutional nets, against nets in plain NumPy."""

from itertools import product

import numpy as np
import pytest

from flowlab.errors import InputError
from flowlab.theory import chi, get_activation, leaky_relu, q_map
from flowlab.theory import convolution as cv
from flowlab.theory.finite_channels import circular_steps
from flowlab.theory.finite_width import BackwardMap, batch_step
from flowlab.theory.moments import Sites, homogeneous_correlation


def shifted(x, offset, circular):
    """x moved by ``offset`` over the position axes (after the seed axis, before channels)."""
    for axis, step in enumerate(offset, start=1):
        x = np.roll(x, step, axis)
        if not circular and step:
            cut = [slice(None)] * x.ndim
            cut[axis] = slice(None, step) if step > 0 else slice(step, None)
            x = x.copy()
            x[tuple(cut)] = 0
    return x


def net(activation, shape, channels, depth, seeds, sigma_w2, circular, seed=0):
    """Squared preactivations and cotangents, (depth, seeds, *shape), summed over channels."""
    act, rng = get_activation(activation), np.random.default_rng(seed)
    offsets = list(product((-1, 0, 1), repeat=len(shape)))
    scale = np.sqrt(sigma_w2 / (len(offsets) * channels))
    h, z, weights = rng.standard_normal((seeds, *shape, channels)), [], []
    expand = (slice(None),) + (None,) * (len(shape) - 1)
    for _ in range(depth):
        w = rng.standard_normal((len(offsets), seeds, channels, channels)) * scale
        z.append(sum(shifted(h, o, circular) @ k[expand] for o, k in zip(offsets, w, strict=True)))
        weights.append(w)
        h = act.phi(z[-1])
    d = rng.standard_normal(h.shape)
    deltas = [d]
    for layer in reversed(range(1, depth)):
        d = sum(
            shifted(d @ k[expand].swapaxes(-1, -2), tuple(-i for i in o), circular)
            for o, k in zip(offsets, weights[layer], strict=True)
        )
        d = d * act.derivative(z[layer - 1])
        deltas.append(d)
    return tuple(np.sum(np.square(x), axis=-1) for x in (z, deltas[::-1]))


@pytest.mark.parametrize("shape", [(1,), (7,), (8, 5), (28, 28)])
def test_border_rate_is_the_path_graphs(shape):
    expected = np.prod([(1 + 2 * np.cos(np.pi / (n + 1))) / 3 for n in shape])
    assert cv.border_rate(shape, 3) == pytest.approx(expected, rel=1e-12)


def test_averaging_counts_the_window():
    a = cv.averaging(5, 3, 1)
    signal = np.arange(5.0)
    np.testing.assert_allclose(a @ signal, np.convolve(signal, np.ones(3) / 3, "same"))
    assert cv.averaging(5, 2, 0).shape == (4, 5)
    assert np.all(cv.averaging(5, 2, 0).sum(1) == 1)


def field(activation, depth, shape, sigma_w2, sigma_b2=0.0, circular=False, q=1.0):
    """`field_flow` of one example with E x^2 = q everywhere and kernels of three positions."""
    padded = [cv.averaging(n, 3, 1) for n in shape]
    if circular:
        eye = [np.eye(n) for n in shape]
        padded = [(np.roll(one, -1, 1) + one + np.roll(one, 1, 1)) / 3 for one in eye]
    maps = [[(sigma_w2, sigma_b2)]] * depth
    return cv.field_flow(activation, maps, input_q=np.full((1, 1, *shape), q), averages=padded)


def test_rate_tends_to_the_top_eigenvalue():
    flow, next_one = (field("relu", depth, (6, 9), 2.0) for depth in (400, 401))
    top = np.log(cv.border_rate((6, 9), 3))
    assert flow.log_rate[0] == pytest.approx(top, rel=1e-10)
    sine = np.multiply.outer(*(np.sin(np.pi * np.arange(1, n + 1) / (n + 1)) for n in (6, 9)))
    np.testing.assert_allclose(np.exp(flow.log_delta[0, 0]), sine / sine.mean(), rtol=1e-8)
    assert next_one.log_q - flow.log_q == pytest.approx(top, rel=1e-8)


def test_with_circular_padding_the_rate_is_chi():
    flow = field("tanh", 3, (11,), 1.7, 0.1, circular=True, q=0.8)
    first = 1.7 * 0.8 + 0.1
    second = q_map("tanh", first, 1.7, 0.1)
    np.testing.assert_allclose(flow.log_q, np.log(q_map("tanh", second, 1.7, 0.1)), rtol=1e-5)
    rates = [chi("tanh", q, 1.7) for q in (first, second)]
    assert np.exp(flow.log_rate) == pytest.approx(rates, rel=1e-5)


@pytest.mark.parametrize("activation, sigma_w2", [("relu", 2.0), ("tanh", 2.5)])
def test_zero_padding_matches_nets(activation, sigma_w2):
    """Profiles within 4 SE + 3 % per position, the rate's log likewise."""
    shape, channels, depth, seeds = (5, 4), 64, 8, 40
    squares, deltas = net(activation, shape, channels, depth, seeds, sigma_w2, circular=False)
    for layers in (1, 4, depth):
        q = squares[layers - 1] / channels
        se = q.std(0) / np.sqrt(seeds)
        error = np.abs(q.mean(0) - np.exp(field(activation, layers, shape, sigma_w2).log_q[0, 0]))
        assert np.all(error < 4.5 * se + 0.03 * q.mean(0))
    flow = field(activation, depth, shape, sigma_w2)
    share = deltas[0] / deltas[0].mean((1, 2), keepdims=True)
    se = share.std(0) / np.sqrt(seeds)
    assert np.all(np.abs(share.mean(0) - np.exp(flow.log_delta[0, 0])) < 4.5 * se + 0.03)
    total = np.log(deltas.sum((2, 3)))
    change = total[0] - total[-1]
    slack = change.var() / 2 + (0.05 if activation == "tanh" else 0.02)
    assert abs(change.mean() - flow.log_rate.sum()) < 4 * change.std() / np.sqrt(seeds) + slack


@pytest.mark.parametrize("shape, channels", [((8,), 24), ((4, 4), 16), ((1,), 24)])
@pytest.mark.parametrize("activation", ["identity", "relu", leaky_relu(0.3)])
def test_circular_steps_match_nets(activation, shape, channels):
    """Mean within 4 SE + 0.2 of itself; variance within 25 % (ReLU's is first order in L/c)."""
    depth, seeds = 16, 400
    act = get_activation(activation)
    gain = 2 / (1 + act.negative_slope**2)
    _, deltas = net(act, shape, channels, depth, seeds, gain, circular=True)
    log = np.log(deltas.reshape(depth, seeds, -1).sum(2))
    mean, variance = circular_steps(act, depth, shape=shape, kernel=3, channels=channels)
    for layer in (0, depth // 2):
        change = log[layer] - log[-1]
        slack = 0.2 * abs(mean[layer:].sum())
        assert abs(change.mean() - mean[layer:].sum()) < 4 * change.std() / np.sqrt(seeds) + slack
        assert change.var() == pytest.approx(variance[layer:].sum(), rel=0.3)


def test_one_position_is_a_fully_connected_net():
    _, variance = circular_steps("relu", 6, shape=(1,), kernel=1, channels=50)
    np.testing.assert_allclose(variance, 5 / 50)


@pytest.mark.parametrize("activation", ["identity", "relu", leaky_relu(0.3)])
def test_without_a_window_positions_are_a_batch(activation):
    """A 1 x 1 kernel is a fully-connected net on a batch of positions, step by step."""
    act, c, width, alpha = get_activation(activation), 0.2, 30, 1 / 30
    correlations = [c]
    for _ in range(2):
        correlations.append(homogeneous_correlation(act.negative_slope, correlations[-1]))
    _, variance = circular_steps(
        act, 4, shape=(3, 2), kernel=1, channels=width, input_c=correlations[0]
    )
    for step, c in zip(variance[::-1], correlations[::-1], strict=True):
        site = Sites(act, np.zeros(1))
        h, m, _, _ = (float(x[0]) for x in site.pairs(np.array([c])))
        back = BackwardMap(h, m, float(site.m1[0]))
        expected, alpha = batch_step([back], 1.0, width, 6, alpha)
        assert step == pytest.approx(expected, rel=1e-10)


def test_identical_positions_fluctuate_as_one():
    """A kernel that covers the ring makes every cotangent the same after one step."""
    _, variance = circular_steps("identity", 6, shape=(7,), kernel=7, channels=1000, input_c=1.0)
    # One of seven modes survives: alpha before the first average is 1/c at all seven.
    assert variance[-1] == pytest.approx((2 + 6 * 2 / 7 / 1000) / 7 / 1000)
    assert np.all(np.diff(variance) < 0)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: cv.averaging(2, 5, 0), "got size=2, kernel=5, padding=0"),
        (lambda: cv.border_rate((8,), 2), "kernel must be odd to keep the shape; got 2"),
        (
            lambda: circular_steps("tanh", 4, shape=(3,), kernel=3, channels=4),
            "activation must be homogeneous .* got tanh",
        ),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(InputError, match=message):
        call()
