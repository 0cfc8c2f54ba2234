"""Rates under normalization against closed forms and nets in plain NumPy."""

import numpy as np
import pytest

from flowlab.errors import InputError
from flowlab.theory import chi, get_activation, leaky_relu, q_map
from flowlab.theory import normalization as nm

AXIS = {"batch_norm": -2, "layer_norm": -1, "rms_norm": -1}


def normalize(x, kind):
    centred = x if kind == "rms_norm" else x - x.mean(AXIS[kind], keepdims=True)
    sigma = np.sqrt(np.mean(centred**2, axis=AXIS[kind], keepdims=True))
    return centred / sigma, sigma


def pull(du, u, sigma, kind):
    dz = du - u * np.mean(du * u, axis=AXIS[kind], keepdims=True)
    if kind != "rms_norm":
        dz = dz - du.mean(AXIS[kind], keepdims=True)
    return dz / sigma


def plain(activation, kind, seeds, batch, width, depth, seed=0):
    """Steps (depth - 3, seeds) of log ||dz||^2 going backward, ends left out."""
    act, rng = get_activation(activation), np.random.default_rng(seed)
    h, saved, log = rng.standard_normal((seeds, batch, width)), [], []
    for _ in range(depth):
        w = rng.standard_normal((seeds, width, width)) / np.sqrt(width)
        u, sigma = normalize(h @ w, kind)
        saved.append((u, sigma, w))
        h = act.phi(u)
    du = rng.standard_normal(h.shape)
    for u, sigma, w in reversed(saved):
        dz = pull(du * act.derivative(u), u, sigma, kind)
        log.append(np.log(np.sum(dz**2, axis=(1, 2))))
        du = dz @ w.swapaxes(1, 2)
    return np.diff(log, axis=0)[1:-1]


def residual(seeds, batch, width, depth, scale, common):
    """Of ReLU branches behind batch norm: mean variance of every x_l (depth,), and log squared
    cotangents (depth + 1, seeds)."""
    act, rng = get_activation("relu"), np.random.default_rng(1)
    x, saved, variance = rng.standard_normal((seeds, batch, width)), [], []
    for _ in range(depth):
        variance.append(x.var(1, ddof=1).mean())
        u, sigma = normalize(x, "batch_norm")
        w = rng.standard_normal((seeds, width, width)) / np.sqrt(width)
        saved.append((u, sigma, w))
        x = scale * (x + act.phi(u) @ w)
    d = rng.standard_normal((seeds, 1 if common else batch, width)) + np.zeros((batch, 1))
    log = [np.log(np.sum(d**2, axis=(1, 2)))]
    for u, sigma, w in reversed(saved):
        g = (d @ w.swapaxes(1, 2)) * act.derivative(u)
        d = scale * (d + pull(g, u, sigma, "batch_norm"))
        log.append(np.log(np.sum(d**2, axis=(1, 2))))
    return np.array(variance), np.array(log[::-1])


def test_batch_norm_closed_forms():
    assert nm.batch_norm_rate("identity", 8) == pytest.approx(6 / 5)
    assert nm.batch_norm_rate("relu", 10**7) == pytest.approx(np.pi / (np.pi - 1), rel=1e-6)
    for batch in (4, 5, 16, 1000):
        for name in ("identity", "relu"):
            moments = nm.batch_moments(get_activation(name), batch)
            by_quadrature = batch * moments.spread / ((batch - 3) * moments.centred)
            assert nm.batch_norm_rate(name, batch) == pytest.approx(by_quadrature, rel=1e-12)


@pytest.mark.parametrize("activation", ["identity", "relu", "tanh", "gelu"])
@pytest.mark.parametrize("batch", [8, 16, 64])
def test_batch_norm_rate_matches_nets(activation, batch):
    """Within 4 SE + 0.4 B/N: a finite width lets the Gram matrix of the batch drift (identity)."""
    width = 200
    steps = plain(activation, "batch_norm", 6, batch, width, 16)[:10]
    error = steps.mean() - np.log(nm.batch_norm_rate(activation, batch))
    slack = {"identity": 0.1, "tanh": 0.06}.get(activation, 0.03) * batch / width + 0.005
    assert abs(error) < 4 * steps.mean(0).std(ddof=1) / np.sqrt(6) + slack


