"""The summary of a run in words: along layers, of recurrent runs along time."""

import numpy as np
import pytest
from test_figures_architectures import recurrent
from test_plots import net

from flowlab.statistics import COTANGENT, backward_slope, verdict
from flowlab.summary import sparkline, summarise


def lines_of(table, along, **which):
    slope = backward_slope(table, along=along, **which)
    table = table.assign(upstream="gaussian")
    return summarise(table, verdict(slope)).splitlines()


def test_layers_are_told_from_input_to_output():
    lines = lines_of(net("run", -0.5, depth=5)[0], "layer")
    assert lines[0] == "log10‖δ‖ from layer 1 (input) to 5 (output):"
    assert lines[1].strip() == sparkline(np.linspace(-2, 0, 5))
    assert lines[4].split()[:3] == ["1", "-2.00", "-2.00"]
    assert any(line.startswith("From output to input log10‖δ‖ changes by -2.0") for line in lines)


@pytest.mark.parametrize("depth", [2, 4])
def test_a_recurrent_run_is_told_by_steps_of_its_last_layer(depth):
    table, _ = recurrent("run", -0.1, depth=depth, down=5.0)
    lines = lines_of(table[table["layer"] == depth - 1], "time", column=COTANGENT)
    whole = summarise(table.assign(upstream="gaussian"), verdict(backward_slope(table)))
    told = whole.splitlines()
    assert told[0] == f"log10‖∂L/∂h_t‖ in layer {depth - 1} from step 1 to 20:"
    assert told[:12] == lines[:12]
    assert told[1].strip() == sparkline(np.linspace(-1.9, 0, 20))
    assert told[3].split() == ["step", "h_t", "δ_t", "∂L/∂h_t"]
    assert told[4].split()[0] == "1" and told[4].split()[-2:] == ["-99.00", "-1.90"]
    change = "From the last step to the first log10‖∂L/∂h_t‖ changes by -1.9"
    assert any(line.startswith(change) for line in told)
    assert "log10‖δ‖ from layer" not in whole.split("\n\n")[0]
