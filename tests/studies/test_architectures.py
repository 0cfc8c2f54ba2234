"""Every architecture's profile and rate."""

import numpy as np
import pytest

from flowlab.studies import Reading
from flowlab.studies.architectures import (
    architecture_profiles,
    architecture_profiles_caption,
    architecture_rates,
    architecture_rates_caption,
)
from tests.support.drawing import assert_readable, labelled
from tests.support.tables import COTANGENT, net, recurrent, together


@pytest.fixture
def zoo():
    return together(
        net("m", -0.1, network="mlp"),
        net("c", 0.0, network="cnn", noise=0.1),
        net("m2", 0.3, network="mlp", init="lecun"),
        recurrent("r", -0.05, predicted=-0.04),
        recurrent("g", -0.2, network="gru"),
    )


def test_every_architecture_has_its_own_axis(zoo):
    figure = architecture_profiles(Reading(*zoo))
    assert_readable(figure)
    panels = {ax.get_title("left"): ax for ax in figure.axes if ax.get_visible()}
    assert list(panels) == ["mlp", "cnn", "rnn", "gru"]
    assert panels["rnn"].get_xlabel().startswith("step")
    labels = {name: ax.get_ylabel() for name, ax in panels.items()}
    assert labels == {"mlp": "‖δ‖", "cnn": "", "rnn": "‖∂L/∂$h_t$‖", "gru": ""}
    mean = [line for line in panels["rnn"].lines if line.get_label().startswith("mean")]
    assert mean[0].get_ydata() == pytest.approx(-0.05 * np.arange(19, -1, -1), abs=1e-9)
    assert len([ln for ln in panels["mlp"].lines if ln.get_label().startswith("theory")]) == 2
    text = architecture_profiles_caption(Reading(*zoo))
    assert (
        "Of 5 nets: 1 vanishing, 3 kept" in text
        and "gru" in text.split("Extremes: ")[1].split(" and ")[0]
    )


def test_rates_stand_beside_theory(zoo):
    figure = architecture_rates(Reading(*zoo))
    assert_readable(figure)
    ax = figure.axes[0]
    rows = dict(zip(ax.get_yticks(), (t.get_text() for t in ax.get_yticklabels()), strict=True))
    (theory,) = labelled(figure, "theory")
    predicted = {rows[y]: x for x, y in zip(*theory.get_data(), strict=True)}
    places = {name.split(",")[0]: value for name, value in predicted.items() if "lecun" not in name}
    assert places["mlp"] == pytest.approx(-0.1) and places["rnn"] == pytest.approx(-0.04)
    assert np.isnan(places["gru"])
    text = architecture_rates_caption(Reading(*zoo))
    assert "Theory's rate is off by at most 0.01 (rnn" in text
    assert text.endswith("Theory: agrees 2, differs 1, undecided 1, no theory 1.")
    assert "Theory: no theory 5." in architecture_rates_caption(Reading(zoo[0]))
    layers = zoo[1][zoo[1]["time"].isna()].drop(columns=["time", COTANGENT])
    assert "no theory 2." in architecture_rates_caption(Reading(zoo[0], layers))
    assert_readable(architecture_profiles(Reading(zoo[0], layers)))
    assert_readable(architecture_rates(Reading(zoo[0])))