def test_batch_norm_of_four_lies_typically_below_its_rate():
    steps = plain("relu", "batch_norm", 20, 4, 200, 16)
    rate = np.log(nm.batch_norm_rate("relu", 4))
    assert 0.6 * rate < steps.mean() < rate


@pytest.mark.parametrize("kind", nm.NORMS)
@pytest.mark.parametrize("activation", ["identity", "relu", "tanh", "gelu"])
def test_layer_and_rms_norm_steps_match_nets(kind, activation):
    """Mean and variance of the log per layer: 4 SE and second order in 1/d, 5/d of each."""
    seeds, width, depth = 800, 32, 15
    steps = plain(activation, kind, seeds, 1, width, depth)
    total, layers = steps.sum(0), len(steps)
    mean, variance = nm.norm_step(activation, kind, width)
    mean += np.log(chi(activation, 1.0, 1.0) / q_map(activation, 1.0, 1.0))
    se = total.std() / np.sqrt(seeds) / layers
    second_order = 0 if activation == "identity" else 10 / width**2
    assert abs(steps.mean() - mean) < 4 * se + second_order
    spread = total.var() / layers
    assert spread == pytest.approx(variance, rel=4 * np.sqrt(2 / seeds) + second_order * width / 2)


def test_relu_rms_step_is_exact_in_its_own_law():
    """log(chi^2_{K-1} / (b chi^2_d)) drawn directly, at a width where 1/d^2 shows."""
    rng, width, n = np.random.default_rng(0), 12, 400_000
    k = rng.binomial(width, 0.5, n)
    k = k[(k > 1) & (k < width)]
    step = np.log(
        rng.chisquare(k - 1) / rng.beta(k / 2, (width - k) / 2) / rng.chisquare(width, k.size)
    )
    mean, variance = nm.norm_step("relu", "rms_norm", width)
    assert abs(step.mean() - mean) < 4 * step.std() / np.sqrt(step.size) + 1e-3
    assert step.var() == pytest.approx(variance, rel=0.02)


def test_first_order_agrees_with_the_exact_laws():
    """The general formula, reached through leaky slopes near 0 and 1, at a large width."""
    for kind, near, name in (
        ("rms_norm", 1e-9, "relu"),
        ("rms_norm", 1 - 1e-9, "identity"),
        ("layer_norm", 1 - 1e-9, "identity"),
    ):
        general = nm.norm_step(leaky_relu(near), kind, 4000)
        assert general == pytest.approx(nm.norm_step(name, kind, 4000), rel=3e-3)


@pytest.mark.parametrize("common", [False, True])
@pytest.mark.parametrize("batch, scale", [(8, 1.0), (16, 0.8)])
def test_pre_batch_norm_residual_matches_nets(batch, scale, common):
    seeds, width, depth = 6, 250, 12
    variance, log = residual(seeds, batch, width, depth, scale, common)
    growth = nm.pre_batch_norm(
        "relu", batch, 1.0, depth, output_scale=scale, common=1.0 if common else None
    )
    np.testing.assert_allclose(variance, growth.variance[:-1], rtol=0.05)
    total = log[0] - log[-1]
    slack = 0.03 * np.log(growth.rate / scale**2).sum()
    error = total.mean() - np.log(growth.rate).sum()
    assert abs(error) < 4 * total.std(ddof=1) / np.sqrt(seeds) + slack


def test_residual_growth_is_a_power_law():
    rate = nm.pre_batch_norm("relu", 16, 1.0, 4000, common=0.0).rate
    doubling = np.log(rate[2000:]).sum() / np.log(2)
    assert doubling == pytest.approx(nm.batch_norm_rate("relu", 16), rel=2e-3)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: nm.batch_norm_rate("relu", 3), "batch must be at least 4"),
        (lambda: nm.norm_step("relu", "layernorm", 8), "did you mean layer_norm"),
        (lambda: nm.norm_step("relu", "rms_norm", 2), "width must be at least 4; got 2"),
        (lambda: nm.pre_batch_norm("relu", 8, 1.0, 0), "depth must be at least 1; got 0"),
        (lambda: nm.pre_batch_norm("relu", 8, 1.0, 3, start=0.0), "start must be above 0; got 0"),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(InputError, match=message):
        call()
