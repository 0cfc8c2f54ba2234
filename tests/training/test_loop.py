"""Training as a whole: what its rows and curve hold, and what they depend on."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

import flowlab
from flowlab.analysis.training import outcome
from flowlab.errors import InputError
from flowlab.layer import leaves
from flowlab.measurement.setup import Batches, prepare
from flowlab.settings import make
from flowlab.training import loop
from flowlab.training.loop import Part

SMALL = {"depth": 3, "width": 12, "batch_size": 16, "seeds": 3}
NETS = {
    "mlp": {},
    "batch norm": {"norm": "batch"},
    "fixup": {"skip": "fixup", "depth": 4},
    "deep": {"depth": 30},
    "cnn": {"network": "cnn", "width": 4, "depth": 4},
    "resnet": {"network": "resnet", "width": 4, "depth": 4},
    "rnn": {"network": "rnn", "depth": 3},
    "lstm": {"network": "lstm", "depth": 2},
    "gru": {"network": "gru", "depth": 2},
    "transformer": {"network": "transformer", "width": 8, "depth": 6},
}
OF_STEPS = ["step", "W_log10_norm", "update_log10_norm", "W_turn"]


def settings(net="mlp", **training):
    axes = {**SMALL, **NETS[net]}
    return make(training={"name": "sgd", "steps": 4, "lr": 0.05, **training}, **axes)


def plain(table):
    return table.drop(columns=OF_STEPS).reset_index(drop=True)


@pytest.mark.parametrize("net", NETS)
def test_the_first_step_measures_what_a_measurement_does(net):
    run = settings(net)
    table = loop.train(run).table
    measured = flowlab.measure(run)
    pd.testing.assert_frame_equal(
        plain(table[table["step"] == 1]), plain(measured), check_exact=True
    )


@pytest.mark.parametrize("net", NETS)
def test_every_network_learns_a_batch_of_its_own(net):
    """Over and over the same few examples: the loss falls in every network."""
    x = np.random.default_rng(0).standard_normal((20, 64))
    axes = {**SMALL, **NETS[net], "batch_size": 16}
    adam = {"name": "adam", "lr": 0.01, "steps": 60, "log": 60}
    curve = flowlab.train(data=(x, np.arange(20) % 4), training=adam, **axes).curve
    first, last = (curve[curve["step"] == step]["training_loss"].to_numpy() for step in (1, 60))
    assert (last < 0.8 * first).all()


@pytest.mark.parametrize("net", ["mlp", "batch norm", "lstm"])
def test_neither_threads_nor_the_other_seeds_change_a_bit(net):
    run = settings(net, momentum=0.9, clip="norm", clip_at=0.5)
    whole = loop.train(replace(run, threads=2))
    single = loop.train(replace(run, threads=1))
    pd.testing.assert_frame_equal(whole.table, single.table, check_exact=True)
    pd.testing.assert_frame_equal(whole.curve, single.curve, check_exact=True)
    alone = loop.train(replace(run, seed=2, seeds=1))
    for one, other in ((whole.table, alone.table), (whole.curve, alone.curve)):
        own = one[one["seed"] == 2].reset_index(drop=True)
        columns = [name for name in own if name not in ("run", "seeds")]
        pd.testing.assert_frame_equal(own[columns], other[columns], check_exact=True)


def test_how_often_is_logged_changes_no_number():
    rare, often = (loop.train(settings("batch norm", log=log)) for log in (4, 1))
    both = set(rare.curve["step"])
    for one, other in ((rare.table, often.table), (rare.curve, often.curve)):
        other = other[other["step"].isin(both)].reset_index(drop=True)
        columns = [c for c in one if c not in ("run", "training_log", "clipped")]
        pd.testing.assert_frame_equal(one[columns], other[columns], check_exact=True)


def test_logged_steps_are_those_of_the_schedule():
    trained = loop.train(settings(steps=10))
    assert trained.curve["step"].unique().tolist() == [1, 2, 3, 5, 8, 10]
    assert trained.table["step"].unique().tolist() == [1, 2, 3, 5, 8, 10]
    assert trained.curve.groupby("step").size().eq(3).all()


def test_an_epoch_goes_through_every_example_once():
    batches = Batches(settings())
    rows, taken = batches.rows, []
    for step in range(1, 2 * rows // 16 + 1):
        x, _ = batches([5], step)
        taken.append(x[0])
    taken = np.concatenate(taken)
    first = {row.tobytes() for row in taken[:rows]}
    assert len(first) == len({row.tobytes() for row in batches._sources(5)[0].x.astype("f4")})
    assert {row.tobytes() for row in taken[rows:]} <= first
    assert not np.array_equal(taken[:16], taken[rows : rows + 16])  # another order


def test_what_is_held_out_is_never_trained_on():
    batches = Batches(settings())
    training, held = batches._sources(0)
    own = {row.tobytes() for row in training.x}
    shared = sum(row.tobytes() in own for row in held.x)
    assert shared <= 3  # digits that occur twice
    assert len(training.x) + len(held.x) == 1797 and batches.held_out == len(held.x)


def test_a_network_that_diverges_is_recorded_and_leaves_the_others_alone():
    run = settings(steps=12, lr=0.05, log=1)
    setup = prepare(run)
    part, same = (Part(setup, setup.seeds) for _ in range(2))
    for step in range(1, 6):
        part.step(step, 0.05)
        same.step(step, 0.05)
    next(array for _, array in leaves(part.held.held[1]))[1] = 3e38
    logs = [part.log(step, 0.05) for step in range(6, 9)]
    steady = [same.log(step, 0.05) for step in range(6, 9)]
    for log, other in zip(logs, steady, strict=True):
        assert log.curve["training_status"].tolist() == ["ok", "diverged", "ok"]
        assert log.curve["diverged_step"][1] == 6
        np.testing.assert_array_equal(
            log.curve["training_loss"][[0, 2]], other.curve["training_loss"][[0, 2]]
        )


def test_divergence_is_a_result():
    trained = flowlab.train(training={"name": "sgd", "lr": 1e4, "steps": 30}, **SMALL)
    last = trained.curve[trained.curve["step"] == 30]
    assert (last["training_status"] == "diverged").all()
    assert last["diverged_step"].between(1, 30).all() and last["diverged_layer"].between(1, 3).all()
    assert (trained.table[trained.table["step"] == 30]["status"] == "nonfinite").all()
    assert "3 of 3 networks diverged" in outcome(trained.table, trained.curve)


def test_a_step_is_the_gradient_times_the_rate():
    """sgd without more: ‖update‖ = η‖dW‖ for every operation with a W."""
    table = loop.train(settings(lr=0.05)).table
    np.testing.assert_allclose(
        table["update_log10_norm"], table["dW_log10_norm"] + np.log10(0.05), atol=1e-4
    )


def test_the_gradient_of_the_whole_is_that_of_its_rows():
    trained = loop.train(settings())
    squares = (10.0 ** (2 * trained.table[["dW_log10_norm", "db_log10_norm"]])).sum(axis=1)
    total = squares.groupby([trained.table["step"], trained.table["seed"]]).sum()
    curve = trained.curve.set_index(["step", "seed"])["gradient_log10_norm"]
    np.testing.assert_allclose(0.5 * np.log10(total), curve[total.index], rtol=1e-6, atol=1e-6)


def test_sum_reduction_is_the_mean_at_a_larger_rate():
    one = loop.train(replace(settings(lr=0.32, steps=3), dtype="float64"))
    many = loop.train(replace(settings(lr=0.02, steps=3), dtype="float64", reduction="sum"))
    for column in ("W_log10_norm", "update_log10_norm"):
        np.testing.assert_allclose(one.table[column], many.table[column], rtol=1e-9)


def test_the_curve_counts_examples_and_epochs():
    curve = loop.train(settings(steps=8, log=1)).curve.query("seed == 0")
    assert curve["examples"].tolist() == [16 * step for step in range(1, 9)]
    np.testing.assert_allclose(curve["epoch"], curve["examples"] / 1438)
    assert all(a < b for a, b in pairwise(curve["step"]))


def test_without_an_optimizer_there_is_no_training():
    with pytest.raises(InputError, match="training must name an optimizer"):
        loop.train(make(**SMALL))


@pytest.mark.parametrize("net", ["mlp", "deep", "cnn", "lstm"])
def test_two_batches_are_the_batch_and_its_quarter(net):
    """The quarter's gradient, from the norms that a run of that batch size has at the same step."""
    run = replace(settings(net, two_batches=True, steps=1), dtype="float64")
    big = loop.train(run).curve
    part = Part(prepare(replace(run, batch_size=4)), np.arange(3), steps=10**6)
    small = part.log(1, 0.05).curve["gradient_log10_norm"]
    g_small, g_big = 10.0 ** (2 * small), 10.0 ** (2 * big["gradient_log10_norm"].to_numpy())
    square, trace = (16 * g_big - 4 * g_small) / 12, (g_small - g_big) / (1 / 4 - 1 / 16)
    expected = np.where(square > 0, trace / square, np.nan)
    np.testing.assert_allclose(big["noise_scale_two_batches"], expected, rtol=1e-9)


def test_two_batches_need_four_examples():
    with pytest.raises(InputError, match="batch_size must be at least 4"):
        replace(settings(two_batches=True), batch_size=3).validate()


@pytest.mark.parametrize("net", ["mlp", "batch norm", "rnn"])
def test_a_compiled_loop_over_layers_changes_no_bit(net):
    setup = prepare(replace(settings(net), depth=5))
    plain, compiled = Part(setup, setup.seeds, 1), Part(setup, setup.seeds, 10**6)
    for step in range(1, 4):
        plain.step(step, 0.05)
        compiled.step(step, 0.05)
    one, other = plain.log(4, 0.05), compiled.log(4, 0.05)
    assert one.curve.keys() == other.curve.keys()
    for a, b in zip(
        [*one.curve.values(), *one.rows], [*other.curve.values(), *other.rows], strict=True
    ):
        np.testing.assert_array_equal(a, b)
