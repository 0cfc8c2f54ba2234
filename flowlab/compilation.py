"""What this process compiles while somebody watches: how many kernels, for how long.

Loading compiled code from the disk takes milliseconds and is not compiling.
"""

import time
from collections.abc import Callable

from flowlab.numba_private import event

_LINGERS = 1.0  # seconds after a compilation in which the next one is expected


class Compilation(event.Listener):
    """Counts what is compiled while the body of its ``with`` runs, by whatever thread.

    A kernel compiles the functions that it calls: it counts, they do not. ``report(kernels, busy)``
    is called as each compilation begins and ends; without one, nothing happens but counting.
    """

    def __init__(self, report: Callable[[int, bool], None] | None = None):
        self.kernels = 0
        self._report, self._depth, self._spent = report, 0, 0.0
        self._begun: float | None = None
        self._ended = -_LINGERS

    def __enter__(self):
        event.register("numba:compile", self)
        return self

    def __exit__(self, *exception):
        event.unregister("numba:compile", self)

    @property
    def seconds(self) -> float:
        """How long it has been compiling in all; what goes on counts, too."""
        begun = self._begun
        return self._spent + (0.0 if begun is None else time.monotonic() - begun)

    @property
    def busy(self) -> bool:
        """Is it compiling, or was it a moment ago?"""
        return self._begun is not None or time.monotonic() - self._ended < _LINGERS

    # Numba calls these while it holds the lock by which one thread compiles at a time.
    def on_start(self, _) -> None:
        self._depth += 1
        if self._depth == 1:
            self._begun = time.monotonic()
            self._say(True)

    def on_end(self, _) -> None:
        if self._depth == 0:  # begun before anybody watched
            return
        self._depth -= 1
        if self._depth == 0:
            self._ended = time.monotonic()
            self._spent, self._begun = self._spent + self._ended - self._begun, None
            self.kernels += 1
            self._say(False)

    def _say(self, busy: bool) -> None:
        if self._report is not None:
            self._report(self.kernels, busy)
