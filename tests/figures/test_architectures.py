"""Figures of nets that are not plain: every assertion reads drawn artists, captions or errors."""

import numpy as np
import pandas as pd
import pytest

from experiments import plots
from flowlab import schema
from flowlab.errors import InputError
from flowlab.figures import (
    architectures,
    batch_norm,
    by_layer,
    extreme,
    heat_map,
    over_depth,
    skips,
    through_time,
    transformer,
)
from flowlab.storage import tables
from flowlab.theory.convolution import border_rates
from flowlab.theory.normalization import batch_norm_rates
from tests.support.drawing import assert_readable, labelled
from tests.support.tables import net, recurrent, together

DELTA, COTANGENT = "delta_log10_norm", "dh_log10_norm"


def test_states_of_the_last_layer_lie_on_the_slope_of_their_radius():
    table, _ = together(
        *(recurrent(f"r{r}", np.log10(r) + 0.01 * (r < 1), radius=r) for r in (0.9, 1.1)),
        recurrent("other", -0.3, activation="relu", recurrent="orthogonal", radius=1.0),
    )
    figure = through_time.state_gradients(table)
    assert_readable(figure)
    assert [ax.get_title("left") for ax in figure.axes] == [
        "tanh, orthogonal", "tanh, lecun", "relu, orthogonal", "relu, lecun"
    ]  # fmt: skip
    panel = figure.axes[1]
    lines = {line.get_label(): line for line in panel.lines}
    back = np.arange(19, -1, -1)
    for radius, excess in ((0.9, 0.01), (1.1, 0.0)):
        mean = lines[f"mean: radius={radius:g}"]
        assert mean.get_ydata() == pytest.approx((np.log10(radius) + excess) * back, abs=1e-9)
        assert list(mean.get_xdata()) == list(range(1, 21))
        theory = lines[f"radius: radius={radius:g}"]
        assert theory.is_dashed()
        assert theory.get_ydata() == pytest.approx(np.log10(radius) * back, abs=1e-9)
    text = through_time.state_gradients_caption(table)
    assert (
        "over 20 steps" in text
        and "tanh, lecun: radius=0.9 -0.0358 (kept), radius=1.1 0.0414" in text
    )
    assert "1 of 3 95 % intervals hold log10 of the radius" in text


def test_predicted_steps_take_the_place_of_the_radius():
    table, told = recurrent("r", -0.05, predicted=-0.05)
    figure = through_time.state_gradients(table, told)
    assert not [ln for ax in figure.axes for ln in ax.lines if ln.get_label().startswith("radius")]
    (theory,) = [ln for ln in figure.axes[0].lines if ln.get_label().startswith("theory")]
    assert theory.get_ydata() == pytest.approx(-0.05 * np.arange(19, -1, -1))
    text = through_time.state_gradients_caption(table, told)
    assert text.endswith("Theory: agrees 1.")
    late = told[told["time"].isna() | (told["time"] > 10)]
    bent = table.assign(**{COTANGENT: table[COTANGENT].where(table["time"] > 10, -50.0)})
    assert "agrees 1" in through_time.state_gradients_caption(bent, late)
    other = told.assign(**{COTANGENT: 2 * told[COTANGENT]})
    assert "differs 1" in through_time.state_gradients_caption(table, other)


def test_gated_cells_have_no_radius_to_be_compared_with():
    table, told = together(
        *(recurrent(n, -0.1, network=n, recurrent=r) for n, r in (("lstm", "lecun"), ("gru", "x")))
    )
    told = told.drop(columns="time")
    figure = through_time.state_gradients(table, told, across="network")
    assert not [ln for ax in figure.axes for ln in ax.lines if ln.get_label().startswith("radius")]
    assert "hold" not in through_time.state_gradients_caption(table, told, across="network")


def test_the_map_holds_each_layer_and_step():
    table, _ = together(*(recurrent(n, -0.1, depth=4, down=0.5, network=n) for n in ("rnn", "gru")))
    table.loc[(table["time"] == 3) & (table["layer"] == 2), COTANGENT] = -np.inf
    figure = through_time.layer_by_time(table)
    assert_readable(figure)
    image = figure.axes[0].images[0].get_array()
    expected = -0.1 * np.arange(19, -1, -1) + 0.5 * np.array([[2], [1], [0]])
    assert image.mask.sum() == 1 and image.mask[1, 2]
    expected[1, 2] = 0
    assert image.filled(0) == pytest.approx(expected, abs=1e-9)
    text = through_time.layer_by_time_caption(table)
    assert "from 0.00 in the last layer and step: 1.00 in the first layer of that step" in text
    assert "-1.90 in the first step of that layer, -0.90 in the first of both" in text


