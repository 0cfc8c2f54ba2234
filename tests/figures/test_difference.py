"""The figure of two tables: what is drawn where, marked and said."""

import numpy as np
import pandas as pd
import pytest

from flowlab.analysis.diff import diff
from flowlab.figures import difference, save
from flowlab.figures.difference import finding
from flowlab.schema import DELTA, NORMS
from tests.support.drawing import assert_readable, labelled
from tests.support.tables import net, recurrent

ACTIVATION, DW = "activation_log10_norm", "dW_log10_norm"


def pair(depth=6, seeds=5, by=1.0, noise=0.01, **axes):
    """Two runs with noise of their own, and ``by`` decades between their δ in layers 1 to 3."""
    a, _ = net("a", 0.1, depth=depth, seeds=seeds, **axes)
    b = a.assign(run="b", init="xavier")
    rng = np.random.default_rng(1)
    for name in NORMS:
        b[name] += rng.normal(0, noise, len(b))
    return a, b.assign(**{DELTA: b[DELTA] - by * (b["layer"] <= 3)})


def panel(figure, title):
    return next(ax for ax in figure.axes if ax.get_title("left") == title)


def points(figure, title, label):
    """x and y of a panel's markers."""
    lines = [line for line in panel(figure, title).lines if line.get_label() == label]
    return {x: y for line in lines for x, y in zip(*line.get_data(), strict=True)}


