"""What a sweep's processes report, wherever they run, as lines of files in the sweep's folder.

Each process appends to a file of its own, a line at a time, so that a killed one leaves whole lines
and at most one torn line, which is passed over.
"""

import errno
import json
import os
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread

from flowlab.progress import Progress
from flowlab.storage.files import storing

ENDS = ("done", "failed", "skipped")  # of a condition; before: begun, compiling, compiled
_POLL = 0.2  # seconds between two looks at the files


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


class Elsewhere:
    """What processes of a sweep compile: as :class:`flowlab.compilation.Compilation` says it."""

    def __init__(self):
        self._kernels: dict[str, int] = {}  # by journal
        self._busy: set[int] = set()  # conditions
        self._since, self._spent = 0.0, 0.0

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass

    def take(self, journal: str, event: dict) -> None:
        """What an event of a condition says of compiling: any other than its own ends it."""
        now, before = time.monotonic(), self.busy
        if "kernels" in event:
            self._kernels[journal] = event["kernels"]
        if event["event"] == "compiling":
            self._busy.add(event["condition"])
        else:
            self._busy.discard(event["condition"])
        if self.busy and not before:
            self._since = now
        elif before and not self.busy:
            self._spent += now - self._since

    @property
    def kernels(self) -> int:
        return sum(self._kernels.values())

    @property
    def busy(self) -> bool:
        return bool(self._busy)

    @property
    def seconds(self) -> float:
        """How long any of them was compiling."""
        return self._spent + (time.monotonic() - self._since if self._busy else 0.0)


class Watcher:
    """Watches a sweep's journals while its body runs, and says how far it is.

    ``outcomes`` holds the last event of every condition that has ended, by its number; ``say`` is
    called with each as it arrives.
    """

    def __init__(self, folder: Path, total: int, skipped: int, say):
        self._folder, self._total, self._say = folder, total, say
        self._read: dict[str, int] = {}
        self.outcomes: dict[int, dict] = {}
        self._counts = Counter(skipped=skipped)
        self._progress = Progress("starting processes", Elsewhere())
        self._over = Event()

    def __enter__(self):
        self._start = time.monotonic()
        self._progress.__enter__()
        self._thread = Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception):
        self._over.set()
        self._thread.join()
        self._look()
        self._progress.__exit__(*exception)
        self.seconds = time.monotonic() - self._start

    def took(self) -> str:
        """How long the sweep took; compiling, of whatever process, apart."""
        return self._progress.took()

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
                self._take(entry.name, event)

    def _take(self, journal: str, event: dict) -> None:
        number = event["condition"]
        self._progress.compiled.take(journal, event)
        if event["event"] in ENDS and number not in self.outcomes:
            self.outcomes[number] = event
            self._counts[event["event"]] += 1
            with self._progress.aside():
                self._say(event)
        others = (f", {self._counts[k]} {k}" for k in ("skipped", "failed") if self._counts[k])
        self._progress.at(f"measuring{''.join(others)}", len(self.outcomes), self._total)
