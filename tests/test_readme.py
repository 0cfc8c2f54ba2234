"""What the README shows is there and runs."""

import re
from pathlib import Path

import pytest

from experiments import command
from flowlab.layers.activation import ACTIVATIONS
from flowlab.schema import NORMS
from flowlab.settings import SKIPS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
TARGETS = sorted(set(re.findall(r"(?:^|`)make ([a-z]+)", README, re.MULTILINE)))
SMALL = {"depth": 3, "width": 8, "seeds": 2}


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_run(example, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for key, value in SMALL.items():
        example = re.sub(rf"\b{key}=\d+", f"{key}={value}", example)
    exec(compile(example, "README.md", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.strip()


def test_there_are_examples():
    assert len(EXAMPLES) >= 2 and {"run", "test", "help"} <= set(TARGETS)


@pytest.mark.parametrize("target", TARGETS)
def test_make_targets_exist_with_the_module_that_they_call(target):
    rule = re.search(rf"^{target}:.*?(?=^\S)", MAKEFILE, re.DOTALL | re.MULTILINE)
    assert rule, target
    for module in re.findall(r"-m experiments\.(\w+)", rule[0]):
        assert (ROOT / "experiments" / f"{module}.py").is_file(), module


def test_modules_exist():
    for module in set(re.findall(r"-m experiments\.(\w+)", README)):
        assert (ROOT / "experiments" / f"{module}.py").is_file(), module


def test_files_exist():
    for name in re.findall(r"\]\((\w[^):]+)\)", README):
        assert (ROOT / name).is_file(), name
    for name in re.findall(r"`((?:\w+/)+\w+\.(?:py|yaml))`", README):
        assert name == "conf/init/mine.yaml" or (ROOT / name).is_file(), name


def test_commands_take_the_settings_shown():
    shown = re.findall(r"python -m experiments\.run (-m )?((?:[\w.]+=[\w.,]+ *)+)", README)
    accepted = [f"{flag}{settings}".split() for flag, settings in shown if "dpeth" not in settings]
    assert accepted
    for arguments in accepted:
        command.check_overrides(arguments)


def test_choices_and_columns_are_all_listed():
    groups = [choice for group in ("init", "data", "network") for choice in command.groups()[group]]
    for name in [*groups, *ACTIVATIONS, *SKIPS, *NORMS, "ok", "zero", "nonfinite"]:
        assert f"`{name}`" in README, name