def keys(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_panel_shows_each_quantity_where_it_parts_and_where_not():
    found = diff(*pair())
    figure = difference(found)
    assert_readable(figure)
    titles = [ax.get_title("left") for ax in figure.axes if ax.axison]
    assert titles == ["‖h‖", "‖δ‖", "‖dW‖", "‖db‖", "‖dX‖"]
    parts, others = (points(figure, "‖δ‖", name) for name in ("parts", "others"))
    assert [*parts] == [1, 2, 3] and [*others] == [4, 5, 6]
    rows = found.table[found.table["quantity"] == DELTA].set_index("layer")
    assert parts[2] == rows["effect"][2] == pytest.approx(1, abs=0.03)
    assert points(figure, "‖h‖", "parts") == {}
    assert len({ax.get_ylim() for ax in figure.axes if ax.axison}) == 1
    assert figure.get_supylabel() == "init=he minus init=xavier (decades)"
    assert "95 % interval over 5 seeds, corrected for 30 comparisons" in keys(figure)


def test_intervals_are_those_of_the_table():
    found = diff(*pair())
    (bars,) = [c for c in panel(difference(found), "‖h‖").collections if len(c.get_segments())]
    rows = found.table[found.table["quantity"] == ACTIVATION]
    ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
    assert ends == rows[["low", "high"]].to_numpy().tolist()


def test_the_first_place_is_marked_and_named_in_its_panel():
    a, b = pair()
    b[ACTIVATION] += 1.0 * (b["layer"] >= 5)
    figure = difference(diff(a, b))
    marks = {ax.get_title("left"): ax for ax in figure.axes if ax.get_title("right")}
    assert {name: ax.get_title("right") for name, ax in marks.items()} == {
        "‖h‖": "first: layer 5 (linear)",
        "‖δ‖": "first: layer 3 (linear)",
    }
    lines = labelled(figure, "first")
    assert [line.get_xdata()[0] for line in lines] == [5, 3]
    assert finding(diff(a, b)) == (
        "init=he and init=xavier part first at the activation of layer 5 (linear); going backward, "
        "at δ of layer 3 (linear)"
    )
    assert finding(diff(*pair())).endswith("part first at δ of layer 3 (linear)")


def test_places_that_part_by_status_have_a_cross():
    a, b = pair()
    b.loc[(b["layer"] == 2) & (b["seed"] == 0), [DW, "status"]] = [-np.inf, "zero"]
    b.loc[b["layer"] == 4, [DW, "status"]] = [np.nan, "nonfinite"]
    figure = difference(diff(a, b))
    assert_readable(figure)
    crosses = points(figure, "‖dW‖", "unlike")
    assert [*crosses] == [2, 4]
    ax = panel(figure, "‖dW‖")
    drawn = [*points(figure, "‖dW‖", "parts").items(), *points(figure, "‖dW‖", "others").items()]
    heights = [ax.transAxes.inverted().transform(ax.transData.transform(at))[1] for at in drawn]
    assert max(heights) < crosses[2] - 0.03 and len(drawn) == 5  # of layer 4 no number is known
    assert "parts by its status" in keys(figure)


def test_one_seed_has_no_interval():
    a, b = pair(seeds=1)
    figure = difference(diff(a, b))
    assert_readable(figure)
    assert keys(figure) == ["one seed: no interval"]
    assert finding(diff(a, b)) == "init=he and init=xavier differ in their one seed"


def test_small_differences_have_a_unit_of_their_own():
    a, _ = net("a", 0.1)
    b = a.assign(**{DELTA: a[DELTA] + 3e-8 * a["layer"]})
    figure = difference(diff(a, b))
    assert_readable(figure)
    assert figure.get_supylabel() == "a minus b (10⁻⁷ decades)"
    assert points(figure, "‖δ‖", "others")[4] == pytest.approx(-1.2)
    assert finding(diff(a, b)) == "The tables are equal to rounding"


def test_intervals_are_shown_whole_unless_they_dwarf_all_others():
    found = diff(*pair(by=0.0))
    low, high = panel(difference(found), "‖h‖").get_ylim()
    assert low < found.table["low"].min() and high > found.table["high"].max()
    a, b = pair(by=0.0)
    at = (b["layer"] == 6) & (b["seed"] > 1)
    b.loc[at, [DW, "status"]] = [np.nan, "nonfinite"]  # two seeds are left
    b.loc[b["seed"] == 0, DW] += 0.5 * (b["layer"] == 6)
    widest = diff(a, b).table["high"].max()
    low, high = panel(difference(diff(a, b)), "‖h‖").get_ylim()
    assert widest > 10 and high < 1


def test_large_differences_and_many_layers_stay_legible():
    figure = difference(diff(*pair(depth=300, by=50.0)))
    assert_readable(figure)
    assert panel(figure, "‖δ‖").get_yscale() == "symlog"
    assert len(points(figure, "‖h‖", "others")) == 300
    assert "‖h‖" in [ax.get_title("left") for ax in figure.axes if len(ax.collections) == 1]


def test_equal_tables_are_a_line_at_zero():
    a, _ = net("a", 0.1)
    figure = difference(diff(a, a.copy()))
    assert_readable(figure)
    assert {*points(figure, "‖δ‖", "others").values()} == {0.0}
    assert finding(diff(a, a.copy())) == "The tables are equal in every bit"


def test_operations_of_a_layer_stand_side_by_side():
    a, b = (
        pd.concat([frame.assign(op=op) for op in ("conv", "norm")]).sort_values(
            ["seed", "layer"], kind="stable"
        )
        for frame in pair(depth=3)
    )
    figure = difference(diff(a, b))
    assert_readable(figure)
    x = [*points(figure, "‖δ‖", "parts")]
    assert x == pytest.approx([0.825, 1.175, 1.825, 2.175, 2.825, 3.175])
    low, high = panel(figure, "‖δ‖").get_xlim()
    assert low < min(x) and max(x) < high
    assert panel(figure, "‖δ‖").get_title("right") == "first: layer 3 (norm)"


def test_of_steps_the_one_is_shown_at_which_tables_part():
    def trained(*frames):
        steps = zip((1, 4, 9), frames, strict=True)
        return pd.concat(
            [f.assign(step=pd.array([s] * len(f), "Int64"), run="x") for s, f in steps]
        )

    a, b = pair()
    found = diff(trained(a, a, a), trained(a, b, b))
    figure = difference(found)
    assert_readable(figure)
    assert len(points(figure, "‖δ‖", "parts")) == 3
    assert any("step=4" in text.get_text() for text in figure.texts)


def test_single_time_steps_stand_in_their_layer():
    a, _ = recurrent("a", -0.1, steps=6, depth=3)
    a = a[a["time"].notna()]
    b = a.assign(dh_log10_norm=a["dh_log10_norm"] + 0.5 * (a["time"] <= 2))
    figure = difference(diff(a, b))
    assert_readable(figure)
    first = panel(figure, "‖∂L/∂h_t‖").get_title("right")
    assert first == "first: layer 2 (state), time 2"


def test_a_long_name_is_cut_and_the_figure_is_written(tmp_path):
    a, b = pair()
    path = "transformer.encoder.layers.11.self_attention.out_proj"
    a, b = (frame.assign(module=path + frame["layer"].astype(str), use=1) for frame in (a, b))
    a, b = (frame.assign(output=pd.NA, parameter=pd.NA) for frame in (a, b))
    figure = difference(diff(a, b))
    assert_readable(figure)
    (title,) = [ax.get_title("right") for ax in figure.axes if ax.get_title("right")]
    assert title.startswith("first: …") and title.endswith("proj3 (linear, layer 3)")
    png, svg = save(figure, tmp_path / "figures" / "diff")
    assert png.stat().st_size > 10_000 and svg.read_text().startswith("<?xml")


@pytest.mark.parametrize("count", [1, 2])
def test_few_quantities_have_few_panels(count):
    figure = difference(diff(*pair(), columns=[DELTA, DW][:count]))
    assert_readable(figure)
    assert len(figure.axes) == count and all(ax.get_xlabel() for ax in figure.axes)
