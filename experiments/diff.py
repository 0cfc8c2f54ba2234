"""Compare two runs: the first place where they part, by how much, and a figure.

A run is named by its digest or the beginning of it, by experiment/digest, or by the path of its
table.
"""

import os
import sys
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import pandas as pd

from experiments.command import note
from experiments.help import RESULTS_DIR, Command, Operand, Option
from experiments.plots import describe
from experiments.results import some as few
from flowlab.analysis.diff import Difference, diff, rows_words
from flowlab.errors import InputError, unknown
from flowlab.figures.difference import difference, finding
from flowlab.figures.files import save
from flowlab.figures.head import fixed
from flowlab.progress import Progress
from flowlab.storage import tables
from flowlab.storage.experiment import Experiment, find
from flowlab.storage.files import writable

MOST = 8  # places that are listed
NAMED = 3  # runs that a message names
COMMAND = Command(
    "diff",
    __doc__,
    {
        "3f2a 9c41": "two runs, by the beginnings of their digests",
        "depth/3f2a width/9c41 within=0.1": "of two experiments; smaller differences are none",
        "a.parquet b.parquet folder=figures": "two files",
    },
    {
        "results_dir": RESULTS_DIR,
        "folder": Option("", "where the figure goes; the first run's own folder of figures"),
        "step": Option("", "the step of training that is compared; all that both have"),
        "columns": Option("", "norms that are compared, with commas between; all of gradient flow"),
        "within": Option("", "differences up to this are none (decades); rounding", "0 and above"),
        "level": Option(0.95, "of the intervals, and 1 minus that of the test", "from 0 to 1"),
        "on": Option("", "columns that identify a row, or position; what names a place"),
    },
    operand=Operand("RUN", 2, "a digest or its beginning, experiment/digest, or a .parquet file"),
)


@dataclass(frozen=True)
class KeptRun:
    """A run as it was named, its table's file and, if it is an experiment's, that."""

    text: str
    path: Path
    experiment: Experiment | None = None

    def read(self) -> pd.DataFrame:
        """Its table; raises InputError where it is missing, damaged or holds several runs."""
        if self.experiment is not None:
            table = self.experiment.read(self.path.stem)
        else:
            table = tables.read(self.path, ("seed", "layer"))
        if "run" in table and table["run"].nunique() > 1:
            raise InputError(
                f"RUN must be one run; {self.path} holds {table['run'].nunique()}: name one of "
                f"them, such as {table['run'].iat[0]}"
            )
        return table

    @property
    def folder(self) -> Path:
        """Its experiment's folder, or that of its file."""
        return self.path.parent if self.experiment is None else self.experiment.folder


def main(arguments: list[str]) -> int:
    """Compare what the arguments name; the exit code."""
    return COMMAND.start(arguments, compare)


def compare(
    operands: list[str],
    results_dir: str,
    folder: str = "",
    step: str = "",
    columns: str = "",
    within: str = "",
    level: float = 0.95,
    on: str = "",
) -> None:
    """Print where two runs part and write the figure.

    Raises InputError for runs that are not found, ambiguous or the same, for tables that cannot be
    compared, and where the figure cannot be written.
    """
    a, b = (located(text, results_dir) for text in operands)
    if os.path.realpath(a.path) == os.path.realpath(b.path):
        raise InputError(f"RUN must name two runs; got {a.text} and {b.text}, which are the same")
    figures = Path(folder) if folder else a.folder / "figures"
    writable(figures)
    with Progress("reading") as progress:
        both = [_at_step(run.read(), step) for run in (a, b)]
        progress.at("comparing")
        found = diff(
            *both,
            columns=columns.split(",") if columns else None,
            level=level,
            within=_number("within", within) if within else None,
            on=on.split(",") if on and on != "position" else on or None,
        )
        progress.at("drawing")
        stem = figures / f"diff-{_short(a)}-{_short(b)}"
        drawn, _ = save(difference(found), stem)
        _describe(found, stem, a, b)
    print(found)
    if len(rows := found.largest(MOST)):
        verb = "part" if found.verdict == "parts" else "differ"
        print(f"\nThe places that {verb} most:\n\n{listed(rows)}")
    print(f"\nFigure: {drawn}")


def located(text: str, results_dir: str) -> KeptRun:
    """The run that a text names; raises InputError where there is none, or several."""
    path = Path(text)
    if path.suffix == ".parquet":
        own = path.parent.name == "runs"
        return KeptRun(text, path, Experiment(path.parent.parent) if own else None)
    problems: list[str] = []
    folders = find(results_dir, ("runs", ".old-runs"), problems)
    name, _, beginning = text.rpartition("/")
    if not folders:
        raise InputError(f"results_dir must hold <experiment>/runs; got none in {results_dir}")
    if name and name not in folders:
        raise unknown("experiment", name, folders)
    kept = []
    for folder in [folders[name]] if name else folders.values():
        experiment = Experiment(folder)
        paths = [folder / "runs" / f"{run}.parquet" for run in experiment.names()]
        kept += [KeptRun(text, path, experiment) for path in paths]
        problems += experiment.problems
    found = [run for run in kept if run.path.stem.startswith(beginning)]
    found = [run for run in found if run.path.stem == beginning] or found
    if len(found) == 1:
        return found[0]
    if found:
        some = ", ".join(_full(run) for run in found[:NAMED])
        more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
        raise InputError(f"RUN must name one run; {text} is {len(found)}: {some}{more}")
    for problem in few(problems):  # it may be the one that was meant
        note(problem)
    begun = {run.path.stem[: len(beginning)]: run for run in kept}
    near = get_close_matches(beginning, begun, n=1, cutoff=0.5)
    hint = f"; did you mean {_full(begun[near[0]])}?" if near else f", none of {len(kept)} kept"
    raise InputError(f"RUN must be the digest of a kept run or its beginning; got {text}{hint}")


def listed(rows: pd.DataFrame) -> str:
    """Rows of a difference as aligned columns of text."""
    words = rows_words(rows)
    cells = [[name, *words[name].astype(str)] for name in words]
    widths = [max(map(len, column)) for column in cells]
    lines = zip(*cells, strict=True)
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _at_step(table: pd.DataFrame, step: str) -> pd.DataFrame:
    if not step:
        return table
    known = table["step"].dropna().unique() if "step" in table else []
    number = _number("step", step)
    if number not in known:
        raise unknown("step", step, [str(one) for one in known] or ["none"])
    return table[table["step"] == number]


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{name} must be a number; got {text}") from None


def _short(run: KeptRun) -> str:
    """A run's part of the figure's name."""
    return run.path.stem if run.experiment is None else run.path.stem[:8]


def _full(run: KeptRun) -> str:
    return f"{run.folder.name}/{run.path.stem}"


def _describe(found: Difference, stem: Path, a: KeptRun, b: KeptRun) -> None:
    """Say beside the figure what it shows, as other figures do, for the report."""
    sources = [f"runs/{run.path.name}" for run in (a, b) if run.folder == a.folder]
    caption = f"{found} The runs are {_full(a)} and {_full(b)}."
    description = {"finding": finding(found), "fixed": fixed(found.runs), "caption": caption}
    describe(stem, {**description, "experiment": a.folder.name, "runs": sources})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
