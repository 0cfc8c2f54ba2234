"""Noise scales by layer, and what findings say of wrong tables."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import flowlab
from flowlab.analysis import batch_law
from flowlab.errors import InputError
from flowlab.studies import Reading
from flowlab.studies.batch_size import (
    STUDY,
    largest_batch,
    noise_by_layer,
    noise_by_layer_caption,
    noise_by_layer_finding,
)
from tests.support.drawing import assert_readable
from tests.support.planted import Findings
from tests.support.planted import measured as measured_reading


def measured(**axes):
    small = {"depth": 3, "width": 8, "batch_size": 6, "seeds": 12, "data": "gaussian"}
    return flowlab.measure(flowlab.make(**{**small, "reduction": "sum", **axes}))


@pytest.fixture(scope="module")
def runs():
    return [measured(batch_size=size) for size in (1, 4, 32)]


def test_noise_scales_have_a_panel_for_each_data_set(runs):
    assert len(noise_by_layer(Reading(runs[-1])).axes) == 1
    figure = noise_by_layer(Reading(runs[-1]))
    assert_readable(figure)
    assert {text.get_text() for text in figure.axes[0].texts} == {"he, W", "he, b"}
    assert "layers (of all runs)" in noise_by_layer_caption(Reading(runs[-1]))
    scales = batch_law.noise_scales(batch_law.law(runs[-1]))
    wide = scales.pivot(index="layer", columns="parameter", values="noise_scale")
    smaller = (wide["b"] < wide["W"]).sum()
    found = noise_by_layer_finding(Reading(runs[-1]))
    assert f"smaller noise scale in {smaller} of 3 layers" in found
    assert f"is {(wide['b'] / wide['W']).median():.2g} times that" in found


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


def times(factor, **where):
    """The held-out loss of runs with these settings is ``factor`` times as high."""

    def bend(curve):
        hit = (curve[list(where)] == list(where.values())).all(axis=1)
        loss = curve["held_out_loss"]
        return curve.assign(held_out_loss=loss.mask(hit, factor * loss))

    return bend


CURVES = {
    "S4": [
        times(1.2, reduction="sum", batch_size=128),  # a sum's rate would have to be scaled
        times(1 / 40, reduction="sum", batch_size=1024),  # no batch would be too large for it
        times(1 / 3, reduction="mean", batch_size=128),  # a mean's rate would not
    ]
}


class TestFindings(Findings):
    STUDY, PLANTS, CURVES = STUDY, PLANTS, CURVES

    def test_norms_alone_say_nothing_of_the_rate(self):
        (claim,) = (claim for claim in STUDY.findings if claim.id == "S4")
        found = claim.find(replace(measured_reading("S4"), curve=None))
        assert found.verdict in claim.expected
        assert found.sentence.endswith("is not measured here.")

    def test_curves_must_be_of_both_reductions(self):
        (claim,) = (claim for claim in STUDY.findings if claim.id == "S4")
        reading = measured_reading("S4")
        alone = reading.curve[reading.curve["reduction"] == "sum"]
        with pytest.raises(InputError, match="under sum and under mean"):
            claim.find(replace(reading, curve=alone))
