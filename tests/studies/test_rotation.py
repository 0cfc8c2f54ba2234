"""Angles of steps beside rotational equilibrium, of SGD and of AdamW, and their findings."""

import numpy as np
import pandas as pd
import pytest

from flowlab.errors import InputError
from flowlab.studies import Reading, rotation, rotation_adamw
from tests.support.drawing import assert_readable, labelled
from tests.support.planted import Findings
from tests.support.tables import net, together

STEPS = np.arange(10, 310, 10)


def turning(optimizer, lr, decay, norm="batch", momentum=0.5, factor=1.0, **axes):
    """A run whose squared angles, once it has settled, are ``factor``² times theory's on average.

    Squares alternate between 0.8 and 1.2, the last is 1; the last layer, which nothing normalizes,
    is far off.
    """
    share = 1 / (1 + momentum) if optimizer == "sgd" else 0.1 / 1.9
    theory = np.sqrt(2 * lr * decay * share)
    axes = {"network": "mlp", "training": optimizer, "training_lr": lr, "norm": norm} | axes
    axes |= {"training_weight_decay": decay}
    axes |= {"training_momentum": momentum if optimizer == "sgd" else None}
    axes |= {"training_beta1": 0.9 if optimizer == "adamw" else None}
    table, prediction = net(f"{optimizer}{lr}{decay}{norm}", 0.0, depth=3, **axes)
    frames = []
    for k, step in enumerate(STEPS):
        square = 1.0 if step == STEPS[-1] else 1.2 if k % 2 else 0.8
        level = factor * theory * np.sqrt(square) * (1 if step > 150 else 0.5)
        turn = np.where(table["layer"] == 3, 3.0, level * (1 + 0.01 * (table["seed"] - 2)))
        frames.append(table.assign(step=step, W_turn=turn))
    return pd.concat(frames, ignore_index=True), prediction


@pytest.fixture
def swept():
    return Reading(
        *together(
            turning("sgd", 0.5, 0.01),
            turning("sgd", 1.0, 0.02, factor=1.04),
            turning("sgd", 1.0, 0.0),
            turning("sgd", 0.5, 0.02, norm="none"),
            turning("adamw", 0.01, 0.5),
        )
    )


def test_theory_is_that_of_a_random_walk():
    """Independent gradients orthogonal to W, their size falling as 1/‖W‖, in many dimensions."""
    random, size, lr, decay = np.random.default_rng(0), 400, 0.5, 0.02
    for momentum in (0.0, 0.8):
        w, trace, squares = random.standard_normal(size), np.zeros(size), []
        for step in range(4000):
            g = random.standard_normal(size)
            g -= (g @ w) / (w @ w) * w
            trace = momentum * trace + g / np.linalg.norm(w) + decay * w
            new = w - lr * trace
            if step >= 1000:
                cosine = (w @ new) / np.linalg.norm(w) / np.linalg.norm(new)
                squares.append(np.arccos(cosine) ** 2)
            w = new
        expected = rotation.equilibrium(lr, decay, momentum)
        assert np.sqrt(np.mean(squares)) == pytest.approx(expected, rel=0.02)


def test_theory_of_adamw_is_that_of_a_random_walk():
    random, size, lr, decay, beta1 = np.random.default_rng(1), 400, 0.01, 0.5, 0.9
    w, mean, squares = random.standard_normal(size), np.zeros(size), []
    for step in range(6000):
        mean = beta1 * mean + (1 - beta1) * random.standard_normal(size)  # each of square 1
        new = w - lr * (mean + decay * w)
        if step >= 2000:
            cosine = (w @ new) / np.linalg.norm(w) / np.linalg.norm(new)
            squares.append(np.arccos(cosine) ** 2)
        w = new
    expected = rotation.adamw_equilibrium(lr, decay, beta1)
    assert np.sqrt(np.mean(squares)) == pytest.approx(expected, rel=0.05)


def test_every_setting_has_its_line_and_its_level(swept):
    drawing = rotation.STUDY.figures[0]
    figure = drawing.figure(drawing.shown(swept))
    assert_readable(figure)
    for name, level in (
        ("η = 0.5, λ = 0.01", np.sqrt(0.01 / 1.5)),
        ("η = 1, λ = 0.02", np.sqrt(0.04 / 1.5)),
    ):
        (theory,) = labelled(figure, f"theory: {name}")
        assert 10 ** theory.get_ydata() == pytest.approx([level, level])
        (mean,) = labelled(figure, f"mean: {name}")
        late = mean.get_xdata() > 150
        factor = 1.04 if "λ = 0.02" in name else 1.0
        rms = np.sqrt(np.mean(10 ** (2 * mean.get_ydata()[late])))
        assert rms == pytest.approx(factor * level, rel=1e-3)
    assert len(figure.axes[0].texts) == 2


def test_finding_and_caption_are_of_the_root_mean_square(swept):
    text = rotation.STUDY.figures[0].finding(swept)
    assert text == (
        "Weights before batch norm come to turn by √(2ηλ/(1 + μ)) a step: by 1.00 to 1.04 times "
        "that at 2 settings, of 0.082 to 0.16 radians"
    )
    assert "1.040 [1.0" in rotation.STUDY.figures[0].caption(swept)
    adamw = rotation_adamw.STUDY.figures[0]
    assert "by 1.00 times that at η = 0.01, λ = 0.5, of 0.023 radians" in adamw.finding(swept)
    assert_readable(adamw.figure(adamw.shown(swept)))


def test_only_weights_before_a_batch_norm_under_decay_are_read(swept):
    values = rotation.turns(swept, "sgd")
    assert set(values["layer"]) == {1, 2} and set(values["line"]) == {
        "η = 0.5, λ = 0.01",
        "η = 1, λ = 0.02",
    }
    lone = Reading(*turning("sgd", 0.5, 0.0))
    with pytest.raises(InputError, match="training=sgd with weight decay and norm=batch"):
        rotation.turns(lone, "sgd")


def turned(factor):
    """Every angle is ``factor`` times too large."""
    return lambda table: table.assign(W_turn=factor * table["W_turn"])


def decay_unknown(table):
    """Angles are those of another decay."""
    other = table["training_weight_decay"] / table["training_weight_decay"].max()
    other = other.where(other < 1, 0.5)
    return table.assign(W_turn=table["W_turn"] * np.sqrt(other))


def lost(table):
    """One network diverged."""
    gone = (table["seed"] == table["seed"].max()) & (table["step"] > 400)
    return table.assign(W_turn=table["W_turn"].mask(gone))


class TestSGD(Findings):
    STUDY, PLANTS = rotation.STUDY, {"O8": [turned(1.25), turned(0.8), decay_unknown, lost]}


class TestAdamW(Findings):
    STUDY, PLANTS = rotation_adamw.STUDY, {"O9": [turned(1.35), turned(0.75), decay_unknown, lost]}
