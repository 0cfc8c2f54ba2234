"""Processes that do a part of a benchmark by themselves and print lines."""

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue
from threading import Thread


@contextmanager
def child(module: str, argument: dict, name: str, environment: dict) -> Iterator[Queue]:
    """A process of ``python -m module``, which is given the argument as JSON.

    Its lines stand in a queue, None after the last. It is ended with the body of the ``with``; if
    it failed before, its last word is printed beside its ``name``.
    """
    root = str(Path(__file__).parents[2])
    paths = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    lines: Queue = Queue()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", module, json.dumps(argument)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, "FLOWLAB_QUIET": "1", "PYTHONPATH": paths, **environment},
            start_new_session=True,  # Ctrl-C is for the parent, which ends it
        )

        def read():
            for line in process.stdout:
                lines.put(line)
            lines.put(None)

        reader = Thread(target=read, daemon=True)
        reader.start()
        try:
            yield lines
            reader.join(0.1)
            if not reader.is_alive() and process.wait():  # it ended by itself, and not well
                errors.seek(0)
                last = errors.read().strip().splitlines()[-1:]
                print(f"note: {name} ended early: {''.join(last)}", file=sys.stderr)
        finally:
            process.kill()
            process.wait()
            reader.join()
            process.stdout.close()


def arrives(lines: Queue, seconds: float = math.inf) -> str | None:
    """The next line, None where there is none or the seconds have passed."""
    try:
        return lines.get(timeout=max(seconds, 0) if math.isfinite(seconds) else None)
    except Empty:
        return None
