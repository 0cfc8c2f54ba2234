"""Figures hold what their tables say: every assertion reads the drawn artists or the files."""

import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread
from scipy import stats

from flowlab.errors import InputError
from flowlab.figures import caption, profiles, save, style
from flowlab.figures.head import fixed
from flowlab.storage.files import StorageError
from tests.support.drawing import assert_readable

COLUMNS = ["delta_log10_norm", "dW_log10_norm", "db_log10_norm"]
SD = 0.05  # of one layer's step


def sweep(inits=("he", "xavier"), depth=12, seeds=6, width=128, slopes=None):
    """A table of random walks, one run per initializer, and the prediction of their law."""
    rng = np.random.default_rng(7)
    slopes = slopes or {"he": 0.0, "xavier": -0.15}
    layer = np.arange(1, depth + 1)
    tables, predictions = [], []
    for init in inits:
        run, slope = f"run-of-{init}", slopes.get(init, 0.1)
        steps = rng.normal(slope, SD, (seeds, depth))
        walk = np.cumsum(steps[:, ::-1], axis=1)[:, ::-1]
        config = {"run": run, "network": "mlp", "init": init, "depth": depth, "width": width}
        for seed in range(seeds):
            norms = {column: walk[seed] + 2 * k for k, column in enumerate(COLUMNS)}
            rows = {"seed": seed, "layer": layer, "op": "linear", "fan_in": 64, "status": "ok"}
            tables.append(pd.DataFrame({**config, **rows, **norms}))
        travelled = depth + 1 - layer
        theory = {column: slope * travelled + 2 * k for k, column in enumerate(COLUMNS)}
        theory |= {f"{column}_sd": SD * np.sqrt(travelled) for column in COLUMNS}
        predictions.append(pd.DataFrame({"run": run, "layer": layer, **theory}))
    return pd.concat(tables, ignore_index=True), pd.concat(predictions, ignore_index=True)


def artists(ax, kind):
    """Drawn artists of one kind by the label of their run."""
    found = [*ax.lines, *ax.collections]
    pairs = (artist.get_label().split(": ", 1) for artist in found)
    return {run: artist for artist, (k, run) in zip(found, pairs, strict=True) if k == kind}


def legends(figure):
    """The texts of the legend: runs, where there are several, and kinds of artists."""
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    first = texts.index("mean over seeds") if "mean over seeds" in texts else len(texts)
    return [texts[:first], texts[first:]]


def edge_of(band, x):
    """Lowest and highest y of a band's outline at ``x``."""
    outline = np.concatenate([path.vertices for path in band.get_paths()])
    y = outline[outline[:, 0] == x, 1]
    return y.min(), y.max()


def test_mean_and_bands_hold_the_statistics_of_the_table():
    table, prediction = sweep()
    ax = profiles(table, prediction).axes[1]
    run = table[table["init"] == "xavier"]
    for layer in (1, 5, 12):
        values = run[run["layer"] == layer]["dW_log10_norm"]
        n, mean, sd = len(values), values.mean(), values.std(ddof=1)
        line = artists(ax, "mean")["init=xavier"]
        assert line.get_ydata()[list(line.get_xdata()).index(layer)] == pytest.approx(mean)
        interval = stats.t.interval(0.95, n - 1, mean, sd / np.sqrt(n))
        drawn = edge_of(artists(ax, "interval")["init=xavier"], layer)
        assert drawn == pytest.approx(interval, rel=1e-9)
        drawn = edge_of(artists(ax, "spread")["init=xavier"], layer)
        assert drawn == pytest.approx((mean - sd, mean + sd), rel=1e-9)


def test_theory_line_and_band_of_the_mean_of_as_many_seeds():
    table, prediction = sweep(seeds=9)
    ax = profiles(table, prediction).axes[0]
    line = artists(ax, "theory")["init=xavier"]
    predicted = prediction[prediction["run"] == "run-of-xavier"]
    assert line.get_ydata() == pytest.approx(predicted["delta_log10_norm"].to_numpy())
    assert line.is_dashed()
    half = stats.norm.ppf(0.975) * SD * np.sqrt(12) / 3
    low, high = edge_of(artists(ax, "theory interval")["init=xavier"], 1)
    assert (high - low) / 2 == pytest.approx(half, rel=1e-3)
    assert artists(ax, "theory interval")["init=xavier"].get_hatch()


