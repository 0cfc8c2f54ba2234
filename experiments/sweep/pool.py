"""A pool of processes of which any may die: its work then goes to another."""

import os
import signal
import sys
from collections import deque
from collections.abc import Sequence
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from threading import Thread

from experiments.sweep.work import Work


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run(work: Work, parts: Sequence[int], workers: int) -> str | None:
    """Do all parts with ``workers`` processes; what stopped the work early, if anything did."""
    waiting = deque(parts)
    if workers == 1:
        stopped = None
        while waiting and stopped is None:
            stopped = work.part(waiting.popleft())
        return stopped
    context = get_context("forkserver")
    context.set_forkserver_preload(["experiments.sweep.work"])
    busy: dict[Connection, tuple] = {}
    stopped = None
    try:
        while busy or (waiting and stopped is None):
            while waiting and stopped is None and len(busy) < workers:
                here, there = context.Pipe()
                process = context.Process(target=_serve, args=(there, work), daemon=True)
                process.start()
                there.close()
                part = waiting.popleft()
                here.send(part)
                busy[here] = process, part
            for ready in wait(list(busy)):
                process, part = busy.pop(ready)
                try:
                    stopped = ready.recv() or stopped
                except EOFError:
                    process.join()
                    ready.close()
                    waiting.appendleft(part)  # a part that dies again and again gives up by itself
                    continue
                if waiting and stopped is None:
                    part = waiting.popleft()
                    ready.send(part)
                    busy[ready] = process, part
                else:
                    ready.close()
    finally:
        for process, _ in busy.values():
            process.kill()
    return stopped


def _serve(parts: Connection, work: Work) -> None:
    """Do parts as they are named until nobody names any."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
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
