"""Time flowlab beside peers, and print what the times mean.

Every suite prints a row as soon as it is measured, ratios of times within one run with their
spread, since machines are noisy, and writes its table to ``results/benchmark/``. Ctrl-C keeps the
rows measured so far. Each suite's own arguments can be set by name.
"""

import inspect
import math
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from experiments.benchmarks import (
    attach,
    batch_law,
    depths,
    elementary,
    growth,
    layers,
    probe,
    roofline,
    sweeps,
    training,
)
from experiments.benchmarks.machine import machine, words
from experiments.command import note
from experiments.help import RESULTS_DIR, Command, Option, written
from flowlab.errors import InputError, check_count, unknown
from flowlab.figures.files import save
from flowlab.progress import Progress
from flowlab.storage import tables
from flowlab.storage.files import writable
from flowlab.storage.versions import versions

# Each has ``rows(say, ...)``, a generator of rows that is given what says what it is at, and
# ``report(table)``, what the rows mean, all of them or those that there are; some have a
# ``figure(table)``, None where it would show nothing.
SUITES = {
    "probe": probe,
    "depths": depths,
    "layers": layers,
    "training": training,
    "batch_law": batch_law,
    "sweeps": sweeps,
    "growth": growth,
    "roofline": roofline,
    "elementary": elementary,
    "attach": attach,
}
_NUMBER, _TEXT = 7, 14  # letters of a column


def _arguments(run) -> dict:
    _, *own = inspect.signature(run).parameters.items()
    return {name: parameter.default for name, parameter in own}


_OWN = {name: _arguments(suite.rows) for name, suite in SUITES.items()}


def _suites(key: str) -> str:
    """The suites that have an argument, and their defaults."""
    found = {name: written(own[key]) for name, own in _OWN.items() if key in own}
    return ", ".join(f"{name}: {text if len(text) < 40 else 'all'}" for name, text in found.items())


COMMAND = Command(
    "benchmark",
    __doc__,
    {"": "every suite", "suite=probe widths=64,256 rounds=9": "one, by arguments of its own"},
    {
        "suite": Option("all", "what is timed", ", ".join(["all", *SUITES])),
        "results_dir": RESULTS_DIR,
        **{
            key: Option(default, _suites(key), shown=False)
            for own in _OWN.values()
            for key, default in own.items()
        },
    },
)


def main(arguments: list[str]) -> int:
    """Run the chosen suites and print their tables and what they mean; the exit code."""
    return COMMAND.start(arguments, lambda **chosen: benchmark(arguments, **chosen))


def benchmark(arguments: list[str], **chosen) -> None:
    """Run, print and keep the suites that are chosen, with what the arguments name."""
    suite, folder = chosen["suite"], Path(chosen["results_dir"]) / "benchmark"
    if suite not in ("all", *SUITES):
        raise unknown("suite", suite, ("all", *SUITES))
    for name, value in chosen.items():
        for number in value if isinstance(value, tuple) else (value,):
            if name == "compiled" and number not in (0, 1):
                raise InputError(f"{name} must be 0 or 1; got {number}")
            if isinstance(number, int) and name != "compiled":
                check_count(name, number)
    writable(folder)
    named = {text.partition("=")[0] for text in arguments}
    metadata = {
        "command": shlex.join(["python", "-m", "experiments.benchmark", *arguments]),
        "versions": versions("torch", "jax"),
        "machine": machine(),
    }
    print(words(metadata["machine"]))
    for name in SUITES if suite == "all" else [suite]:
        own = {key: chosen[key] for key in _OWN[name] if key in named}
        print(f"\nsuite={name}", flush=True)
        try:
            _run(name, own, folder / f"{name}.parquet", metadata)
        except InputError as error:
            if suite != "all":
                raise
            note(str(error))  # such as a suite whose peer is not installed


def _run(name: str, arguments: dict, path: Path, metadata: dict) -> None:
    """One suite; its rows are printed as they come and kept, however it ends."""
    rows: list[dict] = []
    try:
        with Progress(f"timing {name}") as progress:
            for row in SUITES[name].rows(progress.at, **arguments):
                rows.append(row)
                with progress.aside():
                    print("\n".join(lines(row, head=len(rows) == 1)), flush=True)
    except KeyboardInterrupt:
        metadata = {**metadata, "interrupted": True}
        kept = f"{path} has the {len(rows)} rows measured" if rows else "nothing was measured"
        raise KeyboardInterrupt(f"suite={name} is not complete; {kept}") from None
    finally:
        if rows:
            table = pd.DataFrame(rows)
            print(f"\n{SUITES[name].report(table)}", flush=True)
            tables.write(table, path, metadata)
            if (drawn := _figure(name, table)) is not None:
                print(f"{save(drawn, path.with_suffix(''))[0]}", flush=True)


def _figure(name: str, table: pd.DataFrame):
    """A suite's figure of its rows, None where it has none."""
    draw = getattr(SUITES[name], "figure", None)
    return draw(table) if draw else None


def lines(row: dict, head: bool) -> Iterator[str]:
    """A row as it is printed, after its columns' names if it is the first."""
    if head:
        yield _line({name: name for name in row}, row)
    yield _line(row, row)


def _line(cells: dict, row: dict) -> str:
    """Numbers to the right, text to the left; what is too long for its column is not cut."""
    parts = []
    for name, cell in cells.items():
        number = not isinstance(row[name], str)
        width = max(len(name), _NUMBER if number else _TEXT)
        text = cell if isinstance(cell, str) else _number(cell)
        parts.append(text.rjust(width) if number else text.ljust(width))
    return "  ".join(parts).rstrip()


def _number(value: float) -> str:
    if value is None or math.isnan(value):
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
