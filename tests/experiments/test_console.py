"""Terminals, pipes and displays of every sort: no command ends in a traceback over them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = "depth=3 width=8 batch_size=8 seeds=2"


def shell(folder, command, **environment):
    """Exit code, output and errors of a shell's command, in which ``run`` is experiments.run."""
    text = command.replace("flow.", f"{sys.executable} -m experiments.")
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {text}"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        timeout=300,
    )


@pytest.mark.parametrize(
    "environment, bars, delta",
    [
        ({"PYTHONIOENCODING": "utf-8"}, "▁", "log10‖δ‖"),
        ({"PYTHONIOENCODING": "latin-1"}, "1", "log10||delta||"),
        ({"PYTHONIOENCODING": "ascii"}, "1", "log10||delta||"),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, "1", "log10||delta||"),
    ],
)
def test_letters_that_the_terminal_lacks_are_replaced(tmp_path, environment, bars, delta):
    done = shell(tmp_path, f"flow.run {SMALL} init.gain=0.1", **environment)
    assert (done.returncode, done.stderr) == (0, b"")
    output = done.stdout.decode(environment.get("PYTHONIOENCODING", "ascii"))
    assert delta in output and bars in output and "?" not in output


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kept")
    assert shell(folder, f"flow.run {SMALL}").returncode == 0
    return folder


@pytest.mark.parametrize(
    "command",
    [
        "flow.results | true",
        "flow.results 2>&1 | true",
        "flow.results >&- 2>&-",
        f"flow.run {SMALL} seeds=3 | true",
        "flow.plots | true",
    ],
)
def test_a_reader_who_leaves_ends_no_work(kept, command):
    done = shell(kept, command)
    assert (done.returncode, done.stderr) == (0, b"")
    if "plots" in command:
        assert (kept / "results/single/figures/profiles.svg").is_file()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_an_output_that_is_full_is_one_line(kept):
    done = shell(kept, "flow.results >/dev/full")
    assert done.returncode == 2
    assert done.stderr == b"error: cannot write the output: No space left on device\n"


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "nonsense", ""])
def test_figures_are_drawn_whatever_the_display(kept, backend):
    done = shell(kept, "flow.plots", MPLBACKEND=backend)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (kept / "results/single/figures/profiles.svg").stat().st_size > 10_000


IMPORT = """
import os, sys, warnings
def state():
    hooks = sys.excepthook, sys.stdout, sys.stderr, warnings.showwarning
    return hooks, dict(os.environ), sys.argv[:]
before = state()
import experiments, experiments.run, experiments.sweep.plugins
print(state() == before)
"""


def python(folder, *arguments, **environment):
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout, done.stderr


def test_importing_commands_changes_nothing():
    assert python(ROOT, "-c", IMPORT) == (0, "True\n", "")


STARTS = {
    "as a module": ["-m", "experiments.run"],
    "by runpy": ["-c", "import runpy; runpy.run_module('experiments.run', run_name='__main__')"],
    "as a function": [
        "-c",
        "import sys; from experiments import command, run; sys.exit(command.main(run.run))",
    ],
}


@pytest.mark.parametrize("start", STARTS)
def test_bad_input_is_one_line_however_a_command_is_started(tmp_path, start):
    code, _, errors = python(tmp_path, *STARTS[start], "depth=0", PYTHONPATH=str(ROOT))
    assert (code, errors) == (2, "error: depth must be at least 1; got 0\n")


@pytest.mark.parametrize("workers", [1, 2])
def test_commands_and_their_processes_need_no_path_in_the_clone(tmp_path, monkeypatch, workers):
    sweep = ["-m", "experiments.run", "-m", *SMALL.split(), "depth=2,3", f"results_dir={tmp_path}"]
    monkeypatch.delenv("PYTHONPATH", raising=False)
    code, output, errors = python(ROOT, *sweep, f"hydra.launcher.workers={workers}")
    assert (code, errors) == (0, "") and "2 measured" in output
