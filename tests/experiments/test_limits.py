"""Limits: numbers that no float or memory holds are refused in one line, before any work."""

import tracemalloc

import numpy as np
import pandas as pd
import pytest

import flowlab
from flowlab.errors import InputError
from flowlab.measurement.rows import layout
from flowlab.measurement.setup import Batches, affordable, least, needed
from flowlab.networks import build

GIB = 2**30


def message(call, *args, **axes):
    with pytest.raises(InputError) as caught:
        call(*args, **axes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


COUNTS = ("depth", "width", "batch_size", "seeds", "threads")
OF_GROUPS = {"network": ("channels", "image", "kernel_size"), "data": ("features", "classes")}


@pytest.mark.parametrize("value", [2**31, 10**20, 10**400])
def test_counts_have_an_upper_bound(value):
    for name in COUNTS:
        line = message(flowlab.make, **{name: value})
        assert line == f"{name} must be at most 2147483647; got {value}"
    for group, names in OF_GROUPS.items():
        choice = {"network": "cnn", "data": "gaussian"}[group]
        for name in names:
            line = message(flowlab.make, **{group: {"name": choice, name: value}})
            assert line == f"{group}.{name} must be at most 2147483647; got {value}"
    for name in ("steps", "heads", "expansion"):
        line = message(flowlab.make, network={"name": "transformer", name: value})
        assert line == f"network.{name} must be at most 2147483647; got {value}"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1.0, 0.0])
def test_scales_are_finite_and_positive(value):
    for axes in (
        {"init": {"gain": value}},
        {"init": {"name": "normal", "sigma_w": value}},
        {"network": {"name": "rnn", "radius": value}},
        {"memory_gib": value},
    ):
        assert "must be a finite number above 0; got" in message(flowlab.make, **axes)
    if value != 0:
        line = message(flowlab.make, init={"sigma_b": value})
        assert line == f"init.sigma_b must be a finite number, at least 0; got {value}"
    if not np.isfinite(value):
        line = message(flowlab.make, network={"name": "lstm", "forget_bias": value})
        assert line == f"network.forget_bias must be finite; got {value}"


@pytest.mark.parametrize("value", [1e151, 1e200, 1e300, 1e-151, 1e-300, 5e-324])
def test_squares_of_scales_are_in_range(value):
    for axes, name in (
        ({"init": {"gain": value}}, "init.gain"),
        ({"init": {"name": "normal", "sigma_w": value}}, "init.sigma_w"),
        ({"init": {"sigma_b": value}}, "init.sigma_b"),
        ({"network": {"name": "rnn", "radius": value}}, "network.radius"),
    ):
        line = message(flowlab.make, **axes)
        assert line == f"{name} must be from 1e-150 to 1e+150; got {value:g}"
    flowlab.make(init={"gain": 1e150 if value > 1 else 1e-150})


def test_products_of_scales_are_in_range():
    line = message(flowlab.make, init={"name": "normal", "gain": 1e100, "sigma_w": 1e100})
    assert line == "init.gain times init.sigma_w must be from 1e-150 to 1e+150; got 1e+200"
    line = message(flowlab.make, init={"gain": 1e-100}, network={"name": "rnn", "radius": 1e-100})
    assert line == "init.gain times network.radius must be from 1e-150 to 1e+150; got 1e-200"
    line = message(flowlab.make, init={"gain": 10**400})
    assert line.startswith("init.gain must be in float64's range; got 1000")


NETS = [
    *({"network": n} for n in ("mlp", "cnn", "resnet", "rnn", "lstm", "gru", "transformer")),
    {"skip": "identity"},
    {"skip": "rezero", "norm": "layer"},
    {"skip": "fixup"},
    {"network": {"name": "transformer", "placement": "post"}},
]


@pytest.mark.parametrize("axes", NETS)
@pytest.mark.parametrize("upstream", ["loss", "gaussian"])
def test_what_is_needed_is_what_the_whole_net_declares(axes, upstream):
    for depth in (2, 3, 4, 5, 6, 9):
        run = flowlab.make(**axes, upstream=upstream, depth=depth, width=16, dtype="float64")
        batches = Batches(run)
        network = build(run, batches.classes if upstream == "loss" else None)
        steps = (depth - 1) * batches.example[0] if network.steps else 0
        rows = sum(map(len, layout(network, batches.shape))) + steps
        expected = 8 * network.chain.declare(batches.shape).elements, 1024 * rows
        np.testing.assert_allclose(needed(run, batches), np.divide(expected, GIB), rtol=1e-14)


