"""Speed beside peers: ``python -m experiments.benchmark``; ``suite=probe widths=64,256 rounds=9``.

Prints ratios (peer time / flowlab time in the same round, so above 1 is ahead of the peer) with
their spread, first-call times apart, and writes the table to ``results/benchmark/``.
"""

import sys
from pathlib import Path

from experiments.benchmarks import probe
from experiments.command import guarded, options
from flowlab import tables
from flowlab.errors import unknown

SUITES = {"probe": (probe.probe, probe.report)}


def main(arguments: list[str]) -> None:
    """Run the chosen suites and print their tables."""
    given = options(
        arguments,
        {
            **{"suite": "all", "results_dir": "results", "widths": (64, 128, 256, 512, 1024)},
            **{"seeds": 16, "depth": 50, "batch": 128, "rounds": 7, "threads": 2, "compiled": 1},
        },
    )
    suite, folder = given.pop("suite"), Path(given.pop("results_dir")) / "benchmark"
    if suite not in ("all", *SUITES):
        raise unknown("suite", suite, ("all", *SUITES))
    tables.writable(folder)
    for name in SUITES if suite == "all" else [suite]:
        run, told = SUITES[name]
        table = run(**given)
        print(table.to_string(index=False, float_format=lambda v: f"{v:.3g}"))
        print(f"\n{told(table)}\n")
        tables.write(table, folder / f"{name}.parquet", {"command": " ".join(arguments)})


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
