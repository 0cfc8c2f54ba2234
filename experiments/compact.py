"""Gather the files of large sweeps into few: ``python -m experiments.compact experiment=depth``.

Without ``experiment=`` every experiment under ``results_dir`` is compacted. Tables read the same
afterwards, only faster; runs may be saved and read meanwhile.
"""

import sys

from experiments.command import guarded, note, options
from experiments.results import experiments, some
from flowlab.errors import InputError
from flowlab.storage.experiment import Experiment

DEFAULTS = {"experiment": "", "results_dir": "results"}


def main(arguments: list[str]) -> int:
    """Compact what the arguments (key=value) ask for; the exit code."""
    return guarded(lambda: compact(**options(arguments, DEFAULTS)))


def compact(experiment: str, results_dir: str) -> None:
    """Compact one experiment or all, and say what became of their files.

    Raises InputError, when all else is done, where one cannot be compacted.
    """
    problems, refused = [], []
    for folder in experiments(results_dir, experiment, problems):
        kept = Experiment(folder)
        before = held(kept)
        try:
            with _bar(folder.name) as bar:
                kept.compact(lambda done, total, bar=bar: _step(bar, done, total))
        except InputError as error:
            refused.append(error)
            continue
        after = held(kept)
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


def _bar(name: str):
    from tqdm import tqdm

    return tqdm(desc=name, unit="file", leave=False, disable=not sys.stderr.isatty())


def _step(bar, done: int, total: int) -> None:
    bar.total = total
    bar.update(done - bar.n)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
