"""The command that measures the claims: its table, what it prints, its exit code, bad input."""

import json

import pandas as pd
import pytest

from experiments import claims as command
from flowlab.claims import suite
from flowlab.claims.claim import CONDITIONAL, HOLDS
from flowlab.storage import tables
from tests.support.plants import corrupt
from tests.support.verdicts import CLAIMS


@pytest.mark.parametrize(
    "arguments, line",
    [
        (["only=S77"], "did you mean S7?"),
        (["sed=1"], "did you mean seed?"),
        (["seed=x"], "error: seed must be an integer; got x\n"),
        (["seed=-1"], "error: seed must be at least 0; got -1\n"),
        (["seeds=1"], "error: seeds must be at least 2, for an interval; got 1\n"),
        (["S7"], "error: options are written key=value; got S7\n"),
    ],
)
def test_bad_input_is_one_line(arguments, line, capsys, tmp_path):
    assert command.main([*arguments, f"results_dir={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1


@pytest.fixture
def two_claims(monkeypatch):
    few = {id: CLAIMS[id] for id in ("A1", "A9")}
    monkeypatch.setattr(suite, "load", lambda: few)


def test_command_writes_the_table(two_claims, tmp_path, capsys):
    assert command.main([f"results_dir={tmp_path}", "seeds=4"]) == 0
    folder = tmp_path / "claims"
    assert sorted(p.name for p in folder.iterdir()) == ["claims.csv", "claims.parquet"]
    table = pd.read_parquet(folder / "claims.parquet")
    assert list(table["id"]) == ["A1", "A9"] and set(table["verdict"]) == {HOLDS}
    pd.testing.assert_frame_equal(pd.read_csv(folder / "claims.csv"), table, check_dtype=False)
    stored = tables.metadata(folder / "claims.parquet")
    assert stored["settings"] == {"seed": 0, "seeds": 4, "only": None}
    assert {"python", "numpy", "flowlab"} <= stored["versions"].keys()
    assert stored["command"].startswith("python -m experiments.claims")
    assert json.dumps(stored)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= command.WIDTH + len(str(tmp_path))
    assert "Every verdict is as expected." in printed


def test_command_reports_a_contradiction(two_claims, tmp_path, capsys, monkeypatch):
    corrupt("dx")(monkeypatch)
    assert command.main([f"results_dir={tmp_path}", "only=A9"]) == 1
    assert "A9 was expected to read 'holds' and reads 'does not hold'." in capsys.readouterr().out
    assert not (tmp_path / "claims").exists()


def test_claims_are_shown_within_120_columns(capsys):
    for index, claim in enumerate(CLAIMS.values(), 1):
        assert claim.statement and claim.source
        row = dict.fromkeys(suite.COLUMNS, -0.01234567)
        row |= {"id": claim.id, "statement": claim.statement, "sentence": "x " * 200}
        row |= {"verdict": CONDITIONAL, "expected": HOLDS, "as_expected": True}
        command.show(row, index, 100)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= command.WIDTH
