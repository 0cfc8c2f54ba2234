"""The command that draws: files and descriptions, findings, bad tables in one line each."""

import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import flowlab
from experiments import plots
from flowlab.storage import tables
from tests.support.tables import net


@pytest.fixture
def results(tmp_path):
    """Two experiments as the command writes them, with figures of their own and without."""
    for experiment in ("depth", "mine"):
        for k, (init, slope) in enumerate((("he", 0.0), ("xavier", -0.5))):
            table, prediction = net(f"run{k}", slope, init=init, experiment=experiment)
            tables.write(prediction, tmp_path / experiment / "theory" / f"run{k}.parquet", {})
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
    names = ["depth/figures/depth_by_init", "depth/figures/profiles_by_init"]
    names.append("mine/figures/sweep")
    assert output == [str(results / f"{name}.png") for name in names]
    for name in names:
        assert (results / f"{name}.svg").is_file()
        described = json.loads((results / f"{name}.json").read_text())
        assert described["finding"] and described["experiment"] == name.split("/")[0]
        assert described["runs"] == ["runs/run0.parquet", "runs/run1.parquet"]
        assert "theory" in described["caption"].lower()
    assert not [path for path in results.rglob(".*")]


def test_trained_runs_are_drawn_with_their_curves(tmp_path, capsys):
    trained = {"name": "sgd", "steps": 3}
    of = {"depth": 2, "width": 8, "batch_size": 16, "seeds": 3, "experiment": "mine"}
    for init in ("he", "xavier"):
        run = flowlab.run(**of, init=init, training=trained, results_dir=str(tmp_path))
    code, output, errors = command(tmp_path, capsys)
    figures = tmp_path / "mine" / "figures"
    names = ("sweep", "sweep_by_step")
    assert (code, errors) == (0, []) and output == [str(figures / f"{name}.png") for name in names]
    described = json.loads((tmp_path / "mine/figures/sweep.json").read_text())
    assert described["finding"].startswith("Of 2 runs ")
    assert "has the best held-out accuracy at the end" in described["finding"]
    (tmp_path / "mine/curves" / f"{run.path.stem}.parquet").unlink()
    code, output, _ = command(tmp_path, capsys)
    described = json.loads((tmp_path / "mine/figures/sweep.json").read_text())
    assert code == 0 and len(output) == 2 and described["finding"].startswith("Between layers")


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
    described = json.loads((results / "mine/figures/sweep.json").read_text())
    assert described["runs"] == ["runs/run0.parquet"]


@pytest.mark.parametrize("complaint", ["is damaged", "no metadata", "has schema 99"])
def test_a_bad_prediction_is_named_and_the_run_is_drawn(results, undrawn, capsys, complaint):
    bad = results / "mine/theory/run1.parquet"
    next(spoil for text, spoil in BAD.items() if text.startswith(complaint))(bad)
    code, output, errors = command(results, capsys, "experiment=mine")
    assert code == 0 and len(output) == 1 and len(errors) == 2
    assert str(bad) in errors[0] and complaint in errors[0]
    assert errors[1] == f"note: {results / 'mine/theory'} lacks 1 of 2 runs"
    caption = json.loads((results / "mine/figures/sweep.json").read_text())["caption"]
    assert "no prediction" in caption


def test_without_theory_figures_do_not_speak_of_it(results, undrawn, capsys):
    for path in (results / "mine/theory").iterdir():
        path.unlink()
    code, _, errors = command(results, capsys, "experiment=mine")
    assert (code, len(errors)) == (0, 1) and "lacks 2 of 2 runs" in errors[0]
    caption = json.loads((results / "mine/figures/sweep.json").read_text())["caption"]
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
    table, _ = net("wide", 0.0, init="he", width=11, experiment="depth")
    tables.write(table, results / "depth/runs/wide.parquet", {})
    code, output, errors = command(results, capsys)
    assert code == 0 and len(output) == 2
    assert any("depth/depth_by_init is not drawn: table must vary init and" in e for e in errors)


def test_a_sweep_of_ones_own_is_drawn_whole(results, undrawn, capsys):
    for k in range(2, 11):
        table, _ = net(f"run{k}", 0.1, width=10 + k, experiment="mine")
        tables.write(table, results / f"mine/runs/run{k}.parquet", {})
    code, output, _ = command(results, capsys, "experiment=mine")
    assert code == 0 and output == [str(results / "mine/figures/sweep.png")]
    described = json.loads((results / "mine/figures/sweep.json").read_text())
    assert len(described["runs"]) == 11
    assert described["finding"].startswith("10 of 11 keep") or "xavier" in described["finding"]


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
