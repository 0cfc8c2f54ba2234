"""A number in a cell for each pair of settings."""

import numpy as np
import pandas as pd
import pytest

from flowlab.errors import InputError
from flowlab.figures import heat_map, pairs, sweep
from tests.support.drawing import assert_readable
from tests.support.tables import DELTA, shift
from tests.support.tables import sweep as made

AXES = {"down": "init", "across": "depth"}


@pytest.fixture
def grid():
    """Two initializers over three depths: one keeps the gradient, one loses half a decade."""
    return made(
        *(
            (slope, {"init": init, "depth": depth})
            for init, slope in (("he", 0.01), ("xavier", -0.5))
            for depth in (5, 11, 21)
        )
    )


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def test_cells_hold_the_decades_from_output_to_input(grid):
    figure = heat_map(sweep(*grid), **AXES)
    assert_readable(figure)
    image = figure.axes[0].images[0]
    expected = [[0.04, 0.1, 0.2], [-2, -5, -10]]
    assert image.get_array().data == pytest.approx(np.array(expected), abs=1e-9)
    assert texts(figure) == ["0.04", "0.10", "0.20", "−2.0", "−5.0", "−10.0"]
    assert image.norm(0) == pytest.approx(0.5)


def test_absent_pairs_differ_from_pairs_without_norms(grid):
    table, _ = grid
    table = table[table["run"] != "run1"]
    table.loc[table["run"] == "run5", DELTA] = -np.inf
    assert texts(heat_map(sweep(table), **AXES)) == ["0.04", "0.20", "−2.0", "−5.0", "?"]


def test_the_finding_names_what_is_kept_and_the_ends(grid):
    table, prediction = grid
    text = pairs.finding(sweep(table, prediction), **AXES)
    assert text == "he keeps the gradient to depth 21; xavier at depth 21 loses 10 decades"
    planted = shift(table, "run2", 0.1)  # he at depth 21 explodes by 2 decades more
    text = pairs.finding(sweep(planted, prediction), **AXES)
    assert text.startswith(
        "No init keeps the gradient to depth 21: he keeps 2 of 3; at depth 21 xavier"
    )
    assert text.endswith("and he gains 2.2")


def test_numbers_are_sorted_and_names_go_by_their_mean():
    table, _ = made(
        *(
            (slope, {"gain": gain, "activation": name, "init": "normal"})
            for name, slope in (("tanh", -0.3), ("relu", 0.2))
            for gain in (10.0, 2.0, 2**0.5)
        )
    )
    figure = heat_map(sweep(table), down="activation", across="gain")
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels == ["√2", "2", "10"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["relu", "tanh"]


def test_a_map_has_two_settings(grid):
    table, _ = grid
    more = pd.concat([table, table.assign(run=table["run"] + "b", width=3)])
    with pytest.raises(InputError, match="vary init and depth alone; got runs that differ in wid"):
        heat_map(sweep(more), **AXES)
