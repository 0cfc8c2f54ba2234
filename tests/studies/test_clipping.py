"""What clipping leaves of every network's gradient, and what is reached with it."""

from itertools import product

import numpy as np
import pandas as pd
import pytest

from flowlab.errors import InputError
from flowlab.studies import Reading
from flowlab.studies.clipping import STUDY, apart, factors, reached
from tests.support.drawing import assert_readable
from tests.support.tables import curve, net, together

REACHED, PROFILES = STUDY.figures
RATE, DEPTH = 0.1, 6
NETWORKS, KINDS = ("rnn", "mlp", "cnn"), ("none", "norm", "layer", "value", "adaptive")
# Decades that the clipping takes from the norm of a layer.
TAKEN = {"norm": lambda layer: 2 + 0 * layer, "layer": lambda layer: 0.5 * layer}
ANGLES = {"layer": 0.3, "value": 0.7, "adaptive": 0.5}


def reading(networks=NETWORKS, kinds=KINDS, **settings):
    """Every network with every clipping; without it the last seed of the mlp diverges."""
    nets, curves = [], []
    for network, kind in product(networks, kinds):
        run, axes = f"{network}-{kind}", {"network": network, "training_clip": kind}
        table, theory = net(run, -0.1, depth=DEPTH, upstream="loss", **axes, **settings)
        layer = table["layer"].to_numpy(float)
        left = table["dW_log10_norm"] - TAKEN.get(kind, np.zeros_like)(layer)
        table = table.assign(
            training="sgd", training_weight_decay=0.0, update_log10_norm=left + np.log10(RATE)
        )
        later = table.assign(step=64, update_log10_norm=-9.0)
        table = pd.concat([table.assign(step=1), later]).astype({"step": "Int64"})
        nets.append((table, theory))
        lost = {"diverge": 24} if (network, kind) == ("mlp", "none") else {}
        of = curve(run, lambda x: 3 / np.sqrt(x), **lost, **axes)
        more = {"clip_angle": ANGLES.get(kind, 0.0), "clipped": float(kind != "none")}
        curves.append(of.assign(learning_rate=RATE, **more))
    table, _ = together(*nets)
    return Reading(table, curve=pd.concat(curves, ignore_index=True))


def test_marks_hold_losses_angles_and_what_diverges():
    figure = REACHED.figure(reading())
    assert_readable(figure)
    left, right = figure.axes
    assert [text.get_text() for text in left.get_yticklabels()] == ["mlp", "cnn", "rnn"]
    turns = {
        bars.get_label(): np.unique(np.round(bars.lines[0].get_xdata().astype(float), 6))
        for bars in right.containers
    }
    expected = {kind: np.degrees(ANGLES.get(kind, 0.0)) for kind in KINDS}
    assert {kind: of.item() for kind, of in turns.items()} == pytest.approx(expected, abs=1e-5)
    (norm,) = [bars for bars in left.containers if bars.get_label() == "norm"]
    assert norm.lines[0].get_xdata() == pytest.approx([3 / 8] * 3)
    crosses = [line for line in left.lines if line.get_marker() == "x"]
    assert [line.get_label() for line in crosses] == ["lost: none"]
    assert REACHED.finding(reading()) == (
        "From weights 1 times too large mlp (1 of 5 seeds) diverges without clipping and none with "
        "it; the first step turns by at most 0° (norm), 17° (layer), 40° (value), 29° (adaptive)"
    )
    rows = reached(reading()).set_index(["network", "clip"])
    assert rows.loc[("mlp", "none"), ["diverged", "seeds"]].tolist() == [1, 5]
    assert rows["clipped"].groupby("clip").max().to_dict() == {k: k != "none" for k in KINDS}
    assert "mlp 1.06 → none" in REACHED.caption(reading())


def test_lines_hold_what_is_left_in_the_first_step():
    figure = PROFILES.figure(reading())
    assert_readable(figure)
    panels = {ax.get_title("left"): ax for ax in figure.axes if ax.get_visible()}
    assert list(panels) == ["mlp", "cnn", "rnn"]
    layer = np.arange(1, DEPTH + 1)
    raw = -0.1 * (DEPTH - layer)
    lines = {line.get_label(): line.get_ydata() for line in panels["cnn"].lines}
    for kind in KINDS:
        taken = TAKEN.get(kind, np.zeros_like)(layer.astype(float))
        assert lines[kind] == pytest.approx(raw - taken, abs=1e-9)
    assert apart(reading())["apart"]["layer"]["rnn"] == pytest.approx(2.5)
    assert PROFILES.finding(reading()) == (
        "Clipping by norm, by value and adaptively takes the same factor from every layer's ‖dW‖; "
        "it takes by layer up to 2.5 decades more (cnn) from one layer than from another"
    )
    assert "by norm mlp 2.00 to 2.00, cnn" in PROFILES.caption(reading())


def test_other_updates_hide_what_clipping_left():
    given = reading(("mlp",), ("norm",))
    for change in ({"training": "adam"}, {"training_weight_decay": 0.1}):
        with pytest.raises(InputError, match="must be sgd without weight decay"):
            factors(Reading(given.table.assign(**change), curve=given.curve))
    twice = pd.concat([given.curve, given.curve.assign(run="again")])
    with pytest.raises(InputError, match=r"got two of network=mlp, training\.clip=norm"):
        reached(Reading(given.table, curve=twice))
