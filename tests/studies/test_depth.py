"""Initializers side by side, each with its own curve."""

import numpy as np
import pytest

from flowlab.studies import Reading
from flowlab.studies.depth import one_depth, small_multiples, small_multiples_caption
from tests.support.drawing import assert_readable
from tests.support.tables import sweep


def test_each_initializer_has_a_panel_with_its_own_curve():
    table, prediction = sweep((0.0, {}), (-0.5, {"init": "xavier"}), (0.2, {"gain": 2.0}))
    figure = small_multiples(Reading(table, prediction))
    assert_readable(figure)
    panels = {ax.get_title("left"): ax for ax in figure.axes if ax.get_visible()}
    assert set(panels) == {"he", "he × 2", "xavier"}
    for title, slope in (("he", 0.0), ("he × 2", 0.2), ("xavier", -0.5)):
        mean, theory = panels[title].lines
        assert mean.get_ydata() == pytest.approx(slope * np.arange(5, -1, -1), abs=1e-9)
        assert theory.get_ydata() == pytest.approx(mean.get_ydata(), abs=1e-9)
    text = small_multiples_caption(Reading(table, prediction))
    assert "init=xavier -2.50 [" in text and "init=he × 2 1.00 [" in text


def test_of_several_depths_the_middle_one_is_shown():
    table, _ = sweep(*((0.1, {"depth": depth}) for depth in (20, 5, 11)))
    assert set(one_depth(table)["depth"]) == {11}
