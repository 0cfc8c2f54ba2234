"""The gallery and its command: artists and captions follow their tables; bad tables are told."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from experiments import plots
from experiments.command import groups
from flowlab import schema
from flowlab.errors import InputError
from flowlab.figures import by_init, extreme, finite_width, gallery, heat_map, phase, skips
from flowlab.storage import tables
from flowlab.theory.mean_field import phase_plane
from tests.support.drawing import assert_readable, labelled
from tests.support.tables import net

DELTA = "delta_log10_norm"
SQUARED = (2 * np.log(10)) ** 2


def sweep(*runs):
    """Several runs, each (slope, axes), as one table and one prediction."""
    made = [net(f"run{k}", slope, **axes) for k, (slope, axes) in enumerate(runs)]
    return tuple(pd.concat(frames, ignore_index=True) for frames in zip(*made, strict=True))


def shift(table, run, by):
    """The table with log-norms of a run tilted by ``by`` decades per layer."""
    tilt = by * (table["depth"] - table["layer"]) * (table["run"] == run)
    return table.assign(**{name: table[name] + tilt for name in schema.NORMS})


def test_each_initializer_has_a_panel_with_its_own_curve():
    table, told = sweep((0.0, {}), (-0.5, {"init": "xavier"}), (0.2, {"gain": 2.0}))
    figure = by_init.small_multiples(table, told)
    assert_readable(figure)
    panels = {ax.get_title("left"): ax for ax in figure.axes if ax.get_visible()}
    assert set(panels) == {"he", "he × 2", "xavier"}
    for title, slope in (("he", 0.0), ("he × 2", 0.2), ("xavier", -0.5)):
        mean, theory = panels[title].lines
        assert mean.get_ydata() == pytest.approx(slope * np.arange(5, -1, -1), abs=1e-9)
        assert theory.get_ydata() == pytest.approx(mean.get_ydata(), abs=1e-9)
    text = by_init.small_multiples_caption(table, told)
    assert "init=xavier -2.50 [" in text and "init=he × 2 1.00 [" in text


@pytest.fixture
def grid():
    """Two initializers over three depths: one keeps the gradient, one loses half a decade."""
    return sweep(
        *(
            (slope, {"init": init, "depth": depth})
            for init, slope in (("he", 0.01), ("xavier", -0.5))
            for depth in (5, 11, 21)
        )
    )


def test_cells_hold_the_decades_from_output_to_input(grid):
    figure = heat_map.heat_map(*grid)
    assert_readable(figure)
    image = figure.axes[0].images[0]
    expected = [[0.04, 0.1, 0.2], [-2, -5, -10]]
    assert image.get_array().data == pytest.approx(np.array(expected), abs=1e-9)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["0.04", "0.10", "0.20", "−2.0", "−5.0", "−10.0"]
    assert image.norm(0) == pytest.approx(0.5)


def test_the_map_tells_absent_pairs_from_pairs_without_norms(grid):
    table, _ = grid
    table = table[table["run"] != "run1"]
    table.loc[table["run"] == "run5", DELTA] = -np.inf
    texts = [text.get_text() for text in heat_map.heat_map(table).axes[0].texts]
    assert texts == ["0.04", "0.20", "−2.0", "−5.0", "?"]
    assert "1 pairs have no seed with finite norms" in heat_map.heat_map_caption(table)


def test_the_caption_of_the_map_counts_what_it_shows(grid):
    table, told = grid
    text = heat_map.heat_map_caption(table, told)
    assert "Of 6 pairs of init and depth: 3 vanishing, 3 kept (within ±1 decade)" in text
    assert "xavier at depth 21 (−10.0 decades)" in text and "Kept at every depth: he." in text
    planted = shift(table, "run2", 0.1)  # he at depth 21 explodes by 2 decades more
    text = heat_map.heat_map_caption(planted, told)
    assert (
        "3 vanishing, 2 kept" in text
        and "1 exploding" in text
        and "Kept at every depth: none." in text
    )
    assert "by at most 2 (he, depth 21)" in text
    assert "Theory" not in heat_map.heat_map_caption(table)


def test_a_cell_holds_one_run(grid):
    table, _ = grid
    twin = table[table["run"] == "run0"].assign(run="twin")
    with pytest.raises(InputError, match="one run for each init and gain and depth; got 2"):
        heat_map.heat_map(pd.concat([table, twin]))


@pytest.fixture
def kinds():
    scales = {"scaled": ("inverse_sqrt_depth", "inverse_depth")}
    return sweep(
        *(
            (slope, {"skip": skip, "branch_scale": scale, "depth": depth})
            for skip, slope in (("none", -0.1), ("identity", 0.3), ("scaled", 0.01))
            for scale in scales.get(skip, (None,))
            for depth in (5, 11)
        )
    )


def test_skips_are_lines_over_depth_with_theory(kinds):
    table, told = kinds
    figure = skips.skip_depth(*kinds)
    assert_readable(figure)
    for kind, slope in (("identity", 0.3), ("none", -0.1), ("scaled a = 1/L", 0.01)):
        for container in labelled(figure, f"mean: {kind}"):
            line = container.lines[0]
            assert line.get_xdata().tolist() == [5, 11]
            assert line.get_ydata() == pytest.approx([4 * slope, 10 * slope])
        (theory, _) = labelled(figure, f"theory: {kind}")
        assert theory.get_ydata() == pytest.approx([4 * slope, 10 * slope])
    assert figure.axes[1].get_ylim() == (-1, 1)
    assert not labelled(skips.skip_depth(table), "theory: none")
    text = skips.skip_caption(shift(table, "run1", 0.1), told)
    assert "at depth 11" in text and "identity 3.00 [" in text
    assert "none 0.00 [" in text and "theory -1.00" in text


@pytest.fixture
def fluctuating():
    """Runs whose variance of ln ‖δ_1‖²/‖δ_L‖² is exactly 5 L/N."""
    frames = []
    for width in (10, 20):
        for depth in (6, 11, 21):
            table, told = net(f"{width}-{depth}", 0.0, depth, 40, kappa=5 * 10 / width, width=width)
            crossed = depth - 1
            wobble = table.groupby("seed")[DELTA].first()
            wobble = wobble / wobble.std() * np.sqrt(5 * crossed / width / SQUARED) / crossed
            table[DELTA] = table["seed"].map(wobble) * (depth - table["layer"])
            frames.append((table, told))
    return tuple(pd.concat(parts, ignore_index=True) for parts in zip(*frames, strict=True))


def test_variances_fall_on_the_line_of_theory(fluctuating):
    table, told = fluctuating
    figure = finite_width.variance_collapse(table, told)
    assert_readable(figure)
    ax = figure.axes[0]
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    for width in (10, 20):
        (container,) = labelled(figure, f"width {width}")
        x, y = container.lines[0].get_data()
        assert x == pytest.approx(np.array([5, 10, 20]) / width)
        assert y == pytest.approx(5 * np.asarray(x))
    (line,) = labelled(figure, "theory")
    assert line.get_ydata() / line.get_xdata() == pytest.approx([5, 5])
    text = finite_width.variance_caption(table, told)
    assert "(L/N)^1.00" in text and "it is 5 on average, 5 to 5" in text
    assert "κ = 5; 6 of 6" in text
    doubled = table.assign(**{DELTA: table[DELTA] * np.where(table["depth"] == 21, 2, 1)})
    text = finite_width.variance_caption(doubled, told)
    assert "5 to 20" in text and "4 of 6" in text


@pytest.fixture
def plane():
    """tanh without bias: σ_w² is χ below 1; measured points on both sides of it."""
    table, told = sweep(
        (-0.3, {"sigma_w": 0.8}), (0.3, {"sigma_w": 1.4}), (0.0, {"sigma_w": 1.0, "noise": 0.1})
    )
    return table, told, phase_plane("tanh", np.linspace(0.6, 2, 15), np.linspace(0, 0.05, 6))


def test_points_of_the_phase_plane_lie_where_they_were_measured(plane):
    figure = phase.phase_diagram(*plane)
    assert_readable(figure)
    for kind, x in (("vanishing", 0.64), ("exploding", 1.96), ("kept", 1.0)):
        (points,) = labelled(figure, f"measured: {kind}")
        assert points.get_xdata() == pytest.approx([x]) and points.get_ydata() == pytest.approx([0])
    critical = figure.axes[0].collections[-1].get_paths()
    line = np.concatenate([path.vertices for path in critical])
    at = line[np.argmin(abs(line[:, 1] - 0.05))]
    assert at[0] == pytest.approx(1.76096, rel=0.01)  # THEORY: σ_b² = 0.05


def test_the_caption_of_the_phase_plane_judges_sides_and_rates(plane):
    table, told, theory = plane
    text = phase.phase_caption(*plane)
    assert "Of 3 points, going backward: 1 vanishing, 1 kept (within ±1 decade), 1 explod" in text
    assert "2 of the 2 vanishing or exploding ones lie in that phase" in text
    assert "at most 0.0%" in text
    text = phase.phase_caption(shift(table, "run0", 0.6), told, theory)  # -0.3 becomes 0.3
    assert "2 exploding" in text and "1 of the 2" in text
    assert "at χ = 0.600" in text and f"at most {10**1.2 - 1:.1%}" in text
    wide = phase.phase_caption(*plane, kept_within=5)
    assert "3 kept (within ±5 decades)" in wide and "in that phase" not in wide


def test_underflow_is_marked_where_entries_leave_the_range():
    table, told = net("deep", -5.0, depth=101)
    figure = extreme.depths_of_underflow(table, told)
    assert_readable(figure)
    # rms = ‖δ‖/√(4·16); half the least subnormals are 2^-150 and 2^-1075, squares root them.
    for name, power in {"float32: norm": -75, "float32: δ": -150, "float64: δ": -1075}.items():
        layer = 101 - next(k for k in range(101) if 10.0 ** (-5 * k) / 8 < 2.0**power or k > 64)
        if power == -1075:  # 2^-1075 itself is 0 in float64
            layer = 101 - int(np.ceil((1075 * np.log10(2) - np.log10(8)) / 5))
        marks = [a for a in labelled(figure, f"{name} reads 0") + labelled(figure, f"{name} is 0")]
        assert [mark.get_xdata()[0] for mark in marks] == [layer, layer]
        assert f"from layer {layer} down" in extreme.underflow_caption(table, told)
    text = extreme.underflow_caption(table, told)
    assert "to -500.0 in layer 1 (theory -500.0)" in text
    assert "neither float32 nor float64" in extreme.underflow_caption(net("flat", 0.0)[0])


# The command


@pytest.fixture
def results(tmp_path):
    """Two experiments as the command writes them, with figures of their own and without."""
    for experiment in ("depth", "mine"):
        for k, (init, slope) in enumerate((("he", 0.0), ("xavier", -0.5))):
            table, told = net(f"run{k}", slope, init=init, experiment=experiment)
            tables.write(told, tmp_path / experiment / "theory" / f"run{k}.parquet", {})
            tables.write(table, tmp_path / experiment / "runs" / f"run{k}.parquet", {})
    return tmp_path


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are made but not painted, which takes most of the time."""

    def touch(figure, stem):
        stem.parent.mkdir(exist_ok=True)
        return (stem.with_suffix(".png"),)

    monkeypatch.setattr(plots, "save", touch)


