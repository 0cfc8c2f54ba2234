"""Fluctuations from net to net, and the walk behind them."""

import numpy as np
import pandas as pd
import pytest

from flowlab.studies import Reading
from flowlab.studies.finite_width import (
    STUDY,
    variance_caption,
    variance_collapse,
    variance_finding,
)
from tests.support.drawing import assert_readable, labelled
from tests.support.planted import Findings, tilted
from tests.support.tables import DELTA, SQUARED, net


@pytest.fixture
def fluctuating():
    """Runs whose variance of ln ‖δ_1‖²/‖δ_L‖² is exactly 5 L/N."""
    frames = []
    for width in (10, 20):
        for depth in (6, 11, 21):
            axes = {"kappa": 5 * 10 / width, "width": width}
            table, prediction = net(f"{width}-{depth}", 0.0, depth, 40, **axes)
            crossed = depth - 1
            wobble = table.groupby("seed")[DELTA].first()
            wobble = wobble / wobble.std() * np.sqrt(5 * crossed / width / SQUARED) / crossed
            table[DELTA] = table["seed"].map(wobble) * (depth - table["layer"])
            frames.append((table, prediction))
    return tuple(pd.concat(parts, ignore_index=True) for parts in zip(*frames, strict=True))


def test_variances_fall_on_the_line_of_theory(fluctuating):
    table, prediction = fluctuating
    figure = variance_collapse(Reading(table, prediction))
    assert_readable(figure)
    ax = figure.axes[0]
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    for width in (10, 20):
        (container,) = labelled(figure, f"width {width}")
        x, y = container.lines[0].get_data()
        assert x == pytest.approx(np.array([5, 10, 20]) / width)
        assert y == pytest.approx(5 * np.asarray(x))
    (line,) = labelled(figure, "theory")
    assert line.get_ydata() / line.get_xdata() == pytest.approx([5, 5])
    text = variance_caption(Reading(table, prediction))
    assert "(L/N)^1.00" in text and "it is 5 on average, 5 to 5" in text
    assert "κ = 5; 6 of 6" in text
    found = variance_finding(Reading(table, prediction))
    assert "grows as (L/N)^1.00 ±" in found and "at widths 10 to 20; 6 of 6" in found
    assert "of 6" not in variance_finding(Reading(table))
    doubled = table.assign(**{DELTA: table[DELTA] * np.where(table["depth"] == 21, 2, 1)})
    text = variance_caption(Reading(doubled, prediction))
    assert "5 to 20" in text and "4 of 6" in text
    assert "4 of 6 intervals hold theory's 5 L/N" in variance_finding(Reading(doubled, prediction))


def frozen(table):
    """Every seed repeats the first one's norms, but for rounding."""
    first = table.loc[table["seed"] == table["seed"].min(), DELTA].to_numpy()
    repeated = np.tile(first, table["seed"].nunique())
    return table.assign(**{DELTA: repeated * (1 + 1e-9 * table["seed"])})


PLANTS = {id: [tilted(1.1), frozen] for id in ("P1", "P2", "P3")}


class TestFindings(Findings):
    STUDY, PLANTS = STUDY, PLANTS
