"""Regression: a file's numbers as targets under squared error, measured and predicted."""

import numpy as np
import pandas as pd
import pytest

import flowlab
from flowlab.errors import InputError


@pytest.fixture
def path(tmp_path):
    rng = np.random.default_rng(3)
    frame = pd.DataFrame(rng.standard_normal((64, 5)), columns=list("abcde"))
    frame["target"] = np.round(100 + 30 * rng.standard_normal(64), 2)
    frame.to_csv(tmp_path / "a.csv", index=False)
    return tmp_path / "a.csv"


def settings(path, standardise=True, **axes):
    data = {"name": "file", "path": str(path), "standardise": standardise}
    axes = {"loss": "squared_error", "batch_size": 64, "dtype": "float64", "seeds": 3} | axes
    return flowlab.make(data=data, **{"depth": 3, "width": 16} | axes)


@pytest.mark.parametrize("standardise", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_delta_of_small_logits_is_minus_twice_the_target(path, standardise, reduction):
    """2(z - t)/B → -2t/B as z → 0: with standardised targets of all rows, of norm 2/√B."""
    run = settings(path, standardise, reduction=reduction, init={"gain": 1e-6})
    table = flowlab.measure(run)
    last = table[table["layer"] == 3]
    assert (last["fan_out"] == 1).all()
    target = pd.read_csv(path)["target"]
    target = (target - target.mean()) / target.std(ddof=0) if standardise else target
    expected = 2 * np.sqrt(np.square(target).sum()) / (64 if reduction == "mean" else 1)
    assert standardise == np.isclose(expected, 0.25 if reduction == "mean" else 16)
    np.testing.assert_allclose(10 ** last["delta_log10_norm"], expected, rtol=1e-9)
    # The bias's gradient is the sum of the deltas; that of standardised targets is 0.
    if not standardise:
        total = 2 * abs(target.sum()) / (64 if reduction == "mean" else 1)
        np.testing.assert_allclose(10 ** last["db_log10_norm"], total, rtol=1e-9)


@pytest.mark.parametrize("network", [{"name": "mlp"}, {"name": "cnn", "channels": 5}])
@pytest.mark.parametrize("standardise", [True, False])
def test_theory_counts_the_targets(path, network, standardise):
    """E‖2(z - t)‖² = 4B(K q + E‖t‖²), here with a q that is far below the targets."""
    run = settings(path, standardise, network=network, init={"gain": 1e-4})
    measured = flowlab.measure(run).query("layer == 3")["delta_log10_norm"].dropna()
    predicted = flowlab.predict(run).query("layer == 3")["delta_log10_norm"].dropna()
    assert len(measured) == 3 and len(predicted) == 1
    np.testing.assert_allclose(measured, predicted.iat[0], atol=1e-5)


def test_large_logits_add_to_the_targets(path):
    """Over seeds, E‖δ‖² B²/4 = B(K q + 1) with q of the logits; 5 standard errors."""
    run = settings(path, depth=1, init={"name": "normal", "sigma_w": 3.0}, seeds=400)
    squares = 10 ** (2 * flowlab.measure(run)["delta_log10_norm"].to_numpy()) * 64 / 4
    data = pd.read_csv(path).iloc[:, :5]
    x = ((data - data.mean()) / data.std(ddof=0)).to_numpy()
    expected = 9 * np.square(x).sum(axis=1).mean() / 5 + 1
    error = squares.std(ddof=1) / np.sqrt(400)
    assert abs(squares.mean() - expected) < 5 * error
    assert error < 0.1 * expected


def test_classes_stay_classes_under_squared_error(path):
    frame = pd.read_csv(path)
    frame["target"] = np.arange(64) % 4
    frame.to_csv(path, index=False)
    table = flowlab.measure(settings(path))
    assert (table.query("layer == 3")["fan_out"] == 4).all()


def test_cross_entropy_refuses_a_target(path):
    with pytest.raises(InputError, match=r"got .* in row 1; a regression takes loss=squared_error"):
        flowlab.measure(settings(path, loss="cross_entropy"))
    # An upstream gradient that reads no labels takes any.
    table = flowlab.measure(settings(path, loss="cross_entropy", upstream="gaussian"))
    assert (table["status"] == "ok").all()