@pytest.mark.parametrize(
    ("training", "state", "logged"),
    [
        ({"name": "sgd", "steps": 10}, 0, 6),  # 1, 2, 3, 5, 8 and the last
        ({"name": "sgd", "momentum": 0.9, "steps": 10, "log": 1}, 1, 10),
        ({"name": "adam", "steps": 9, "log": 4}, 2, 4),  # 1, 4, 8 and the last
    ],
)
def test_a_training_needs_gradients_and_the_optimizers_state_too(training, state, logged):
    axes = {"depth": 9, "width": 32, "dtype": "float64", "data": "gaussian"}
    plain, run = flowlab.make(**axes), flowlab.make(**axes, training=training)
    parameters = 8 * 32 * 32 + 32 * 10 + 8 * 32 + 10
    assert len(run.training.logged(run.training.steps)) == logged
    network, row = needed(plain, Batches(plain))
    more, rows = needed(run, Batches(run))
    assert round((more - network) * GIB) == 8 * (2 + state) * parameters
    assert rows == pytest.approx(logged * row)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_training_takes_what_is_needed(optimizer):
    training = {"name": optimizer, "steps": 3}
    axes = {"depth": 6, "width": 512, "batch_size": 8, "seeds": 4, "threads": 2}
    run = flowlab.make(**axes, training=training)
    flowlab.train(flowlab.make(**axes | {"width": 8}, training=training))  # compiled, data loaded
    tracemalloc.start()
    flowlab.train(run)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.7 < peak / (GIB * 4 * needed(run, Batches(run))[0]) < 1.4


@pytest.mark.parametrize("threads", [1, 2])
def test_a_deep_net_takes_the_memory_that_it_may(threads):
    axes = {"depth": 1500, "width": 64, "batch_size": 32, "seeds": 2, "data": "gaussian"}
    axes |= {"upstream": "gaussian", "threads": threads, "dtype": "float64"}
    whole, row = needed(flowlab.make(**axes), Batches(flowlab.make(**axes)))
    flowlab.measure(**axes | {"depth": 60})  # compiled
    tables = []
    for gib in (2 * whole + 3 * row, 0.5 * whole, 0.12 * whole + 2 * row):
        tracemalloc.start()
        tables.append(flowlab.measure(**axes, memory_gib=gib))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert 0.5 < peak / (GIB * gib) < 1.2
    assert least(flowlab.make(**axes), Batches(flowlab.make(**axes)))[0] < 0.06 * whole
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0], check_exact=True)


def test_parts_of_a_training_share_the_memory():
    training = {"name": "sgd", "momentum": 0.9, "steps": 2}
    axes = {"depth": 6, "width": 512, "batch_size": 8, "seeds": 6, "threads": 1}
    run = flowlab.make(**axes, training=training)
    one = needed(run, Batches(run))[0]
    tight = flowlab.make(**axes, training=training, memory_gib=1.5 * one)
    whole = flowlab.train(run)
    tracemalloc.start()
    parts = flowlab.train(tight)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.6 * one * GIB
    for name in ("table", "curve"):
        ours, theirs = getattr(parts, name), getattr(whole, name)
        pd.testing.assert_frame_equal(ours, theirs, check_exact=True)


def test_a_table_of_so_many_rows_takes_so_much_memory():
    run = flowlab.make(depth=300, width=1, batch_size=1, seeds=100, data="gaussian", init="lecun")
    batches = Batches(run)
    tracemalloc.start()
    table = flowlab.measure(run)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.3 < peak / (GIB * needed(run, batches)[1] * 100) < 1.5
    assert len(table) == 30_000


