"""Listing and compacting experiments: what the commands say, and what they draw and report."""

import json

import pandas as pd
import pytest

from experiments import compact, plots, results
from experiments.command import invocation
from flowlab.report import gather
from flowlab.storage import tables
from flowlab.storage.experiment import Experiment, condition_of
from tests.support.runs import filled, made
from tests.support.tables import net


@pytest.fixture
def folder(tmp_path):
    """An experiment of three runs behind which stands a sweep of five, one run of them covered."""
    filled(tmp_path / "mine", 1, 2, 3)
    planned = {}
    for name, seed, seeds in ((made(1)[0], 2, 2), ("covered", 3, 4), ("a", 8, 2), ("b", 0, 3)):
        planned[name] = [condition_of(made(1)[3]["settings"]), seed, seeds]
    record = {"schema": 1, "command": "python -m experiments.run -m seed=1,2", "runs": planned}
    (tmp_path / "mine/sweeps").mkdir()
    (tmp_path / "mine/sweeps/x.json").write_text(json.dumps(record))
    filled(tmp_path / "alone", 4)
    return tmp_path


def run(command, capsys, root, *arguments):
    code = command.main([f"results_dir={root}", *arguments])
    output, errors = capsys.readouterr()
    return code, output.splitlines(), errors.splitlines()


def test_experiments_are_listed_with_what_they_lack(folder, capsys):
    code, output, errors = run(results, capsys, folder)
    assert (code, errors) == (0, [])
    head, alone, command, mine, sweep = output
    assert head.split() == ["experiment", "runs", "state", "seeds", "rows", "size"]
    assert alone.split()[:6] == ["alone", "1", "single", "runs", "2", "6"]
    assert command.strip() == "make it"
    assert mine.split()[:8] == ["mine", "3", "2", "of", "4", "missing", "2", "18"]
    assert sweep.strip() == invocation("run", "-m", "seed=1,2")
    assert max(map(len, (head, alone, mine))) <= 100
    filled(folder / "mine", 0, 4)
    _, output, _ = run(results, capsys, folder)
    assert output[3].split()[:5] == ["mine", "5", "complete", "2", "30"]
    size = sum(path.stat().st_size for path in (folder / "mine").glob("*/*.parquet"))
    assert output[3].endswith(f"{size / 1e3:.1f} kB")


def test_a_table_with_settings_of_another_kind_is_passed_over(folder, capsys):
    odd = folder / "mine" / "runs" / "odd.parquet"
    tables.write(made(9)[1], odd, {"settings": "depth 4", "versions": {"flowlab": "x"}})
    code, output, errors = run(results, capsys, folder, "experiment=mine")
    assert code == 0 and "odd" not in "".join(output)
    assert errors == [f"note: {odd} is not a table of this laboratory: no settings"]


def test_one_experiment_is_shown_in_full(folder, capsys):
    run_, table, prediction, metadata = made(9)
    metadata["settings"] |= {"depth": 4, "init": {"name": "xavier"}}
    Experiment(folder / "mine").save(run_, table, prediction, metadata)
    _, output, _ = run(results, capsys, folder, "experiment=mine")
    lines = [line.strip() for line in output]
    assert len(lines) == 7 and lines[3] == "2 conditions"
    assert lines[4:6] == ["init: he, xavier", "depth: 3, 4"]
    assert lines[6] == "2 of 4 planned runs missing, 5 networks"


def test_files_that_cannot_be_used_are_few_lines(folder, capsys):
    for k in range(8):
        (folder / "mine/runs" / f"bad{k}.parquet").write_bytes(b"x")
    (folder / "mine/sweeps/y.json").write_text("[]")
    code, output, errors = run(results, capsys, folder)
    assert code == 0 and len(output) == 5 and len(errors) == 6
    assert errors[-1] == "note: 4 more files cannot be used"
    assert all("is damaged" in line for line in errors[:5])


def test_compaction_says_what_became_of_the_files(folder, capsys):
    before = pd.read_parquet(folder / "mine/runs")
    code, output, errors = run(compact, capsys, folder, "experiment=mine")
    assert (code, errors) == (0, []) and len(output) == 1
    assert output[0].startswith("mine: 6 files of ") and " became 2 files of " in output[0]
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "mine/runs"), before)
    _, output, _ = run(compact, capsys, folder)
    assert output[0].startswith("alone: 2 files") and "mine: nothing to gather; 2" in output[1]
    (folder / "mine/runs/bad.parquet").write_bytes(b"x")
    filled(folder / "mine", 5)
    _, _, errors = run(compact, capsys, folder, "experiment=mine")
    assert len(errors) == 1 and "bad.parquet is damaged" in errors[0]


@pytest.mark.parametrize("command", [compact, results])
@pytest.mark.parametrize(
    "argument, message",
    [("experiment=mien", "did you mean mine"), ("x=1", "option must be one of")],
)
def test_bad_options_are_one_line(folder, capsys, command, argument, message):
    code, output, errors = run(command, capsys, folder, argument)
    assert (code, output, len(errors)) == (2, [], 1) and message in errors[0]
    code, _, errors = run(command, capsys, folder / "none")
    assert code == 2 and "results_dir" in errors[0]


def test_compacted_experiments_are_drawn_and_reported_the_same(tmp_path, capsys):
    kept = Experiment(tmp_path / "mine")
    for k, slope in enumerate((0.0, -0.5)):
        table, theory = net(f"run{k}", slope, width=8 + k, experiment="mine")
        for suffix in ("sd", "infinite"):
            theory[f"delta_log10_norm_{suffix}"] = theory.get("delta_log10_norm_sd", 0.0)
        metadata = {"settings": {"width": 8 + k}, "command": "c", "versions": {"flowlab": "1"}}
        kept.save(f"run{k}", table, theory, metadata)
    drawn = []
    for _ in range(2):
        assert plots.main([f"results_dir={tmp_path}"]) == 0
        text = (tmp_path / "mine/figures/sweep.json").read_text()
        image = (tmp_path / "mine/figures/sweep.png").read_bytes()
        drawn.append((text, image, repr(gather(tmp_path))))
        kept.compact()
    assert capsys.readouterr().err == ""
    assert drawn[0] == drawn[1] and "runs/run1.parquet" in drawn[0][0]
    assert kept.files == 2
