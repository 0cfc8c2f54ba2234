"""Rules of the learning rate: which curves are found to coincide, and what a loss costs."""

from types import MappingProxyType

import numpy as np
import pandas as pd
import pytest

from flowlab.errors import InputError
from flowlab.studies import Reading, learning_rate_rule
from tests.support.drawing import assert_readable
from tests.support.planted import Findings
from tests.support.tables import curve

SIZES = (8, 16, 32, 64, 128, 256, 512)
FIBONACCI = (1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 512)
EXAMPLES = 4096


def run(rule, size, loss, optimizer="sgd", noise=60.0, **more):
    steps = [step for step in FIBONACCI if step * size < EXAMPLES] + [EXAMPLES // size]
    of = curve(
        f"{optimizer}-{rule}-{size}",
        loss,
        seeds=8,
        examples=np.unique(steps) * size,
        training=optimizer,
        training_rule=rule,
        batch_size=size,
        **more,
    )
    rate = 0.1 if rule == "linear" else 0.2
    return of.assign(step=of["examples"] // size, noise_scale=noise, learning_rate=rate)


def reading(*curves):
    """A reading of curves, with a table that has the settings of their runs."""
    of = pd.concat(curves, ignore_index=True)
    settings = ["run", "training", "training_rule", "batch_size"]
    table = of.drop_duplicates("run")[settings].assign(seed=0, layer=1)
    return Reading(table, curve=of)


def falling(factor):
    return lambda examples: factor * 30 * examples**-0.5


def said(text):
    """A sentence without what keeps its words on one line."""
    return text.replace("\N{NO-BREAK SPACE}", " ")


@pytest.fixture
def rules():
    """Under the linear rule curves coincide to B = 128, under constant nowhere; at 512 the linear
    rule loses a seed."""
    curves = []
    for size in SIZES:
        diverge = 1024 if size == 512 else None
        linear = 1.0 if size <= 128 else 1.6
        curves.append(run("linear", size, falling(linear), spread=0, diverge=diverge))
        curves.append(run("constant", size, falling((size / 32) ** 0.5), spread=0))
    return reading(*curves)


def test_the_range_of_a_rule_ends_at_the_first_batch_that_does_not_coincide(rules):
    rows = learning_rate_rule.verdicts(rules)
    found = {rule: learning_rate_rule.reach(of) for rule, of in rows.groupby("training_rule")}
    assert found == {"constant": (32, 32), "linear": (8, 128)}
    gap = rows["training_rule"].eq("linear") & rows["batch_size"].eq(64)
    broken = rows.assign(verdict=rows["verdict"].mask(gap, "undecided"))
    assert learning_rate_rule.reach(broken[broken["training_rule"] == "linear"]) == (8, 32)


def test_rules_are_panels_and_batches_lines(rules):
    figure = learning_rate_rule.bands(rules)
    assert_readable(figure)
    assert [ax.get_title("left") for ax in figure.axes[:2]] == ["constant η", "η ∝ B"]
    assert {text.get_text() for text in figure.axes[1].texts} == {f"B = {size}" for size in SIZES}
    assert said(learning_rate_rule.bands_finding(rules)) == (
        "Within 15 % SGD trains as at B = 32 from B = 8 to 128 with η ∝ B, at no other B with "
        "constant η; 1 of 8 seeds diverge at B = 512 with η ∝ B"
    )
    text = learning_rate_rule.bands_caption(rules)
    assert "B = 256 1.60 [1.60, 1.60] differ, B = 512 1 of 8 seeds diverge" in text
    assert "constant η: B = 8 0.50 [0.50, 0.50] differ" in text


def test_each_optimizer_has_its_loss_at_the_end(rules):
    adam = [run("sde", size, falling(0.5 + size / 512), "adam", spread=0) for size in SIZES]
    both = reading(rules.curve, *adam)
    figure = learning_rate_rule.finals(both)
    assert_readable(figure)
    assert [ax.get_title("left") for ax in figure.axes] == ["SGD", "Adam"]
    found = said(learning_rate_rule.finals_finding(both))
    # Of SGD the constant rule, 8 times its least loss; of Adam (0.5 + 1)/(0.5 + 1/64).
    assert "SGD's best rule at B = 512, constant η, ends at 8.0 times the least loss" in found
    assert "Adam's best rule at B = 512, η ∝ √B, β and ε too, ends at 2.9 times" in found
    assert "512" in learning_rate_rule.finals_caption(both)


def costs(critical=60.0, noise=60.0, slow=2.0):
    """Loss 2e^-s, a step being 1/(1 + critical/B) at one learning rate and less at another."""
    curves = []
    for size in SIZES:
        for rule, factor in (("linear", 1.0), ("sqrt", slow)):
            step = 0.2 / factor / (1 + critical / size)
            loss = lambda E, step=step, size=size: 2 * np.exp(-step * E / size)  # noqa: E731
            curves.append(run(rule, size, loss, noise=noise, spread=0))
    return reading(*curves)


def test_the_critical_batch_is_that_of_the_best_rate_at_each_batch():
    found = learning_rate_rule.costs(costs())
    assert list(found.fits) == [1.0, 0.7, 0.5]
    for loss, fit in found.fits.items():
        assert fit.batch.mean == pytest.approx(60, rel=0.02)
        assert fit.steps.mean == pytest.approx(np.log(2 / loss) / 0.2, rel=0.05)
        assert found.noise[loss].mean == pytest.approx(60, rel=1e-6)


def test_costs_are_drawn_beside_the_noise_scale():
    figure = learning_rate_rule.trade_off(costs())
    assert_readable(figure)
    (ax,) = figure.axes
    assert [text.get_text() for text in ax.texts] == ["loss 1", "loss 0.7", "loss 0.5"]
    stars = [line.get_xydata()[0] for line in ax.lines if line.get_marker() == "*"]
    assert [E / S for S, E in stars] == pytest.approx([60] * 3, rel=0.02)
    found = learning_rate_rule.trade_off_finding(costs())
    assert found.startswith("Training to loss 1, 0.7 and 0.5 has the critical batch 60 [")
    assert "have the noise scale 60 [60, 60], 60 [60, 60] and 60 [60, 60]" in found


def test_without_noise_scales_the_fit_stands_alone():
    coupled = costs(noise=np.nan)
    assert "noise scale" not in learning_rate_rule.trade_off_finding(coupled)
    assert_readable(learning_rate_rule.trade_off(coupled))


def test_losses_that_are_out_of_reach_are_left_out(rules):
    far = learning_rate_rule.Costs(rules.curve, (1.0, 1e-9))
    assert list(far.fits) == [1.0]
    with pytest.raises(InputError, match="at least 3 batch sizes; got 0"):
        learning_rate_rule.Costs(rules.curve, (1e-9,)).fits  # noqa: B018


def test_untrained_tables_are_refused(rules):
    untrained = Reading(rules.table)
    for drawing in learning_rate_rule.STUDY.figures:
        with pytest.raises(InputError, match="must hold trained runs"):
            drawing.finding(untrained)


def noise_times(factor):
    return lambda curve: curve.assign(noise_scale=factor * curve["noise_scale"])


def no_bend(curve):
    """Large batches cost no more examples than small ones."""
    return curve.assign(examples=curve["examples"] / (1 + curve["batch_size"] / 40))


class TestFindings(Findings):
    STUDY = learning_rate_rule.STUDY
    CURVES = MappingProxyType({"B5": [noise_times(10), noise_times(0.1), no_bend]})

    def test_without_noise_scales_there_is_nothing_to_compare(self):
        (claim,) = learning_rate_rule.STUDY.findings
        with pytest.raises(InputError, match="must hold a noise scale; got none"):
            claim.find(costs(noise=np.nan))