def command(results, capsys, *arguments):
    code = plots.main([f"results_dir={results}", *arguments])
    output, errors = capsys.readouterr()
    return code, output.splitlines(), errors.splitlines()


def test_every_figure_is_drawn_and_described(results, capsys):
    code, output, errors = command(results, capsys)
    assert (code, errors) == (0, [])
    names = ["depth/figures/profiles_by_init", "depth/figures/depth_by_init"]
    names.append("mine/figures/profiles")
    assert output == [str(results / f"{name}.png") for name in names]
    for name in names:
        assert (results / f"{name}.svg").is_file()
        described = json.loads((results / f"{name}.json").read_text())
        assert described["title"] and described["experiment"] == name.split("/")[0]
        assert described["runs"] == ["runs/run0.parquet", "runs/run1.parquet"]
        assert "theory" in described["caption"].lower()
    assert not [path for path in results.rglob(".*")]


def test_one_experiment_on_demand(results, undrawn, capsys):
    code, output, _ = command(results, capsys, "experiment=mine")
    assert code == 0 and len(output) == 1 and not (results / "depth/figures").exists()


def foreign_schema(path):
    table = pq.read_table(path)
    own = {b"flowlab": json.dumps({"schema": 99}).encode()}
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, **own}), path)


def other_columns(path):
    tables.write(pd.DataFrame({"a": [1]}), path, {})


