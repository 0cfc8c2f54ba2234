"""What long work is at, on a terminal, in a notebook or in a log: never two seconds of silence."""

import html
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Lock, Thread

from flowlab.compilation import Compilation

PERIOD = 2.0  # seconds without a word before the first, and between two lines of a log
BLINK = 0.2  # seconds between two states of a line that changes
QUIET = "FLOWLAB_QUIET"  # the environment's variable that keeps all of this away

# When a command was last heard of; None where flowlab is used from Python.
heard: float | None = None


class Progress:
    """Says what the body of its ``with`` is at. Short work passes without a word.

    :meth:`at` names the work; calls with (done, total) count it, from which the time that is left
    is estimated. Compiling is said to be that, and enters no estimate. ``compiled`` watches it: by
    default in this process.
    """

    def __init__(self, what: str = "", compiled: Compilation | None = None):
        self.compiled = compiled or Compilation()
        self._what, self._count = what, None
        # What was done, in how many seconds, without a kernel's being compiled meanwhile.
        self._rated, self._seconds = 0, 0.0
        self._last = (0.0, 0.0)  # when it was counted last, and what compiling had taken by then

    def __enter__(self):
        self.compiled.__enter__()
        self._begun, self._ended = time.monotonic(), None
        self._lock, self._over = Lock(), Event()
        self._outlet = None if os.environ.get(QUIET) else _outlet()
        if self._outlet is not None:
            self._thread = Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *exception):
        self._ended = time.monotonic()
        self._over.set()
        if self._outlet is not None:
            self._thread.join()
            self._outlet.clear()
        self.compiled.__exit__(*exception)

    def at(self, what: str, done: int | None = None, total: int | None = None) -> None:
        """Name the work, and how much of it is done."""
        self._what = what
        if total is None:
            self._count = None
        else:
            self(done, total)

    def __call__(self, done: int, total: int) -> None:
        now, compiling = time.monotonic(), self.compiled.seconds
        if self._count is None or self._count[1] != total:
            self._rated, self._seconds = 0, 0.0
        elif compiling == self._last[1]:
            self._rated += done - self._count[0]
            self._seconds += now - self._last[0]
        self._count, self._last = (done, total), (now, compiling)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Nothing of this is on the terminal's line while the body prints."""
        with self._lock:
            if self._outlet is not None:
                self._outlet.clear()
            yield
            sys.stdout.flush()
            _hear()

    def took(self) -> str:
        """How long the body took or has taken, compiling apart."""
        compiling = self.compiled.seconds
        own = f"{(self._ended or time.monotonic()) - self._begun - compiling:.1f} s"
        return f"{own}, and {compiling:.1f} s to compile kernels, once" if compiling else own

    def text(self) -> str:
        """What is said now."""
        parts = [self._what] if self._what else []
        if self._count is not None:
            parts.append(f"{self._count[0]:,} of {self._count[1]:,}")
            if (left := self._left()) is not None:
                parts.append(f"{duration(left)} left")
        said = ", ".join(parts)
        if self.compiled.busy:
            compiling = f"compiling kernels (once), {self.compiled.kernels} so far"
            said = f"{compiling}; {said}" if said else compiling
        return f"{said} ({duration(time.monotonic() - self._begun)})"

    def _left(self) -> float | None:
        """Seconds that are left, once what was done without compiling lets it be known."""
        done, total = self._count
        if self.compiled.busy or self._rated <= 0 or self._seconds < PERIOD or done >= total:
            return None
        since = time.monotonic() - self._last[0]
        return max(self._seconds / self._rated * (total - done) - since, 0.0)

    def _watch(self) -> None:
        silent_since = self._begun if heard is None else heard
        if self._over.wait(max(silent_since + PERIOD - time.monotonic(), 0.0)):
            return
        while True:
            with self._lock:
                self._outlet.say(self.text(), self._count)
                _hear()
            if self._over.wait(self._outlet.pause):
                return


@contextmanager
def shown(progress: Callable[[int, int], None] | bool | None) -> Iterator[Callable | None]:
    """What to call with (done, total): a :class:`Progress` of its own for True, none for False."""
    if progress is True:
        with Progress("measuring") as own:
            yield own
    else:
        yield progress or None


def duration(seconds: float) -> str:
    """Seconds in words: 12 s, 3 min 5 s, 1 h 20 min."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _hear() -> None:
    global heard
    if heard is not None:
        heard = time.monotonic()


def _outlet():
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if hasattr(shell, "kernel"):
        return _Cell()
    return _Line() if sys.stderr.isatty() else _Log()


class _Log:
    """Lines, one after the other."""

    @property
    def pause(self) -> float:
        return PERIOD

    def say(self, text: str, count: tuple[int, int] | None) -> None:
        print(text, file=sys.stderr, flush=True)

    def clear(self) -> None:
        pass


class _Line:
    """One line of a terminal, which changes."""

    shown, pause = False, BLINK

    def say(self, text: str, count: tuple[int, int] | None) -> None:
        self.shown = True
        columns = shutil.get_terminal_size().columns
        # The cursor returns: whatever else is printed takes the line's place.
        print(f"\r\x1b[2K{text[: columns - 1]}\r", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self.shown:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)
            self.shown = False


class _Cell:
    """A bar and a line below a notebook's cell, gone when the work is."""

    handle, pause = None, BLINK

    def say(self, text: str, count: tuple[int, int] | None) -> None:
        done, total = count or (0, 0)
        bar = f'<progress value="{done}" max="{total}"></progress> ' if total else ""
        self._show({"text/plain": text, "text/html": f"{bar}{html.escape(text)}"})

    def clear(self) -> None:
        if self.handle is not None:
            self._show({"text/plain": "", "text/html": ""})

    def _show(self, content: dict[str, str]) -> None:
        from IPython.display import display

        if self.handle is None:
            self.handle = display(content, raw=True, display_id=True)
        else:
            self.handle.update(content, raw=True)
