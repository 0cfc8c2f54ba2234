"""The benchmark of attaching: all forms train alike, and its table says what a step costs."""

import pandas as pd
import pytest

from experiments.benchmarks import attach
from flowlab.errors import InputError

TINY = dict(blocks=2, width=8, heads=2, examples=2, tokens=3)


def test_all_forms_train_alike():
    pytest.importorskip("torch")
    forms, end = attach.forms_of(**TINY)
    losses = {name: [step() for _ in range(3)] for name, step in forms.items()}
    end()
    assert len(losses) == 4
    bare = losses[attach.BARE]
    assert bare[0] > bare[1] > bare[2]
    for name, found in losses.items():
        assert found == bare, name


def test_a_form_of_twice_the_time_has_the_ratio_two(monkeypatch, clock, said):
    pytest.importorskip("torch")
    seconds = {attach.BARE: 0.02, attach.OURS[1]: 0.04, attach.OURS[10]: 0.03}
    forms = {name: lambda s=s: clock(s) for name, s in seconds.items()}
    ended = []
    monkeypatch.setattr(attach, "forms_of", lambda *_: (forms, lambda: ended.append(1)))
    found = {row["form"]: row for row in attach.rows(said.append, rounds=3)}
    assert {name: row["ratio"] for name, row in found.items()} == pytest.approx(
        {attach.BARE: 1, attach.OURS[1]: 2, attach.OURS[10]: 1.5}
    )
    assert found[attach.BARE]["seconds"] == pytest.approx(0.02)
    assert {row["rounds"] for row in found.values()} == {3} and ended == [1]


def test_report_is_in_per_cent():
    rows = [(attach.BARE, 1.0, 1.0, 1.0, 5), (attach.OURS[1], 1.1, 1.05, 1.2, 5)]
    table = pd.DataFrame(rows, columns=["form", "ratio", "low", "high", "rounds"])
    assert attach.report(table) == (
        "A step of training takes longer by: flowlab every=1 +10.0 % (+5.0 to +20.0)."
    )


def test_without_pytorch(monkeypatch, said):
    monkeypatch.setattr(attach.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'flowlab\[torch\]'"):
        next(attach.rows(said.append))
