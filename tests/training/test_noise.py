"""Noise scales against gradients of single examples made by NumPy."""

from itertools import combinations

import numpy as np
import pytest

import flowlab
from flowlab.layer import leaves
from flowlab.measurement.setup import Batches, prepare
from flowlab.settings import make
from flowlab.training import noise
from flowlab.training.loop import Part

RUN = {
    **{"depth": 1, "batch_size": 24, "seeds": 2, "dtype": "float64", "init": "xavier"},
    "training": {"name": "sgd", "steps": 1},
}


def gradients(x, labels, W):
    """The gradients of softmax regression of single examples, (n, parameters)."""
    z = x @ W
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    d = p - np.eye(10)[labels]
    return np.hstack([(x[:, :, None] * d[:, None, :]).reshape(len(x), -1), d])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_exact_noise_scale_is_that_of_the_examples(reduction):
    run = make(**RUN, reduction=reduction)
    curve = flowlab.train(run).curve
    x, labels = Batches(run)(range(2))
    part = Part(prepare(run), np.arange(2))
    for seed in range(2):
        W = next(array for _, array in leaves(part.held.held[0]))[seed, 0]
        g = gradients(x[seed], labels[seed], W)
        trace = g.var(axis=0, ddof=1).sum()
        square = (g.mean(axis=0) ** 2).sum() - trace / len(g)
        expected = trace / square if square > 0 else np.nan
        assert curve["noise_scale"][seed] == pytest.approx(expected, rel=1e-8, nan_ok=True)


def test_two_batches_estimate_it_without_bias():
    """Over all splits of few numbers the terms average to the exact ones (B_big = n)."""
    random = np.random.default_rng(1)
    g = random.standard_normal((6, 3)) + 1.0
    big = np.log2(np.linalg.norm(g.mean(axis=0)))
    unit, squares, traces = 2 * big, [], []
    for pair in combinations(range(6), 2):
        small = np.log2(np.linalg.norm(g[list(pair)].mean(axis=0)))
        s, b = 2.0 ** (2 * small - unit), 1.0
        squares.append((6 * b - 2 * s) / 4)
        traces.append((s - b) / (1 / 2 - 1 / 6))
        own = noise.two_batches(np.array([small]), np.array([big]), 2, 6, mean=True)[0]
        expected = traces[-1] / squares[-1]
        assert own == pytest.approx(expected, rel=1e-9, nan_ok=True) or squares[-1] <= 0
    trace = g.var(axis=0, ddof=1).sum()
    square = (g.mean(axis=0) ** 2).sum() - trace / 6
    assert np.mean(traces) * 2**unit == pytest.approx(trace, rel=1e-9)
    assert np.mean(squares) * 2**unit == pytest.approx(square, rel=1e-9)
