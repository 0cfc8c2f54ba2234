"""A change over depth: panels, lines, near zero once more."""

import pytest

from flowlab.figures import over_depth
from tests.support.drawing import assert_readable, labelled
from tests.support.tables import net, together

AXES = {"panels": "padding", "lines": "init"}


@pytest.fixture
def padded():
    slopes = {("he", "zeros"): -0.02, ("he", "circular"): 0.0, ("delta", "zeros"): -0.001}
    return together(
        *(
            net(f"{init}{padding}{depth}", slope, depth, init=init, padding=padding)
            for (init, padding), slope in slopes.items()
            for depth in (5, 11, 101)
        )
    )


def test_near_zero_once_more(padded):
    figure = over_depth.change_by_depth(*padded, **AXES, near=1.5)
    assert_readable(figure)
    assert [ax.get_ylim() for ax in figure.axes[2:]] == [(-1.5, 1.5)] * 2
    assert figure.axes[1].get_ylim()[0] < -2
    assert not labelled(figure, "rate: zeros")
    assert not labelled(over_depth.change_by_depth(padded[0], **AXES), "theory: he")
