"""What commands answer about themselves, and the commands that they print to be copied."""

import os
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from experiments import ask, command
from experiments.__main__ import commands, main
from experiments.completion import script
from experiments.help import WIDTH, Option, _section, written
from experiments.overrides import check_overrides
from flowlab import settings

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()


@pytest.fixture
def answered(monkeypatch, capsys):
    """What ``experiments.<name>`` prints for arguments that it answers, here where it is python."""
    monkeypatch.setattr(command, "_python", lambda: "python")

    def answer(name, *arguments):
        own = import_module(f"experiments.{name}").COMMAND
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        code = own.answer(sys.argv[1:])
        return code, *capsys.readouterr()

    return answer


def test_the_commands_are_listed(capsys):
    assert {*commands()} == {
        *("ask", "batch", "benchmark", "claims", "compact", "diff", "docs", "ledger"),
        *("plots", "report", "results", "run", "shapes"),
    }
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, does in commands().items():
        assert does.endswith(".") and any(line.split() == [name, *does.split()] for line in lines)
    assert main(["dpeth=5"]) == 2
    assert "got dpeth=5" in capsys.readouterr().err


@pytest.mark.parametrize("name", commands())
def test_every_command_explains_itself(name, answered):
    own = import_module(f"experiments.{name}").COMMAND
    assert own.name == name
    for asked in ("--help", "-h"):
        code, text, errors = answered(name, asked)
        assert (code, errors) == (0, "")
        assert text.startswith(commands()[name] + "\n")
        assert max(map(len, text.splitlines())) <= WIDTH
        assert f"python -m experiments.{name}" in text
        for option, (_, meaning, *_) in own.options.items():
            assert f"\n  {option}=" in text and meaning.split()[0] in text
    assert answered(name, "--version") == (0, "flowlab 0.1.0\n", "")
    assert own.answer(["version=1"]) is None


@pytest.mark.parametrize("name", ["run", "ask", "ledger", "batch", "shapes"])
def test_every_setting_is_listed_with_its_values(name, answered):
    words = " ".join(answered(name, "--help")[1].split())
    choices = command.groups()
    given = {*command.keys(), *choices}
    for row in settings.frame().itertuples():
        if row.key not in given:
            assert f" {row.key}=" not in words
            continue
        allowed = ", ".join(choices.get(row.key, [])) or row.allowed
        if row.key == "experiment":
            allowed = f"text, or {allowed}"
        assert f" {row.key}={written(row.default)} {row.meaning}" in words
        assert f"[{allowed}]" in words
    assert "network.steps=8" in words and "; for rnn, lstm, gru, transformer [" in words


def test_examples_and_options_of_commands_are_accepted():
    for name in commands():
        own = import_module(f"experiments.{name}").COMMAND
        for arguments in own.examples:
            given = arguments.split()
            if name == "ask":
                assert ask.conditions(ask.read(given))
            elif own.composed:
                plain = [text for text in given if text.partition("=")[0] not in own.options]
                check_overrides(plain)
            else:
                own.given(given)


def test_a_command_without_options_says_so(capsys):
    docs = import_module("experiments.docs")
    assert docs.main(["depth=5"]) == 2
    assert capsys.readouterr().err == "error: docs takes no options; got depth=5\n"


def test_long_rows_are_wrapped():
    text = _section(
        "Options:", {"a" * 40: Option(True, "word " * 40, "x, y"), "b": Option(None, "")}
    )
    assert text.splitlines()[2] == f"  {'a' * 40}=true" and text.splitlines()[-1] == "  b="
    assert all(len(line) <= WIDTH for line in text.splitlines())
    assert "[x, y]" in text


# --- Commands that are printed to be copied -------------------------------------------------------


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """A folder with an environment in .venv, whose Python runs this; another is on the path."""
    for place in (".venv/bin", "system"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "python").write_text("#!/bin/sh\n")
        (tmp_path / place / "python").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FLOWLAB_MAKE", raising=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv/bin/python"))
    monkeypatch.setenv("PATH", str(tmp_path / "system"))
    return tmp_path


