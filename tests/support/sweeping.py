"""Sweeps as processes, and the tables that they keep."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 300  # seconds; whoever measures time here may hold other processes still for long
LEAVING = 30  # seconds that processes are given to leave; they need a fraction of one


def before_measuring(statement: str) -> str:
    """A hook by which a sweep's processes run a statement before each measurement.

    It may use ``settings``, ``os`` and ``time``.
    """
    return f"""
import os, time
from flowlab.measurement import ensemble as module
original = module.measure
def measure(settings, *more, **named):
    {statement}
    return original(settings, *more, **named)
module.measure = measure
"""


class Sweep:
    """A sweep as a process, in a session of its own."""

    def __init__(self, folder: Path, *arguments: str, hook: str = "", **environment: str):
        self.folder = folder
        path = [str(ROOT)]
        if hook:
            (folder / "hook").mkdir(exist_ok=True)
            (folder / "hook" / "sitecustomize.py").write_text(hook)
            path.insert(0, str(folder / "hook"))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "experiments.run", *arguments],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path)} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.pid = self.process.pid

    def events(self) -> int:
        """How many lines its processes have written so far; -1 before they are started."""
        count, journals = 0, list(self.folder.glob("results/.sweeps/*/journal"))
        for path in journals and journals[0].glob("*.jsonl"):
            try:
                count += path.read_bytes().count(b"\n")
            except FileNotFoundError:
                continue
        return count if journals else -1

    def until(self, ready) -> bool:
        """Wait until the condition holds, or the sweep ends (False)."""
        limit = time.monotonic() + PATIENCE
        while not ready():
            assert time.monotonic() < limit, "the sweep stands still"
            if self.process.poll() is not None:
                return False
            time.sleep(0.002)
        return True

    def members(self) -> dict[int, int]:
        """The living processes of its session, each with its parent."""
        found = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                pid, rest = path.parent.name, path.read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(rest[3]) == self.pid and rest[0] != "Z":
                found[int(pid)] = int(rest[1])
        return found

    def workers(self) -> list[int]:
        """Children of its children: a server forks those who measure."""
        found = self.members()
        return [pid for pid, above in found.items() if pid != self.pid and above != self.pid]

    def end(self) -> tuple[int, str, str]:
        """Exit code, output and errors, once all its processes have left by themselves."""
        output, errors = self.process.communicate(timeout=PATIENCE)
        self.leave()
        return self.process.returncode, output, errors

    def leave(self) -> None:
        """Wait for all its processes to be gone."""
        limit = time.monotonic() + LEAVING
        while left := self.members():
            if time.monotonic() > limit:
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
                raise AssertionError(f"{len(left)} processes stayed after their parent's end")
            time.sleep(0.01)


def kept(folder: Path) -> dict[str, pd.DataFrame]:
    """Every visible table by its path; raises what pandas does for a torn one."""
    found = sorted((folder / "results").glob("*/*/[!._]*.parquet"))
    return {str(path.relative_to(folder)): pd.read_parquet(path) for path in found}


def assert_within(ours: dict, theirs: dict) -> None:
    """Each of our tables is one of theirs, bit for bit."""
    assert ours.keys() <= theirs.keys()
    for path, table in ours.items():
        pd.testing.assert_frame_equal(table, theirs[path], check_exact=True, obj=path)


def assert_same(ours: dict, theirs: dict) -> None:
    assert ours.keys() == theirs.keys()
    assert_within(ours, theirs)
