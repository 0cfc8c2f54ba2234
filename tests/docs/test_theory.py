"""The table that says how well theory does is what measuring gives."""

import re
import shlex
from pathlib import Path

import pytest

import flowlab
from flowlab.settings import NETWORKS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "theory.md").read_text()
ROWS = {
    row[1]: row.groups()[1:]
    for row in re.finditer(
        r"^\| `(.*=.*)` \| (\S+) \[(\S+), (\S+)\] \| (\S+) \| (\S+) \| (\w+) \|$", PAGE, re.M
    )
}
# Of each kind of prediction one that is quick.
QUICK = [
    "depth=30 width=64",
    "skip=identity depth=21 width=64",
    "norm=layer depth=21 width=64",
    "network=rnn network.steps=16 init=lecun data=gaussian width=128",
    "network=transformer init=lecun depth=10 width=64 batch_size=8",
]


def settings(text):
    groups, plain = {}, {}
    for word in shlex.split(text):
        key, _, value = word.partition("=")
        value = int(value) if value.isdecimal() else value
        group, _, option = key.rpartition(".")
        if group or key in ("network", "init", "data"):
            groups.setdefault(group or key, {})[option if group else "name"] = value
        else:
            plain[key] = value
    return flowlab.make(**groups, **plain, seeds=32, upstream="gaussian")


@pytest.mark.parametrize("text", QUICK)
def test_a_row_is_measured_again(text):
    run = settings(text)
    verdict = flowlab.judge(flowlab.measure(run), flowlab.predict(run))
    change = verdict.change
    numbers = change.mean, change.low, change.high, verdict.predicted, verdict.theory_error
    *shown, agreement = ROWS[text]
    shown = [float(number.replace("−", "-")) for number in shown]
    assert shown == pytest.approx(numbers, abs=0.0051)
    assert agreement == verdict.agreement


def test_every_architecture_has_a_row():
    named = {re.search(r"network=(\w+)", text) for text in ROWS}
    assert {match[1] for match in named if match} | {"mlp"} == set(NETWORKS)
