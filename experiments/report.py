"""Write the report of a results folder: verdicts, figures, tables, commands.

Writes report.html, one file that needs no other (figures open in full size from their files), and
report.md, which refers to these files, into the folder.
"""

import sys
from pathlib import Path

from experiments.command import note
from experiments.help import RESULTS_DIR, Command, Option
from flowlab.analysis.verdicts import KEPT_WITHIN
from flowlab.errors import InputError, check_positive
from flowlab.progress import Progress
from flowlab.report import gather, html, markdown
from flowlab.storage.files import writable, write

COMMAND = Command(
    "report",
    __doc__,
    {"": "of results/", "results_dir=out": "of another folder"},
    {
        "results_dir": RESULTS_DIR,
        "title": Option("Gradient flow", "what heads the report", "text"),
        "kept_within": Option(
            KEPT_WITHIN,
            "end to end, a gradient that changes by less is called kept (decades)",
            "numbers above 0",
        ),
    },
)


def main(arguments: list[str]) -> int:
    """Write what the arguments (key=value) ask for; the exit code."""
    return COMMAND.start(arguments, report)


def report(results_dir: str, title: str, kept_within: float = KEPT_WITHIN) -> None:
    """Write the report and say what it lacks. Raises InputError where there is nothing in it."""
    root = Path(results_dir)
    if not title.strip():
        raise InputError("title must hold a word; got none")
    check_positive("kept_within", kept_within)
    with Progress() as progress:
        document = gather(root, title, kept_within, progress)
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
