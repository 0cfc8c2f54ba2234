"""Write the report of a results folder: ``python -m experiments.report``; ``results_dir=out``.

Writes report.html, one file that needs no other, and report.md, which refers to the figures' files,
into the folder. ``title=`` heads both.
"""

import os
import sys
from pathlib import Path

from experiments.command import guarded, options
from flowlab import tables
from flowlab.errors import InputError
from flowlab.report import gather, html, markdown

DEFAULTS = {"results_dir": "results", "title": "Gradient flow"}


def main(arguments: list[str]) -> int:
    """Write what the arguments (key=value) ask for; the exit code."""
    return guarded(lambda: report(**options(arguments, DEFAULTS)))


def report(results_dir: str, title: str) -> None:
    """Write the report and say what it lacks. Raises InputError where there is nothing to tell."""
    root = Path(results_dir)
    if not title.strip():
        raise InputError("title must hold a word; got none")
    document = gather(root, title)
    tables.writable(root)
    for name, render in (("report.md", markdown.render), ("report.html", html.render)):
        written = write(root / name, render(document))
        print(f"{written}  ({written.stat().st_size / 1e6:.2f} MB)")
    for line in document.missing:
        print(f"note: {line}", file=sys.stderr)


def write(path: Path, text: str) -> Path:
    """Write a file whole or not at all; raises InputError where the folder refuses."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        part.unlink(missing_ok=True)
    return path


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
