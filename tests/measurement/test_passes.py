"""Measurement: rows are true, at any depth, and their bits depend on the settings alone."""

import math

import numpy as np
import pandas as pd
import pytest

import flowlab
from flowlab import data
from flowlab.analysis.statistics import backward_slope
from flowlab.analysis.verdicts import judge
from flowlab.initializers import Initializer
from flowlab.layer import Parameter
from flowlab.measurement import ensemble
from flowlab.measurement.ensemble import _parts
from flowlab.measurement.setup import prepare
from flowlab.numerics import random
from flowlab.schema import DELTA, NORMS

GAUSSIAN = {"upstream": "gaussian", "data": "gaussian"}
SMALL = {"depth": 4, "width": 8, "batch_size": 6, "seeds": 3}


def table(**axes) -> pd.DataFrame:
    return flowlab.measure(flowlab.make(**axes))


def drawn(settings, shape, seed, layer, role=0) -> np.ndarray:
    """Layer weights as the seed contract has them."""
    out = np.empty((1, *shape), settings.dtype)
    parameter = Parameter(shape, fan_in=shape[0], fan_out=shape[1])
    Initializer(settings.init).draw(parameter, np.array([seed]), layer, role, out)
    return out[0].astype(float)


def upstream(settings, shape, seed) -> np.ndarray:
    out = np.empty((1, math.prod(shape)), settings.dtype)
    weight = 1 / settings.batch_size if settings.reduction == "mean" else 1.0
    random.fill_normal.run(np.array([seed]), np.array([2**32 - 1]), out, weight, 0)
    return out.reshape(shape).astype(float)


def norm(a) -> float:
    return math.log10(np.linalg.norm(a)) if np.any(a) else -math.inf


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_plain_net_agrees_with_backpropagation_by_hand(reduction):
    settings = flowlab.make(dtype="float64", reduction=reduction, **SMALL, **GAUSSIAN)
    got = flowlab.measure(settings).set_index(["seed", "layer"])
    for seed in range(3):
        x, _ = data.load(settings.data, 8, 6, seed).batch(6, seed)
        h, inputs, masks = x, [], []
        weights = [drawn(settings, (8, 8), seed, layer) for layer in (1, 2, 3, 4)]
        activations = []
        for index, W in enumerate(weights):
            z = h @ W
            inputs.append(h)
            masks.append(z > 0 if index < 3 else np.ones_like(z))
            h = z * masks[-1]
            activations.append(h)
        dy = upstream(settings, h.shape, seed)
        for layer in (4, 3, 2, 1):
            delta = dy * masks[layer - 1]
            dy = delta @ weights[layer - 1].T
            expected = [activations[layer - 1], delta, dy, inputs[layer - 1].T @ delta]
            expected.append(delta.sum(axis=0))
            row = got.loc[(seed, layer)]
            for name, value in zip(NORMS, expected, strict=True):
                assert row[name] == pytest.approx(norm(value), rel=1e-12, abs=1e-12), name


def test_residual_rows_carry_the_gradient_of_the_sum():
    settings = flowlab.make(skip="mix", activation="tanh", dtype="float64", **SMALL, **GAUSSIAN)
    got = flowlab.measure(settings).set_index(["seed", "layer"])
    s = math.sqrt(0.5)
    x, _ = data.load(settings.data, 8, 6, 0).batch(6, 0)
    z = x @ drawn(settings, (8, 8), 0, 1)
    states, weights = [z], [drawn(settings, (8, 8), 0, layer) for layer in (2, 3, 4)]
    for W in weights:
        states.append(s * (states[-1] + np.tanh(states[-1]) @ W))
    dy = upstream(settings, z.shape, 0)
    for layer in (4, 3, 2):
        before, W = states[layer - 2], weights[layer - 2]
        into = s * dy @ W.T
        row = got.loc[(0, layer)]
        assert row["activation_log10_norm"] == pytest.approx(norm(states[layer - 1]), rel=1e-12)
        assert row[DELTA] == pytest.approx(norm(dy), rel=1e-12)
        assert row["dX_log10_norm"] == pytest.approx(norm(into), rel=1e-12)
        assert row["dW_log10_norm"] == pytest.approx(norm(np.tanh(before).T @ (s * dy)), rel=1e-12)
        dy = s * dy + (1 - np.tanh(before) ** 2) * into
    assert got.loc[(0, 1)][DELTA] == pytest.approx(norm(dy), rel=1e-12)


