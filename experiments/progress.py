"""What a long command is at, on stderr: never more than two seconds without a word."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Lock, Thread

PERIOD = 2.0  # seconds between two lines where there is no terminal, and before the first
BLINK = 0.2  # seconds between two states of the line on a terminal


class Progress:
    """Says what the body of its ``with`` is at: one changing line on a terminal, else lines.

    ``at`` names the work; calls with (done, total) count it. Short work passes without a word.
    """

    def __enter__(self):
        self._begun = time.monotonic()
        self._what, self._count, self._shown = "", None, False
        self._terminal, self._lock, self._over = sys.stderr.isatty(), Lock(), Event()
        self._thread = Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception):
        self._over.set()
        self._thread.join()
        self._clear()

    def at(self, what: str) -> None:
        """Name the work that begins now."""
        self._what, self._count = what, None

    def __call__(self, done: int, total: int) -> None:
        self._count = done, total

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Nothing of this is on the terminal's line while the body prints."""
        with self._lock:
            self._clear()
            yield

    def _watch(self) -> None:
        if self._over.wait(PERIOD):
            return
        while True:
            with self._lock:
                self._say()
            if self._over.wait(BLINK if self._terminal else PERIOD):
                return

    def _say(self) -> None:
        text = self._what
        if self._count:
            text += f", {self._count[0]:,} of {self._count[1]:,}"
        text += f" ({time.monotonic() - self._begun:.0f} s)"
        if self._terminal:
            self._shown = True
            # The cursor returns: whatever else is printed takes the line's place.
            print(f"\r\x1b[2K{text}\r", end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def _clear(self) -> None:
        if self._shown:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)
            self._shown = False
