"""Sharpness beside the limit of stability, of gradient descent and of Adam, and its findings."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from flowlab.errors import InputError
from flowlab.studies import Reading, stability, stability_adam
from tests.support.drawing import assert_readable, labelled
from tests.support.planted import assert_expected, measured
from tests.support.tables import net, together

STUDIES = {"sgd": stability.STUDY, "adam": stability_adam.STUDY}
STEPS = np.array([1, 10, 20, 30, 40, 50, 60])
# In units of the limit: over the last third, from step 40 on, 1.01 on average.
RISE = np.array([0.25, 0.5, 1.1, 0.95, 1.0, 1.02, 1.01])


def hovering_run(optimizer, lr, momentum=0.0, batch=180):
    """(table, curve) of a run whose sharpness is RISE times the limit; seeds differ by a factor
    whose mean is 1."""
    run = f"{optimizer}{lr}{momentum}{batch}"
    axes = {"training": optimizer, "training_lr": lr, "batch_size": batch}
    axes |= {"training_momentum": momentum if optimizer == "sgd" else None}
    axes |= {"training_beta1": 0.9 if optimizer == "adam" else None}
    table, _ = net(run, 0.0, **axes)
    limit, column = 2 / lr, "sharpness"
    other = "preconditioned_sharpness"
    if optimizer == "adam":
        limit, column, other = 38 / lr, other, column
    frames = [
        pd.DataFrame(
            {"run": run, **axes, "seed": seed, "step": STEPS, "examples": 180 * STEPS}
            | {"epoch": STEPS.astype(float), column: RISE * limit * factor, other: np.nan}
        )
        for seed, factor in enumerate((0.98, 0.99, 1.0, 1.01, 1.02))
    ]
    return table, pd.concat(frames)


def reading_of(*runs):
    table, curve = together(*(hovering_run(*run) for run in runs))
    return Reading(table, curve=curve)


@pytest.fixture
def swept():
    """Three full-batch runs of either optimizer, one with momentum and one on parts of the data."""
    rates = [("sgd", 1.5), ("sgd", 2.0), ("sgd", 3.0), ("adam", 0.01), ("adam", 0.02)]
    return reading_of(*rates, ("sgd", 2.0, 0.9), ("sgd", 2.0, 0.0, 30))


@pytest.mark.parametrize(
    "optimizer, limits",
    [("sgd", {1.5: 2 / 1.5, 2.0: 1, 3.0: 2 / 3}), ("adam", {0.01: 3800, 0.02: 1900})],
)
def test_every_learning_rate_has_its_line_and_its_limit(swept, optimizer, limits):
    drawing = STUDIES[optimizer].figures[0]
    figure = drawing.figure(drawing.shown(swept))
    assert_readable(figure)
    for lr, limit in limits.items():
        (theory,) = labelled(figure, f"theory: η = {lr:g}")
        assert 10 ** theory.get_ydata() == pytest.approx([limit, limit])
        (mean,) = labelled(figure, f"mean: η = {lr:g}")
        assert mean.get_xdata() == pytest.approx(STEPS)
        assert 10 ** mean.get_ydata() == pytest.approx(RISE * limit, rel=1e-3)
    assert {text.get_text() for text in figure.axes[0].texts} == {f"η = {lr:g}" for lr in limits}


def test_finding_and_caption_say_where_it_hovers(swept):
    drawing = STUDIES["sgd"].figures[0]
    assert drawing.finding(swept) == (
        "Sharpness rises to 2/η and hovers there: in the last third of training it is 1.01 times "
        "that at 3 learning rates"
    )
    assert "0.25 at the first step and 1.010 [0.990, 1.030] in the last third at η = 1.5" in (
        drawing.caption(swept)
    )
    above = swept.curve.assign(
        preconditioned_sharpness=lambda c: (
            c["preconditioned_sharpness"] * (1 + 90 * (c["step"] == 1))
        )
    )
    found = STUDIES["adam"].figures[0].finding(replace(swept, curve=above))
    assert found.startswith("Preconditioned sharpness falls, then rises to 38/η")


def test_runs_that_have_no_limit_are_left_out(swept):
    assert set(stability.sharpnesses(swept, "sgd")["lr"]) == {1.5, 2.0, 3.0}
    assert len(stability.sharpnesses(swept, "sgd")) == 3 * 5 * len(STEPS)
    with pytest.raises(InputError, match="full-batch runs of training=adam with their sharpness"):
        stability.sharpnesses(reading_of(("sgd", 2.0)), "adam")
    with pytest.raises(InputError, match="full-batch runs of training=sgd"):
        stability.sharpnesses(reading_of(("sgd", 2.0, 0.9)), "sgd")


@pytest.mark.parametrize("optimizer", STUDIES)
def test_the_finding_is_as_expected(optimizer):
    (claim,) = STUDIES[optimizer].findings
    assert_expected(claim)


def sharper(factor):
    """Both kinds of sharpness are ``factor`` times too large."""
    columns = ["sharpness", "preconditioned_sharpness"]
    return lambda curve: curve.assign(**{name: factor * curve[name] for name in columns})


def unmoved(curve):
    """Sharpness stays what it was at first."""
    columns = ["sharpness", "preconditioned_sharpness"]
    first = curve[curve["step"] == 1].set_index(["run", "seed"])[columns]
    return curve.drop(columns=columns).join(first, on=["run", "seed"])


def lost(curve):
    """One network diverged."""
    gone = (curve["seed"] == curve["seed"].max()) & (curve["step"] > 200)
    columns = ["sharpness", "preconditioned_sharpness"]
    return curve.assign(**{name: curve[name].mask(gone) for name in columns})


@pytest.mark.parametrize("optimizer", STUDIES)
@pytest.mark.parametrize("plant", [sharper(1.2), sharper(0.8), unmoved, lost])
def test_a_wrong_curve_turns_the_verdict(optimizer, plant):
    (claim,) = STUDIES[optimizer].findings
    right = measured(claim.id)
    wrong = replace(right, curve=plant(right.curve.copy()))
    assert claim.find(wrong).verdict not in claim.expected
