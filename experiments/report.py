"""Write the report of a results folder: ``python -m experiments.report``; ``results_dir=out``.

Writes report.html, one file that needs no other, and report.md, which refers to the figures' files,
into the folder. ``title=`` heads both.
"""

import sys
from pathlib import Path

from experiments.command import guarded, note, options
from experiments.progress import Progress
from flowlab.errors import InputError
from flowlab.files import writable, write
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
    with Progress() as progress:
        document = gather(root, title, progress)
        writable(root)
        progress.at("writing")
        for name, render in (("report.md", markdown.render), ("report.html", html.render)):
            written = write(render(document), root / name)
            with progress.aside():
                print(f"{written}  ({written.stat().st_size / 1e6:.2f} MB)")
    for line in document.missing:
        note(line)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
