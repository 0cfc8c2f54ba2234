"""The command that times: rows as they come, Ctrl-C, the machine, bad input."""

import json
from types import SimpleNamespace

import pandas as pd
import pytest

from experiments import benchmark as command
from experiments.benchmarks import machine
from flowlab.storage import tables


@pytest.fixture
def suite(monkeypatch):
    """Puts generators of rows in place of the suites, each with a report."""

    def put(**generators):
        suites = {
            name: SimpleNamespace(rows=rows, report=lambda table: f"{len(table)} rows mean this.")
            for name, rows in generators.items()
        }
        monkeypatch.setattr(command, "SUITES", suites)
        monkeypatch.setattr(command, "_OWN", {name: {} for name in suites})

    return put


def row(form, seconds=0.5):
    return {"width": 64, "seconds": seconds, "form": form}


@pytest.mark.parametrize(
    "arguments, line",
    [
        (["suite=prob"], "did you mean probe?"),
        (["rouns=3"], "did you mean rounds?"),
        (["rounds=x"], "error: rounds must be an integer; got x\n"),
        (["rounds=0"], "error: rounds must be at least 1; got 0\n"),
        (["widths=64,0"], "error: widths must be at least 1; got 0\n"),
        (["compiled=-1"], "error: compiled must be 0 or 1; got -1\n"),
        (["suite=layers", "only=lsmt"], "did you mean lstm?"),
        (["suite=training", "optimizers=adm"], "did you mean adam?"),
        (["probe"], "error: options are written key=value; got probe\n"),
    ],
)
def test_bad_input_is_one_line(arguments, line, capsys, tmp_path):
    assert command.main([*arguments, f"results_dir={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1
    assert not (tmp_path / "benchmark").exists()


def test_a_row_is_printed_before_the_next_is_measured(suite, capsys, tmp_path):
    seen = []

    def rows(say):
        yield row("flowlab")
        seen.append(capsys.readouterr().out)
        yield row("torch by hand", float("nan"))

    suite(probe=rows)
    assert command.main([f"results_dir={tmp_path}"]) == 0
    head, first = seen[0].splitlines()[-2:]
    assert head.split() == ["width", "seconds", "form"]
    assert first.split() == ["64", "0.5", "flowlab"]
    last, _, meaning = capsys.readouterr().out.splitlines()
    assert last.split() == ["64", "-", "torch", "by", "hand"]
    assert first.index("flowlab") == head.index("form") == last.index("torch")
    assert meaning == "2 rows mean this."


def test_an_interrupt_keeps_the_rows_measured(suite, capsys, tmp_path):
    def rows(say):
        yield row("flowlab")
        raise KeyboardInterrupt

    suite(probe=rows, layers=lambda say: pytest.fail("is not begun"))
    assert command.main([f"results_dir={tmp_path}"]) == 130
    out, err = capsys.readouterr()
    path = tmp_path / "benchmark" / "probe.parquet"
    assert out.endswith("\n1 rows mean this.\n")
    kept = f"interrupted: suite=probe is not complete; {path} has the 1 rows measured\n"
    assert err == kept
    pd.testing.assert_frame_equal(
        pd.read_parquet(path), pd.DataFrame([row("flowlab")]), check_dtype=False
    )
    assert tables.metadata(path)["interrupted"] is True


def test_an_interrupt_before_the_first_row_keeps_nothing(suite, capsys, tmp_path):
    def rows(say):
        raise KeyboardInterrupt
        yield

    suite(probe=rows)
    assert command.main([f"results_dir={tmp_path}"]) == 130
    assert capsys.readouterr().err.endswith("is not complete; nothing was measured\n")
    assert not (tmp_path / "benchmark").exists()


def test_a_defect_of_one_suite_loses_no_rows(suite, capsys, tmp_path):
    def rows(say):
        yield row("flowlab")
        raise RuntimeError("a peer's own")

    suite(probe=rows)
    assert command.main([f"results_dir={tmp_path}"]) == 70
    assert len(pd.read_parquet(tmp_path / "benchmark" / "probe.parquet")) == 1


def test_the_machine_stands_at_the_head_and_in_the_file(suite, capsys, tmp_path):
    suite(probe=lambda say: iter([row("flowlab")]))
    assert command.main([f"results_dir={tmp_path}"]) == 0
    found = tables.metadata(tmp_path / "benchmark" / "probe.parquet")["machine"]
    assert capsys.readouterr().out.splitlines()[0] == machine.words(found)
    assert found["cores"] >= 1 and found["processor"] and found["bits"] in (128, 256, 512)
    assert any("blas" in name.lower() or "mkl" in name.lower() for name in found["blas"])
    assert json.dumps(found)


@pytest.mark.parametrize(
    "features, bits",
    [
        ("+sse2", 128),
        ("+sse2,+avx,+avx2", 256),
        ("+avx,+avx512f", 512),
        ("+avx,+avx512f,+prefer-256-bit", 256),
        ("+avx,+avx512f,-prefer-256-bit", 512),
    ],
)
def test_vectors_are_as_wide_as_the_compiler_makes_them(features, bits, monkeypatch):
    monkeypatch.setattr(machine.numba.config, "CPU_FEATURES", features)
    assert machine.machine()["bits"] == bits


def test_arguments_reach_the_suites_that_have_them():
    for name, suite in command.SUITES.items():
        assert command._OWN[name].keys() <= command.COMMAND.options.keys()
        assert callable(suite.report) and "say" not in command._OWN[name]
