"""What a command's process needs of its surroundings, settled before anything else is imported."""

import codecs
import gc
import io
import os
import sys
import time
import warnings
from pathlib import Path
from threading import Event, Thread

_ROOT = str(Path(__file__).resolve().parent.parent)

# Readable stand-ins where the terminal's encoding lacks a letter.
_PLAIN = dict(zip("▁▂▃▄▅▆▇█", "12345678", strict=True))
_PLAIN |= {"‖": "||", "–": "-", "−": "-", "×": "x", "±": "+-", "√": "sqrt ", "·": "*", "…": "..."}
_PLAIN |= {"²": "^2", "½": "1/2", "¾": "3/4", "≤": "<=", "≥": ">=", "≈": "~", "→": "->", "←": "<-"}
_PLAIN |= {"δ": "delta", "Δ": "Delta", "χ": "chi", "σ": "sigma", "Σ": "sum ", "κ": "kappa"}
_PLAIN |= {"τ": "tau", "∂": "d", "ᵀ": "^T", "⟨": "<", "⟩": ">", "∞": "inf", "’": "'"}


def settle() -> None:
    """Let nothing about the terminal, the pipe or the display end a command in a traceback.

    Letters that the encoding lacks are replaced; a reader who leaves, as ``head`` does, ends what
    is printed and nothing else; figures are drawn for files, whatever MPLBACKEND says; notices and
    Ctrl-C are lines; processes that this one starts find this project's modules in any folder.
    """
    sys.excepthook = _say_interrupted
    codecs.register_error("flowlab.plain", _replaced)
    sys.stdout, sys.stderr = (_sturdy(file) for file in (sys.stdout, sys.stderr))
    os.environ["MPLBACKEND"] = "agg"
    paths = os.environ.get("PYTHONPATH")
    if paths is None:
        os.environ["PYTHONPATH"] = _ROOT
    elif _ROOT not in paths.split(os.pathsep):
        os.environ["PYTHONPATH"] = f"{_ROOT}{os.pathsep}{paths}"
    warnings.showwarning = _show


class Loading:
    """Says from a thread that modules are being loaded, where that takes two seconds and more.

    For commands on cold disks; nothing of flowlab can be had before it. No garbage is collected
    meanwhile: modules make none, and looking for it takes a tenth of the time.
    """

    _PERIOD = 2.0

    def __init__(self):
        gc.disable()
        self.heard = time.monotonic()
        self._begun, self._over, self._shown = self.heard, Event(), False
        self._thread = Thread(target=self._watch, daemon=True)
        if not os.environ.get("FLOWLAB_QUIET"):
            self._thread.start()

    def end(self) -> float:
        """Say no more; when the last word was said, or the command began."""
        self._over.set()
        gc.freeze()
        gc.enable()
        if self._thread.ident is not None:
            self._thread.join()
        if self._shown:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)
        return self.heard

    def _watch(self) -> None:
        while not self._over.wait(self._PERIOD):
            self.heard = time.monotonic()
            text, end = f"loading ({self.heard - self._begun:.0f} s)", "\n"
            if sys.stderr.isatty():  # one line, which others take the place of
                self._shown, text, end = True, f"\r\x1b[2K{text}\r", ""
            print(text, end=end, file=sys.stderr, flush=True)


class _Pipe(io.FileIO):
    """A process's output, of which nothing more is written once its reader is gone."""

    gone = False

    def write(self, data) -> int:
        if not self.gone:
            try:
                return super().write(data)
            except BrokenPipeError:
                self.gone = True
            except OSError as error:
                from flowlab.errors import InputError

                self.gone = True
                raise InputError(f"cannot write the output: {error.strerror}") from None
        return len(data)


def _sturdy(file):
    """A process's own output made sturdy; a test's or a notebook's as it is."""
    if file is None:  # closed by who started the process
        return open(os.devnull, "w")
    if file not in (sys.__stdout__, sys.__stderr__) or type(file) is not io.TextIOWrapper:
        return file
    file.flush()
    raw = _Pipe(file.fileno(), "wb", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=file.encoding,
        errors="flowlab.plain",
        line_buffering=file.line_buffering,
    )


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    plain = "".join(_PLAIN.get(c, "?") for c in lost)
    return plain.encode(error.encoding, "replace").decode(error.encoding), error.end


_shown = warnings.showwarning


def _show(message, category, *more) -> None:
    from flowlab.errors import Notice

    if issubclass(category, Notice):
        print(f"note: {message}", file=sys.stderr)
    else:
        _shown(message, category, *more)


def _say_interrupted(kind, error, trace) -> None:
    """Ctrl-C while modules are being imported ends in one line, too."""
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)