def test_steps_are_asked_of_recurrent_nets_alone():
    table, _ = net("plain", 0.1, network="mlp")
    for draw in (through_time.state_gradients, through_time.layer_by_time):
        with pytest.raises(InputError, match="rows of single time steps; got none"):
            draw(table)


def test_rows_of_steps_do_not_count_as_layers():
    """Figures of layers are the same with and without rows of single steps."""
    made = [net("a", -0.1, depth=5), net("b", -0.2, depth=9)]
    table, told = together(*made)
    steps = table[table["layer"] < 4].assign(**dict.fromkeys(schema.NORMS, -99.0), fan_out=1)
    more = told.assign(**{name: -50.0 for name in schema.NORMS})
    mixed = (
        pd.concat([table, steps.assign(time=1)], ignore_index=True),
        pd.concat([told, more.assign(time=1)], ignore_index=True),
    )
    captions = [by_layer.caption, heat_map.heat_map_caption, skips.skip_caption]
    for caption in captions:
        assert caption(*mixed) == caption(table, told)
    one, other = (by_layer.profiles(*pair).axes[0] for pair in ((table, told), mixed))
    for before, after in zip(one.lines, other.lines, strict=True):
        assert after.get_label() == before.get_label()
        np.testing.assert_array_equal(after.get_ydata(), before.get_ydata())
    alone = [frame[frame["run"] == "b"] for frame in mixed]
    assert extreme.underflow_caption(*alone) == extreme.underflow_caption(*made[1])


def test_images_have_more_entries_than_channels():
    table, _ = net("deep", -1.0, depth=60, width=16, fan_out=144)
    entries = 4 * 16 * 64
    layer = 60 - next(k for k in range(60) if 10.0**-k / np.sqrt(entries) < 2.0**-75)
    text = extreme.underflow_caption(table, positions=64)
    assert f"norm reads 0 from layer {layer} down" in text
    assert f"norm reads 0 from layer {layer} down" not in extreme.underflow_caption(table)


@pytest.fixture
def normalized():
    """Slopes that are theory's but for one; the first and the last layer are off."""
    rates = batch_norm_rates(["relu", "identity"], [3, 4, 8, 64])
    made = []
    for activation, batch, rate in rates.itertuples(index=False):
        rate *= 1.1 if (activation, batch) == ("relu", 8) else 1.0
        axes = {"activation": activation, "batch_size": batch}
        table, told = net(f"{activation}{batch}", rate, depth=9, noise=1e-3, **axes)
        table.loc[table["layer"].isin([1, 9]), DELTA] = 5.0
        made.append((table, told))
    return *together(*made), rates


def test_rates_of_batch_norm_lie_on_theory(normalized):
    rates = normalized[2]
    assert sorted(rates["batch_size"].unique()) == [4, 8, 64]
    told = rates.set_index(["activation", "batch_size"])["rate"]
    assert told["identity", 8] == pytest.approx(np.log10(6 / 5) / 2)
    figure = batch_norm.rate_by_batch(*normalized)
    assert_readable(figure)
    (theory,) = labelled(figure, "theory: relu")
    (points,) = labelled(figure, "measured: relu")
    x, y = points.lines[0].get_data()
    assert list(x) == list(theory.get_xdata()) == [4, 8, 64]
    assert y / theory.get_ydata() == pytest.approx([1, 1.1, 1])
    text = batch_norm.rate_by_batch_caption(*normalized)
    assert "explodes" in text and "at most 10.0% (relu, B = 8)" in text
    assert f"(theory {told['relu', 64]:.4f}) at B = 64" in text
    assert "heory" not in batch_norm.rate_by_batch_caption(*normalized[:2])
    assert not labelled(batch_norm.rate_by_batch(*normalized[:2]), "theory: relu")
    down = normalized[0].assign(**{DELTA: -normalized[0][DELTA]})
    assert "explodes" not in batch_norm.rate_by_batch_caption(down, None, rates)


AXES = {"panels": "padding", "lines": "init"}


@pytest.fixture
def padded():
    slopes = {("he", "zeros"): -0.02, ("he", "circular"): 0.0, ("delta", "zeros"): -0.001}
    return together(
        *(
            net(f"{init}{padding}{depth}", slope, depth, init=init, padding=padding)
            for (init, padding), slope in slopes.items()
            for depth in (5, 11, 101)
        )
    )


