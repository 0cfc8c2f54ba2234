"""Initializers over depth: a map of all, the lines of one depth."""

import pytest

from flowlab.studies import Reading
from flowlab.studies.depth import STUDY, one_depth
from tests.support.drawing import assert_readable
from tests.support.tables import sweep


@pytest.fixture
def reading():
    runs = ((0.0, {}), (-0.5, {"init": "xavier"}), (0.2, {"init": "orthogonal", "gain": 2**0.5}))
    return Reading(
        *sweep(*((slope, {**axes, "depth": depth}) for slope, axes in runs for depth in (5, 9, 21)))
    )


def test_the_answer_is_that_of_all_depths(reading):
    assert STUDY.answer(reading) == (
        "he keeps the gradient to depth 21; at depth 21 xavier loses 10 decades and "
        "orthogonal × √2 gains 4.0"
    )
    figure = STUDY.figures[0].figure(reading)
    assert_readable(figure)
    rows = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert rows == ["orthogonal × √2", "he", "xavier"]


def test_lines_of_one_depth_share_an_axis(reading):
    drawing = STUDY.figures[1]
    shown = drawing.shown(reading)
    assert set(shown.table["depth"]) == {9}
    figure = drawing.figure(shown)
    assert_readable(figure)
    (ax,) = figure.axes
    means = [line for line in ax.lines if line.get_label().startswith("mean: ")]
    assert len(means) == 3 == len(ax.texts)
    assert drawing.finding(shown).startswith("he keeps the gradient over 8 layers; xavier loses")


def test_of_several_depths_the_middle_one_is_shown():
    table, _ = sweep(*((0.1, {"depth": depth}) for depth in (20, 5, 11)))
    assert set(one_depth(table)["depth"]) == {11}
