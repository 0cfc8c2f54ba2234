"""Where floating point would read 0."""

import numpy as np

from flowlab.figures import underflow
from tests.support.drawing import assert_readable, labelled
from tests.support.tables import net


def test_underflow_is_marked_where_entries_leave_the_range():
    table, prediction = net("deep", -5.0, depth=101)
    figure = underflow.depths_of_underflow(table, prediction)
    assert_readable(figure)
    # rms = ‖δ‖/√(4·16); half the least subnormals are 2^-150 and 2^-1075, squares root them.
    for name, power in {"float32: norm": -75, "float32: δ": -150, "float64: δ": -1075}.items():
        layer = 101 - next(k for k in range(101) if 10.0 ** (-5 * k) / 8 < 2.0**power or k > 64)
        if power == -1075:  # 2^-1075 itself is 0 in float64
            layer = 101 - int(np.ceil((1075 * np.log10(2) - np.log10(8)) / 5))
        marks = [a for a in labelled(figure, f"{name} reads 0") + labelled(figure, f"{name} is 0")]
        assert [mark.get_xdata()[0] for mark in marks] == [layer, layer]
        assert f"from layer {layer} down" in underflow.underflow_caption(table, prediction)
    text = underflow.underflow_caption(table, prediction)
    assert "to -500.0 in layer 1 (theory -500.0)" in text
    assert "neither float32 nor float64" in underflow.underflow_caption(net("flat", 0.0)[0])


def test_images_have_more_entries_than_channels():
    table, _ = net("deep", -1.0, depth=60, width=16, fan_out=144)
    entries = 4 * 16 * 64
    layer = 60 - next(k for k in range(60) if 10.0**-k / np.sqrt(entries) < 2.0**-75)
    text = underflow.underflow_caption(table, positions=64)
    assert f"norm reads 0 from layer {layer} down" in text
    assert f"norm reads 0 from layer {layer} down" not in underflow.underflow_caption(table)
