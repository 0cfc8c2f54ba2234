"""Processes that work on one experiment beside the test."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BEGIN = """
import sys
sys.path.insert(0, {root!r})
from flowlab.storage.experiment import Experiment
from tests.support.runs import filled, made
experiment = Experiment({folder!r})
print("begun", flush=True)
"""


def child(folder: Path, code: str) -> subprocess.Popen:
    """A Python process that has opened ``folder`` as ``experiment`` and goes on with the code.

    It has ``made`` and ``filled``; what it prints and reads are pipes.
    """
    text = BEGIN.format(root=str(ROOT), folder=str(folder)) + code
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-c", text], **pipes, text=True)
    assert process.stdout.readline() == "begun\n"
    return process


def close(process: subprocess.Popen) -> None:
    """Close its pipes; what reads from them ends."""
    process.stdin.close()
    process.stdout.close()
