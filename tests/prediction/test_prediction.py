"""Predictions against measurement, in decades per layer or step, and verdicts that can fail."""

import numpy as np
import pandas as pd
import pytest

from flowlab import judge, measure, predict
from flowlab.schema import COTANGENT, DELTA
from flowlab.settings import NetworkSettings, make

SHARED = {"data": "gaussian", "upstream": "gaussian", "seeds": 8}


def settings(name, axes, **options):
    return make(**SHARED | {"network": NetworkSettings(name=name, **options)} | axes)


DIGITS = {"data": "digits", "batch_size": 8, "seeds": 16}
SMALL = {"depth": 12, "width": 32, "batch_size": 4}
IMAGE = {"image": 4}
CASES = {
    "batch norm": settings("mlp", SMALL | {"norm": "batch", "batch_size": 8, "width": 96}),
    "batch norm, skip": settings(
        "mlp", SMALL | {"norm": "batch", "skip": "identity", "batch_size": 8}, branch_maps=2
    ),
    "layer norm": settings(
        "mlp", {"norm": "layer", "activation": "tanh", "depth": 12, "batch_size": 1, "seeds": 16}
    ),
    "rms norm, skip": settings("mlp", SMALL | {"norm": "rms", "skip": "identity"}),
    "circular": settings("cnn", SMALL, padding="circular", **IMAGE),
    "zeros": settings("cnn", SMALL, **IMAGE),
    "delta-orthogonal": settings("cnn", SMALL | {"init": "delta_orthogonal"}, **IMAGE),
    "skip": settings("resnet", SMALL | {"norm": "none"}, **IMAGE),
    "batch norm, zeros": settings("resnet", SMALL | {"depth": 8}, **IMAGE),
    "batch norm, zeros, plain": settings("cnn", SMALL | {"norm": "batch"}, **IMAGE),
    "resnet of digits": settings("resnet", DIGITS | {"depth": 8}),
    "layer norm, zeros, of digits": settings(
        "cnn", DIGITS | {"depth": 8, "norm": "layer", "activation": "tanh", "skip": "identity"}
    ),
    "tanh of digits": settings(
        "cnn", DIGITS | {"depth": 8, "activation": "tanh", "init": "xavier", "skip": "identity"}
    ),
    "pre-norm": settings("transformer", {"depth": 7, "batch_size": 4}),
    "post-norm": settings(
        "transformer", {"depth": 7, "batch_size": 4, "skip": "scaled"}, placement="post"
    ),
    "orthogonal": settings(
        "rnn", {"activation": "identity"}, recurrent="orthogonal", radius=1.1, steps=12
    ),
    "tanh": settings("rnn", {"init": "lecun"}, recurrent="orthogonal", steps=12),
    "arcsine": settings("rnn", {"activation": "relu"}, recurrent="identity", steps=12),
    "lstm": settings("lstm", {"init": "lecun"}, recurrent="orthogonal", steps=12),
    "gru": settings("gru", {"init": "lecun"}, recurrent="orthogonal", steps=12),
    "tanh of digits, two layers": settings(
        "rnn", DIGITS | {"init": "lecun", "depth": 3}, recurrent="orthogonal"
    ),
    "lstm of digits with biases": settings(
        "lstm", DIGITS | {"init": "torch_default"}, recurrent="orthogonal"
    ),
    "gru of digits, two layers": settings(
        "gru", DIGITS | {"init": "lecun", "depth": 3, "width": 64}, recurrent="orthogonal"
    ),
    "lstm that keeps its units apart": settings("lstm", DIGITS, recurrent="identity"),
}


@pytest.mark.parametrize("name", CASES)
def test_theory_does_not_differ_and_would_with_a_rate_that_is_wrong(name):
    """A prediction off by twice what is allowed, well below the rate's size, is refused."""
    table, prediction = measure(CASES[name]), predict(CASES[name])
    verdict = judge(table, prediction)
    assert verdict.agreement != "differs"
    found, (first, last) = verdict.difference, verdict.covered
    reach = verdict.margin + verdict.theory_error + max(abs(found.low), abs(found.high))
    assert reach / (last - first) < 0.1
    wrong = prediction.copy()
    along = wrong["time"] if "time" in wrong else wrong["layer"]
    off = 2 * reach / (last - first) * along.astype(float)
    for column in (DELTA, f"{DELTA}_infinite", COTANGENT):
        if column in wrong:
            wrong[column] += off
    assert judge(table, wrong).agreement == "differs"


