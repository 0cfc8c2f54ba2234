"""What the README and the pages of docs/ show is there and runs."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from experiments import ask, docs
from experiments.sweep import plugins, pool
from flowlab.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
PAGES = {path.name: path.read_text() for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]}
MAKEFILE = (ROOT / "Makefile").read_text()
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
YOURS = {"conf/init/mine.yaml"}  # files that a reader is to write
STAND_INS = ROOT / "tests/support/stand_ins"  # of packages too large to test with
ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join(map(str, [ROOT, STAND_INS])),
    # As in an activated environment.
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
}


def blocks(language):
    """Each page with blocks of a language, and their texts."""
    pattern = rf"^```{language}\n(.*?)^```"
    found = {name: re.findall(pattern, page, re.DOTALL | re.M) for name, page in PAGES.items()}
    return {name: texts for name, texts in found.items() if texts}


def words(line):
    """A command's words, without the comment behind them."""
    return shlex.split(line, comments=True)


COMMANDS = {
    line: words(line) for texts in blocks("sh").values() for t in texts for line in t.splitlines()
}
SHOWN = [
    session
    for texts in blocks("console").values()
    for text in texts
    for session in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, re.M)
]


def of(*modules):
    """The arguments of commands that start one of these modules, by module."""
    started = [words[2:] for words in COMMANDS.values() if words[:2] == ["python", "-m"]]
    names = [f"experiments.{module}" for module in modules]
    return [(name.split(".")[1], arguments) for name, *arguments in started if name in names]


def start(folder, *arguments):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=600,
    )


def plain(output):
    """Printed text without what depends on the machine: times, and spaces at the ends of lines."""
    output = re.sub(r"less than a second|(about )?[\d.]+ (s|min|h)\b", "some time", output)
    output = output.replace(", and some time to compile kernels, once", "")
    return "\n".join(line.rstrip() for line in output.strip().splitlines())


@pytest.mark.parametrize("page", blocks("python"))
def test_the_python_of_a_page_runs_in_order_and_prints_what_is_shown(page, tmp_path):
    pattern = r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```)?"
    found = re.findall(pattern, PAGES[page], re.DOTALL | re.M)
    if any("import torch" in code for code, _ in found):
        pytest.importorskip("torch")
    cut = "--- the next block ---"
    script = "\n".join(f"{code}\nprint({cut!r}, flush=True)" for code, _ in found)
    (tmp_path / "page.py").write_text(script)
    done = start(tmp_path, "page.py")
    assert done.returncode == 0, done.stdout + done.stderr
    printed = done.stdout.split(f"{cut}\n")
    assert "".join(printed).strip()
    for output, (_, shown) in zip(printed, found, strict=False):
        if shown:
            assert plain(output) == plain(shown)


@pytest.mark.parametrize("line, expected", SHOWN)
def test_a_session_prints_what_is_shown(line, expected, tmp_path):
    python, *arguments = words(line)
    assert python == "python"
    done = start(tmp_path, *arguments)
    assert plain(done.stderr if done.returncode else done.stdout) == plain(expected)


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_starts_what_exists(line):
    match COMMANDS[line]:
        case ["make", target, *_]:
            assert re.search(rf"^{target}:.*## ", MAKEFILE, re.M)
        case ["python", "-m", module, *_]:
            assert (ROOT / f"{module.replace('.', '/')}.py").is_file()
        case ["pip", "install", "-e", place, "-c", "constraints.txt"]:
            assert place.strip(".[]") in EXTRAS
        case other:
            assert other == []


class Planned:
    """In place of a sweep's plan: every condition keeps the rules, none is measured."""

    waiting = ()

    def __init__(self, conditions):
        assert conditions
        assert not [condition.refusal for condition in conditions if condition.refusal]

    def report(self):
        pass


@pytest.mark.parametrize("module, arguments", of("run", "ledger", "batch"))
def test_settings_compose(module, arguments, calling, monkeypatch):
    monkeypatch.setattr(plugins, "Plan", Planned)
    monkeypatch.setattr(plugins.engines, "check", lambda launcher: None)
    monkeypatch.setattr(pool, "warm", lambda: None)
    own = import_module(f"experiments.{module}").COMMAND
    call = calling(lambda: own.compose(lambda settings: settings.validate(), swept=True))
    code, _, errors = call(*arguments)
    assert code == 0 or "needs the extra" in errors, errors


@pytest.mark.parametrize("module, arguments", of("shapes"))
def test_shapes_are_shown(module, arguments, tmp_path):
    done = start(tmp_path, "-m", "experiments.shapes", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("module, arguments", of("results", "compact", "plots", "report", "diff"))
def test_options_are_known(module, arguments):
    own = import_module(f"experiments.{module}").COMMAND
    assert own.answer(arguments) == 0 or own.given(arguments)


@pytest.mark.parametrize("module, arguments", of("ask"))
def test_questions_are_understood(module, arguments):
    assert all(one.settings for one in ask.conditions(ask.read(arguments)))


def test_every_command_is_tried():
    tried = of(
        "run", "ask", "ledger", "batch", "shapes", "results", "compact", "plots", "report", "diff"
    )
    assert len(tried) == sum(words[:1] == ["python"] for words in COMMANDS.values())


@pytest.mark.parametrize("page", PAGES)
def test_links_and_files_exist(page):
    home = ROOT if page == "README.md" else ROOT / "docs"
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        name, _, anchor = target.partition("#")
        if target.startswith("https://"):
            continue
        assert (home / name).is_file(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", (home / name).read_text(), re.M)
            assert anchor in [heading.lower().replace(" ", "-") for heading in headings], target
    for name in re.findall(r"`((?:[\w-]+/)+[\w.-]+\.\w+)`", PAGES[page]):
        assert name in YOURS or (ROOT / name).is_file(), name
    for target in re.findall(r"`make ([a-z]+)`", PAGES[page]):
        assert re.search(rf"^{target}:.*## ", MAKEFILE, re.M), target


def test_every_page_is_linked_from_the_readme():
    assert {f"docs/{name}" for name in PAGES} - {"docs/README.md"} <= set(
        re.findall(r"\]\((docs/[^)#]+)\)", PAGES["README.md"])
    )


@pytest.mark.parametrize("page", PAGES)
def test_generated_tables_are_up_to_date(page):
    assert docs.renewed(PAGES[page]) == PAGES[page], "make docs"


def test_a_table_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match="generated table must be"):
        docs.renewed("<!-- generated: colums -->\n<!-- end -->")


def test_settings_choices_and_columns_have_their_tables():
    generated = {name for page in PAGES.values() for name in re.findall("generated: (\\w+)", page)}
    of_columns = {"columns", "modules", "predicted", "curves"}
    assert generated == {"settings", "choices", "training", *of_columns}
