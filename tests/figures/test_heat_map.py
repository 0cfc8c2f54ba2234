"""A number in a cell for each pair of settings."""

import numpy as np
import pandas as pd
import pytest

from flowlab.errors import InputError
from flowlab.figures import heat_map
from tests.support.drawing import assert_readable
from tests.support.tables import DELTA, shift, sweep


@pytest.fixture
def grid():
    """Two initializers over three depths: one keeps the gradient, one loses half a decade."""
    return sweep(
        *(
            (slope, {"init": init, "depth": depth})
            for init, slope in (("he", 0.01), ("xavier", -0.5))
            for depth in (5, 11, 21)
        )
    )


def test_cells_hold_the_decades_from_output_to_input(grid):
    figure = heat_map.heat_map(*grid)
    assert_readable(figure)
    image = figure.axes[0].images[0]
    expected = [[0.04, 0.1, 0.2], [-2, -5, -10]]
    assert image.get_array().data == pytest.approx(np.array(expected), abs=1e-9)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["0.04", "0.10", "0.20", "−2.0", "−5.0", "−10.0"]
    assert image.norm(0) == pytest.approx(0.5)


def test_absent_pairs_differ_from_pairs_without_norms(grid):
    table, _ = grid
    table = table[table["run"] != "run1"]
    table.loc[table["run"] == "run5", DELTA] = -np.inf
    texts = [text.get_text() for text in heat_map.heat_map(table).axes[0].texts]
    assert texts == ["0.04", "0.20", "−2.0", "−5.0", "?"]
    assert "1 pairs have no seed with finite norms" in heat_map.heat_map_caption(table)


def test_the_caption_of_the_map_counts_what_it_shows(grid):
    table, prediction = grid
    text = heat_map.heat_map_caption(table, prediction)
    assert "Of 6 pairs of init and depth: 3 vanishing, 3 kept (within ±1 decade)" in text
    assert "xavier at depth 21 (−10.0 decades)" in text and "Kept at every depth: he." in text
    planted = shift(table, "run2", 0.1)  # he at depth 21 explodes by 2 decades more
    text = heat_map.heat_map_caption(planted, prediction)
    assert (
        "3 vanishing, 2 kept" in text
        and "1 exploding" in text
        and "Kept at every depth: none." in text
    )
    assert "by at most 2 (he, depth 21)" in text
    assert "Theory" not in heat_map.heat_map_caption(table)


def test_a_cell_holds_one_run(grid):
    table, _ = grid
    twin = table[table["run"] == "run0"].assign(run="twin")
    with pytest.raises(InputError, match="one run for each init and gain and depth; got 2"):
        heat_map.heat_map(pd.concat([table, twin]))
