"""Noise scales by layer, and what findings say of wrong tables."""

import numpy as np
import pandas as pd
import pytest

import flowlab
from flowlab.studies import Reading
from flowlab.studies.batch_size import (
    STUDY,
    largest_batch,
    noise_by_layer,
    noise_by_layer_caption,
)
from tests.support.planted import Findings


def measured(**axes):
    small = {"depth": 3, "width": 8, "batch_size": 6, "seeds": 12, "data": "gaussian"}
    return flowlab.measure(flowlab.make(**{**small, "reduction": "sum", **axes}))


@pytest.fixture(scope="module")
def runs():
    return [measured(batch_size=size) for size in (1, 4, 32)]


def test_noise_scales_have_a_panel_for_each_data_set(runs):
    assert len(noise_by_layer(Reading(runs[-1])).axes) == 1
    assert "layers (of all runs)" in noise_by_layer_caption(Reading(runs[-1]))


def test_noise_scales_are_of_one_reduction(runs):
    both = pd.concat([*runs, measured(reduction="mean", batch_size=32)])
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
