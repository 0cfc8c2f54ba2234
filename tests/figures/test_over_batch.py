"""The batch law of a sweep of one's own."""

import pandas as pd
import pytest

import flowlab
from flowlab.figures import draw, norms_by_batch, over_batch, sweep
from tests.support.drawing import assert_readable, labelled


@pytest.fixture(scope="module")
def table():
    runs = [
        flowlab.measure(
            **{"depth": 4, "width": 8, "seeds": 6, "dtype": "float64", "data": "gaussian"},
            **{"batch_size": size, "init": init, "reduction": "sum"},
        )
        for size in (1, 4, 16)
        for init in ("he", "xavier")
    ]
    return pd.concat([of.assign(run=f"run{k}") for k, of in enumerate(runs)], ignore_index=True)


def test_runs_stand_beside_the_law_of_the_largest_batch(table):
    of = sweep(table[table["init"] == "he"])
    assert over_batch.fits(of)
    figure = norms_by_batch(of)
    assert_readable(figure)
    assert [ax.get_title("left") for ax in figure.axes] == ["‖dW‖", "‖db‖"]
    for parameter, law, runs in zip(
        "Wb", labelled(figure, "law: layer 4"), labelled(figure, "runs: layer 4"), strict=True
    ):
        largest = of.table[(of.table["batch_size"] == 16) & (of.table["layer"] == 4)]
        mean = largest[f"d{parameter}_log10_norm"].mean()
        assert law.get_ydata()[-1] == pytest.approx(mean, abs=1e-9)
        assert runs.lines[0].get_ydata()[-1] == pytest.approx(mean, abs=1e-9)
    text = over_batch.finding(of)
    assert text.startswith("From B = 1 to 16 go ‖dW‖ as B^0.") and "of the exact law" in text


def test_another_setting_is_lines_in_the_middle_layer(table):
    figure = draw(table)
    assert_readable(figure)
    assert [ax.get_title("left") for ax in figure.axes] == ["‖dW‖ in layer 3", "‖db‖ in layer 3"]
    assert {text.get_text() for text in figure.axes[0].texts} == {"he", "xavier"}


def test_runs_of_other_seeds_have_no_law(table):
    shifted = table.assign(seed=table["seed"] + table["batch_size"])
    assert not over_batch.fits(sweep(shifted))
