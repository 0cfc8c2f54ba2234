"""Where floating point would read 0."""

import numpy as np
import pytest

from flowlab.errors import InputError
from flowlab.figures import sweep, underflow
from tests.support.drawing import assert_readable, labelled
from tests.support.tables import net, together


def test_underflow_is_marked_where_entries_leave_the_range():
    of = sweep(*net("deep", -5.0, depth=101))
    figure = underflow.depths_of_underflow(of)
    assert_readable(figure)
    text = underflow.caption(of)
    # rms = ‖δ‖/√(4·16); half the least subnormals are 2^-150 and 2^-1075, squares root them.
    powers = {"float32: norm reads 0": -75, "float32: δ is 0": -150, "float64: δ is 0": -1075}
    for name, power in powers.items():
        layer = 101 - next(k for k in range(101) if 10.0 ** (-5 * k) / 8 < 2.0**power or k > 64)
        if power == -1075:  # 2^-1075 itself is 0 in float64
            layer = 101 - int(np.ceil((1075 * np.log10(2) - np.log10(8)) / 5))
        marks = {mark.get_xdata()[0] for mark in labelled(figure, name)}
        assert marks == {layer}
        assert f"{name} from layer {layer} down" in text
    assert "to -500.0 in layer 1 (a change of -500.0, theory -500.0)" in text
    finding = underflow.finding(of)
    assert finding.startswith("Measured down to ‖δ‖ = 10⁻⁵⁰⁰ in layer 1; a plain norm reads 0 from")
    flat = sweep(*net("flat", 0.0))
    assert "neither float32 nor float64" in underflow.caption(flat)
    assert "reads 0" not in underflow.finding(flat)


def test_images_have_more_entries_than_channels():
    table, _ = net("deep", -1.0, depth=60, width=16, fan_out=144, network="cnn")
    entries = 4 * 16 * 64
    layer = 60 - next(k for k in range(60) if 10.0**-k / np.sqrt(entries) < 2.0**-75)
    text = f"norm reads 0 from layer {layer} down"
    assert text in underflow.caption(sweep(table), side=8)
    assert text in underflow.caption(sweep(table.assign(image=8)))
    assert text not in underflow.caption(sweep(table))


def test_several_nets_stand_side_by_side():
    made = together(
        net("a", -5.0, depth=101, network="mlp"), net("b", -1.0, depth=101, network="cnn")
    )
    figure = underflow.depths_of_underflow(sweep(*made))
    assert_readable(figure)
    for ax in figure.axes:
        assert {text.get_text() for text in ax.texts} == {"mlp", "cnn"}
    # Near the output are the layers in which float32 gives out first.
    assert figure.axes[1].get_xticks()[0] > 80
    many, _ = together(*(net(f"{k}", -1.0, width=k) for k in range(1, 10)))
    with pytest.raises(InputError, match="at most 8 runs; got 9"):
        underflow.depths_of_underflow(sweep(many))
