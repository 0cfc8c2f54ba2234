"""The command as its users meet it: tables for good input, one line and no file for bad input."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from experiments import command
from flowlab import schema
from flowlab.errors import InputError
from flowlab.storage import tables

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["depth=3", "width=8", "batch_size=8", "seeds=2"]
AXES = "depth width activation skip batch_size seeds upstream reduction dtype network init data"
COLUMNS = "run experiment seed layer op fan_in fan_out status " + AXES


def process(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "experiments.run", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


def files(folder):
    """The names of files that a user sees."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.name for path in paths if not path.name.startswith("."))


def assert_refused(code, errors, *parts):
    assert code != 0
    lines = errors.splitlines()
    assert len(lines) == 1, errors
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0]


def test_a_run_writes_a_table_and_its_prediction(tmp_path):
    done = process(tmp_path, *SMALL)
    assert (done.returncode, done.stderr) == (0, "")
    runs, theory = tmp_path / "results/single/runs", tmp_path / "results/single/theory"
    assert files(runs) == files(theory) and len(files(tmp_path)) == 2
    table = pd.read_parquet(runs)
    assert set(COLUMNS.split()) | set(schema.NORMS) <= set(table.columns)
    assert len(table) == 2 * 3
    assert sorted(table["seed"].unique()) == [0, 1]
    assert sorted(table["layer"].unique()) == [1, 2, 3]
    assert (table["seeds"] == 2).all() and (table["status"] == "ok").all()
    assert table[list(schema.NORMS)].dtypes.eq("float64").all()
    assert set(schema.NORMS) | {"layer", "op", "run"} <= set(pd.read_parquet(theory).columns)
    stored = tables.metadata(next(runs.iterdir()))
    assert stored["settings"]["depth"] == 3
    assert stored["command"] == "python -m experiments.run " + " ".join(SMALL)
    assert str(table["run"].iat[0]) in done.stdout


def test_a_process_refuses_bad_input(tmp_path):
    done = process(tmp_path, *SMALL, "depth=0")
    assert_refused(done.returncode, done.stderr, "depth must be at least 1; got 0")
    assert done.stdout == "" and not files(tmp_path)


@pytest.mark.parametrize(
    "bad, parts",
    [
        ("depth=-3", ["depth must be at least 1; got -3"]),
        ("depth=2.5", ["depth must be an integer; got 2.5"]),
        ("depth=null", ["depth"]),
        ("depth=4,5", ["-m", "depth=4,5"]),
        ("width=0", ["width must be at least 1; got 0"]),
        ("batch_size=0", ["batch_size must be at least 1; got 0"]),
        ("batch_size=1798", ["batch_size must be at most the 1797 rows of digits; got 1798"]),
        ("seeds=0", ["seeds must be at least 1; got 0"]),
        ("seed=-1", ["seed must be at least 0", "got -1"]),
        ("init=hee", ["init must be one of", "got hee", "did you mean he?"]),
        ("dpeth=5", ["dpeth", "did you mean depth?"]),
        ("init.gian=2", ["init.gian", "did you mean init.gain?"]),
        ("activation=rleu", ["activation", "got rleu", "did you mean relu?"]),
        ("dtype=int8", ["dtype must be one of float32, float64; got int8"]),
        ("init.gain=nan", ["init.gain must be a finite number above 0; got nan"]),
        ("data=file", ["data.path must name a file"]),
        ("~depth", ["settings are written key=value; got ~depth"]),
        ("depth", ["settings are written key=value; got depth"]),
        ("--deep", ["options stand before settings", "--deep"]),
    ],
)
def test_bad_input_is_one_line_and_no_file(call, tmp_path, bad, parts):
    code, output, errors = call(*SMALL, bad)
    assert_refused(code, errors, *parts)
    assert output == "" and not files(tmp_path)


@pytest.mark.parametrize(
    "content, parts",
    [
        (None, ["no such file"]),
        ("a,b\n1,x\n2\n3,y,4,5\n", []),
        ("a,b\n1,0\nx,1\n", ["must be numbers", "x", "row 2", "column a"]),
        ("", []),
    ],
)
def test_bad_data_files_are_refused_by_name(call, tmp_path, content, parts):
    if content is not None:
        Path("my.csv").write_text(content)
    before = files(tmp_path)
    code, output, errors = call(*SMALL, "batch_size=1", "data=file", "data.path=my.csv")
    assert_refused(code, errors, "my.csv", *parts)
    assert output == "" and files(tmp_path) == before


def test_a_file_in_the_way_of_results_is_refused_before_measuring(call, tmp_path):
    Path("taken").write_text("kept")
    code, output, errors = call(*SMALL, "results_dir=taken/here")
    assert_refused(code, errors, "results_dir", "taken")
    assert output == "" and files(tmp_path) == ["taken"]
    assert Path("taken").read_text() == "kept"


def test_a_sweep_goes_on_after_a_bad_condition_and_leaves_only_tables(call, tmp_path):
    code, _, errors = call("-m", *SMALL[1:], "depth=0,2")
    assert_refused(code, errors, "depth must be at least 1; got 0")
    assert len(files(tmp_path / "results/single/runs")) == 1
    assert len(files(tmp_path)) == 3  # table, prediction and the record of the sweep


@pytest.mark.parametrize("broken", ["os.replace", "os.fsync"])
def test_an_interrupted_write_leaves_no_file(call, tmp_path, monkeypatch, broken):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(broken, full)
    code, output, errors = call(*SMALL)
    assert_refused(code, errors, "cannot write", "No space left on device")
    assert output == "" and not files(tmp_path)


def test_a_killed_write_keeps_the_old_table(tmp_path, monkeypatch):
    path = tables.write(pd.DataFrame({"a": [1]}), tmp_path / "t.parquet", {})

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        tables.write(pd.DataFrame({"a": [2]}), path, {})
    assert files(tmp_path) == ["t.parquet"]
    assert pd.read_parquet(path)["a"].tolist() == [1]


@pytest.mark.parametrize(
    "error, code, line",
    [
        (InputError("depth must be even"), 2, "error: depth must be even\n"),
        (KeyboardInterrupt(), 130, "interrupted: nothing unfinished was kept\n"),
    ],
)
def test_the_end_is_one_line(capsys, error, code, line):
    def action():
        raise error

    assert command.guarded(action) == code
    assert capsys.readouterr().err == line


def test_interrupted_imports_leave_no_traceback(tmp_path):
    (tmp_path / "hydra.py").write_text("raise KeyboardInterrupt")  # as of Ctrl-C at that moment
    done = subprocess.run(
        [sys.executable, "-m", "experiments.run"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.stderr == "interrupted\n" and done.returncode != 0


@pytest.mark.parametrize("group", command.groups())
def test_every_choice_composes(call, group):
    for choice in command.groups()[group]:
        code, output, errors = call("--cfg", "job", f"{group}={choice}")
        assert (code, errors) == (0, ""), choice
        assert "depth:" in output
