"""What padding costs over depth, and its finding."""

from dataclasses import replace

import numpy as np
import pytest

from flowlab.errors import InputError
from flowlab.studies import Reading
from flowlab.studies.cnn_depth import STUDY, border_by_depth, border_finding
from flowlab.theory import convolution
from tests.support.drawing import assert_readable, labelled
from tests.support.planted import Findings, assert_turned, tilted
from tests.support.tables import net, together


@pytest.fixture
def padded():
    slopes = {("he", "zeros"): -0.02, ("he", "circular"): 0.0, ("delta", "zeros"): -0.001}
    table, prediction = together(
        *(
            net(f"{init}{padding}{depth}", slope, depth, init=init, padding=padding)
            for (init, padding), slope in slopes.items()
            for depth in (5, 11, 101)
        )
    )
    return Reading(table.assign(kernel_size=3), prediction, image=8)


def test_change_over_depth_beside_the_border(padded):
    figure = border_by_depth(padded)
    assert_readable(figure)
    titles = [ax.get_title("left") for ax in figure.axes]
    assert titles == ["padding=circular", "padding=zeros"]
    loss = np.log10((1 + 2 * np.cos(np.pi / 9)) / 3)  # of two dimensions, half for the norm
    for padding, rate in (("zeros", loss), ("circular", 0.0)):
        (border,) = labelled(figure, f"law: {padding}")
        assert list(border.get_xdata()) == [5, 11, 101]
        assert border.get_ydata() == pytest.approx([4 * rate, 10 * rate, 100 * rate])
    _, zeros = labelled(figure, "mean: he")
    assert zeros.lines[0].get_ydata() == pytest.approx([-0.08, -0.2, -2.0])
    for theory in labelled(figure, "theory: he"):
        assert list(theory.get_xdata()) == [5, 11, 101]
    text = border_finding(padded)
    assert text.startswith("At depth 101 he loses 2.0 decades with padding=zeros (−2.0 in theory)")
    assert text.endswith("with padding=circular (+0.0 in theory)")


def test_the_side_of_images_is_in_the_table_or_in_the_metadata(padded):
    assert padded.side == 8
    assert replace(padded, table=padded.table.assign(image=5)).side == 5
    with pytest.raises(InputError, match="must say how large the images of run he"):
        border_by_depth(replace(padded, image=None))


def exchanged(table):
    """Each padding has the numbers of the other."""
    other = {"zeros": "circular", "circular": "zeros"}
    return table.assign(padding=table["padding"].map(other))


PLANTS = {"S9-depth": [tilted(1.1), exchanged]}


class TestFindings(Findings):
    STUDY, PLANTS = STUDY, PLANTS


def test_a_border_that_loses_nothing_is_refused(monkeypatch):
    monkeypatch.setattr(convolution, "border_rate", lambda *args: 1.0)
    assert_turned(STUDY, "S9-depth", lambda table: table)
