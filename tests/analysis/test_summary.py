"""The summary of a run in words: along layers, of recurrent runs along time."""

import numpy as np
import pytest

from flowlab.analysis.summary import sparkline, summarise
from flowlab.analysis.verdicts import judge
from tests.support.tables import net, recurrent, trained


def lines_of(table, upstream="gaussian"):
    table = table.assign(upstream=upstream)
    return summarise(table, judge(table)).splitlines()


def test_the_verdict_stands_first_then_layers_from_input_to_output():
    lines = lines_of(net("run", -0.5, depth=5)[0])
    assert lines[0].startswith("Vanishing: log10‖δ‖ changes by -2.00 [")
    assert lines[2] == "log10‖δ‖ from layer 1 (input) to 5 (output):"
    assert lines[3].strip() == sparkline(np.linspace(-2, 0, 5))
    assert lines[6].split()[:3] == ["1", "-2.00", "-2.00"]


def test_the_read_out_is_shown_but_not_judged():
    lines = lines_of(net("run", -0.5, depth=5)[0], "loss")
    assert "changes by -1.50 [" in lines[0] and "the read-out adds -0.50" in lines[0]
    assert "from layer 1 (input) to 5 (output):" in lines[2]


@pytest.mark.parametrize("table", [net("run", -0.5)[0], recurrent("run", -0.1)[0]])
def test_a_trained_run_is_shown_as_it_starts(table):
    assert lines_of(trained(table)) == lines_of(table)


@pytest.mark.parametrize("depth", [2, 4])
def test_a_recurrent_run_is_shown_by_steps_of_its_last_layer(depth):
    table, _ = recurrent("run", -0.1, depth=depth, down=5.0)
    lines = lines_of(table[table["layer"] == depth - 1])
    shown = lines_of(table)
    assert shown == lines
    assert shown[0].startswith("Vanishing: log10‖∂L/∂h_t‖ changes by -1.9")
    assert shown[2] == f"log10‖∂L/∂h_t‖ in layer {depth - 1} from step 1 to 20:"
    assert shown[3].strip() == sparkline(np.linspace(-1.9, 0, 20))
    assert shown[5].split() == ["step", "h_t", "δ_t", "∂L/∂h_t"]
    assert shown[6].split()[0] == "1" and shown[6].split()[-2:] == ["-99.00", "-1.90"]
    assert not any("log10‖δ‖ from layer" in line for line in shown)


@pytest.mark.parametrize("status", ["zero", "lost", "nonfinite"])
def test_every_status_is_explained(status):
    table = net("run", -0.5, depth=5)[0]
    table.loc[table["layer"] == 5, "status"] = status
    (line,) = (line for line in lines_of(table) if f"(status={status})" in line)
    assert line.startswith(f"{(table['status'] == status).sum()} of {len(table)} rows ")
