"""The command that compares two runs: what it prints, draws and refuses, each in one line."""

import json

import numpy as np
import pandas as pd
import pytest

from experiments import diff
from flowlab.report import gather
from flowlab.schema import DELTA
from flowlab.storage import tables
from flowlab.storage.experiment import Experiment
from tests.support.tables import net

HE, SAME, MOVED = "3f2a" + "0" * 12, "3f2b" + "0" * 12, "9c41" + "0" * 12


def kept(folder, run, init="he", moved=0.0, experiment="depth", **more):
    """A run in an experiment's folder whose δ is moved in layers 1 to 3."""
    table, prediction = net(run, 0.1, init=init, experiment=experiment, **more)
    own = np.random.default_rng(int(run[:4], 16)).normal(0, 0.001, len(table))
    table[DELTA] += moved * (table["layer"] <= 3) + own * (moved != 0)
    metadata = {"settings": {"init": init}, "versions": {"flowlab": "1"}}
    return Experiment(folder / experiment).save(run, table, prediction, metadata)


@pytest.fixture
def results(tmp_path):
    root = tmp_path / "results"
    kept(root, HE)
    kept(root, SAME)
    kept(root, MOVED, init="xavier", moved=0.5)
    kept(root, MOVED, init="xavier", moved=0.5, experiment="width")
    return root


@pytest.fixture
def command(results, capsys, monkeypatch):
    monkeypatch.chdir(results.parent)

    def run(*arguments):
        code = diff.main([*arguments])
        output, errors = capsys.readouterr()
        return code, output.splitlines(), errors.splitlines()

    return run


def test_two_runs_are_compared_and_drawn(command, results):
    code, output, errors = command("3f2a", "width/9c4")
    assert (code, errors) == (0, [])
    assert output[0].startswith("The tables part first at δ of layer 3 (linear), by −0.50")
    assert "init=he minus init=xavier" in output[0]
    assert output[2] == "The places that part most:"
    assert output[4].split() == ["quantity", "place", "difference", "p", "parts"]
    assert [line.split()[0] for line in output[5:8]] == ["δ"] * 3
    assert output[-1] == "Figure: results/depth/figures/diff-3f2a0000-9c410000.png"
    stem = results / "depth" / "figures" / "diff-3f2a0000-9c410000"
    assert stem.with_suffix(".png").is_file() and stem.with_suffix(".svg").is_file()
    described = json.loads(stem.with_suffix(".json").read_text())
    assert described["finding"].startswith("init=he and init=xavier part first at δ of layer 3")
    assert described["caption"].endswith(f"The runs are depth/{HE} and width/{MOVED}.")
    assert described["runs"] == [f"runs/{HE}.parquet"]


def test_the_report_takes_the_figure(command, results):
    command("3f2a", "depth/9c41")
    report = repr(gather(results))
    assert "figures/diff-3f2a0000-9c410000" in report
    assert "Its description is missing" not in report and "not kept: make plots" not in report


def test_equal_runs_have_no_list(command):
    code, output, _ = command("3f2a", "3f2b")
    assert code == 0 and len(output) == 3
    assert output[0].startswith("The tables are equal in every bit: 30 comparisons over 5 seeds")


def test_runs_may_be_files(command, results, tmp_path):
    for name, of in (("a", HE), ("b", MOVED)):
        table = Experiment(results / "depth").read(of)
        tables.write(table.drop(columns="experiment"), tmp_path / f"{name}.parquet", {})
    code, output, errors = command("a.parquet", "b.parquet", "results_dir=nowhere")
    assert (code, errors) == (0, []) and output[-1] == "Figure: figures/diff-a-b.png"
    code, output, _ = command("a.parquet", "depth/9c41", "folder=mine/here")
    assert code == 0 and output[-1] == "Figure: mine/here/diff-a-9c410000.png"
    code, output, _ = command(f"results/depth/runs/{HE}.parquet", "width/9c41")
    assert code == 0 and output[-1].startswith("Figure: results/depth/figures/")


def test_compacted_runs_are_found_by_digest_and_by_path(command, results):
    Experiment(results / "depth").compact()
    assert not (results / "depth/runs" / f"{HE}.parquet").exists()
    first = command("3f2a", "depth/9c41")
    assert first == command(f"results/depth/runs/{HE}.parquet", "depth/9c41") and first[0] == 0
    code, _, errors = command("3f2a", f"results/depth/runs/{HE}.parquet")
    assert code == 2 and errors[0].endswith("which are the same")
    packed = next((results / "depth/runs").glob("*.parquet"))
    code, _, errors = command(str(packed), "width/9c41")
    assert code == 2 and "RUN must be one run; " in errors[0] and "holds 3" in errors[0]


def test_options_reach_the_comparison(command):
    code, output, _ = command("3f2a", "depth/9c41", "within=0.6")
    assert code == 0 and output[0].startswith("The tables are equal to rounding")
    _, output, _ = command("3f2a", "depth/9c41", "columns=dW_log10_norm,db_log10_norm")
    assert output[0].startswith("The tables are equal in every bit: 12 comparisons")
    _, output, _ = command("3f2a", "depth/9c41", "level=0.9", "on=layer")
    assert "90 % intervals" in output[0]
    _, output, _ = command("3f2a", "depth/9c41", "on=position")
    assert "Rows are joined by position." in output[0]


