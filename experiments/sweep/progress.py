"""What a sweep's processes report, wherever they run, as lines of files in the sweep's folder.

Each process appends to a file of its own, a line at a time, so that a killed one leaves whole lines
and at most one torn line, which is passed over.
"""

import errno
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread

from flowlab.storage.files import storing

_POLL = 0.2  # seconds between two looks at the files
_PERIOD = 30.0  # seconds between two lines where there is no terminal


class Journal:
    """The reports of one part of a sweep by this process."""

    def __init__(self, folder: Path, part: int):
        self._folder, self._part = folder, part
        self._path = folder / f"{part}.{socket.gethostname()}.{os.getpid()}.jsonl"

    def write(self, condition: int, event: str, **more) -> None:
        """Append one event of a condition; a sweep whose folder is gone has no reader.

        Raises StorageError where the disk refuses.
        """
        line = json.dumps({"condition": condition, "event": event, **more}) + "\n"
        with storing(self._path), suppress(FileNotFoundError):
            handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                if os.write(handle, line.encode()) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            finally:
                os.close(handle)

    def earlier(self) -> Iterator[dict]:
        """The events of this part, of all processes so far."""
        for path in sorted(self._folder.glob(f"{self._part}.*.jsonl")):
            yield from _events(path.read_bytes())


def _events(text: bytes) -> Iterator[dict]:
    for line in text.splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue


class Watcher:
    """Watches a sweep's journals while its body runs: a bar on a terminal, lines elsewhere.

    ``outcomes`` holds the last event of every condition that has ended, by its number; ``say`` is
    called with each as it arrives.
    """

    def __init__(self, folder: Path, total: int, skipped: int, say):
        self._folder, self._total, self._skipped, self._say = folder, total, skipped, say
        self._read: dict[str, int] = {}
        self.outcomes: dict[int, dict] = {}
        self._failed = 0
        self._over = Event()

    def __enter__(self):
        from tqdm import tqdm

        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=self._total, unit="run", leave=False, disable=not self._terminal, delay=0.5
        )
        self._begun = self._printed = time.monotonic()
        self._thread = Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception):
        self._over.set()
        self._thread.join()
        self._look()
        self._bar.close()
        self.seconds = time.monotonic() - self._begun

    def _watch(self) -> None:
        while not self._over.wait(_POLL):
            self._look()

    def _look(self) -> None:
        for entry in os.scandir(self._folder):
            size, read = entry.stat().st_size, self._read.get(entry.name, 0)
            if size == read:
                continue
            with open(entry.path, "rb") as file:
                file.seek(read)
                text = file.read(size - read)
            whole = text[: text.rfind(b"\n") + 1]
            self._read[entry.name] = read + len(whole)
            for event in _events(whole):
                self._take(event)
        self._print()

    def _take(self, event: dict) -> None:
        number = event["condition"]
        if event["event"] == "begun" or number in self.outcomes:
            return
        self.outcomes[number] = event
        self._failed += event["event"] == "failed"
        with self._bar.external_write_mode(file=sys.stdout, nolock=True):
            self._say(event)
        self._bar.update()

    def _print(self) -> None:
        done, failed = len(self.outcomes), self._failed
        if self._terminal:
            self._bar.set_postfix_str(f"{self._skipped} skipped, {failed} failed")
            return
        now = time.monotonic()
        if now - self._printed < _PERIOD or not done:
            return
        self._printed, rate = now, done / (now - self._begun)
        print(
            f"{done} of {self._total} done, {self._skipped} skipped, {failed} failed, "
            f"{rate:.3g} per second, {_duration((self._total - done) / rate)} left",
            file=sys.stderr,
            flush=True,
        )


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