def test_change_over_depth_beside_the_border(padded):
    figure = over_depth.change_by_depth(*padded, border_rates(8, 3), **AXES)
    assert_readable(figure)
    titles = [ax.get_title("left") for ax in figure.axes]
    assert titles == ["padding=circular", "padding=zeros"]
    loss = np.log10((1 + 2 * np.cos(np.pi / 9)) / 3)  # of two dimensions, half for the norm
    for padding, rate in (("zeros", loss), ("circular", 0.0)):
        (border,) = labelled(figure, f"rate: {padding}")
        assert list(border.get_xdata()) == [5, 101]
        assert border.get_ydata() == pytest.approx([4 * rate, 100 * rate])
    _, zeros = labelled(figure, "mean: he")
    assert zeros.lines[0].get_ydata() == pytest.approx([-0.08, -0.2, -2.0])
    for theory in labelled(figure, "theory: he"):
        assert list(theory.get_xdata()) == [5, 11, 101]
    text = over_depth.change_by_depth_caption(*padded, border_rates(8, 3), **AXES)
    assert "at depth 101" in text and "padding=zeros: delta -0.10 [" in text
    assert "he -2.00 [" in text and f"kernels: {100 * loss:.2f})" in text


def test_near_zero_once_more(padded):
    figure = over_depth.change_by_depth(*padded, **AXES, near=1.5)
    assert_readable(figure)
    assert [ax.get_ylim() for ax in figure.axes[2:]] == [(-1.5, 1.5)] * 2
    assert figure.axes[1].get_ylim()[0] < -2
    assert not labelled(figure, "rate: zeros")
    assert not labelled(over_depth.change_by_depth(padded[0], **AXES), "theory: he")


def attention_net(run, slope, shares, cosine, entropy, **axes):
    """A transformer whose blocks hold Q, K, V, O with squared norms as ``shares``."""
    axes = {"network": "transformer", "placement": "pre", "steps": 8, **axes}
    table, told = net(run, slope, depth=5, **axes)
    table["token_cosine"] = np.where(table["layer"] < 5, cosine * table["layer"], np.nan)
    table["attention_entropy"] = np.nan
    inner = table[table["layer"].between(2, 4)]
    more = [inner.assign(op="attention", attention_entropy=entropy, token_cosine=np.nan)]
    for name, share in zip("QKVO", shares, strict=True):
        norm = -200 + 0.5 * np.log10(share)
        more.append(inner.assign(op=name, dW_log10_norm=norm, token_cosine=np.nan))
    for frame in more:
        frame[DELTA] = np.nan
    return pd.concat([*more, table], ignore_index=True), told


@pytest.fixture
def blocks():
    return together(
        attention_net("a", 0.1, (1, 1, 4, 4), 0.1, np.log(8)),
        attention_net("b", -0.2, (1, 1e-9, 1e-9, 1e-9), 0.2, 0.0, skip="identity"),
        attention_net("c", 0.0, (1, 1, 1, 1), 0.05, 1.0, placement="post"),
    )


def test_blocks_are_panels_by_placement(blocks):
    figure = transformer.blocks_delta(*blocks)
    assert_readable(figure)
    assert [ax.get_title("left") for ax in figure.axes] == ["pre-norm", "post-norm"]
    (mean,) = labelled(figure, "mean: skip=identity")
    assert mean.get_ydata() == pytest.approx(-0.2 * np.arange(4, -1, -1), abs=1e-9)
    (theory,) = labelled(figure, "theory: skip=identity")
    assert theory.get_ydata() == pytest.approx(mean.get_ydata(), abs=1e-9)
    text = transformer.blocks_delta_caption(*blocks)
    assert "pre-norm: skip=identity -0.80 [" in text and "kept, theory -0.80 (agrees)" in text
    silent = blocks[1].assign(**{DELTA: np.nan})
    assert "theory" not in transformer.blocks_delta_caption(blocks[0], silent)


def test_entropy_is_told_in_units_of_its_largest_value(blocks):
    figure = transformer.rank_collapse(*blocks)
    assert_readable(figure)
    cosine, _, entropy, _ = labelled(figure, "skip=none")
    assert cosine.get_ydata() == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert list(entropy.get_xdata()) == [2, 3, 4]
    assert entropy.get_ydata() == pytest.approx([1, 1, 1])
    text = transformer.rank_collapse_caption(*blocks)
    assert "skip=identity cosine 0.200 to 0.800, entropy 0.000 to 0.000" in text
    assert f"{1 / np.log(8):.3f}" in text


