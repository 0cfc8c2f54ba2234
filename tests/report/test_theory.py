"""Where theory does not agree: by how much, and why where that is known."""

import pandas as pd
import pytest

import flowlab
from flowlab.report import gather, theory
from flowlab.report.document import Group
from tests.support.reports import section, store


@pytest.fixture
def off(tmp_path, runs):
    """Two depths whose measured gradient is three decades a layer away from theory."""
    for name in ("c", "b"):
        table, prediction, settings = runs[name]
        moved = table["delta_log10_norm"] + 3 * (table["depth"] - table["layer"])
        store(
            tmp_path / "off",
            name,
            table.assign(width=60, delta_log10_norm=moved),
            prediction,
            settings,
        )
    return tmp_path


def rows(root):
    return section(gather(root), "Theory").blocks[1].rows


def test_runs_that_differ_are_one_row_for_a_reason(off):
    ((verdict, many, reason, between, which),) = rows(off)
    assert (verdict, many) == ("differs", "2")
    assert reason.startswith("the gradient of a loss depends on the forward pass")
    low, high = between.split(" to ")
    assert 2 < float(low) < float(high) < 8
    assert isinstance(which, Group) and which.text == "furthest: off: depth=4"
    assert "Theory predicts" in which.members[0] and len(which.members) == 2


def test_what_has_no_theory_says_why(off, runs):
    settings = flowlab.make(
        network={"name": "transformer", "causal": True}, depth=4, width=8, batch_size=2, seeds=2
    )
    made = flowlab.measure(settings), flowlab.predict(settings), settings.resolved()
    store(off / "causal", settings.run(), *made)
    found = {row[0]: row for row in rows(off)}
    assert list(found) == ["differs", "no theory"]
    assert found["no theory"][2] == made[1]["silent_because"].iat[0]


@pytest.mark.parametrize(
    "settings, reason",
    [
        ({"activation": "gelu", "init": "he", "upstream": "loss"}, "GELU and SiLU"),
        ({"activation": "gelu", "init": "lecun", "upstream": "loss"}, "the gradient of a loss"),
        ({"network": "mlp", "activation": "tanh"}, "tanh near its critical line"),
        ({"network": "gru"}, "one recurrent matrix"),
        ({"network": "cnn", "padding": "zeros"}, "zero padding"),
        ({"network": "transformer"}, "as tokens become alike"),
        ({"depth": 129, "width": 128}, "more layers than units in one"),
        ({"depth": 128, "width": 128}, theory.UNKNOWN),
    ],
)
def test_reasons_are_those_of_the_settings(settings, reason):
    table = pd.DataFrame({"run": "r", "seed": [0, 1] * 2, "layer": [1, 1, 2, 2], "op": "linear"})
    table = table.assign(delta_log10_norm=[5.0, 5.1, 0.0, 0.0], upstream="gaussian", status="ok")
    curve = pd.DataFrame({"run": "r", "layer": [1, 2], "delta_log10_norm": 0.0})
    verdict = flowlab.judge(table, curve)
    assert verdict.agreement == "differs"
    assert theory.why(settings, verdict).startswith(reason)


def test_agreement_needs_no_row(tmp_path, runs):
    table, prediction, settings = runs["c"]
    means = table.groupby("layer")["delta_log10_norm"].mean()
    same = prediction.assign(delta_log10_norm=prediction["layer"].map(means))
    steady = table.assign(delta_log10_norm=table["layer"].map(means))
    store(tmp_path / "same", "c", steady, same, settings)
    (only,) = section(gather(tmp_path), "Theory").blocks
    assert only.text == "Of 1 run theory agrees with 1."