def test_silent_theory_leaves_a_gap():
    table, prediction = sweep(inits=["he"])
    prediction.loc[prediction["layer"].between(4, 6), "delta_log10_norm"] = np.nan
    prediction["db_log10_norm"] = np.nan
    figure = profiles(table, prediction)
    (line,) = artists(figure.axes[0], "theory").values()
    assert list(line.get_xdata()[np.isnan(line.get_ydata())]) == [4, 5, 6]
    assert not artists(figure.axes[2], "theory")
    assert len(artists(figure.axes[2], "mean")) == 1


def test_without_a_prediction_the_figure_does_not_speak_of_theory():
    figure = profiles(sweep()[0])
    assert legends(figure)[1] == [
        "mean over seeds", "95 % interval of the mean", "±1 sd of single seeds"
    ]  # fmt: skip
    assert not any(artists(ax, "theory") for ax in figure.axes)


def test_runs_are_named_by_what_differs():
    table, _ = sweep()
    figure = profiles(table)
    assert legends(figure)[0] == ["init=he", "init=xavier"]
    assert fixed(table) == "network=mlp, depth=12, width=128, seeds=6"
    assert [ax.get_title("left") for ax in figure.axes] == ["‖δ‖", "‖dW‖", "‖db‖"]
    assert all("← backward" in ax.get_xlabel() for ax in figure.axes)


def test_order_of_rows_and_runs_does_not_matter(tmp_path):
    table, prediction = sweep()
    shuffled = table.sample(frac=1, random_state=3), prediction.sample(frac=1, random_state=4)
    _, one = save(profiles(table, prediction), tmp_path / "one")
    _, two = save(profiles(*shuffled), tmp_path / "two")
    assert one.read_bytes() == two.read_bytes()
    assert caption(table, prediction) == caption(*shuffled)


def test_numbers_order_the_runs_and_equal_settings_fall_back_on_the_run():
    depths = [sweep(["he"], depth=d)[0].assign(run=f"{d}") for d in (20, 5, 100)]
    assert legends(profiles(pd.concat(depths)))[0] == ["depth=5", "depth=20", "depth=100"]
    table = sweep(["he"])[0]
    twins = pd.concat([table.assign(run="0123456789"), table.assign(run="abcdefghij")])
    assert legends(profiles(twins))[0] == ["run=01234567", "run=abcdefgh"]


def test_runs_differ_in_colour_and_in_marker():
    table, _ = sweep([f"init{i}" for i in range(8)])
    figure = profiles(table)
    lines = artists(figure.axes[0], "mean").values()
    assert len({line.get_color() for line in lines}) == 8
    assert len({line.get_marker() for line in lines}) == 8
    drawn = [(line.get_color(), line.get_marker()) for line in lines]
    handles = figure.legends[0].legend_handles[:8]
    assert [(handle.get_color(), handle.get_marker()) for handle in handles] == drawn


@pytest.mark.parametrize("steep", [1e-4, 0.01, 0.15, 3.0, 90.0])
def test_limits_hold_the_data_and_ticks_are_few_powers_of_ten(steep):
    table, prediction = sweep(slopes={"he": steep, "xavier": -steep}, depth=30)
    figure = profiles(table, prediction)
    for ax in figure.axes:
        low, high = ax.get_ylim()
        for kind in ("spread", "interval", "theory interval"):
            for band in artists(ax, kind).values():
                box = band.get_datalim(ax.transData)
                assert low < box.y0 and box.y1 < high
        assert high - low >= 1
        ticks = ax.get_yticks()
        assert 2 <= len(ticks) <= 8
        assert (low, high) == figure.axes[0].get_ylim()
        for tick, label in zip(ticks, figure.axes[0].get_yticklabels(), strict=True):
            text = label.get_text().strip("$").replace(r"\!\times\!", "x")
            factor, power = text.rsplit("10^", 1)
            value = np.log10(float(factor.rstrip("x") or 1)) + int(power.strip("{}"))
            assert value == pytest.approx(tick, abs=1e-9)


def test_layer_axis_begins_at_layer_one():
    for depth in (1, 2, 3, 7, 50, 999, 1000, 100_000):
        ax = matplotlib.figure.Figure().subplots()
        style.layers(ax, 1, depth)
        ticks = ax.get_xticks()
        assert ticks[0] == 1 and ticks[-1] <= depth and len(ticks) <= 6
        assert all(tick == int(tick) for tick in ticks)
        assert len(ticks) > 1 or depth == 1


