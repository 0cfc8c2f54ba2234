"""Measure every claim beside its prediction; exit code 1 if one turns out otherwise.

A part of the claims writes no table; all of them write claims.parquet and claims.csv.
"""

import shlex
import sys
import textwrap
from collections import Counter
from pathlib import Path

import pandas as pd

from experiments.help import RESULTS_DIR, Command, Option
from flowlab import claims, studies
from flowlab.progress import Progress
from flowlab.storage import files, tables
from flowlab.storage.versions import versions

COMMAND = Command(
    "claims",
    __doc__,
    {
        "": "every claim",
        "only=S7,M1": "a claim and a family, without a table",
        "seed=100 seeds=128": "other networks, and more of them",
    },
    {
        "seed": Option(0, "the first network's seed", "whole numbers from 0"),
        "seeds": Option(64, "networks that each claim is measured on", "whole numbers from 2"),
        "only": Option(None, "claims, families or letters, between commas", "such as S7,M1,A"),
        "results_dir": RESULTS_DIR,
    },
)
WIDTH = 120


def show(row: dict, index: int, total: int) -> None:
    """Print one row: counter, id, verdict and numbers, then the statement and the sentence."""
    interval = "" if pd.isna(row["low"]) else f" [{row['low']:.4g}, {row['high']:.4g}]"
    numbers = f"{row['measured']:.4g}{interval}, predicted {row['predicted']:.4g}"
    head = f"{index:>3}/{total}  {row['id']:<25} {row['verdict']:<22} {numbers}"
    print(f"{head} ± {row['tolerance']:.2g}")
    if not row["as_expected"]:
        print(f"        EXPECTED: {row['expected']}")
    for text in (row["statement"], row["sentence"]):
        indent = " " * 8 if text is row["statement"] else " " * 10
        print(textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent))
    sys.stdout.flush()


def conclude(table: pd.DataFrame, took: str) -> int:
    """Print how many claims turned out how, and how long it took; the exit code."""
    counts = Counter(table["verdict"])
    verdicts = ", ".join(f"{verdict}: {count}" for verdict, count in counts.most_common())
    print(f"\n{len(table)} claims in {took}; {verdicts}.")
    wrong = table[~table["as_expected"]]
    for row in wrong.itertuples():
        print(f"{row.id} was expected to read '{row.expected}' and reads '{row.verdict}'.")
    if wrong.empty:
        print("Every verdict is as expected.")
    return int(len(wrong) > 0)


def write(table: pd.DataFrame, folder: Path, settings: dict) -> Path:
    """Write ``claims.parquet`` and ``claims.csv``, each whole or not at all."""
    metadata = {
        "settings": settings,
        "command": shlex.join(["python", "-m", "experiments.claims", *sys.argv[1:]]),
        "versions": versions("jax", "torch"),
    }
    path = tables.write(table, folder / "claims.parquet", metadata)
    files.write(table.to_csv(index=False), folder / "claims.csv")
    return path


def main(arguments: list[str]) -> int:
    """Measure, print and write; 0 if every verdict is as expected, 1 if not, 2 for bad input."""
    codes = []

    def action(results_dir: str, **given) -> None:
        folder = Path(results_dir) / "claims"
        with Progress("loading claims") as progress:
            studies.load()  # their findings are claims too
            claims.select(given["only"])
            files.writable(folder)

            def report(row: dict, index: int, total: int) -> None:
                with progress.aside():
                    show(row, index, total)

            table = claims.run(**given, report=report, begin=progress.at)
        codes.append(conclude(table, progress.took()))
        if given["only"] is None:
            path = write(table, folder, given)
            print(f"Table:  {path}  (and claims.csv beside it)")

    return COMMAND.start(arguments, action) or (codes[0] if codes else 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
