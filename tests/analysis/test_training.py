"""A training in plain words, and trained runs beside one another."""

import numpy as np
import pandas as pd
import pytest

from flowlab.analysis.comparison import answer, compare
from flowlab.analysis.training import ends, outcome

STEPS = (1, 8, 20)


def curve(accuracy, loss=(2.3, 0.5, 0.11), diverged=(), clipped=0.0, clip="none", run="a"):
    """A curve whose seeds end at these accuracies."""
    rows = []
    for seed, final in enumerate(accuracy):
        for k, step in enumerate(STEPS):
            gone = seed in diverged and step > 1
            rows.append(
                {
                    **{"run": run, "seed": seed, "step": step, "epoch": step / 4},
                    "training_loss": np.nan if gone else loss[k],
                    "held_out_loss": np.nan if gone else loss[k] + 0.1,
                    "held_out_accuracy": np.nan if gone else final,
                    **{"clipped": clipped, "training_clip": clip},
                    "training_status": "diverged" if gone else "ok",
                    "diverged_step": 5 if gone else pd.NA,
                    "diverged_layer": 2 if gone else pd.NA,
                }
            )
    return pd.DataFrame(rows)


def table(change=-1.3, seeds=3):
    """‖dW‖ of two layers at the steps of :func:`curve`, changing so much in layer 1."""
    return pd.DataFrame(
        {"seed": seed, "step": step, "layer": layer, "op": "linear", "dW_log10_norm": value}
        for seed in range(seeds)
        for step, value in zip(STEPS, (0.0, 0.3, change), strict=True)
        for layer, value in ((1, value), (2, 9.0))
    )


def test_the_outcome_says_what_became_of_loss_accuracy_and_gradient():
    assert outcome(table(), curve([0.96, 0.95, 0.97])) == (
        "Loss 2.3 → 0.11 after 5 epochs (20 steps), held-out accuracy 96.0 % [93.5, 98.5]; "
        "the gradient of layer 1 fell by 1.3 decades; no step was clipped."
    )
    rising = outcome(table(0.4), curve([0.5, 0.5, 0.5], clipped=0.25, clip="norm"))
    assert "rose by 0.4 decades; 25 % of the steps were clipped" in rising


def test_an_interval_of_accuracies_stays_within_0_and_100():
    assert "99.0 % [96.5, 100.0]" in outcome(table(), curve([0.98, 0.99, 1.0]))
    assert "held-out accuracy 99.0 %;" in outcome(table(seeds=1), curve([0.99]))


def test_networks_that_diverged_are_counted_apart():
    words = outcome(table(), curve([0.9, 0.9, 0.1], diverged=[2]))
    assert "accuracy 90.0 % [90.0, 90.0]" in words
    assert words.endswith("1 of 3 networks diverged, first at step 5 in layer 2.")
    all_gone = outcome(table(), curve([0.9, 0.9, 0.9], diverged=[0, 1, 2]))
    assert all_gone == "3 of 3 networks diverged, first at step 5 in layer 2."


def test_a_regression_has_a_loss_and_no_accuracy():
    frame = curve([np.nan] * 3)
    assert "held-out loss 0.21 [0.21, 0.21]" in outcome(table(), frame)


def test_ends_are_those_of_the_networks_that_did_not_diverge():
    found = ends(curve([0.8, 0.9, 0.1], diverged=[2]))
    assert found["accuracy"] == pytest.approx(0.85) and found["diverged"] == 1
    assert found["accuracy_low"] < 0.8 < 0.9 < found["accuracy_high"]
    assert found["training_loss"] == pytest.approx(0.11)
    assert np.isnan(ends(curve([0.8], diverged=[0]))["training_loss"])


@pytest.fixture
def compared():
    """Three runs at initialization alike, of which the second is trained best."""
    frames, curves = [], []
    for run, accuracy, lr in (("a", 0.5, 0.1), ("b", 0.9, 0.3), ("c", 0.7, 0.9)):
        frame = pd.DataFrame(
            {"run": run, "seed": seed, "layer": layer, "op": "linear", "depth": 4}
            | {"training_lr": lr, "upstream": "loss", "network": "mlp", "status": "ok"}
            | {"delta_log10_norm": 0.1 * seed, "step": 1}
            for seed in range(3)
            for layer in range(1, 5)
        )
        frames.append(frame)
        curves.append(curve([accuracy] * 3, run=run, diverged=[1] if run == "c" else []))
    return pd.concat(frames, ignore_index=True), pd.concat(curves, ignore_index=True)


def test_trained_runs_are_ranked_by_their_accuracy(compared):
    runs, curves = compared
    found = compare(runs, curve=curves)
    assert found["run"].tolist() == ["b", "c", "a"]
    assert found["diverged"].tolist() == [0, 1, 0]
    assert answer(found) == (
        "Best trained: training_lr=0.3, held-out accuracy 90.0 % [90.0, 90.0]; worst: "
        "training_lr=0.1, held-out accuracy 50.0 % [50.0, 50.0]. 1 of 9 networks diverged."
    )
    assert compare(runs, curve=curves, by="training_lr")["run"].tolist() == ["a", "b", "c"]


def test_without_curves_nothing_of_training_is_said(compared):
    runs, _ = compared
    assert "accuracy" not in compare(runs)