def test_loss_upstream_is_softmax_minus_onehot():
    settings = flowlab.make(depth=1, width=8, batch_size=6, seeds=2, dtype="float64")
    got = flowlab.measure(settings).set_index("seed")
    x, labels = data.load(settings.data, 8, 6, 1).batch(6, 1)
    logits = x @ drawn(settings, (64, 10), 1, 1)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    delta = (p - np.eye(10)[labels]) / 6
    assert got.loc[1, DELTA] == pytest.approx(norm(delta), rel=1e-10)
    assert got.loc[1, "dW_log10_norm"] == pytest.approx(norm(x.T @ delta), rel=1e-10)


@pytest.mark.parametrize("axes", [{}, {"skip": "fixup"}, {"activation": "gelu"}])
def test_bits_do_not_depend_on_parts_or_threads(axes):
    whole = table(depth=6, width=12, batch_size=5, seeds=7, threads=1, **axes)
    parts = table(depth=6, width=12, batch_size=5, seeds=7, threads=3, memory_gib=1e-9, **axes)
    pd.testing.assert_frame_equal(whole, parts, check_exact=True)
    later = table(depth=6, width=12, batch_size=5, seeds=2, seed=5, **axes)
    columns = ["seed", "layer", "op", *NORMS]
    pd.testing.assert_frame_equal(
        whole[whole["seed"] >= 5][columns].reset_index(drop=True), later[columns], check_exact=True
    )


def test_nets_of_different_depth_share_their_first_layers():
    shallow, deep = (table(depth=d, width=16, seeds=3, **GAUSSIAN) for d in (4, 9))
    first = [t[t["layer"] <= 3]["activation_log10_norm"].to_numpy() for t in (shallow, deep)]
    np.testing.assert_array_equal(*first)


def test_exponents_change_no_bit_where_floats_suffice(monkeypatch):
    settings = flowlab.make(init="xavier", depth=64, width=32, seeds=2, **GAUSSIAN)
    carried = flowlab.measure(settings)
    monkeypatch.setattr("flowlab.numerics.scale._COMFORT", 10**9)
    ensemble.forget()  # whose programs hold the constant
    plain = flowlab.measure(settings)
    # Only the logarithm's rounding differs: the mantissas are the same.
    np.testing.assert_allclose(carried[DELTA], plain[DELTA], rtol=0, atol=1e-12)
    assert carried[DELTA].min() < -9  # the exponent was in use


def test_float32_measures_what_float64_does_far_below_its_range():
    axes = {"init": "xavier", "depth": 400, "width": 32, "seeds": 2, **GAUSSIAN}
    single, double = (table(dtype=dtype, **axes) for dtype in ("float32", "float64"))
    assert single[DELTA].min() < -50  # float32 ends at 1e-45
    np.testing.assert_allclose(single[DELTA], double[DELTA], rtol=0, atol=2e-4)
    np.testing.assert_allclose(
        single["activation_log10_norm"], double["activation_log10_norm"], rtol=0, atol=2e-4
    )


@pytest.mark.parametrize("init", ["xavier", "literal"])
@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error"])
def test_depth_beyond_every_float_is_finite(init, loss):
    t = table(init=init, depth=3000, width=16, batch_size=4, seeds=2, loss=loss)
    assert np.isfinite(t[list(NORMS)].to_numpy()).all()
    assert (t["status"] == "ok").all()
    assert abs(t["activation_log10_norm"]).max() > 320


def test_biases_are_scaled_along_with_activations():
    axes = {"depth": 200, "width": 16, "seeds": 2, **GAUSSIAN}
    init = {"name": "normal", "sigma_w": 4.0, "sigma_b": 1.0}
    single, double = (table(dtype=d, init=dict(init), **axes) for d in ("float32", "float64"))
    assert single["activation_log10_norm"].max() > 60
    np.testing.assert_allclose(
        single["activation_log10_norm"], double["activation_log10_norm"], rtol=0, atol=1e-3
    )