@pytest.mark.parametrize("loss", ["squared_error", "cross_entropy"])
@pytest.mark.parametrize(
    "axes",
    [
        {"network": "cnn", "depth": 4},
        {"network": "cnn", "depth": 9, "activation": "tanh", "width": 16},
        {"network": "cnn", "depth": 4, "init": {"name": "he", "gain": 4.0}, "width": 64},
        {"network": "resnet", "depth": 5},
        {"network": "resnet", "depth": 5, "norm": "layer"},
        {"network": "transformer", "depth": 4, "init": "lecun"},
        {"network": "transformer", "depth": 6, "init": {"name": "normal", "sigma_w": 3.0}},
    ],
)
def test_the_level_under_a_loss_is_that_of_pooled_logits(axes, loss):
    """At the logits: within 4 standard errors of 16 seeds and 0.03 decades, what their spread takes
    off the mean of a log."""
    case = make(loss=loss, seeds=16, **axes)
    table, prediction = measure(case), predict(case)
    last = (
        table[(table["layer"] == case.depth) & table[DELTA].notna()].groupby("seed")[DELTA].last()
    )
    (expected,) = prediction[prediction["layer"] == case.depth][DELTA].dropna()
    assert last.mean() == pytest.approx(expected, abs=4 * last.std() / 4 + 0.03)


def test_levels_are_those_of_the_cotangent_on_top():
    """A gaussian cotangent of unit entries over the batch."""
    for name in ("circular", "batch norm", "pre-norm"):
        case = CASES[name]
        table = measure(case)
        forecast = predict(case).dropna(subset=[DELTA]).iloc[-1]
        top = table[(table["layer"] == forecast["layer"]) & table[DELTA].notna()]
        last = top.groupby("seed")[DELTA].last()
        assert forecast[DELTA] == pytest.approx(last.mean(), abs=5 * last.std() / np.sqrt(8))


def test_zero_padding_loses_what_circular_keeps():
    slopes = [judge(measure(CASES[k]), predict(CASES[k])).predicted for k in ("circular", "zeros")]
    assert slopes[1] < slopes[0] - 0.02


@pytest.mark.parametrize(
    "case",
    [
        settings("transformer", {"depth": 4}, causal=True),
        settings("transformer", {"depth": 4, "norm": "batch"}),
        settings("cnn", SMALL | {"init": "identity"}, **IMAGE),
        settings("cnn", DIGITS | {"norm": "batch", "init": "delta_orthogonal", "depth": 5}),
        settings("mlp", SMALL | {"norm": "batch", "batch_size": 3}),
        settings("rnn", {"norm": "layer"}),
        settings("gru", {}, truncation=3),
    ],
)
def test_theory_is_silent_where_its_assumptions_fail(case):
    prediction = predict(case)
    assert prediction[DELTA].isna().all()
    assert COTANGENT not in prediction
    (sentence,) = prediction["silent_because"].unique()
    assert sentence.endswith("has a prediction")
    assert "\n" not in sentence
    assert judge(measure(case), prediction).agreement == "no theory"


def test_rows_are_those_of_the_table():
    for case in (CASES["batch norm, skip"], CASES["lstm"], CASES["pre-norm"]):
        table, prediction = measure(case), predict(case)
        assert prediction["silent_because"].isna().all()
        first = table[table["seed"] == 0]
        keys = ["run", "layer", "op"] + ["time"] * ("time" in prediction)
        pd.testing.assert_frame_equal(
            first[keys].reset_index(drop=True), prediction[keys], check_dtype=False
        )


def test_a_prediction_without_its_error_or_spread_is_judged_by_the_seeds():
    case = CASES["circular"]
    table, prediction = measure(case), predict(case)
    bare = prediction.drop(columns="slope_error").assign(**{f"{DELTA}_sd": np.nan})
    verdict = judge(table, bare)
    assert verdict.theory_error == 0 < judge(table, prediction).theory_error
    assert np.isnan(verdict.predicted_sd) and verdict.difference.n == 8