def test_shares_of_attention_add_up(blocks):
    figure = transformer.attention_shares(*blocks)
    assert_readable(figure)
    panels = {ax.get_title("left"): ax for ax in figure.axes if ax.get_visible()}
    assert set(panels) == {
        "pre-norm, skip=none", "pre-norm, skip=identity", "post-norm, skip=none"
    }  # fmt: skip
    tops = [band.get_paths()[0].vertices[:, 1].max() for band in
            panels["pre-norm, skip=none"].collections]  # fmt: skip
    assert tops == pytest.approx([0.1, 0.2, 0.6, 1.0])
    text = transformer.attention_shares_caption(*blocks)
    assert "pre-norm, skip=identity: 1 in layer 2, 1 in layer 4" in text
    assert "pre-norm, skip=none: 0.2 in layer 2" in text
    with pytest.raises(InputError, match="Q, K, V and O; got none"):
        transformer.attention_shares(blocks[0][blocks[0]["op"] == "linear"])


def test_transformers_alone_have_placements():
    with pytest.raises(InputError, match="got no placement"):
        transformer.blocks_delta(net("plain", 0.1, network="mlp")[0])


@pytest.fixture
def zoo():
    return together(
        net("m", -0.1, network="mlp"),
        net("c", 0.0, network="cnn", noise=0.1),
        net("m2", 0.3, network="mlp", init="lecun"),
        recurrent("r", -0.05, predicted=-0.04),
        recurrent("g", -0.2, network="gru"),
    )


def test_every_architecture_has_its_own_axis(zoo):
    figure = architectures.architecture_profiles(*zoo)
    assert_readable(figure)
    panels = {ax.get_title("left"): ax for ax in figure.axes if ax.get_visible()}
    assert list(panels) == ["mlp", "cnn", "rnn", "gru"]
    assert panels["rnn"].get_xlabel().startswith("step")
    labels = {name: ax.get_ylabel() for name, ax in panels.items()}
    assert labels == {"mlp": "‖δ‖", "cnn": "", "rnn": "‖∂L/∂$h_t$‖", "gru": ""}
    mean = [line for line in panels["rnn"].lines if line.get_label().startswith("mean")]
    assert mean[0].get_ydata() == pytest.approx(-0.05 * np.arange(19, -1, -1), abs=1e-9)
    assert len([ln for ln in panels["mlp"].lines if ln.get_label().startswith("theory")]) == 2
    text = architectures.architecture_profiles_caption(*zoo)
    assert (
        "Of 5 nets: 1 vanishing, 3 kept" in text
        and "gru" in text.split("Extremes: ")[1].split(" and ")[0]
    )


def test_rates_stand_beside_theory(zoo):
    figure = architectures.architecture_rates(*zoo)
    assert_readable(figure)
    ax = figure.axes[0]
    rows = dict(zip(ax.get_yticks(), (t.get_text() for t in ax.get_yticklabels()), strict=True))
    (theory,) = labelled(figure, "theory")
    told = {rows[y]: x for x, y in zip(*theory.get_data(), strict=True)}
    places = {name.split(",")[0]: value for name, value in told.items() if "lecun" not in name}
    assert places["mlp"] == pytest.approx(-0.1) and places["rnn"] == pytest.approx(-0.04)
    assert np.isnan(places["gru"])
    text = architectures.architecture_rates_caption(*zoo)
    assert "Theory's rate is off by at most 0.01 (rnn" in text
    assert text.endswith("Theory: agrees 2, differs 1, undecided 1, no theory 1.")
    assert "Theory: no theory 5." in architectures.architecture_rates_caption(zoo[0])
    told = zoo[1][zoo[1]["time"].isna()].drop(columns=["time", COTANGENT])
    assert "no theory 2." in architectures.architecture_rates_caption(zoo[0], told)
    assert_readable(architectures.architecture_profiles(zoo[0], told))
    assert_readable(architectures.architecture_rates(zoo[0]))


def test_the_command_gives_figures_what_they_need(tmp_path):
    table, told = net("run", -0.1, depth=5, padding="zeros", kernel_size=3, network="cnn")
    folder = tmp_path / "cnn_depth"
    settings = {"settings": {"network": {"image": 5}}}
    tables.write(table, folder / "runs" / "run.parquet", settings)
    assert plots._positions(table, folder) == 25
    pd.testing.assert_frame_equal(plots._border_rates(table, folder), border_rates(5, 3))
    for drawing in plots.drawings("cnn_depth"):
        png, svg, described = plots.draw(drawing, table, told, folder)
        assert png.is_file() and svg.is_file() and "kernels: " in described.read_text()
    tables.write(table, folder / "runs" / "run.parquet", {})
    with pytest.raises(InputError, match="does not say how large its images are"):
        plots._positions(table, folder)
    wide = table.assign(batch_size=np.where(table["seed"] < 2, 4, 64))
    rates = plots._batch_norm_rates(wide, folder)
    assert {4, 64} < set(rates["batch_size"]) and len(rates) > 20
