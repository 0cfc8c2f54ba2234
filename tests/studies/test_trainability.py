"""The gradient at initialization beside what training reaches."""

from itertools import product
from math import log2

import numpy as np
import pandas as pd
import pytest

from flowlab.errors import InputError
from flowlab.studies import Reading, trainability
from flowlab.studies.trainability import STUDY
from tests.support.drawing import assert_readable
from tests.support.planted import Findings
from tests.support.tables import curve, net, together

SCATTER, GRID, STEPS = STUDY.figures
# decades per layer, and the accuracy reached
KINDS = {
    ("none", "none"): (-1.0, 0.1),
    ("none", "batch"): (0.5, 0.9),
    ("scaled", "none"): (0.01, 0.93),
    ("scaled", "batch"): (0.005, 0.91),
}


def reading(kinds=KINDS, **options):
    """Nets of two inits and two depths, each kind of skip and norm with its rate and accuracy."""
    nets, curves = [], []
    for (skip, norm), init, depth in product(kinds, ("he", "xavier"), (6, 11)):
        slope, accuracy = kinds[skip, norm]
        axes = {"skip": skip, "norm": norm, "init": init, "depth": depth, "upstream": "gaussian"}
        run = f"{skip}{norm}{init}{depth}"
        nets.append(net(run, slope, **axes))
        loss = -log2(accuracy)
        curves.append(curve(run, lambda x, loss=loss: np.full_like(x, loss), spread=0, **options))
    table, _ = together(*nets)
    return Reading(table, curve=pd.concat(curves, ignore_index=True))


def test_marks_hold_the_change_and_the_accuracy():
    figure = SCATTER.figure(reading())
    assert_readable(figure)
    (ax,) = figure.axes
    points = {
        tuple(point): bars.get_label()
        for bars in ax.containers
        for point in np.round(bars.lines[0].get_xydata(), 6)
    }
    assert points[-10.0, 0.1] == points[-5.0, 0.1] == "norm=none, skip=none"
    assert points[0.05, 0.91] == "norm=batch, skip=scaled" and points[5.0, 0.9].endswith("none")
    text = SCATTER.finding(reading())
    assert text.startswith(
        "What the gradient does at initialization says in part whether a net trains: 8 of 8 that "
        "keep it do and 4 of 8 others; Spearman's ρ of |decades| and accuracy is −0.79 ["
    )
    caption = SCATTER.caption(reading())
    assert "Nets that train though they change it: he with skip=none, norm=batch at" in caption
    assert "Nets that do not" not in caption


def test_seeds_that_diverge_name_no_class():
    nets = trainability.outcomes(reading(diverge=24), *trainability.AXES)
    assert (nets["diverged"] == 1).all()
    kinds = nets.set_index(["skip", "norm", "init", "depth"])["accuracy"]
    assert kinds["none", "batch", "he", 6] == pytest.approx(4 / 5 * 0.9)


def test_cells_hold_accuracy_and_decades():
    figure = GRID.figure(reading())
    assert_readable(figure)
    panels = {ax.get_title("left"): ax for ax in figure.axes if ax.images}
    assert list(panels) == [
        f"skip={skip}, norm={norm}" for skip, norm in product(("none", "scaled"), ("none", "batch"))
    ]
    plain = panels["skip=none, norm=none"]
    assert plain.images[0].get_array().data == pytest.approx(np.full((2, 2), 0.1))
    assert [text.get_text() for text in plain.texts] == ["10\n−5.0", "10\n−10.0"] * 2
    assert GRID.finding(reading()).endswith(
        "0 of 4 plain, 4 of 4 with a norm alone, 4 of 4 with a skip alone and 4 of 4 with both"
    )


def test_the_answer_follows_the_numbers():
    always = {kind: (slope, 0.9 - 0.6 * abs(slope)) for kind, (slope, _) in KINDS.items()}
    assert " says whether a net trains: 8 of 8" in SCATTER.finding(reading(always))
    never = {kind: (slope, 0.5 + 0.4 * abs(slope)) for kind, (slope, _) in KINDS.items()}
    assert " does not say whether a net trains" in SCATTER.finding(reading(never))


def test_steps_are_shown_of_the_deepest_nets_of_one_init():
    table = reading().table
    shown = trainability.telling(table)
    assert set(shown["depth"]) == {11} and set(shown["init"]) == {"xavier"}
    again = shown.assign(step=2).astype({"step": "Int64"})
    steps = pd.concat([shown.assign(step=1), again], ignore_index=True).astype({"step": "Int64"})
    figure = STEPS.figure(Reading(steps))
    assert_readable(figure)
    assert len([ax for ax in figure.axes if ax.get_title("left")]) == 4
    assert STEPS.finding(Reading(steps)).startswith("Between layers ‖dW‖ differs by 0.05")


def test_untrained_runs_and_regressions_are_refused():
    given = reading()
    with pytest.raises(InputError, match="must hold trained runs"):
        trainability.outcomes(Reading(given.table), "init")
    no_classes = given.curve.assign(held_out_accuracy=np.nan)
    with pytest.raises(InputError, match="must be on classes, for an accuracy; got a regression"):
        trainability.outcomes(Reading(given.table, curve=no_classes), *trainability.AXES)


def flat(table):
    """No net changes the gradient at all."""
    return table.assign(delta_log10_norm=0.0)


def inverted(curve):
    """What trains does not, and the other way round."""
    return curve.assign(held_out_accuracy=1 - curve["held_out_accuracy"])


class TestFindings(Findings):
    STUDY = STUDY
    PLANTS = {"S17": [flat]}  # noqa: RUF012
    CURVES = {"S17": [inverted]}  # noqa: RUF012
