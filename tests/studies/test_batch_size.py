"""Norms against batch size beside the exact law, and what findings say of wrong tables."""

import numpy as np
import pandas as pd
import pytest

import flowlab
from flowlab.analysis import batch_law
from flowlab.studies import Reading
from flowlab.studies.batch_size import (
    STUDY,
    largest_batch,
    noise_by_layer,
    noise_by_layer_caption,
    norm_by_batch,
    norm_by_batch_caption,
    one_family,
)
from tests.support.planted import Findings


def measured(**axes):
    small = {"depth": 3, "width": 8, "batch_size": 6, "seeds": 12, "data": "gaussian"}
    return flowlab.measure(flowlab.make(**{**small, "reduction": "sum", **axes}))


@pytest.fixture(scope="module")
def runs():
    return [measured(batch_size=size) for size in (1, 4, 32)]


def test_lines_are_the_law_and_markers_the_runs(runs):
    table = pd.concat(runs, ignore_index=True)
    figure = norm_by_batch(Reading(table))
    rows = batch_law.against_runs(table)
    exact = rows[(rows["layer"] == 1) & (rows["parameter"] == "W")]["exact"].to_numpy()
    curves = [line.get_ydata() for line in figure.axes[0].lines]
    assert any(len(y) == 3 and np.allclose(y, exact) for y in curves)
    assert "measured points" in norm_by_batch_caption(Reading(table))


def test_noise_scales_have_a_panel_for_each_data_set(runs):
    assert len(noise_by_layer(Reading(runs[-1])).axes) == 1
    assert "layers (of all runs)" in noise_by_layer_caption(Reading(runs[-1]))


def test_one_reduction_is_shown(runs):
    table = pd.concat(runs, ignore_index=True)
    both = pd.concat([table, measured(reduction="mean")])
    assert set(one_family(both)["run"]) == set(table["run"])
    assert set(largest_batch(both)["run"]) == set(runs[-1]["run"])


def growing(column, power):
    """A norm is B^power times too large."""

    def plant(table):
        return table.assign(**{column: table[column] + power * np.log10(table["batch_size"])})

    return plant


PLANTS = {
    "B1": [growing("dW_log10_norm", 0.1), growing("db_examples_log10_norm", 0.1)],
    "S4": [growing("dW_log10_norm", 0.5), growing("dW_log10_norm", -0.5)],
}


class TestFindings(Findings):
    STUDY, PLANTS = STUDY, PLANTS
