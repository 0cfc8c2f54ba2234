"""Names at the ends of lines."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from flowlab.figures.labels import label_ends, spread
from tests.support.drawing import assert_readable


def test_places_move_no_further_than_they_must():
    assert spread(np.array([0.2, 0.8]), 0.1) == pytest.approx([0.2, 0.8])
    assert spread(np.array([0.52, 0.5, 0.9]), 0.1) == pytest.approx([0.56, 0.46, 0.9])
    assert spread(np.array([0.0, 0.0, 1.0]), 0.2) == pytest.approx([0.1, 0.3, 0.9])
    assert len(spread(np.array([]), 0.1)) == 0


@pytest.mark.parametrize("side", ["left", "right"])
def test_names_of_lines_that_meet_do_not_overlap(side):
    figure = Figure(figsize=(5, 2.4), layout="constrained")
    ax = figure.subplots()
    ax.set(xlim=(-1, 2), ylim=(0, 10))
    ends = [(1 - (side == "left"), y, f"line {y}", "C0") for y in (5.0, 5.1, 5.2, np.nan)]
    label_ends(ax, ends, 2, side)
    assert_readable(figure)
    places = {text.get_text(): text.xyann[1] for text in ax.texts if text.get_text()}
    assert sorted(places, key=places.get) == ["line 5.0", "line 5.1", "line 5.2"]
