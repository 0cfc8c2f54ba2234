"""Losses against frameworks and NumPy, and of outputs beside an exponent."""

import math

import numpy as np
import pytest

from flowlab.layer import Workspace
from flowlab.layers import SoftmaxCrossEntropy, SquaredError
from tests.support import naive
from tests.support.passes import close, run

SEEDS, BATCH, CLASSES = 2, 6, 3
REDUCTIONS = ("mean", "sum")
LABEL = np.random.default_rng(5).integers(0, CLASSES, (SEEDS, BATCH))
TARGET = np.random.default_rng(6).standard_normal((SEEDS, BATCH, CLASSES))
ZERO = np.zeros(SEEDS, int)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    "kind, target",
    [(SoftmaxCrossEntropy, {"label": LABEL}), (SquaredError, {"target": TARGET})],
    ids=["softmax_cross_entropy", "squared_error"],
)
def test_against_frameworks(apart, kind, target, reduction):
    assert apart(kind(reduction), (BATCH, CLASSES), {**target, "exponent": ZERO}) < 1e-12


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_against_numpy(reduction):
    z = np.random.default_rng(7).standard_normal((SEEDS, BATCH, CLASSES))
    one = np.ones(SEEDS)
    for loss, name, target, oracle in (
        (SoftmaxCrossEntropy, "label", LABEL, naive.cross_entropy),
        (SquaredError, "target", TARGET, naive.squared_error),
    ):
        given = {name: target, "exponent": ZERO}
        value, dz, _ = run(loss(reduction), z, given, one)
        for s in range(SEEDS):
            expected = oracle(z[s], target[s], reduction == "mean")
            close(value[s], expected[0])
            close(dz[s], expected[1])


def test_cross_entropy_of_a_sure_and_right_answer():
    """Where p rounds to 1 the loss is still Σ e^(z_k - z_label), and so is the gradient."""
    z, label = np.array([[[60.0, 0.0, 0.0]]]), np.zeros((1, 1), int)
    given = {"label": label, "exponent": np.zeros(1, int)}
    _, dz, _ = run(SoftmaxCrossEntropy(), z, given, np.ones(1))
    p = math.exp(-60.0)
    np.testing.assert_allclose(dz[0, 0], [-2 * p, p, p], rtol=1e-14)


@pytest.mark.parametrize("exponent", [-5, 3, 40, 2000])
def test_cross_entropy_of_logits_beside_an_exponent(exponent):
    """The true logits are z 2^e; the cotangent belongs to those logits."""
    z = np.array([[[0.25, -1.0, 0.5], [0.5, 0.125, 0.25]]])
    label = np.array([[2, 1]])
    given = {"label": label, "exponent": np.array([exponent])}
    loss, dz, _ = run(SoftmaxCrossEntropy("sum"), z, given, np.ones(1))
    if exponent <= 3:
        expected, expected_dz = naive.cross_entropy(np.ldexp(z[0], exponent), label[0], False)
        np.testing.assert_allclose(loss[0], expected, rtol=1e-14)
    else:  # a saturated softmax: the largest logit takes all
        expected_dz = np.array([[0, 0, 0], [1, -1, 0]])
        assert loss[0] == np.ldexp(0.375, exponent) if exponent < 1000 else np.isinf(loss[0])
    np.testing.assert_allclose(dz[0], expected_dz, atol=1e-15)


@pytest.mark.parametrize("exponent", [-5, 0, 3, 600])
def test_squared_error_of_outputs_beside_an_exponent(exponent):
    """The cotangent is written beside 2^max(e, 0), which keeps it finite."""
    z, given = TARGET[:1] + 0.5, {"target": TARGET[:1], "exponent": np.array([exponent])}
    _, dz, _ = run(SquaredError("sum"), z, given, np.ones(1))
    expected = 2 * (np.ldexp(z, exponent) - TARGET[:1])
    np.testing.assert_allclose(dz, expected, rtol=1e-12, atol=1e-15)
    dz, kept = SquaredError("sum").cotangent(z, given, Workspace())
    assert kept[0] == max(exponent, 0)
    np.testing.assert_allclose(np.ldexp(dz, kept[0]), expected, rtol=1e-12, atol=1e-15)
