"""The form of a figure follows the settings that vary."""

from itertools import product

import numpy as np
import pandas as pd
import pytest

from flowlab.errors import InputError
from flowlab.figures import caption, choice, draw, sweep
from tests.support.drawing import assert_readable, labelled
from tests.support.tables import DELTA, net, recurrent, together
from tests.support.tables import sweep as made

INITS = ("he", "xavier", "lecun", "orthogonal")


def grid(slope=lambda values: -0.1, **axes):
    """Runs of every combination of values."""
    runs = (dict(zip(axes, values, strict=True)) for values in product(*axes.values()))
    return made(*((slope(run), run) for run in runs))


def titles(figure):
    return [ax.get_title("left") for ax in figure.axes if ax.get_visible()]


def ends(figure, panel=0):
    return {text.get_text() for text in figure.axes[panel].texts}


def head_of(figure):
    return [text.get_text() for text in figure.texts]


def test_one_run_shows_its_profiles():
    figure = draw(*net("a", -0.5, depth=11))
    assert_readable(figure)
    assert titles(figure) == ["‖δ‖", "‖dW‖", "‖db‖"]
    assert head_of(figure)[0].startswith("The gradient loses 5.00 [")
    text = " ".join(head_of(figure))
    assert "it vanishes network=" in text or "it vanishes init=he" in text
    assert "depth=11" in text


def test_one_setting_is_lines_on_one_axis():
    figure = draw(*grid(lambda run: -0.1 * len(run["init"]), init=INITS))
    assert_readable(figure)
    assert len(figure.axes) == 1 and ends(figure) == set(INITS)
    assert "orthogonal loses 5.0 decades" in " ".join(head_of(figure))
    assert len(labelled(figure, "theory: lecun")) == 1


def test_a_number_of_many_values_is_an_axis():
    figure = draw(*grid(lambda run: np.log10(run["gain"]), gain=[k / 10 for k in range(4, 16)]))
    assert_readable(figure)
    (ax,) = figure.axes
    assert ax.get_xlabel() == "gain"
    (line,) = labelled(figure, "mean: all runs")
    assert len(line.lines[0].get_xdata()) == 12


def test_depth_is_an_axis_with_lines_and_panels():
    figure = draw(*grid(init=INITS, depth=[5, 11, 21]))
    assert_readable(figure)
    assert figure.axes[0].get_xlabel() == "depth, layers" and ends(figure) == set(INITS)
    figure = draw(*grid(init=INITS, depth=[5, 11], skip=["none", "identity"]))
    assert titles(figure) == ["skip=identity", "skip=none"]


def test_two_settings_are_a_map():
    activations = [f"activation{k}" for k in range(3)]
    figure = draw(*grid(init=INITS, activation=activations))
    assert_readable(figure)
    assert figure.axes[0].images[0].get_array().shape == (4, 3)


def test_three_settings_are_ranked_and_many_are_bounded():
    axes = {"init": INITS, "activation": ["relu", "tanh", "gelu"], "norm": ["none", "layer"]}
    figure = draw(*grid(lambda run: -0.1 if run["norm"] == "none" else 0.05, **axes))
    assert_readable(figure)
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(names) == 24 and names[-1] == "xavier, tanh, norm=none"
    many = draw(*grid(**axes, skip=["none", "mix"], seeds=[3]))
    assert_readable(many)
    names = [label.get_text() for label in many.axes[0].get_yticklabels()]
    assert len(names) == 25 and names[12] == "… 24 runs between …"


def test_a_run_without_a_finite_seed_has_a_row_without_a_point():
    axes = {"init": INITS, "activation": ["relu", "tanh"], "norm": ["none", "layer"]}
    table, _ = grid(**axes)
    table.loc[table["run"] == "run3", DELTA] = -np.inf
    figure = draw(table)
    assert_readable(figure)
    assert [text.get_text().strip() for text in figure.axes[0].texts] == ["exactly zero"]


def test_networks_have_panels_and_too_many_are_ranked():
    table, prediction = together(
        net("m", -0.1, network="mlp"), recurrent("r", -0.2), net("c", -0.3, network="cnn")
    )
    figure = draw(table, prediction)
    assert_readable(figure)
    assert titles(figure) == ["mlp", "cnn", "rnn"]
    many = draw(*grid(network=["mlp", "cnn"], init=[f"init{k}" for k in range(5)]))
    assert len(many.axes) == 1 and many.axes[0].get_xlabel().startswith("change")


def test_recurrent_networks_over_steps_are_lines():
    runs = [
        recurrent(f"{name}{steps}", -0.1, steps=steps, network=name)
        for name in ("rnn", "gru")
        for steps in (5, 10)
    ]
    figure = draw(*together(*runs))
    assert_readable(figure)
    assert figure.axes[0].get_xlabel() == "steps" and ends(figure) == {"rnn", "gru"}
    assert "h_t" in figure.axes[0].get_ylabel()


def test_batch_sizes_without_the_law_are_runs_like_others():
    figure = draw(*grid(batch_size=[4, 16]))
    assert ends(figure) == {"batch_size=4", "batch_size=16"}


def test_finding_and_verdicts_go_by_the_threshold():
    table, prediction = grid(lambda run: -0.3, init=INITS)
    assert head_of(draw(table, prediction))[0].startswith("None of 4 keeps the gradient within ±1")
    assert head_of(draw(table, prediction, 3))[0].startswith("All 4 keep the gradient within ±3")


def test_the_caption_counts_many_and_names_few():
    table, prediction = grid(init=INITS[:2])
    text = caption(table, prediction)
    assert "he -0.50 [" in text and "xavier -0.50 [" in text and "Theory: agrees 2." in text
    text = caption(*grid(init=INITS, activation=["relu", "tanh", "gelu"]))
    assert text.startswith("Of 12 runs: 12 kept (within ±1 decade).")


def test_order_of_rows_does_not_matter():
    table, prediction = grid(lambda run: -0.1 * len(run["init"]), init=INITS)
    one, other = draw(table, prediction), draw(table.sample(frac=1, random_state=2), prediction)
    lines = [
        [(line.get_label(), str(line.get_color())) for line in figure.axes[0].lines]
        for figure in (one, other)
    ]
    assert lines[0] == lines[1] and head_of(one) == head_of(other)


def test_every_form_is_said_in_one_sentence_that_fits():
    for axes in ({"init": INITS}, {"init": INITS, "depth": [5, 11]}, {"gain": [0.5, 2.0]}):
        for slope in (-2.0, 0.0, 2.0):
            of = sweep(*grid(lambda run, slope=slope: slope, **axes))
            text = choice.choose(of).finding()
            assert text and len(text) <= 160 and "nan" not in text


def test_bad_tables_are_one_line():
    table, _ = net("a", 0.1)
    with pytest.raises(InputError, match="at least one row; got none"):
        draw(table.iloc[:0])
    with pytest.raises(InputError, match=r"column must be one of .*; got layer"):
        draw(pd.DataFrame(table).drop(columns="layer"))
