"""A pool of processes of which any may die: its work then goes to another."""

import os
import signal
import sys
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import forkserver, get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection, wait
from threading import Thread

from experiments.console import settle
from experiments.sweep.work import ATTEMPTS, Work
from flowlab.cache import ready

_START = "forkserver"


def warm() -> None:
    """Begin to import, in a process beside this one, what workers need: they start as its copies.

    It costs nothing to wait for, and seconds if begun when the first worker is wanted.
    """
    ready()
    get_context(_START).set_forkserver_preload(["experiments.sweep.work"])
    with _out_of_reach():
        forkserver.ensure_running()


def run(work: Work, parts: Sequence[int], workers: int) -> str | None:
    """Do all parts with ``workers`` processes; what stopped the work early, if anything did."""
    waiting = deque(parts)
    context = get_context(_START)
    busy: dict[Connection, tuple] = {}
    stopped, deaths = None, Counter()

    def again(part: int) -> str | None:
        """Let another do a part whose process died; it gives up conditions that are deadly."""
        waiting.appendleft(part)
        deaths[part] += 1
        early = deaths[part] >= work.begun(part) + ATTEMPTS
        return "processes die before they begin" if early else None

    try:
        while busy or (waiting and stopped is None):
            while waiting and stopped is None and len(busy) < workers:
                here, there = context.Pipe()
                process = context.Process(target=_serve, args=(there, work), daemon=True)
                part = waiting.popleft()
                try:
                    with _out_of_reach():
                        process.start()
                except (OSError, EOFError):  # it died before it was there
                    stopped = again(part)
                    continue
                there.close()
                busy[here] = process, part
                _send(here, part)
            for ready in wait(list(busy)):
                process, part = busy.pop(ready)
                try:
                    stopped = ready.recv() or stopped
                except (OSError, EOFError):
                    process.join()
                    ready.close()
                    stopped = again(part) or stopped
                    continue
                if waiting and stopped is None:
                    part = waiting.popleft()
                    busy[ready] = process, part
                    _send(ready, part)
                else:
                    ready.close()
    finally:
        for process, _ in busy.values():
            process.kill()
    return stopped


@contextmanager
def _out_of_reach() -> Iterator[None]:
    """Start processes that Ctrl-C does not reach: this one decides."""
    resource_tracker.ensure_running()  # else starting it would end the block below
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _send(worker: Connection, part: int) -> None:
    with suppress(OSError):  # it died, which receiving from it shows
        worker.send(part)


def _serve(parts: Connection, work: Work) -> None:
    """Do parts as they are named until nobody names any."""
    settle()
    Thread(target=_leave_with_parent, daemon=True).start()
    while True:
        try:
            part = parts.recv()
        except EOFError:
            return
        parts.send(work.part(part))


def _leave_with_parent() -> None:
    wait([parent_process().sentinel])
    sys.stderr = None
    os._exit(1)
