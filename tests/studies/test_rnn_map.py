"""The gradient over layers and time."""

import numpy as np
import pytest

from flowlab.errors import InputError
from flowlab.studies import Reading
from flowlab.studies.rnn_map import layer_by_time, layer_by_time_caption
from tests.support.drawing import assert_readable
from tests.support.tables import COTANGENT, net, recurrent, together


def test_the_map_holds_each_layer_and_step():
    table, _ = together(*(recurrent(n, -0.1, depth=4, down=0.5, network=n) for n in ("rnn", "gru")))
    table.loc[(table["time"] == 3) & (table["layer"] == 2), COTANGENT] = -np.inf
    figure = layer_by_time(Reading(table))
    assert_readable(figure)
    image = figure.axes[0].images[0].get_array()
    expected = -0.1 * np.arange(19, -1, -1) + 0.5 * np.array([[2], [1], [0]])
    assert image.mask.sum() == 1 and image.mask[1, 2]
    expected[1, 2] = 0
    assert image.filled(0) == pytest.approx(expected, abs=1e-9)
    text = layer_by_time_caption(Reading(table))
    assert "from 0.00 in the last layer and step: 1.00 in the first layer of that step" in text
    assert "-1.90 in the first step of that layer, -0.90 in the first of both" in text


def test_a_net_without_steps_has_no_map():
    with pytest.raises(InputError, match="rows of single time steps; got none"):
        layer_by_time(Reading(net("plain", 0.1, network="mlp")[0]))
