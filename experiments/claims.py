"""Measure every claim: ``python -m experiments.claims``; exit code 1 if one turns out otherwise.

``seed=100`` draws other networks, ``seeds=128`` more of them; ``only=S7,M1`` measures a part (a
claim, a family, a letter) and writes no table; ``results_dir=`` is where ``claims/claims.parquet``
and ``claims.csv`` go.
"""

import shlex
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path

import pandas as pd

from experiments.command import guarded, options
from flowlab import claims, studies
from flowlab.storage import files, tables
from flowlab.storage.versions import versions

OPTIONS = {"seed": 0, "seeds": 64, "only": None, "results_dir": "results"}
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


def conclude(table: pd.DataFrame, seconds: float) -> int:
    """Print how many claims turned out how; the exit code."""
    counts = Counter(table["verdict"])
    verdicts = ", ".join(f"{verdict}: {count}" for verdict, count in counts.most_common())
    print(f"\n{len(table)} claims in {seconds:.0f} s; {verdicts}.")
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

    def action() -> None:
        given = options(arguments, OPTIONS)
        folder = Path(given.pop("results_dir")) / "claims"
        studies.load()  # their findings are claims too
        claims.select(given["only"])
        files.writable(folder)
        begun = time.perf_counter()
        table = claims.run(**given, report=show)
        codes.append(conclude(table, time.perf_counter() - begun))
        if given["only"] is None:
            path = write(table, folder, given)
            print(f"Table:  {path}  (and claims.csv beside it)")

    return guarded(action) or codes[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