BAD = {
    "is damaged": lambda path: path.write_bytes(path.read_bytes()[:200]),
    "no metadata": lambda path: pq.write_table(pa.table({"a": [1]}), path),
    "no column run": other_columns,
    "has schema 99; this version reads 1": foreign_schema,
}


@pytest.mark.parametrize("complaint", BAD)
def test_a_bad_table_is_one_line_and_the_rest_is_drawn(results, undrawn, capsys, complaint):
    bad = results / "mine/runs/run1.parquet"
    BAD[complaint](bad)
    code, output, errors = command(results, capsys)
    assert code == 0 and len(output) == 3
    assert len(errors) == 1 and str(bad) in errors[0] and complaint in errors[0]
    described = json.loads((results / "mine/figures/profiles.json").read_text())
    assert described["runs"] == ["runs/run0.parquet"]


@pytest.mark.parametrize("complaint", ["is damaged", "no metadata", "has schema 99"])
def test_a_bad_prediction_is_told_and_the_run_is_drawn(results, undrawn, capsys, complaint):
    bad = results / "mine/theory/run1.parquet"
    next(spoil for text, spoil in BAD.items() if text.startswith(complaint))(bad)
    code, output, errors = command(results, capsys, "experiment=mine")
    assert code == 0 and len(output) == 1 and len(errors) == 2
    assert str(bad) in errors[0] and complaint in errors[0]
    assert errors[1] == f"note: {results / 'mine/theory'} lacks 1 of 2 runs"
    caption = json.loads((results / "mine/figures/profiles.json").read_text())["caption"]
    assert "no prediction" in caption