def test_zero_and_nonfinite_norms_are_marked_at_the_edges():
    table, prediction = sweep()
    zero = (table["init"] == "he") & (table["layer"] <= 3)
    table.loc[zero, COLUMNS] = -np.inf
    table.loc[zero, "status"] = "zero"
    over = (table["init"] == "xavier") & table["layer"].isin([2, 5]) & (table["seed"] == 1)
    table.loc[over, COLUMNS] = np.nan
    table.loc[over, "status"] = "nonfinite"
    figure = profiles(table, prediction)
    for ax in figure.axes:
        ((run, marks),) = artists(ax, "zero").items()
        assert run == "init=he" and list(marks.get_xdata()) == [1, 2, 3]
        assert (marks.get_ydata() < 0.1).all()
        ((run, marks),) = artists(ax, "nonfinite").items()
        assert run == "init=xavier" and list(marks.get_xdata()) == [2, 5]
        assert (marks.get_ydata() > 0.9).all()
        low, high = ax.get_ylim()
        for line in [*artists(ax, "mean").values(), *artists(ax, "theory").values()]:
            height = (line.get_ydata() - low) / (high - low)
            assert np.nanmin(height) > 0.05 and np.nanmax(height) < 0.95
        assert np.isnan(artists(ax, "mean")["init=he"].get_ydata()[:3]).all()
    assert {"zero seeds, not in the mean", "nonfinite or lost seeds, not in the mean"} < {
        *legends(figure)[1]
    }
    assert_readable(figure)
    text = caption(table, prediction)
    assert "he no finite seed, vanishing" in text
    assert "-1.65" in text and "vanishing" in text


def test_a_point_without_neighbours_has_a_marker():
    table, _ = sweep(["he"], depth=100)
    table.loc[table["layer"] != 42, COLUMNS] = -np.inf
    (line,) = artists(profiles(table).axes[0], "mean").values()
    assert 41 in line.get_markevery()


def test_nothing_but_nonfinite_and_absent_quantities():
    table, prediction = sweep()
    table["delta_log10_norm"] = -np.inf
    table["db_log10_norm"] = np.nan
    figure = profiles(table, prediction)
    assert len(artists(figure.axes[0], "zero")) == 2 and not artists(figure.axes[0], "mean")
    assert "none in these runs" in [text.get_text() for text in figure.axes[2].texts]
    assert_readable(figure)


def test_one_layer():
    table, prediction = sweep(depth=1)
    figure = profiles(table, prediction)
    ax = figure.axes[0]
    for kind in ("mean", "interval", "spread", "theory", "theory interval"):
        assert len(artists(ax, kind)) == 2
    places = [line.get_xdata()[0] for line in artists(ax, "mean").values()]
    assert places[0] < 1 < places[1]
    for band in artists(ax, "interval").values():
        assert band.get_datalim(ax.transData).width > 0
    assert_readable(figure)
    assert "no finite seed, undecided" in caption(table, prediction)


def test_one_seed_has_no_interval_and_says_so():
    table, prediction = sweep(seeds=1)
    figure = profiles(table, prediction)
    assert legends(figure)[0] == [
        "init=he (one seed: no interval)", "init=xavier (one seed: no interval)"
    ]  # fmt: skip
    assert not artists(figure.axes[0], "interval") and not artists(figure.axes[0], "spread")
    assert len(artists(figure.axes[0], "theory interval")) == 2
    assert "95 % interval of the mean" not in legends(figure)[1]
    assert_readable(figure)


def test_runs_with_different_numbers_of_seeds():
    table, _ = sweep()
    table = table[(table["init"] == "he") | (table["seed"] < 1)]
    figure = profiles(table)
    assert legends(figure)[0] == ["init=he (6 seeds)", "init=xavier (one seed: no interval)"]


def test_ten_thousand_layers(tmp_path):
    table, prediction = sweep(depth=10_000, seeds=2)
    figure = profiles(table, prediction)
    ax = figure.axes[0]
    line, band = artists(ax, "mean")["init=xavier"], artists(ax, "spread")["init=xavier"]
    assert len(line.get_xdata()) == 10_000
    assert len(line.get_markevery()) < 20
    norms = table[table["init"] == "xavier"].groupby("layer")["delta_log10_norm"]
    lowest = (norms.mean() - norms.std()).min()
    assert band.get_datalim(ax.transData).y0 == pytest.approx(lowest, rel=1e-9)
    assert sum(len(path.vertices) for path in band.get_paths()) < 2000
    assert ax.get_ylim()[0] < -1400
    assert_readable(figure)
    _, svg = save(figure, tmp_path / "deep")
    assert svg.stat().st_size < 2_000_000 and b"<image" not in svg.read_bytes()


