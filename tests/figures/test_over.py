"""A change against depth or another number: lines, panels, sentences."""

import numpy as np
import pytest

from flowlab.figures import change_over, over, sweep
from tests.support.drawing import assert_readable, labelled
from tests.support.tables import DELTA, net, together

AXES = {"over": "depth", "panels": "padding", "lines": "init"}


@pytest.fixture
def padded():
    slopes = {("he", "zeros"): -0.2, ("he", "circular"): 0.0, ("delta", "zeros"): -0.001}
    return together(
        *(
            net(f"{init}{padding}{depth}", slope, depth, init=init, padding=padding)
            for (init, padding), slope in slopes.items()
            for depth in (5, 11, 101)
        )
    )


def test_panels_share_an_axis_that_shows_small_and_large(padded):
    figure = change_over(sweep(*padded), **AXES)
    assert_readable(figure)
    circular, zeros = figure.axes
    assert [ax.get_title("left") for ax in figure.axes] == ["padding=circular", "padding=zeros"]
    assert circular.get_ylim() == zeros.get_ylim() and zeros.get_yscale() == "symlog"
    ticks = [label.get_text() for label in circular.get_yticklabels()]
    assert {"−10", "−1", "0"} <= set(ticks)
    (line,) = [c for c in labelled(figure, "mean: he") if c.lines[0].axes is zeros]
    assert list(line.lines[0].get_xdata()) == [5, 11, 101]
    assert line.lines[0].get_ydata() == pytest.approx([-0.8, -2, -20])
    (_, theory) = labelled(figure, "theory: he")
    assert theory.get_ydata() == pytest.approx([-0.8, -2, -20])
    assert {text.get_text() for text in zeros.texts} == {"he", "delta"}
    assert not labelled(change_over(sweep(padded[0]), **AXES), "theory: he")


def test_a_law_is_a_line_from_the_first_layer(padded):
    law = {"zeros": -0.1, "circular": 0.0}
    figure = change_over(sweep(*padded), **AXES, law=law, law_name="border")
    (line,) = labelled(figure, "law: zeros")
    assert list(line.get_xdata()) == [5, 11, 101]
    assert line.get_ydata() == pytest.approx([-0.4, -1, -10])
    assert "border" in [text.get_text() for text in figure.legends[0].get_texts()]


def test_small_changes_have_a_linear_axis():
    table, _ = together(*(net(f"{depth}", 0.01, depth) for depth in (5, 11)))
    ax = change_over(sweep(table), "depth").axes[0]
    assert ax.get_yscale() == "linear" and ax.get_ylim()[0] <= -1.2


def test_the_finding_says_what_is_kept_how_far(padded):
    of = sweep(*padded)
    text = over.finding(of, **AXES)
    assert text.startswith("Kept to depth 101: he with padding=circular; delta with padding=zeros")
    assert text.endswith("; he with padding=zeros loses 20 decades")
    table = padded[0]
    zeros = table[table["padding"] == "zeros"]
    text = over.finding(sweep(zeros), "depth", "init")
    assert text == "delta keeps the gradient to depth 101; he loses 20 decades"
    one = zeros[zeros["init"] == "he"]
    text = over.finding(sweep(one), "depth")
    assert text == "The gradient loses 20 decades by depth 101; it is kept to depth 5"
    kept = table[table["padding"] == "circular"]
    assert over.finding(sweep(kept), "depth").startswith("All 3 keep the gradient within ±1")


def test_a_line_that_ends_early_is_not_kept_to_the_end(padded):
    table = padded[0]
    short = table[(table["init"] == "he") | (table["depth"] < 100)]
    short = short[short["padding"] == "zeros"]
    assert over.finding(sweep(short), "depth", "init").startswith("None of 2 keeps")


def test_a_line_without_a_finite_seed_is_named(padded):
    table, _ = padded
    table.loc[table["init"] == "delta", DELTA] = -np.inf
    figure = change_over(sweep(table), **AXES)
    assert_readable(figure)
    assert "delta: zero" in [text.get_text() for text in figure.axes[1].texts]
    assert "it is exactly zero" in over.finding(sweep(table), **AXES)


def test_silence_of_theory_is_said(padded):
    table, prediction = padded
    prediction.loc[prediction["run"] == "hezeros5", DELTA] = np.nan
    figure = change_over(sweep(table, prediction), **AXES)
    title = figure.legends[0].get_title().get_text()
    assert title == "No prediction of the whole change for he, depth=5, zeros"
