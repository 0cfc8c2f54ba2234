"""Steps of one layer at finite width: drawn, in known cases, and of batches that act as one."""

import numpy as np
import pytest

from flowlab import theory
from flowlab.theory.finite_width import BackwardMap, batch_step


def test_he_relu_step_matches_a_draw():
    rng, n = np.random.default_rng(0), 24
    k = rng.binomial(n, 0.5, 400_000)
    step = np.log(2 * rng.chisquare(k[k > 0]) / n)
    mean, variance = theory.step_mean_variance("relu", n)
    assert abs(step.mean() - mean) < 4 * np.sqrt(variance / step.size)
    assert step.var() == pytest.approx(variance, rel=0.015)


@pytest.mark.parametrize(
    "activation, orthogonal, expected",
    [
        ("identity", False, 2),
        ("relu", False, 5),
        ("identity", True, 0),
        ("relu", True, 3),
        (theory.leaky_relu(0.3), False, 6 * 1.0081 / 1.09**2 - 1),
    ],
)
def test_kappa(activation, orthogonal, expected):
    assert theory.kappa(activation, orthogonal=orthogonal) == pytest.approx(expected, abs=1e-12)


def test_a_batch_of_identical_examples_fluctuates_as_one():
    relu = BackwardMap(h=1.0, m=2.0, m1=2.0)
    assert batch_step([relu], 1.0, 50, 16, 1.0) == pytest.approx((5 / 50, 1.0))
    linear = BackwardMap(1.0, 1.0, 1.0)
    assert batch_step([linear], 1.0, 50, 16, 0.2)[0] == pytest.approx(
        2 / 50 * (1 / 16 + 15 / 16 * 0.2)
    )
    assert batch_step([linear], 0.2, 50, 1, 1.0)[0] == pytest.approx(
        (4 / 4 + 2 / 16) / (1.25**2 * 50)
    )
    orthogonal = BackwardMap(1.0, 1.0, 1.0, orthogonal=1.0)
    assert batch_step([orthogonal], 1.0, 50, 16, 0.2) == pytest.approx((0.0, 0.2))