def test_status_tells_where_forward_values_left_the_range():
    axes = {"depth": 300, "width": 16, "batch_size": 4, "seeds": 2, **GAUSSIAN}
    vanished = table(init={"name": "normal", "sigma_w": 0.5}, activation="tanh", **axes)
    lost = vanished["status"] == "lost"
    assert lost.any() and not lost.all()
    assert vanished.loc[lost, "activation_log10_norm"].isna().all()
    assert not np.isneginf(vanished[list(NORMS)].to_numpy()).any()
    # The gradient is still true: the slope of tanh at zero is one.
    assert np.isfinite(vanished[DELTA]).all()
    exploded = table(init={"name": "normal", "sigma_w": 30.0}, activation="gelu", **axes)
    assert (exploded["status"] == "nonfinite").any()


def test_exact_zeros_are_minus_infinity_and_say_so():
    t = table(skip="rezero", depth=4, width=8, batch_size=4, seeds=2)
    inner = t[(t["op"] == "linear") & t["layer"].between(2, 3)]
    assert np.isneginf(inner["dW_log10_norm"]).all() and (inner["status"] == "zero").all()
    scale = t[t["op"] == "scale"]
    assert np.isfinite(scale[["delta_log10_norm", "dW_log10_norm"]].to_numpy()).all()
    assert scale["db_log10_norm"].isna().all()


@pytest.mark.parametrize(
    ("axes", "slope"),
    [
        ({"init": "xavier"}, -math.log10(2) / 2),
        ({"init": "he"}, 0.0),
        ({"init": "he", "skip": "identity"}, math.log10(2) / 2),
        ({"init": "he", "skip": "mix"}, 0.0),
        ({"init": "xavier", "activation": "identity"}, 0.0),
        ({"init": "torch_default", "activation": "identity"}, -math.log10(3) / 2),
        ({"init": {"name": "orthogonal", "gain": math.sqrt(2)}}, 0.0),
    ],
)
def test_rates_agree_with_theory(axes, slope):
    """Backward slopes in decades per layer; finite width shifts them by κ/(4N ln 10) at most."""
    settings = flowlab.make(depth=24, width=128, seeds=12, batch_size=32, **axes, **GAUSSIAN)
    t = flowlab.measure(settings)
    interval = backward_slope(t)
    drift = 5 / (4 * 128 * math.log(10))
    assert abs(interval.mean - slope) < 4 * interval.se + drift
    assert judge(t, flowlab.predict(settings)).agreement == "agrees"


def test_verdict_fails_when_theory_is_of_another_init():
    t = table(init="xavier", depth=30, width=64, seeds=6, **GAUSSIAN)
    wrong = flowlab.predict(flowlab.make(init="he", depth=30, width=64, seeds=6, **GAUSSIAN))
    assert judge(t, wrong).agreement == "no theory"
    verdict = judge(t, wrong.assign(run=t["run"].iat[0]))
    assert (verdict.trend, verdict.agreement) == ("vanishing", "differs")


def test_batch_beyond_the_data_is_refused():
    with pytest.raises(flowlab.InputError, match="batch_size must be at most the 1797 rows"):
        table(batch_size=2000, depth=2, width=4, seeds=1)


def test_parts_fit_the_memory_budget():
    setup = prepare(flowlab.make(depth=50, width=64, seeds=16, memory_gib=0.01, threads=2))
    parts = [seeds for seeds, _ in _parts(setup)]
    one = setup.network.chain.declare(setup.shape).elements * 4
    assert 2 * max(map(len, parts)) * one <= 0.01 * 2**30 or max(map(len, parts)) == 1
    np.testing.assert_array_equal(np.concatenate(parts), setup.seeds)


def test_progress_counts_every_block_twice():
    calls = []
    settings = flowlab.make(depth=5, width=4, batch_size=4, seeds=2, threads=1)
    flowlab.measure(settings, lambda done, total: calls.append((done, total)))
    assert [done for done, _ in calls] == list(range(1, 11))
    assert {total for _, total in calls} == {10}
