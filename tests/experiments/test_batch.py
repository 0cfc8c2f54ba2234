"""``python -m experiments.batch``: the law, the estimators' table and the sentences."""

import json
import sys

import numpy as np
import pandas as pd
import pytest

from experiments import batch
from experiments.command import main

SMALL = ["depth=2", "width=8", "batch_size=32", "seeds=2", "experiment=batch_size", "reduction=sum"]


@pytest.fixture
def answer(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(*overrides):
        replaced = {text.partition("=")[0] for text in overrides}
        kept = [text for text in SMALL if text.partition("=")[0] not in replaced]
        monkeypatch.setattr(sys, "argv", ["batch", *kept, *overrides])
        return main(batch.run), capsys.readouterr()

    return run


def test_it_writes_the_estimators_and_the_figure(answer, tmp_path):
    code, printed = answer()
    assert code == 0, printed.err
    folder = tmp_path / "results" / "batch_size"
    table = pd.read_parquet(folder / "estimators")
    assert set(table["estimator"]) == {"two batches", "per-example variance"}
    described = json.loads((folder / "figures" / "weights_and_biases.json").read_text())
    (table_shown,) = described["runs"]
    assert (folder / table_shown).is_file() and table_shown.startswith("estimators/")
    assert described["finding"].startswith("The biases have the smaller noise scale in ")
    assert "init=he" in described["fixed"] and "depth=2" in described["fixed"]
    assert described["caption"] in printed.out.replace("\n", " ")
    assert "2.000 times" in printed.out and "slope" in printed.out
    for suffix in ("png", "svg"):
        for name in ("weights_and_biases", "demonstrations"):
            assert (folder / "figures" / f"{name}.{suffix}").stat().st_size > 10_000


def test_it_asks_of_the_net_that_the_settings_name(answer, tmp_path):
    asked = {"init": "xavier", "activation": "tanh", "depth": "3", "data": "gaussian"}
    code, printed = answer(*(f"{key}={value}" for key, value in asked.items()), "seed=7")
    assert code == 0, printed.err
    head = printed.out.splitlines()[0]
    assert all(f"{key}={value}" in head for key, value in asked.items() if key != "data")
    own, _, demonstration = printed.out.partition("Apart from the settings")
    assert "batch 32 of gaussian" in head and "init=xavier, data=gaussian" in own
    assert "of 3 linear maps" in own and "constant upstream" not in own
    assert "constant upstream" in demonstration
    captions = [
        json.loads((tmp_path / f"results/batch_size/figures/{name}.json").read_text())["caption"]
        for name in ("weights_and_biases", "demonstrations")
    ]
    assert "init=xavier" in captions[0] and captions[1].startswith("Whatever the settings.")


def test_scales_that_examples_do_not_show_are_null_with_a_reason(answer, tmp_path):
    """Labels that have nothing to do with the inputs: in half of the nets |G|² is not above 0."""
    random = np.random.default_rng(0)
    rows = pd.DataFrame(random.normal(size=(32, 4))).assign(label=np.arange(32) % 2)
    rows.to_csv(tmp_path / "random.csv", index=False)
    code, printed = answer("data=file", "data.path=random.csv", "seeds=8", "width=16")
    assert code == 0, printed.err
    table = pd.read_parquet(tmp_path / "results/batch_size/estimators")
    null = table["noise_scale"].isna()
    assert 0 < null.sum() < len(table) and not np.isinf(table["noise_scale"]).any()
    assert (null == table["note"].str.contains("not above 0")).all()
    assert "exact scales are null: |G|² is not above 0" in printed.out
    assert " inf" not in printed.out and " nan" not in printed.out.lower()
    assert "no bound]" in printed.out or "above " in printed.out


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("batch_size=5000", "batch_size must be at most the 1797 rows of digits; got 5000"),
        ("batch_size=1", "batch_size must be at least 4: a noise scale is what examples differ by"),
        ("reduction=max", "reduction must be one of mean, sum; got max"),
    ],
)
def test_bad_input_is_one_line_and_writes_no_table(answer, tmp_path, override, message):
    code, printed = answer(override)
    assert code == 2 and printed.out == ""
    assert message in printed.err and printed.err.count("\n") == 1
    assert not list(tmp_path.rglob("*.parquet"))
