"""A second process that compiles kernels of a run, from the last one back, where many are missing.

Numba compiles one function at a time in a process. What a run is about to call is found by making
it without running a kernel: the calls depend on the settings alone. Compiled code goes to the disk
(:mod:`flowlab.cache`), where the run finds it; it is the same code, whoever compiled it.
"""

import os
import pickle
import subprocess
import sys
import warnings
from contextlib import suppress
from dataclasses import replace
from threading import Lock

import numpy as np

from flowlab import cache
from flowlab.measurement import ensemble
from flowlab.numba_private import Dispatcher, event
from flowlab.settings import Settings


class Ahead(event.Listener):
    """Compiles ahead of a run of ``settings`` while the body of its ``with`` makes it.

    The process starts when a first kernel must be compiled, and ends with the body.
    """

    def __init__(self, settings: Settings):
        useful = not settings.trained and ensemble.threads(settings) > 1
        self._given = pickle.dumps(settings) if useful else None

    def __enter__(self):
        self._process = None
        event.register("numba:compile", self)
        return self

    def __exit__(self, *exception):
        event.unregister("numba:compile", self)
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    # Numba calls these while it holds the lock by which one thread compiles at a time.
    def on_start(self, _) -> None:
        if self._process is None and self._given is not None:
            cache.ready()
            command = [sys.executable, "-m", "flowlab.ahead", str(os.getpid())]
            quiet = subprocess.DEVNULL
            with suppress(OSError):  # the run can do without
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet
                )
                self._process.stdin.write(self._given)
                self._process.stdin.close()

    def on_end(self, _) -> None:
        pass


def calls(settings: Settings) -> list[tuple[Dispatcher, tuple]]:
    """The compiled functions that a measurement calls, each with the types of its arguments.

    In the order of their first calls. No kernel runs, so this is for a process of its own.
    """
    found, lock = {}, Lock()

    def note(dispatcher, *arguments):
        types = tuple(map(dispatcher.typeof_pyval, arguments))
        with lock:
            found[dispatcher, types] = None
        for array in arguments:
            if isinstance(array, np.ndarray) and array.flags.writeable:
                array.fill(array.dtype.kind == "f")
        return lambda *_: None

    compiling = Dispatcher._compile_for_args
    Dispatcher._compile_for_args = note
    try:
        ensemble.measure(settings)
    finally:
        Dispatcher._compile_for_args = compiling
    return list(found)


def main() -> None:
    """Compile what the settings on stdin call, from the last one back, while the parent lives."""
    warnings.simplefilter("ignore")
    settings = pickle.load(sys.stdin.buffer)
    # Types do not depend on the number of seeds.
    settings = replace(settings, seeds=min(settings.seeds, 2), threads=1)
    for dispatcher, types in reversed(calls(settings)):
        if os.getppid() != int(sys.argv[1]):
            return
        dispatcher.compile(types)


if __name__ == "__main__":
    main()
