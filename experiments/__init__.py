"""Commands: compose a configuration, call flowlab, say what happened."""

import sys


def _say_interrupted(kind, error, trace) -> None:
    """Ctrl-C while modules are being imported ends in one line, too."""
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _say_interrupted
