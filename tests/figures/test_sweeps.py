"""What a table varies."""

import numpy as np
import pandas as pd
import pytest

from flowlab.errors import InputError
from flowlab.figures import one_axis, sweep
from tests.support.tables import net, recurrent, together, trained
from tests.support.tables import sweep as made


def test_axes_are_the_settings_in_which_runs_differ():
    of = sweep(*made((0.1, {"depth": 20}), (0.1, {"depth": 5, "init": "xavier"})))
    assert of.axes == ["init", "depth"] and of.values("depth") == [5, 20]
    assert of.numeric("depth") and not of.numeric("init")
    assert list(of.rows["label"]) == ["he, depth=20", "xavier, depth=5"]


@pytest.mark.parametrize("kind", [net, recurrent])
def test_trained_runs_are_read_at_their_start(kind):
    one, other = kind("a", -0.1), kind("b", -0.2, init="xavier")
    table, prediction = together(one, other)
    untrained, ours = (sweep(frame, prediction) for frame in (table, trained(table)))
    pd.testing.assert_frame_equal(ours.rows, untrained.rows)
    drawn, shown = (one_axis.curves(of) for of in (ours, untrained))
    for ours, theirs in zip(drawn.axes, shown.axes, strict=True):
        assert len(ours.lines) == len(theirs.lines) > 0
        for one_line, other_line in zip(ours.lines, theirs.lines, strict=True):
            np.testing.assert_array_equal(one_line.get_xydata(), other_line.get_xydata())


def test_runs_of_other_seeds_are_one_run():
    table, prediction = net("a", 0.1)
    more = table.assign(run="b", seed=table["seed"] + 5)
    of = sweep(pd.concat([table, more]), pd.concat([prediction, prediction.assign(run="b")]))
    assert of.axes == [] and of.rows["seeds"].tolist() == [10]
    again = sweep(pd.concat([table, table.assign(run="b")]), prediction)
    assert again.rows["seeds"].tolist() == [5]


def test_a_gain_joins_the_initializer_unless_it_varies_across_them():
    table, _ = made((0.1, {"init": "orthogonal"}), (0.1, {"init": "orthogonal", "gain": 2**0.5}),
                    (0.1, {}))  # fmt: skip
    assert sweep(table).values("init") == ["he", "orthogonal", "orthogonal × √2"]
    crossed, _ = made(*((0.1, {"init": i, "gain": g}) for i in ("he", "lecun") for g in (1.0, 2.0)))
    assert sweep(crossed).axes == ["init", "gain"]
    alone, _ = made(*((0.1, {"gain": g}) for g in (1.0, 2.0)))
    assert list(sweep(alone).rows["label"]) == ["gain=1", "gain=2"]


def test_an_option_joins_the_setting_that_has_it():
    table, _ = made(
        (0.1, {"skip": "identity", "branch_scale": None}),
        (0.1, {"skip": "scaled", "branch_scale": "inverse_depth"}),
        (0.1, {"skip": "scaled", "branch_scale": "inverse_sqrt_depth"}),
    )
    of = sweep(table)
    assert of.axes == ["skip"]
    assert of.values("skip") == ["identity", "scaled 1/L", "scaled 1/√L"]


def test_what_a_network_brings_along_is_in_its_name():
    table, _ = together(
        net("a", 0.1, network="mlp", norm="none"), net("b", 0.1, network="resnet", norm="batch")
    )
    assert sweep(table).axes == ["network"]


def test_columns_of_a_users_own_are_axes_and_order_does_not_matter():
    table, prediction = made((0.1, {"mood": "good"}), (0.2, {"mood": "bad"}))
    of = sweep(table, prediction)
    assert of.axes == ["mood"]
    other = sweep(table.sample(frac=1, random_state=1), prediction)
    pd.testing.assert_frame_equal(other.rows, of.rows)


def test_bad_tables_are_one_line():
    table, _ = net("a", 0.1)
    with pytest.raises(InputError, match="at least one row; got none"):
        sweep(table.iloc[:0])
    with pytest.raises(InputError, match=r"column must be one of .*; got seed"):
        sweep(table.drop(columns="seed"))


def test_a_change_beside_its_prediction():
    (row,) = sweep(*net("a", -0.5, depth=11)).rows.itertuples()
    assert row.mean == pytest.approx(-5) and row.predicted == pytest.approx(-5)
    assert np.isfinite(row.low) and row.trend == "vanishing" and row.crossed == 10
