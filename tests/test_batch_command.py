"""``python -m experiments.batch``: the law, the estimators' table and the three sentences."""

import json
import sys

import pandas as pd
import pytest

from experiments import batch
from experiments.command import main

SMALL = ["depth=2", "width=8", "batch_size=32", "seeds=2", "experiment=batch_size", "reduction=sum"]


@pytest.fixture
def told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(*overrides):
        replaced = {text.partition("=")[0] for text in overrides}
        kept = [text for text in SMALL if text.partition("=")[0] not in replaced]
        monkeypatch.setattr(sys, "argv", ["batch", *kept, *overrides])
        return main(batch.batch), capsys.readouterr()

    return run


def test_it_writes_the_estimators_and_the_figure(told, tmp_path):
    code, printed = told()
    assert code == 0, printed.err
    folder = tmp_path / "results" / "batch_size"
    table = pd.read_parquet(folder / "estimators")
    assert set(table["estimator"]) == {"two batches", "per-example variance"}
    described = json.loads((folder / "figures" / "weights_and_biases.json").read_text())
    assert described["caption"] in printed.out.replace("\n", " ")
    assert "2.000 times" in printed.out and "slope" in printed.out
    for suffix in ("png", "svg"):
        assert (folder / "figures" / f"weights_and_biases.{suffix}").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("batch_size=5000", "batch_size must be at most the 1797 rows of digits; got 5000"),
        ("batch_size=1", "batches must have 1 <= small < big <= 1 examples; got 1, 0"),
        ("reduction=max", "reduction must be one of mean, sum; got max"),
    ],
)
def test_bad_input_is_one_line_and_writes_no_table(told, tmp_path, override, message):
    code, printed = told(override)
    assert code == 2 and message in printed.err and printed.err.count("\n") == 1
    assert not list(tmp_path.rglob("*.parquet"))
