"""Norms against batch size beside the exact law, of one family of runs."""

import numpy as np
import pandas as pd
import pytest

import flowlab
from flowlab.analysis import batch_law as law
from flowlab.errors import InputError
from flowlab.figures.batch_law import batch_law, caption, family, finding
from tests.support.drawing import assert_readable

SIZES = (1, 4, 32)


def measured(sizes=SIZES, **axes):
    small = {"depth": 3, "width": 8, "seeds": 12, "data": "gaussian", "reduction": "sum"}
    runs = [flowlab.measure(**{**small, "batch_size": size, **axes}) for size in sizes]
    return pd.concat(runs, ignore_index=True)


@pytest.fixture(scope="module")
def runs():
    return measured()


def curves(ax):
    return [line for line in ax.lines if line.get_linestyle() == "-" and len(line.get_xdata()) > 2]


def test_lines_are_the_law_and_markers_the_runs(runs):
    figure = batch_law(runs)
    assert_readable(figure)
    rows = law.against_runs(runs)
    exact = rows[(rows["layer"] == 1) & (rows["parameter"] == "W")]
    upper, _, lower, _ = figure.axes
    assert upper.get_ylim() == figure.axes[1].get_ylim()
    (line,) = [line for line in upper.lines if line.get_label() == "layer 1"]
    assert line.get_ydata() == pytest.approx(exact["exact"].to_numpy())
    points = upper.containers[0].lines[0].get_ydata()
    assert points == pytest.approx((exact["exact"] + np.log10(exact["ratio"]) / 2).to_numpy())
    assert {text.get_text() for text in upper.texts} - {""} == {"layer 1", "layer 2", "layer 3"}
    slopes = law.slopes_of_runs(runs)
    mine = slopes[(slopes["layer"] == 1) & (slopes["parameter"] == "W")]
    assert lower.containers[0].lines[0].get_ydata() == pytest.approx(mine["slope"].to_numpy())
    assert np.diff(points) / np.diff(np.log10(SIZES)) == pytest.approx(mine["slope"].to_numpy())


def test_slopes_have_intervals_over_paired_seeds(runs):
    """Runs that are the law itself, seed by seed, leave none; others have one around theirs."""
    largest = law.law(runs[runs["batch_size"] == 32])
    exact = law.log10_norms(largest, SIZES, "sum").xs("W", level="parameter").reset_index()
    exact = exact[["layer", "batch_size", "seed", "log10_norm"]]
    alike = runs.merge(exact).assign(dW_log10_norm=lambda table: table["log10_norm"])
    slopes = law.slopes_of_runs(alike).query("parameter == 'W'")
    assert len(slopes) == 3 * 2
    assert slopes["high"].to_numpy() == pytest.approx(slopes["low"].to_numpy(), abs=1e-9)
    real = law.slopes_of_runs(runs)
    assert (real["low"] < real["slope"]).all() and (real["slope"] < real["high"]).all()


def test_the_finding_counts_the_runs_on_the_law(runs):
    rows = law.against_runs(runs)
    rows = rows[rows["batch_size"] < 32]
    inside = ((rows["low"] <= 1) & (rows["high"] >= 1)).sum()
    assert f": {inside} of {len(rows)} measured norms agree with the exact law" in finding(runs)
    assert finding(runs).startswith("Under sum gradients grow as √B, and as B beyond")
    assert f"{inside} of {len(rows)} measured points" in caption(runs)
    off = runs.assign(dW_log10_norm=runs["dW_log10_norm"] + (runs["batch_size"] < 32))
    assert finding(off) != finding(runs)
    mean = measured(reduction="mean")
    assert finding(mean).startswith("Under mean gradients shrink as 1/√B, and no more beyond")
    assert "where the slope is −¼" in caption(mean)


def test_one_family_is_drawn_and_named(runs):
    other = measured(reduction="mean")
    both = pd.concat([other, runs], ignore_index=True)
    assert set(family(both)["run"]) == set(runs["run"])
    more = pd.concat([other, runs[runs["batch_size"] > 1]], ignore_index=True)
    assert set(family(more)["run"]) == set(other["run"])
    figure = batch_law(both)
    assert_readable(figure)
    assert figure.legends[0].get_title().get_text() == "One of 2 such families: reduction=sum"


def test_coupled_examples_have_no_law():
    table = measured((4, 8, 32), norm="batch")
    figure = batch_law(table)
    assert_readable(figure)
    assert len(figure.axes) == 2
    assert finding(table).endswith("there is no law, as batch norm couples the examples")
    ends = table[(table["op"] == "linear") & table["dW_log10_norm"].notna()]
    grown = ends.groupby(["batch_size", "layer"])["dW_log10_norm"].mean().unstack()
    slope = ((grown.loc[32] - grown.loc[4]) / np.log10(8)).mean()
    assert f"‖dW‖ changes as B^{slope:.2f}".replace("-", "−") in finding(table)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="batch_size"), "needs the column batch_size; got a table"),
        (lambda t: t[t["batch_size"] == 4], "runs that differ in batch size alone; got none"),
        (lambda t: t.iloc[:0], "runs that differ in batch size alone; got none"),
    ],
)
def test_bad_tables_are_refused_in_one_line(runs, change, message):
    with pytest.raises(InputError, match=message):
        batch_law(change(runs))
