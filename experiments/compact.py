"""Gather the files of large sweeps into few.

Without ``experiment=`` every experiment under ``results_dir`` is compacted. Tables read the same
afterwards, only faster; runs may be saved and read meanwhile.
"""

import sys

from experiments.command import note
from experiments.help import EXPERIMENT, RESULTS_DIR, Command
from experiments.results import experiments, some
from flowlab.errors import InputError
from flowlab.progress import Progress
from flowlab.storage.experiment import Experiment

COMMAND = Command(
    "compact",
    __doc__,
    {"": "every experiment", "experiment=depth": "one"},
    {
        "experiment": EXPERIMENT,
        "results_dir": RESULTS_DIR,
    },
)


def main(arguments: list[str]) -> int:
    """Compact what the arguments (key=value) ask for; the exit code."""
    return COMMAND.start(arguments, compact)


def compact(experiment: str, results_dir: str) -> None:
    """Compact one experiment or all, and say what became of their files.

    Raises InputError, when all else is done, where one cannot be compacted.
    """
    problems, refused = [], []
    with Progress("looking for experiments") as progress:
        for folder in experiments(results_dir, experiment, problems):
            progress.at(f"compacting {folder.name}")
            kept = Experiment(folder)
            before = held(kept)
            try:
                kept.compact(progress)
            except InputError as error:
                refused.append(error)
                continue
            after = held(kept)
            with progress.aside():
                if after == before:
                    print(f"{folder.name}: nothing to gather; {_described(*after)}")
                else:
                    print(f"{folder.name}: {_described(*before)} became {_described(*after)}")
                for line in some(kept.problems):
                    note(line)
    for line in problems + refused[1:]:
        note(line)
    if refused:
        raise refused[0]


def held(kept: Experiment) -> tuple[int, int]:
    """The tables and predictions of an experiment: files and bytes."""
    return kept.files, kept.size


def _described(files: int, size: int) -> str:
    return f"{files:,} file{'s' * (files != 1)} of {size / 1e6:,.1f} MB"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