def test_a_hint_names_the_python_that_runs(environment, monkeypatch):
    hint = ("plots", "results_dir=my results")
    assert command.invocation(*hint) == (
        ".venv/bin/python -m experiments.plots 'results_dir=my results'"
    )
    monkeypatch.chdir(environment / "system")
    python = shlex.quote(str(environment / ".venv/bin/python"))
    assert command.invocation("plots") == f"{python} -m experiments.plots"
    monkeypatch.setenv("PATH", str(environment / ".venv/bin"))  # as activated
    assert command.invocation("plots") == "python -m experiments.plots"


def test_a_hint_goes_by_make_where_make_started_it(environment, monkeypatch):
    monkeypatch.setenv("FLOWLAB_MAKE", "gmake")
    assert command.invocation("plots") == "gmake plots"
    assert command.invocation("results", "experiment=depth") == "gmake list ARGS=experiment=depth"
    assert command.invocation("ledger") == ".venv/bin/python -m experiments.ledger"


def test_make_gives_arguments_on_as_they_were_printed(environment, monkeypatch):
    monkeypatch.setenv("FLOWLAB_MAKE", "make")
    for name in ("MAKELEVEL", "MAKEFLAGS"):  # of make test
        monkeypatch.delenv(name, raising=False)
    arguments = ["results_dir=it's $5 & more", "depth=1,2"]
    (environment / "Makefile").write_text("plots:\n\t@printf '%s\\n' $(ARGS)\n")
    monkeypatch.setenv("PATH", os.defpath)
    printed = command.invocation("plots", *arguments)
    done = subprocess.run(printed, shell=True, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == arguments


def test_make_has_the_targets_that_hints_name():
    for name, target in command.TARGETS.items():
        assert f"\n{target}: " in MAKEFILE and f"-m experiments.{name} $(ARGS)" in MAKEFILE
    assert "export FLOWLAB_MAKE := $(MAKE)\n" in MAKEFILE


@pytest.mark.parametrize(
    "kept, printed",
    [
        ("python -m experiments.run -m depth=1,2", "go run -m depth=1,2"),
        ("flowlab.run(depth=5)", "flowlab.run(depth=5)"),
        ("python -m experiments.run 'a", "python -m experiments.run 'a"),
    ],
)
def test_kept_commands_are_printed_as_they_work_here(kept, printed, monkeypatch):
    monkeypatch.setattr(command, "invocation", lambda name, *given: f"go {name} {' '.join(given)}")
    assert command.copied(kept) == printed


# --- Tab completion -------------------------------------------------------------------------------

COMPLETE = """
. "$1"
COMP_LINE=$2 COMP_POINT=${#2}
_flowlab
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def function(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "flowlab.bash"
    path.write_text(script([*commands()]))
    return path


@pytest.mark.parametrize(
    "typed, offered",
    [
        ("python -m experiments.re", ["experiments.report ", "experiments.results "]),
        ("python -m experiments.run network.pa", ["network.padding="]),
        ("python -m experiments.run --v", ["--version "]),
        ("python -m experiments.run init=xa", ["xavier", "xavier_uniform"]),
        ("python -m experiments.run -m skip=none,sc", ["none,scaled"]),
        ("python -m experiments.run -m experiment=batc", ["batch_size", "batchnorm"]),
        ("python -m experiments.run hydra/l", ["hydra/launcher="]),
        (
            ".venv/bin/python  -m  experiments.ledger depth=2 re",
            ["reduction=", "results_dir=", "replace="],
        ),
        ("python -m experiments.claims onl", ["only="]),
        ("python -m experiments.benchmark suite=pr", ["probe"]),
        ("python -m experiments.benchmark init=x", [""]),
        ("python script.py init=xa", [""]),
    ],
)
def test_keys_and_values_are_completed(function, typed, offered):
    done = subprocess.run(
        ["bash", "--norc", "-c", COMPLETE, "bash", function, typed],
        capture_output=True,
        text=True,
        check=True,
    )
    assert sorted(done.stdout.splitlines()) == sorted(offered) and done.stderr == ""


def test_files_are_completed(function, tmp_path):
    (tmp_path / "mine.csv").touch()
    typed = f"python -m experiments.run data.path={tmp_path}/mi"
    done = subprocess.run(
        ["bash", "--norc", "-c", COMPLETE, "bash", function, typed],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{tmp_path}/mine.csv\n"
