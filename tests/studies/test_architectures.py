"""Every architecture's profile and rate."""

import numpy as np
import pytest

from flowlab.studies import Reading
from flowlab.studies.architectures import (
    STUDY,
    architecture_rates,
    architecture_rates_caption,
    rates_finding,
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


def panels(figure):
    return {ax.get_title("left"): ax for ax in figure.axes if ax.get_visible()}


def test_every_architecture_has_its_own_panel_and_rows_their_axis(zoo):
    drawing = STUDY.figures[1]
    figure = drawing.figure(Reading(*zoo))
    assert_readable(figure)
    shown = panels(figure)
    assert list(shown) == ["mlp", "cnn", "rnn", "gru"]
    assert shown["rnn"].get_xlabel().startswith("step")
    labels = {name: ax.get_ylabel() for name, ax in shown.items()}
    assert labels == {"mlp": "‖δ‖", "cnn": "", "rnn": "‖∂L/∂$h_t$‖", "gru": ""}
    assert shown["mlp"].get_ylim() == shown["cnn"].get_ylim() != shown["rnn"].get_ylim()
    (mean,) = [line for line in shown["rnn"].lines if line.get_label().startswith("mean")]
    assert mean.get_ydata() == pytest.approx(-0.05 * np.arange(19, -1, -1), abs=1e-9)
    assert len([ln for ln in shown["mlp"].lines if ln.get_label().startswith("theory")]) == 2
    assert {text.get_text() for text in shown["mlp"].texts} == {"he", "lecun"}
    he = {
        name: next(ln.get_color() for ln in ax.lines if ln.get_label() == "mean: he")
        for name, ax in shown.items()
    }
    assert len(set(he.values())) == 1
    text = drawing.finding(Reading(*zoo))
    assert text.startswith("cnn/he, mlp/he and rnn/he keep the gradient over 5 layers or 19 steps")
    assert text.endswith("gru/he loses 3.8 decades and mlp/lecun gains 1.5")


def test_rates_stand_beside_theory_layers_and_steps_apart(zoo):
    figure = architecture_rates(Reading(*zoo))
    assert_readable(figure)
    layers, steps = figure.axes
    assert "per layer" in layers.get_xlabel() and "per step" in steps.get_xlabel()
    found = {}
    for ax in figure.axes:
        names = [label.get_text() for label in ax.get_yticklabels()]
        rows = dict(zip(ax.get_yticks(), names, strict=True))
        (theory,) = [line for line in ax.lines if line.get_label() == "theory"]
        found |= {rows[y]: x for x, y in zip(*theory.get_data(), strict=True)}
    assert list(found)[:2] == ["mlp, he", "mlp, lecun"]
    assert found["mlp, he"] == pytest.approx(-0.1) and found["rnn, he"] == pytest.approx(-0.04)
    assert np.isnan(found["gru, he"])
    assert figure.legends[0].get_title().get_text() == "No prediction: gru, he"
    text = rates_finding(Reading(*zoo))
    assert text.startswith("mlp, lecun gains most per layer, 0.30 decades; gru, he loses most per")
    assert text.endswith("theory's rates are within 0.01")
    text = architecture_rates_caption(Reading(*zoo))
    assert text.endswith("Theory: agrees 2, differs 1, undecided 1, no theory 1.")
    assert "Theory: no theory 5." in architecture_rates_caption(Reading(zoo[0]))
    layers = zoo[1][zoo[1]["time"].isna()].drop(columns=["time", COTANGENT])
    assert "no theory 2." in architecture_rates_caption(Reading(zoo[0], layers))
    assert_readable(STUDY.figures[1].figure(Reading(zoo[0], layers)))
    assert_readable(architecture_rates(Reading(zoo[0])))


def test_where_theory_covers_a_part_the_rate_over_it_is_shown_too():
    table, prediction = recurrent("r", -0.05, predicted=-0.04)
    steps = prediction["time"].fillna(99)
    short = prediction[steps > 15]
    figure = architecture_rates(Reading(table, short))
    (part,) = labelled(figure, "measured in part")
    assert part.lines[0].get_xdata() == pytest.approx([-0.05])
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "measured where theory reaches: the last 4 of 19 steps" in names
