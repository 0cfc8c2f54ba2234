"""The recipe that sends a table's norms to other tools step by step, of a user's model too."""

import re
import struct
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from flowlab.modules.pytrees import rows
from flowlab.modules.table import joined

ROOT = Path(__file__).resolve().parents[2]
STAND_INS = ROOT / "tests/support/stand_ins"
NORM = "dW_log10_norm"


def recipe():
    """The blocks of the section, without the training of the laboratory's own network."""
    page = (ROOT / "docs/recipes.md").read_text()
    section = page.partition("## Scalars by step")[2].partition("\n## ")[0]
    blocks = "\n".join(re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.M))
    lines = [line for line in blocks.splitlines() if not line.startswith("steps = ")]
    return "\n".join(lines).replace('["step", "layer"]', '["step", "module"]')


def events(folder):
    """(tag, step, value) of every scalar in a folder's event file, in its records' order."""
    (path,) = folder.iterdir()
    content, found = path.read_bytes(), set()
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        event = Event.FromString(content[12 : 12 + length])
        found |= {(own.tag, event.step, own.simple_value) for own in event.summary.value}
        content = content[16 + length :]
    return found


@pytest.fixture
def sent(tmp_path, monkeypatch):
    """What the recipe makes of two modules over two steps, one norm of which is exactly zero."""
    monkeypatch.chdir(tmp_path)
    for name in ("wandb", "mlflow"):
        spec = spec_from_file_location(name, STAND_INS / f"{name}.py")
        monkeypatch.setitem(sys.modules, name, module_from_spec(spec))
        spec.loader.exec_module(sys.modules[name])
    weights = {"in": {"w": np.full((2, 2), 0.5)}, "out": {"w": np.zeros((2, 2))}}
    loop = [
        rows({k: {"w": v["w"] * 10.0**step} for k, v in weights.items()}, seed=seed, step=step)
        for step in (1, 11)
        for seed in (0, 1)
    ]
    namespace = {"steps": joined(loop)}
    exec(recipe(), namespace)
    return namespace


def test_every_finite_norm_arrives_once_at_its_step(sent, tmp_path):
    expected = {(f"{NORM}/in", 1): 1.0, (f"{NORM}/in", 11): 11.0}
    found = {(tag, step): value for tag, step, value in events(tmp_path / "tensorboard/training")}
    assert found == pytest.approx(expected)
    logged = {(name, int(step)): value for name, value, step in sent["mlflow"].LOGGED}
    assert logged == pytest.approx(expected)
    assert sent["run"].steps == [1, 11] and sent["run"].logged == 2
