"""The gradient over layers and time."""

import numpy as np
import pytest

from flowlab.errors import InputError
from flowlab.studies import Reading
from flowlab.studies.rnn_map import (
    layer_by_time,
    layer_by_time_caption,
    layer_by_time_finding,
)
from tests.support.drawing import assert_readable
from tests.support.tables import COTANGENT, net, recurrent, together


def test_lines_hold_each_layer_and_step():
    table, _ = together(*(recurrent(n, -0.1, depth=4, down=0.5, network=n) for n in ("rnn", "gru")))
    table.loc[(table["time"] == 3) & (table["layer"] == 2), COTANGENT] = -np.inf
    figure = layer_by_time(Reading(table))
    assert_readable(figure)
    gru, rnn = figure.axes
    assert (gru.get_title("left"), rnn.get_title("left")) == ("gru", "rnn")
    assert gru.get_ylim() == rnn.get_ylim()
    assert {text.get_text() for text in gru.texts} == {"1", "2", "3"}
    for layer in (1, 2, 3):
        (line,) = [line for line in gru.lines if line.get_label() == f"layer {layer}"]
        expected = -0.1 * np.arange(19, -1, -1) + 0.5 * (3 - layer)
        if layer == 2:
            expected[2] = np.nan
        assert line.get_ydata() == pytest.approx(expected, abs=1e-9, nan_ok=True)
    assert layer_by_time_finding(Reading(table)) == (
        "Over 19 steps back the last layer's gradient changes by −1.9 decades (gru), −1.9 (rnn); "
        "over 2 layers down in the last step by 1.0, 1.0"
    )
    text = layer_by_time_caption(Reading(table))
    assert "from 0.00 in the last layer and step: 1.00 in the first layer of that step" in text
    assert "-1.90 in the first step of that layer, -0.90 in the first of both" in text


def test_a_net_without_steps_has_no_map():
    with pytest.raises(InputError, match="rows of single time steps; got none"):
        layer_by_time(Reading(net("plain", 0.1, network="mlp")[0]))
