"""What tests share: the command in this process, options, and what is said at the end."""

import os
import signal
import sys
from collections import Counter

import jax
import pytest

from experiments.run import COMMAND, run
from flowlab.measurement import ensemble

os.environ["FLOWLAB_QUIET"] = "1"  # a machine that is busy makes no command say what takes so long
os.environ.pop("FLOWLAB_MAKE", None)  # of make test
# Where Ctrl-C is ignored, as under nohup, processes that tests interrupt would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_disable_most_optimizations", True)  # compiling is what takes the time


@pytest.fixture(autouse=True)
def nothing_kept():
    """Programs that an earlier test recorded hold its constants, which it may have replaced."""
    ensemble.forget()


@pytest.fixture
def calling(tmp_path, monkeypatch, capsys):
    """Makes of a command's main a function of its arguments: (exit code, stdout, stderr).

    It runs in this process, in an empty folder.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")

    def made(main):
        def run_command(*arguments):
            monkeypatch.setattr(sys, "argv", ["command.py", *arguments])
            return main(), *capsys.readouterr()

        return run_command

    return made


@pytest.fixture
def call(calling):
    """Run ``experiments.run``."""
    return calling(lambda: COMMAND.compose(run, swept=True))


def pytest_addoption(parser):
    parser.addoption(
        "--kills",
        type=int,
        default=2,
        help="how many sweeps tests/experiments/test_crashes.py kills",
    )


def pytest_generate_tests(metafunc):
    if "attempt" in metafunc.fixturenames:
        metafunc.parametrize("attempt", range(metafunc.config.getoption("kills")))


def pytest_terminal_summary(terminalreporter):
    """Say how many sweeps were killed, how, and what was lost."""
    found = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) == "call":
                found.update(what for name, what in report.user_properties if name == "kill")
    attempts = found["attempt"]
    if attempts:
        how = ", ".join(f"{found[kind]} {kind}" for kind in ("worker", "parent", "everything"))
        late = f", {found['late']} of them after the end" if found["late"] else ""
        terminalreporter.write_line(
            f"kills: {attempts} attempts ({how}{late}), {found['loss']} losses, "
            f"{found['torn']} torn files, {found['failed']} that failed"
        )
