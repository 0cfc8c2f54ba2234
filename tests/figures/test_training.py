"""Loss and accuracy over the examples seen, and what is left at the end."""

import numpy as np
import pandas as pd
import pytest

from flowlab.errors import InputError
from flowlab.figures import caption, choice, draw, sweep, training
from tests.support.drawing import assert_readable
from tests.support.tables import curve, net, together

SIZES = (8, 64, 512)


def falling(power=0.5):
    return lambda examples: 3 * examples**-power


def trained(*runs):
    """A table, a prediction and a curve of runs, each (name, options of ``curve``, settings)."""
    made = together(*(net(name, -0.1, **axes) for name, _, axes in runs))
    curves = [curve(name, options.pop("loss", falling()), **options) for name, options, _ in runs]
    return *made, pd.concat(curves, ignore_index=True)


def titles(figure):
    return [ax.get_title("left") for ax in figure.axes]


def panels(**options):
    return {
        rule: {f"B = {size}": curve(f"{rule}{size}", falling(), **options) for size in SIZES}
        for rule in ("linear", "sqrt")
    }


def test_a_column_for_each_panel_and_a_line_of_one_colour_for_each_name():
    figure = training.bands(panels())
    assert_readable(figure)
    assert titles(figure) == ["linear", "sqrt", "", ""]
    assert [ax.get_ylabel() for ax in figure.axes[::2]] == ["held-out loss", "held-out accuracy"]
    first, second = ([line.get_color() for line in ax.lines] for ax in figure.axes[:2])
    assert first == second and len(set(first)) == 3
    x, y = figure.axes[0].lines[0].get_data()
    assert list(x) == [8, 16, 24, 40, 64] and y == pytest.approx(np.log10(3 * x**-0.5))
    named = [{text.get_text() for text in ax.texts} for ax in figure.axes]
    assert named == [set(), {"B = 8", "B = 64", "B = 512"}] * 2


def test_seeds_that_diverge_are_marked_where_they_do():
    figure = training.bands(panels(diverge=24))
    assert_readable(figure)
    crosses = [line for line in figure.axes[0].lines if line.get_marker() == "x"]
    assert [line.get_xdata().item() for line in crosses] == [24] * 3
    (key,) = figure.legends
    assert any("seeds diverge" in text.get_text() for text in key.get_texts())
    (key,) = training.bands(panels()).legends
    assert not any("diverge" in text.get_text() for text in key.get_texts())


def test_what_explodes_leaves_the_panel_rather_than_stretch_it():
    exploding = curve("b", lambda examples: 3 * np.exp(examples), spread=0)
    figure = training.bands({"": {"kept": curve("a", falling()), "explodes": exploding}})
    assert_readable(figure)
    low, high = figure.axes[0].get_ylim()
    assert high < np.log10(3 * np.exp(8)) + 1 and low < np.log10(3 / 8)


def test_regressions_have_no_accuracy():
    of = curve("a", falling()).assign(held_out_accuracy=np.nan)
    assert len(training.bands({"": {"one": of}}).axes) == 1


def test_more_lines_than_colours_are_refused():
    many = {f"{k}": curve(f"{k}", falling()) for k in range(9)}
    for figure in (training.bands, lambda panels: training.finals(panels, "batch_size", "B")):
        with pytest.raises(InputError, match="at most 8 lines; got 9"):
            figure({"": many})


def test_what_is_left_at_the_end_stands_against_a_setting():
    def of(power):
        runs = [curve(f"{B}", falling(power), batch_size=B, diverge=40) for B in SIZES]
        return pd.concat(runs)

    figure = training.finals({"sgd": {"a": of(0.5), "b": of(1)}}, "batch_size", "batch size")
    assert_readable(figure)
    (ax,) = figure.axes
    assert {text.get_text() for text in ax.texts} == {"a", "b"}
    line = ax.containers[0].lines[0]
    assert list(line.get_xdata()) == list(SIZES)
    seeds = curve("8", falling())
    kept = seeds[(seeds["seed"] < 4) & (seeds["examples"] == 64)]["held_out_loss"]
    assert line.get_ydata()[0] == pytest.approx(np.log10(kept).mean())
    crosses = [mark for mark in ax.lines if mark.get_marker() == "x"]
    assert [list(mark.get_xdata()) for mark in crosses] == [list(SIZES)] * 2


class TestOfAnySweep:
    def test_one_trained_run_shows_its_training(self):
        table, prediction, of = trained(("a", {}, {}))
        figure = draw(table, prediction, curve=of)
        assert_readable(figure)
        assert [ax.get_ylabel() for ax in figure.axes] == ["held-out loss", "held-out accuracy"]
        head = " ".join(text.get_text() for text in figure.texts)
        final = 100 * of[of["examples"] == 64]["held_out_accuracy"].mean()
        assert head.startswith(
            f"Held-out loss goes from 1.06 to 0.375; accuracy is {final:.1f} % ["
        )
        assert "after 64 examples" in head
        assert caption(table, prediction, curve=of).startswith(
            f"Held-out accuracy at the end, mean [95 % interval]: {final:.1f} % ["
        )

    def test_two_settings_are_lines_and_panels(self):
        runs = [
            (f"{init}{depth}", {"loss": falling(power)}, {"init": init, "depth": depth})
            for init, power in (("he", 0.6), ("xavier", 0.3))
            for depth in (3, 5, 9)
        ]
        table, prediction, of = trained(*runs)
        figure = draw(table, prediction, curve=of)
        assert_readable(figure)
        assert titles(figure)[:2] == ["he", "xavier"]
        text = choice.choose(sweep(table, prediction, curve=of)).finding()
        assert text.startswith("Of 6 runs he, depth=") and ", xavier, depth=" in text

    def test_seeds_that_diverge_are_named(self):
        runs = [(f"{lr}", {"diverge": 40 if lr == 3 else None}, {"gain": lr}) for lr in (1, 2, 3)]
        table, prediction, of = trained(*runs)
        form = choice.choose(sweep(table, prediction, curve=of))
        assert form.finding().endswith("; seeds diverge in gain=3")
        assert "1 of 5 seeds diverged" in form.caption()

    def test_what_has_no_legible_curves_is_shown_at_initialization(self):
        runs = [(f"run{k}", {}, {"gain": float(k)}) for k in range(1, 11)]
        table, prediction, of = trained(*runs)
        assert not training.fits(sweep(table, prediction, curve=of))
        figure = draw(table, prediction, curve=of)
        assert figure.axes[0].get_xlabel() == "gain"

    def test_runs_of_other_seeds_are_one_run(self):
        table, prediction, of = trained(("a", {}, {}))
        more, other = table.assign(run="b", seed=table["seed"] + 5), of.assign(run="b")
        both = pd.concat([of, other.assign(seed=of["seed"] + 5)])
        drawn = sweep(pd.concat([table, more]), prediction, curve=both)
        assert set(drawn.curve["run"]) == {"a"} and drawn.curve["seed"].nunique() == 10
        repeated = sweep(
            pd.concat([table, table.assign(run="b")]), prediction, curve=pd.concat([of, other])
        )
        assert len(repeated.curve) == len(of)
