"""Backpropagation through time, step by step."""

import numpy as np
import pytest

from flowlab.errors import InputError
from flowlab.figures import through_time
from tests.support.drawing import assert_readable
from tests.support.tables import COTANGENT, net, recurrent, together


def test_states_of_the_last_layer_lie_on_the_slope_of_their_radius():
    table, _ = together(
        *(recurrent(f"r{r}", np.log10(r) + 0.01 * (r < 1), radius=r) for r in (0.9, 1.1)),
        recurrent("other", -0.3, activation="relu", recurrent="orthogonal", radius=1.0),
    )
    figure = through_time.state_gradients(table)
    assert_readable(figure)
    assert [ax.get_title("left") for ax in figure.axes] == [
        "tanh, orthogonal", "tanh, lecun", "relu, orthogonal", "relu, lecun"
    ]  # fmt: skip
    panel = figure.axes[1]
    lines = {line.get_label(): line for line in panel.lines}
    back = np.arange(19, -1, -1)
    for radius, excess in ((0.9, 0.01), (1.1, 0.0)):
        mean = lines[f"mean: ρ = {radius:g}"]
        assert mean.get_ydata() == pytest.approx((np.log10(radius) + excess) * back, abs=1e-9)
        assert list(mean.get_xdata()) == list(range(1, 21))
        theory = lines[f"radius: ρ = {radius:g}"]
        assert theory.is_dashed()
        assert theory.get_ydata() == pytest.approx(np.log10(radius) * back, abs=1e-9)
    assert {text.get_text() for text in panel.texts} == {"ρ = 0.9", "ρ = 1.1"}
    assert [text.get_text() for text in figure.axes[0].texts] == ["none in these runs"]
    assert figure.axes[2].get_ylim() == figure.axes[3].get_ylim() != panel.get_ylim()
    rows = through_time.changes(table)
    text = through_time.state_gradients_caption(rows, 5)
    assert (
        "over 19 steps" in text
        and "tanh, lecun: radius=0.9 -0.0358 (kept), radius=1.1 0.0414" in text
    )
    assert "1 of 3 95 % intervals hold log10 of the radius" in text
    assert through_time.radius_finding(rows) == (
        "Over 19 steps back the gradient changes by log₁₀ρ a step, as in a linear net, "
        "in 1 of 2 runs with tanh and 0 of 1 with relu"
    )


def test_predicted_steps_take_the_place_of_the_radius():
    table, prediction = recurrent("r", -0.05, predicted=-0.05)
    figure = through_time.state_gradients(table, prediction)
    assert not [ln for ax in figure.axes for ln in ax.lines if ln.get_label().startswith("radius")]
    (theory,) = [ln for ln in figure.axes[0].lines if ln.get_label().startswith("theory")]
    assert theory.get_ydata() == pytest.approx(-0.05 * np.arange(19, -1, -1))
    assert "no prediction" not in " ".join(text.get_text() for text in figure.axes[0].texts)

    def said(table, prediction):
        rows = through_time.changes(table, prediction)
        return through_time.state_gradients_caption(rows, 5)

    assert said(table, prediction).endswith("Theory: agrees 1.")
    late = prediction[prediction["time"].isna() | (prediction["time"] > 10)]
    bent = table.assign(**{COTANGENT: table[COTANGENT].where(table["time"] > 10, -50.0)})
    assert "agrees 1" in said(bent, late)
    other = prediction.assign(**{COTANGENT: 2 * prediction[COTANGENT]})
    assert "differs 1" in said(table, other)


def test_where_theory_is_silent_is_said():
    table, prediction = recurrent("r", -0.05, predicted=-0.05, network="lstm")
    late = prediction[prediction["time"].isna() | (prediction["time"] > 10)]
    for curves, note in ((late, "no prediction\nfor t < 11"), (None, "no prediction")):
        figure = through_time.state_gradients(table, curves)
        assert_readable(figure)
        assert note in {text.get_text() for text in figure.axes[0].texts}


def test_gated_cells_have_no_radius_to_be_compared_with():
    table, prediction = together(
        *(recurrent(n, -0.1, network=n, recurrent=r) for n, r in (("lstm", "lecun"), ("gru", "x")))
    )
    prediction = prediction.drop(columns="time")
    axes = {"across": "recurrent", "lines": "network"}
    figure = through_time.state_gradients(table, prediction, **axes)
    assert not [ln for ax in figure.axes for ln in ax.lines if ln.get_label().startswith("radius")]
    rows = through_time.changes(table, prediction, **axes)
    assert "hold" not in through_time.state_gradients_caption(rows, 5)
    assert through_time.radius_finding(rows) == (
        "Over 19 steps back the gradient changes by −1.9 decades (gru), −1.9 (lstm)"
    )


def test_steps_are_asked_of_recurrent_nets_alone():
    table, _ = net("plain", 0.1, network="mlp")
    with pytest.raises(InputError, match="rows of single time steps; got none"):
        through_time.state_gradients(table)
