"""Rows of single steps stand beside those of layers."""

import pytest

from flowlab.figures import draw, profiles, sweep
from tests.support.drawing import assert_readable, labelled
from tests.support.tables import recurrent, together


def test_recurrent_runs_are_judged_and_drawn_over_their_steps():
    """Along layers the slope is 7, along the steps of the last recurrent layer −0.1."""
    made = recurrent("r", -0.1, predicted=-0.1)
    (row,) = sweep(*made).rows.itertuples()
    assert (row.along, row.crossed) == ("step", 19)
    assert row.mean == pytest.approx(-1.9) and row.predicted == pytest.approx(-1.9)
    figure = profiles(*made, columns=["dh_log10_norm"])
    assert figure.axes[0].get_xlabel().startswith("step")
    (mean,) = [line for line in figure.axes[0].lines if line.get_label().startswith("mean")]
    assert mean.get_ydata() == pytest.approx([-0.1 * back for back in range(19, -1, -1)])


def test_a_recurrent_run_shows_its_states():
    figure = profiles(*recurrent("r", -0.1))
    assert_readable(figure)
    titles = [ax.get_title("left") for ax in figure.axes]
    assert titles == ["‖∂L/∂$h_t$‖", "‖$δ_t$‖", "‖$h_t$‖"]


def test_recurrent_runs_share_one_axis_of_steps():
    figure = draw(*together(recurrent("a", -0.1, radius=0.8), recurrent("b", -0.2, radius=0.7)))
    assert_readable(figure)
    (ax,) = figure.axes
    assert ax.get_xlabel().startswith("step")
    assert {text.get_text() for text in ax.texts} == {"radius=0.8", "radius=0.7"}
    assert len(labelled(figure, "mean: radius=0.7")) == 1