def test_a_step_is_chosen(command, results):
    for run, steps in ((HE, (1, 4)), (SAME, (4, 9))):
        table, prediction = net(run, 0.1)
        table = pd.concat([table.assign(step=step, run=f"{run[:4]}ffff") for step in steps])
        table = table.astype({"step": "Int64"})
        metadata = {"settings": {}, "versions": {"flowlab": "1"}}
        Experiment(results / "steps").save(f"{run[:4]}ffff", table, prediction, metadata)
    code, output, _ = command("steps/3f2a", "steps/3f2b")
    assert code == 0 and "Steps of table_a alone: 1. Steps of table_b alone: 9." in output[0]
    code, output, _ = command("steps/3f2a", "steps/3f2b", "step=4")
    assert code == 0 and "alone" not in output[0]
    code, _, errors = command("steps/3f2a", "steps/3f2b", "step=1")
    assert (code, errors) == (2, ["error: step must be one of 4, 9; got 1"])
    code, _, errors = command("steps/3f2a", "depth/9c41", "step=4")
    assert (code, errors) == (2, ["error: step must be one of none; got 4"])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((), "RUN must be given 2 times; got none"),
        (("3f2a",), "RUN must be given 2 times; got 3f2a"),
        (("3f2a", "3f2a"), "RUN must name two runs; got 3f2a and 3f2a, which are the same"),
        (("3f2a", f"depth/{HE}"), "which are the same"),
        (("3f2", "9c41"), f"RUN must name one run; 3f2 is 2: depth/{HE}, depth/{SAME}"),
        (("3f2a", MOVED), f"{MOVED} is 2: depth/{MOVED}, width/{MOVED}"),
        (("3f2a", "depth/"), "RUN must name one run; depth/ is 3: "),
        (("3f2a", "depht/9c41"), "experiment must be one of depth, width; got depht; did you mean"),
        (("3f2a", "width/9c14"), f"got width/9c14; did you mean width/{MOVED}?"),
        (("3f2a", "zzzz"), "or its beginning; got zzzz, none of 4 kept"),
        (("3f2a", "gone.parquet"), "no table at gone.parquet"),
        (("3f2a", "gone/runs/gone.parquet"), "no table at gone/runs/gone.parquet"),
        (("3f2a", "9c41", "results_dir=none"), "results_dir must be a folder; got none"),
        (("3f2a", "width/9c41", "witin=1"), "option must be one of results_dir, "),
        (("3f2a", "width/9c41", "within=x"), "within must be a number; got x"),
        (("3f2a", "width/9c41", "within=-1"), "within must be a finite number of at least 0"),
        (("3f2a", "width/9c41", "level=2"), "level must lie strictly between 0 and 1; got 2.0"),
        (("3f2a", "width/9c41", "columns=delta"), "columns must be one of activation_log10_norm"),
        (("3f2a", "width/9c41", "on=path"), "on must be "),
        (("3f2a", "width/9c41", "folder=results/depth/.lock"), "is a file"),
    ],
)
def test_what_is_refused_is_refused_in_one_line(command, results, arguments, message):
    code, output, errors = command(*arguments)
    assert (code, output, len(errors)) == (2, [], 1)
    assert errors[0].startswith("error: ") and message in errors[0]
    assert not list(results.rglob("figures"))


def test_a_damaged_or_foreign_file_is_named(command, results, tmp_path):
    path = results / "depth" / "runs" / f"{HE}.parquet"
    path.write_bytes(path.read_bytes()[:500])
    code, output, errors = command(str(path), "width/9c41")
    assert (code, output, len(errors)) == (2, [], 1)
    assert errors[0].startswith(f"error: {path} is damaged: ")
    code, output, errors = command(HE, "width/9c41")
    assert (code, output, len(errors)) == (2, [], 2)
    assert errors[0].startswith(f"note: results/depth/runs/{HE}.parquet is damaged")
    assert errors[1].startswith("error: RUN must be the digest of a kept run")
    tables.write(net("x", 0.1)[1], tmp_path / "theory.parquet", {})
    code, _, errors = command("theory.parquet", "width/9c41")
    assert (code, len(errors)) == (2, 1) and "no column seed" in errors[0]


def test_runs_without_a_common_seed_are_refused(command, results):
    table, prediction = net("3f2c" + "0" * 12, 0.1, init="lecun")
    metadata = {"settings": {}, "versions": {"flowlab": "1"}}
    run = table["run"].iat[0]
    Experiment(results / "depth").save(
        run, table.assign(seed=table["seed"] + 90), prediction, metadata
    )
    code, output, errors = command("3f2a", "3f2c")
    assert (code, output) == (2, [])
    assert errors == [
        "error: tables must share at least one seed; got 0, 1, 2, 3, … (5 in all) against "
        "90, 91, 92, 93, … (5 in all)"
    ]
