"""Labels at the ends of lines, apart from one another."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from flowlab.figures import style
from flowlab.figures.labels import End, label_ends, spread
from tests.support.drawing import assert_readable


def test_places_give_way_no_more_than_they_must():
    assert spread([1, 5], [1, 1], 0, 10) == pytest.approx([1, 5])
    assert spread([3, 3], [1, 1], 0, 10) == pytest.approx([2.5, 3.5])
    assert spread([3, 3.2, 9], [1, 1, 1], 0, 10) == pytest.approx([2.6, 3.6, 9])
    assert spread([0, 0, 0], [1, 1, 1], 0, 10) == pytest.approx([0.5, 1.5, 2.5])
    assert spread([10, 10], [1, 2], 0, 10) == pytest.approx([7.5, 9])


def test_order_is_that_of_the_places():
    rng = np.random.default_rng(1)
    places, sizes = rng.uniform(0, 3, 8), rng.uniform(0.2, 0.6, 8)
    found = spread(places, sizes, -9, 9)
    order = np.argsort(places)
    gaps = np.diff(found[order]) - (sizes[order][1:] + sizes[order][:-1]) / 2
    assert (gaps > -1e-9).all() and np.isclose(gaps, 0).any()


@pytest.mark.parametrize("side", ["left", "right"])
def test_labels_of_close_lines_are_readable(side):
    with style.context():
        figure = Figure(figsize=(7, 3))
        axes = figure.subplots(1, 2)
        ends = {}
        for ax in axes:
            style.layers(ax, 1, 9)
            ax.set_ylim(0, 100)
            x = 1 if side == "left" else 9
            ends[ax] = [End(x, 50 + k / 9, f"condition {k}", "C0") for k in range(7)]
            ends[ax].append(End(x, -np.inf, "zero", "C1"))
        label_ends(figure, ends, side)
    assert_readable(figure)
    for ax in axes:
        heights = {text.get_text(): text.xyann[1] for text in ax.texts}
        assert min(heights, key=heights.get) == "zero" and len(heights) == 8