@pytest.mark.parametrize(
    ("axes", "line"),
    [
        (
            {"depth": 50, "width": 100_000},
            # one map of 10^10 weights, 49 arrays of 128 times 10^5 activations, in 4 bytes each
            "memory_gib must be at least 39.59 for depth=50 width=100000 batch_size=128 "
            "seeds=16; got 2",
        ),
        ({"depth": 2**31 - 1}, "memory_gib must be at least 32,776.02 for"),
        ({"depth": 2**31 - 1, "width": 1, "batch_size": 1}, "memory_gib must be at least 32,"),
        ({"depth": 2, "width": 2**31 - 1}, "memory_gib must be at least 8.00 for"),
        ({"seeds": 2**31 - 1, "width": 1}, "memory_gib must be at least 102,"),
        ({"data": {"name": "gaussian", "features": 2**31 - 1}}, "memory_gib must be at least"),
        ({"data": {"name": "gaussian", "classes": 2**31 - 1}}, "memory_gib must be at least"),
        ({"data": "gaussian", "batch_size": 2**31 - 1}, "memory_gib must be at least"),
        ({"network": "transformer", "width": 2**31 - 4}, "memory_gib must be at least"),
        ({"data": "gaussian", "network": {"name": "cnn", "image": 10**6}}, "memory_gib must"),
        ({"data": "gaussian", "network": {"name": "rnn", "steps": 2**31 - 1}}, "memory_gib must"),
        ({"width": 2000, "memory_gib": 0.03}, "memory_gib must be at least 0.05 for"),
        ({"width": 2000, "memory_gib": 1.5, "training": "adam"}, "memory_gib must be at least 3.6"),
        (
            {"training": {"name": "sgd", "steps": 2**31 - 1, "log": 1}},
            "memory_gib must be at least 1,638,400.",
        ),
    ],
)
def test_a_run_that_needs_too_much_is_refused_before_it_takes_any(axes, line):
    run = flowlab.make(**axes)
    Batches(flowlab.make())  # the digits, which are kept
    tracemalloc.start()
    assert line in message(flowlab.measure, run)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1e7


def test_theory_and_shapes_of_wide_nets_need_no_network():
    run = flowlab.make(depth=4, width=100_000, batch_size=4, seeds=1, upstream="gaussian")
    affordable(run, Batches(run), ensemble=False)
    assert flowlab.predict(run)["delta_log10_norm"].notna().all()
    deep = flowlab.make(depth=2**31 - 1, width=1)
    assert "memory_gib must be at least 2,048.00 for depth=" in message(flowlab.predict, deep)


def test_small_runs_always_may():
    run = flowlab.make(depth=3, width=4, batch_size=4, seeds=2, memory_gib=1e-9)
    assert (flowlab.measure(run)["status"] == "ok").all()


@pytest.mark.parametrize(
    ("scale", "dtype", "fits"),
    [
        (1e38, "float32", False),
        (1e200, "float32", False),
        (1e-38, "float32", False),
        (1e-200, "float32", False),
        (1e30, "float32", True),
        (1e-30, "float32", True),
        (1e100, "float64", True),
        (1e151, "float64", False),
        (1e-151, "float64", False),
        (1e307, "float64", False),
    ],
)
def test_data_must_fit_the_type(tmp_path, scale, dtype, fits):
    x = np.random.default_rng(0).uniform(0.5, 1, (12, 3))
    x[0, 0] = 1
    np.savez(tmp_path / "a.npz", X=scale * x, y=np.arange(12) % 3)
    axes = {"depth": 2, "width": 4, "batch_size": 4, "seeds": 2, "dtype": dtype}
    data = {"name": "file", "path": str(tmp_path / "a.npz"), "standardise": False}
    if fits:
        table = flowlab.measure(flowlab.make(data=data, **axes))
        assert (table["status"] == "ok").all()
        assert np.isfinite(flowlab.predict(flowlab.make(data=data, **axes))["q"]).all()
        return
    line = message(flowlab.measure, flowlab.make(data=data, **axes))
    least, most = ("1e-37", "1e+37") if dtype == "float32" else ("1e-150", "1e+150")
    assert line.startswith(
        f"inputs of a.npz must have their largest size between {least} and {most} in "
        f"dtype={dtype}; got {scale:.3g}; data.standardise=true"
    )
    standard = flowlab.make(data=data | {"standardise": True}, **axes)
    assert (flowlab.measure(standard)["status"] == "ok").all()
