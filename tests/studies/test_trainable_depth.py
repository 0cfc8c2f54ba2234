"""How deep nets train, beside theory's bound."""

from math import log2, sqrt

import numpy as np
import pandas as pd
import pytest

from flowlab.studies import Reading
from flowlab.studies.trainable_depth import STUDY
from tests.support.drawing import assert_readable
from tests.support.planted import Findings
from tests.support.tables import curve, net, together

(MAP,) = STUDY.figures
# 6ξ_c is 21.8 layers at σ_w² = 1 and 70.8 at 2.5, σ_b² = 0.05 (THEORY of tanh).
ACCURACY = {(1.0, 8): 0.9, (1.0, 32): 0.1, (2.5, 8): 0.92, (2.5, 32): 0.6}


def reading(accuracy=ACCURACY):
    nets, curves = [], []
    for (sigma_w2, depth), value in accuracy.items():
        run, loss = f"{sigma_w2}-{depth}", -log2(value)
        axes = {"sigma_w": sqrt(sigma_w2), "sigma_b": sqrt(0.05), "depth": depth, "init": "normal"}
        nets.append(net(run, -0.1, **axes))
        curves.append(curve(run, lambda x, loss=loss: np.full_like(x, loss), spread=0))
    table, _ = together(*nets)
    return Reading(table, curve=pd.concat(curves, ignore_index=True))


def test_cells_hold_the_accuracy_beside_the_bound():
    figure = MAP.figure(reading())
    assert_readable(figure)
    ax = figure.axes[0]
    cells = ax.collections[0].get_array()
    assert cells.filled(np.nan) == pytest.approx(np.array([[0.9, 0.92], [0.1, 0.6]]))
    assert {text.get_text() for text in ax.texts} == {"90", "10", "92", "60"}
    x, y = ax.lines[-1].get_data()
    assert np.interp([1.0, 2.5], x, y) == pytest.approx([6 * 3.63, 6 * 11.8], rel=0.01)
    assert ax.get_yscale() == "log"
    assert MAP.finding(reading()) == (
        "2 of 3 nets of at most 6ξ_c layers reach 80 % of the held-out examples, 0 of 1 deeper "
        "ones do"
    )
    assert "8 at σ_w² = 1 (6ξ_c = 21.8), 8 at σ_w² = 2.5" in MAP.caption(reading())


def test_a_net_that_trains_beyond_the_bound_refutes_it():
    (claim,) = STUDY.findings
    assert claim.find(reading()).verdict == "holds"
    assert claim.find(reading(ACCURACY | {(1.0, 32): 0.9})).verdict == "does not hold"
    within = {key: value for key, value in ACCURACY.items() if key != (1.0, 32)}
    assert claim.find(reading(within)).verdict == "inconclusive"


def ordered(table):
    """Weights so small that theory bounds the depth below that of nets which train."""
    return table.assign(sigma_w=0.6 * table["sigma_w"])


class TestFindings(Findings):
    STUDY = STUDY
    PLANTS = {"S17-depth": [ordered]}  # noqa: RUF012
