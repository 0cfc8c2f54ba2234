"""Predictions against measurement, in decades per layer or step, and verdicts that can fail."""

import numpy as np
import pandas as pd
import pytest

from flowlab import judge, measure, predict
from flowlab.settings import NetworkSettings, make
from flowlab.statistics import COTANGENT, DELTA
from flowlab.theory.recurrence import _TiedWords, gru_flow, reflected_walk

SHARED = {"data": "gaussian", "upstream": "gaussian", "seeds": 8}


def settings(name, axes, **options):
    return make(**SHARED | {"network": NetworkSettings(name=name, **options)} | axes)


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


def test_levels_are_those_of_the_cotangent_on_top():
    """A gaussian cotangent of unit entries over the batch."""
    for name in ("circular", "batch norm", "pre-norm"):
        case = CASES[name]
        table = measure(case)
        told = predict(case).dropna(subset=[DELTA]).iloc[-1]
        top = table[(table["layer"] == told["layer"]) & table[DELTA].notna()]
        last = top.groupby("seed")[DELTA].last()
        assert told[DELTA] == pytest.approx(last.mean(), abs=5 * last.std() / np.sqrt(8))


def test_zero_padding_loses_what_circular_keeps():
    slopes = [judge(measure(CASES[k]), predict(CASES[k])).predicted for k in ("circular", "zeros")]
    assert slopes[1] < slopes[0] - 0.02


@pytest.mark.parametrize(
    "case",
    [
        settings("transformer", {"depth": 4}, causal=True),
        settings("transformer", {"depth": 4, "norm": "batch"}),
        settings("cnn", SMALL | {"init": "identity"}, **IMAGE),
        settings("cnn", SMALL | {"norm": "batch"}, **IMAGE),
        settings("mlp", SMALL | {"norm": "batch", "batch_size": 3}),
        settings("lstm", {"data": "digits"}),
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
    curve = bare.dropna(subset=[DELTA]).drop_duplicates("layer", keep="last")
    drift = (curve[DELTA] - curve[f"{DELTA}_infinite"]).iloc[[0, -1]].diff().iloc[-1]
    assert verdict.theory_error == pytest.approx(0.6 * abs(drift), rel=1e-9)
    assert np.isnan(verdict.predicted_sd) and verdict.difference.n == 8


def test_arcsine_law_by_simulated_walks():
    rng, steps, walks = np.random.default_rng(1), 7, 200_000
    h, alive = np.zeros(walks), []
    for _ in range(steps):
        h = np.maximum(h + rng.standard_normal(walks), 0)
        alive.append(h > 0)
    share = [np.logical_and.reduce(alive[t:]).mean() for t in range(1, steps)]
    expected = np.exp(reflected_walk(steps))
    np.testing.assert_allclose(share, expected[:-1], atol=5 * 0.5 / np.sqrt(walks))
    assert expected[-1] == pytest.approx(1)


def test_tied_words_by_powers_of_one_matrix():
    """E||(D_1 + W'E_1)...(D_k + W'E_k) x||^2 with one Gaussian W and diagonals drawn afresh."""
    rng, n, steps, d, e, s = np.random.default_rng(2), 300, 5, 0.5, 0.4, 0.2
    squares = []
    for _ in range(60):
        w, x = rng.standard_normal((n, n)) / np.sqrt(n), rng.standard_normal(n)
        for _ in range(steps):
            x = (d + s * rng.standard_normal(n)) * x + w @ ((e + s * rng.standard_normal(n)) * x)
        squares.append(x @ x / n)
    words = _TiedWords(steps, 1.0)
    for _ in range(steps):
        words.step(d, e, 2 * s * s * words.square)
    se = np.std(squares) / np.sqrt(60)
    # Within chance and the O(steps/n) of a finite matrix, far from untied weights.
    assert np.mean(squares) == pytest.approx(words.square, abs=4 * se + words.square * steps / n)
    assert words.square > 1.5 * (d * d + e * e + 2 * s * s) ** steps


def test_a_gated_flow_without_recurrence_is_its_gates_alone():
    """g2 = 0: E u^2 per step."""
    u = 1 / (1 + np.exp(-np.random.default_rng(3).standard_normal(400_000)))
    np.testing.assert_allclose(gru_flow(0.0, 1.0, 4).log_rate, np.log(np.mean(u**2)), atol=5e-3)