def test_long_labels_and_many_runs_stay_inside():
    table, prediction = sweep([f"an-initializer-of-long-name-{i}" for i in range(8)])
    table = table.assign(
        data="a-data-set-of-long-name", activation="leaky_relu", skip="pre_norm", dtype="float32",
        note=table["run"].map(lambda run: "words-upon-words-" * 6 + run[-1]),
    )  # fmt: skip
    for columns in (COLUMNS[:1], [*COLUMNS, "db_log10_norm"]):
        assert_readable(profiles(table, prediction, columns=columns))


def test_files(tmp_path):
    table, prediction = sweep()
    figure = profiles(table, prediction)
    png, svg = save(figure, tmp_path / "new" / "fig.v1")
    assert (png, svg) == (tmp_path / "new" / "fig.v1.png", tmp_path / "new" / "fig.v1.svg")
    height, width = imread(png).shape[:2]
    assert (width, height) == (1400, int(200 * figure.get_figheight()))
    texts = ["".join(t.itertext()) for t in ET.parse(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert {"init=he", "‖dW‖", "mean over seeds", "theory"} <= set(texts)
    before = png.read_bytes(), svg.read_bytes()
    save(figure, tmp_path / "new" / "fig.v1")
    assert (png.read_bytes(), svg.read_bytes()) == before
    again = save(profiles(table, prediction), tmp_path / "again")
    assert tuple(path.read_bytes() for path in again) == before
    assert Counter(path.suffix for path in (tmp_path / "new").iterdir()) == {".png": 1, ".svg": 1}


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    figure = profiles(sweep()[0])
    png, _ = save(figure, tmp_path / "fig")
    before = png.read_bytes()

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", broken)
    with pytest.raises(StorageError, match="disk full"):
        save(profiles(sweep(depth=3)[0]), tmp_path / "fig")
    assert png.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 2


def test_the_users_settings_neither_matter_nor_change(tmp_path):
    table, prediction = sweep()
    _, plain = save(profiles(table, prediction), tmp_path / "plain")
    theirs = {"font.size": 30, "axes.facecolor": "pink", "savefig.transparent": True}
    with matplotlib.rc_context(theirs):
        before = dict(matplotlib.rcParams)
        _, other = save(profiles(table, prediction), tmp_path / "other")
        assert dict(matplotlib.rcParams) == before
    assert plain.read_bytes() == other.read_bytes()


def test_caption_states_changes_intervals_and_theory():
    table, prediction = sweep(["xavier"], seeds=5, depth=20)
    wide = table.pivot(index="seed", columns="layer", values="delta_log10_norm")
    changes = wide[1] - wide[20]
    mean = np.mean(changes)
    low, high = stats.t.interval(0.95, 4, mean, stats.sem(changes))
    text = caption(table, prediction)
    assert f"{mean:.2f} [{low:.2f}, {high:.2f}], vanishing, theory -2.85 (undecided)." in text
    assert text.endswith("5 seeds each.")
    assert "theory" not in caption(table)
    prediction["delta_log10_norm"] = np.nan
    assert "no prediction" in caption(table, prediction)


def test_bad_input_is_one_line():
    table, prediction = sweep()
    cases = [
        (lambda: profiles(table.iloc[:0]), "table must hold at least one row; got none"),
        (lambda: profiles(table.drop(columns="run")), "column must be one of .*; got run"),
        (lambda: profiles(table.drop(columns="layer")), "column must be one of .*; got layer"),
        (lambda: profiles(table, columns=["dW_log10_nrm"]), "did you mean dW_log10_norm"),
        (lambda: profiles(table, columns=[]), "columns must name at least one norm; got none"),
        (
            lambda: profiles(table, prediction.drop(columns="dW_log10_norm_sd")),
            "column of prediction must be one of .*; got dW_log10_norm_sd",
        ),
        (lambda: caption(table.drop(columns="delta_log10_norm")), "got delta_log10_norm"),
        (lambda: caption(table.iloc[:0]), "at least one row"),
        (lambda: profiles(sweep("abcdefghi")[0]), "at most 8 runs .*; got 9: filter it .*query"),
    ]
    for call, message in cases:
        with pytest.raises(InputError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_matplotlib_is_loaded_by_figures_only_and_pyplot_never():
    code = """
import sys
import flowlab
assert "matplotlib" not in sys.modules, "flowlab loads matplotlib"
import pandas as pd
from flowlab.figures import profiles
profiles(pd.DataFrame({"run": "a", "seed": [0, 1], "layer": 1, "x": 0.0}), columns=["x"])
assert "matplotlib.pyplot" not in sys.modules, "figures load pyplot"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