def test_without_theory_figures_do_not_speak_of_it(results, undrawn, capsys):
    for path in (results / "mine/theory").iterdir():
        path.unlink()
    code, _, errors = command(results, capsys, "experiment=mine")
    assert (code, len(errors)) == (0, 1) and "lacks 2 of 2 runs" in errors[0]
    caption = json.loads((results / "mine/figures/profiles.json").read_text())["caption"]
    assert "theory" not in caption


def test_nothing_to_draw_is_an_error_of_one_line(tmp_path, results, capsys):
    empty = tmp_path / "empty"
    for code, errors in (
        command(empty, capsys)[::2],
        (empty.mkdir(), command(empty, capsys))[1][::2],
    ):
        assert code == 2 and len(errors) == 1 and "results_dir" in errors[0]
    for path in results.glob("*/runs/*"):
        path.write_bytes(b"")
    code, output, errors = command(results, capsys)
    assert code == 2 and output == [] and len(errors) == 5 and "got none" in errors[-1]


def test_a_figure_that_cannot_be_drawn_does_not_stop_the_others(results, undrawn, capsys):
    table, _ = net("twin", 0.0, init="he", experiment="depth")
    tables.write(table, results / "depth/runs/twin.parquet", {})
    code, output, errors = command(results, capsys)
    assert code == 0 and len(output) == 2
    assert any("depth/depth_by_init is not drawn: table must hold one run" in e for e in errors)


def test_more_runs_than_a_figure_holds_are_told(results, undrawn, capsys):
    for k in range(2, 11):
        table, _ = net(f"run{k}", 0.1, width=10 + k, experiment="mine")
        tables.write(table, results / f"mine/runs/run{k}.parquet", {})
    code, output, errors = command(results, capsys, "experiment=mine")
    assert code == 0 and len(output) == 1
    assert "mine/profiles shows 8 of 11 runs" in errors[-1] and "query" in errors[-1]


@pytest.mark.parametrize(
    "argument, parts",
    [
        ("experiment=mien", ["experiment must be one of depth, mine; got mien", "did you mean"]),
        ("resluts_dir=x", ["option must be", "did you mean results_dir?"]),
        ("draw", ["options are written key=value; got draw"]),
    ],
)
def test_bad_arguments_are_one_line(results, capsys, argument, parts):
    code, output, errors = command(results, capsys, argument)
    assert code == 2 and output == [] and len(errors) == 1
    assert all(part in errors[0] for part in parts)


def test_the_gallery_serves_kept_sweeps_and_every_other_experiment():
    assert set(gallery.GALLERY) <= set(groups()["experiment"])
    assert gallery.drawings("mine") == (gallery.PROFILES,)
    names = [(e, d.name) for e, drawings in gallery.GALLERY.items() for d in drawings]
    assert len(names) == len(set(names))
