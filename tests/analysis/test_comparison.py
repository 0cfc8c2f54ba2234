"""Runs compared: what sets them apart, the order that was asked for, the answer in words."""

import numpy as np
import pandas as pd
import pytest

import flowlab
from flowlab.analysis.comparison import MEASURES, answer, axes_of, compare
from flowlab.analysis.verdicts import judge
from flowlab.errors import InputError
from flowlab.schema import DELTA
from tests.support.tables import recurrent, sweep, together, trained

# Decades per layer over the five layers between the ends.
SLOPES = {"he": 0.01, "xavier": -0.5, "lecun": 0.4, "orthogonal": -0.05}


@pytest.fixture
def made():
    return sweep(*((slope, {"init": init}) for init, slope in SLOPES.items()))


@pytest.mark.parametrize(
    ("by", "order"),
    [
        ("kept", ["he", "orthogonal", "lecun", "xavier"]),
        ("vanishing", ["xavier", "orthogonal", "he", "lecun"]),
        ("exploding", ["lecun", "he", "orthogonal", "xavier"]),
        ("init", ["he", "lecun", "orthogonal", "xavier"]),
    ],
)
def test_the_best_comes_first(made, by, order):
    found = compare(*made, by=by)
    assert list(found["init"]) == order
    assert list(found) == ["init", *MEASURES]


def test_furthest_from_theory_comes_first(made):
    table, prediction = made
    prediction = prediction.assign(**{DELTA: prediction[DELTA] * (prediction["run"] != "run2")})
    assert compare(table, prediction, by="differing")["init"].iat[0] == "lecun"


def test_a_row_is_the_verdict_of_its_run(made):
    table, prediction = made
    found = compare(table, prediction).set_index("run")
    for run, rows in table.groupby("run"):
        verdict = judge(rows, prediction[prediction["run"] == run])
        assert found.loc[run, "decades"] == verdict.change.mean
        assert found.loc[run, "high"] == verdict.change.high
        assert found.loc[run, "theory"] == verdict.predicted
        assert found.loc[run, "agreement"] == verdict.agreement
        assert found.loc[run, "rate"] == verdict.pace_words()
    assert (found["seeds"] == 5).all()
    assert (found["over"] == "5 layers").all()


def test_trained_runs_are_compared_as_they_start(made):
    table, prediction = together(made, recurrent("r", -0.1, predicted=-0.1))
    pd.testing.assert_frame_equal(
        compare(trained(table), prediction), compare(table, prediction), check_exact=True
    )


def test_what_is_shown_to_be_kept_precedes_what_may_be():
    sure, unsure = (0.1, {"init": "he", "noise": 0.001}), (0.0, {"init": "lecun", "noise": 0.5})
    assert list(compare(*sweep(unsure, sure))["init"]) == ["he", "lecun"]


def test_runs_that_cannot_be_judged_come_last(made):
    table, prediction = made
    lost = table.assign(**{DELTA: table[DELTA].where(table["init"] != "he")})
    found = compare(lost, prediction)
    assert found["init"].iat[-1] == "he" and np.isnan(found["decades"].iat[-1])


def test_the_order_of_rows_does_not_matter(made):
    table, prediction = made
    shuffled = table.sample(frac=1, random_state=3)
    pd.testing.assert_frame_equal(compare(shuffled, prediction), compare(table, prediction))


def test_a_null_sets_runs_apart():
    table, prediction = sweep((0.1, {"radius": 0.9}), (0.1, {"radius": None}))
    assert axes_of(compare(table, prediction)) == ["radius"]


def test_a_setting_that_applies_to_one_network_alone_sets_nothing_apart():
    lstm, gru = {"network": "lstm", "forget_bias": 0.0}, {"network": "gru", "forget_bias": None}
    assert axes_of(compare(*sweep((0.1, lstm), (0.2, gru)))) == ["network"]
    twice = sweep((0.1, lstm), (0.2, gru), (0.3, lstm | {"forget_bias": 1.0}))
    assert axes_of(compare(*twice)) == ["network", "forget_bias"]


def test_theory_of_a_part_is_not_that_of_the_whole():
    table, prediction = sweep((0.1, {}))
    found = compare(table, prediction[prediction["layer"] > 3]).iloc[0]
    assert np.isnan(found["theory"]) and found["agreement"] == "agrees"


def test_the_answer_counts_and_names_the_ends(made):
    assert answer(compare(*made)) == (
        "2 of the 4 runs keep the gradient (within ±1 decade), in 1 it vanishes, in 1 it explodes. "
        "Least change: init=he, 0.05 [−0.02, 0.12] decades over 5 layers; most: init=xavier, "
        "−2.50 [−2.58, −2.42] decades over 5 layers."
    )
    assert answer(compare(*sweep((0.1, {})))).endswith("decades over 5 layers: kept.")
    undecided = answer(compare(*sweep((0.2, {"init": "he"}), (0.2, {"init": "lecun"}))))
    assert undecided.startswith(
        "None of the 2 runs keeps the gradient (within ±1 decade), 2 are und"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"by": "worst"}, "by must be one of best, trained, kept, vanishing, .*, init; got worst"),
        ({"kept_within": 0}, "kept_within must be a finite number above 0; got 0"),
    ],
)
def test_what_cannot_be_asked(made, change, message):
    with pytest.raises(InputError, match=message):
        compare(*made, **change)


def test_what_is_no_table(tmp_path):
    with pytest.raises(InputError, match="table must hold at least one row; got none"):
        compare(sweep((0.1, {}))[0].iloc[:0])
    with pytest.raises(InputError, match="column must be one of a; got run"):
        compare(pd.DataFrame({"a": [1]}))
    with pytest.raises(InputError, match="folder must be that of an experiment"):
        flowlab.compare(tmp_path / "none")


def test_a_folder_and_its_tables_compare_alike(tmp_path):
    for init in ("he", "xavier"):
        flowlab.run(init=init, depth=4, width=8, seeds=3, results_dir=str(tmp_path))
    found = flowlab.compare(tmp_path / "single", by="init")
    tables = flowlab.load(tmp_path / "single"), flowlab.load(tmp_path / "single" / "theory")
    pd.testing.assert_frame_equal(found, flowlab.compare(*tables, by="init"))
    assert list(found["init"]) == ["he", "xavier"]
    assert found["theory"].notna().all()
