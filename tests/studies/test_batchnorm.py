"""Batch norm's rate against batch size, and its finding."""

import numpy as np
import pytest

from flowlab.claims.trial import Trial
from flowlab.studies import Reading
from flowlab.studies.batchnorm import (
    STUDY,
    explosion,
    rate_by_batch,
    rate_by_batch_caption,
    rate_by_batch_finding,
)
from flowlab.theory import normalization
from flowlab.theory.normalization import batch_norm_rates
from tests.support.drawing import assert_readable, labelled
from tests.support.planted import Findings, assert_turned, tilted
from tests.support.tables import DELTA, net, together


@pytest.fixture
def normalized():
    """Slopes that are theory's but for one; the first and the last layer are off."""
    rates = batch_norm_rates(["relu", "identity"], [3, 4, 8, 64])
    made = []
    for activation, batch, rate in rates.itertuples(index=False):
        rate *= 1.1 if (activation, batch) == ("relu", 8) else 1.0
        axes = {"activation": activation, "batch_size": batch}
        table, curve = net(f"{activation}{batch}", rate, depth=9, noise=1e-3, **axes)
        table.loc[table["layer"].isin([1, 9]), DELTA] = 5.0
        made.append((table, curve))
    return *together(*made), rates


def test_rates_of_batch_norm_lie_on_theory(normalized):
    table, prediction, rates = normalized
    reading = Reading(table, prediction)
    assert sorted(rates["batch_size"].unique()) == [4, 8, 64]
    law = rates.set_index(["activation", "batch_size"])["rate"]
    assert law["identity", 8] == pytest.approx(np.log10(6 / 5) / 2)
    figure = rate_by_batch(reading)
    assert_readable(figure)
    (theory,) = labelled(figure, "theory: relu")
    (points,) = labelled(figure, "measured: relu")
    x, y = points.lines[0].get_data()
    line = dict(zip(*theory.get_data(), strict=True))
    assert list(x) == [4, 8, 64] and set(line) == {4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
    assert [y[0] / line[4], y[1] / line[8]] == pytest.approx([1, 1.1])
    assert y[2] == pytest.approx(law["relu", 64])
    assert {text.get_text() for text in figure.axes[0].texts} == {"relu", "identity"}
    factor = 10 ** (0.1 * law["relu", 8]) - 1
    assert rate_by_batch_finding(reading).endswith(
        f"{10 ** law['relu', 4]:.3g} at B = 4 and {10 ** law['relu', 64]:.3g} at B = 64 (relu); "
        f"theory is within {100 * factor:.1f} %"
    )
    text = rate_by_batch_caption(reading)
    assert "explodes" in text and f"by at most {factor:.1%} (relu, B = 8)" in text
    assert f"(theory {law['relu', 64]:.4f}) at B = 64" in text
    down = table.assign(**{DELTA: -table[DELTA]})
    assert "explodes" not in rate_by_batch_caption(Reading(down))


PLANTS = {
    "S12-depth": [
        tilted(1.1, activation="relu"),
        tilted(1.05, activation="identity", batch_size=64),
    ]
}


class TestFindings(Findings):
    STUDY, PLANTS = STUDY, PLANTS


def test_nets_under_another_norm_do_not_explode():
    runs = [{**run, "norm": "layer"} for run in explosion.runs[-1:]]
    table = Trial(0, 32).sweep(runs, explosion.times)[0].assign(norm="batch")
    assert explosion.find(Reading(table)).verdict not in explosion.expected


def test_another_law_is_refused(monkeypatch):
    monkeypatch.setattr(normalization, "batch_norm_rate", lambda *args: np.pi / (np.pi - 1))
    assert_turned(STUDY, "S12-depth", lambda table: table)
