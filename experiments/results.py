"""List what experiments hold, what is missing, and the commands that made them.

Runs kept and planned (a sweep's record, ``<experiment>/sweeps/<id>.json``, holds the runs it set
out to make), seeds, rows, bytes and the command that made them.
"""

import json
import sys
from collections import Counter, defaultdict
from pathlib import Path

from experiments.command import copied, note
from experiments.help import EXPERIMENT, RESULTS_DIR, Command
from flowlab.errors import InputError, unknown
from flowlab.settings import stored_axes
from flowlab.storage.experiment import Experiment, Run, covered, find
from flowlab.storage.files import listed, reading

COMMAND = Command(
    "results",
    __doc__,
    {"": "every experiment", "experiment=depth": "one, and what its conditions differ in"},
    {
        "experiment": EXPERIMENT,
        "results_dir": RESULTS_DIR,
    },
)
MOST = 5  # problems, axes' values and commands that are listed in full
COLUMNS = ("experiment", "runs", "state", "seeds", "rows", "size")


def main(arguments: list[str]) -> int:
    """List what the arguments (key=value) ask for; the exit code."""
    return COMMAND.start(arguments, results)


def results(experiment: str, results_dir: str) -> None:
    """Print a line and a command for each experiment; more of one that is asked for."""
    rows, below, problems = [COLUMNS], [], []
    for folder in experiments(results_dir, experiment, problems):
        kept = Experiment(folder)
        try:
            index = kept.index()
        except InputError as error:
            problems.append(str(error))
            continue
        problems += kept.problems
        command, planned, unread = sweeps(folder)
        problems += unread
        missing = lacking(index, planned)
        rows.append(_row(kept, index, planned, missing))
        command = command or _commands(kept)
        below.append([f"    {copied(line)}" for line in command])
        if experiment:
            below[-1] += [f"    {line}" for line in detail(kept, index, planned, missing)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row, lines in zip(rows, [[], *below], strict=True):
        cells = [row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]
        print("\n".join(["  ".join(cells), *lines]))
    for line in some(problems):
        note(line)


def experiments(results_dir: str, experiment: str, problems: list[str]) -> list[Path]:
    """The folders of experiments, or of one; raises InputError where there is none."""
    # An exchange of folders that was interrupted leaves .old-runs alone: it is repaired on reading.
    found = find(results_dir, ("runs", ".old-runs", "sweeps"), problems)
    if not found:
        raise InputError(f"results_dir must hold experiments; got none in {results_dir}")
    if experiment and experiment not in found:
        raise unknown("experiment", experiment, found)
    return [found[experiment]] if experiment else list(found.values())


def sweeps(folder: Path) -> tuple[list[str], dict[str, Run], list[str]]:
    """Commands of sweeps, the runs they planned, and a line for each record that is unreadable."""
    commands, planned, problems = {}, {}, []
    try:
        names = listed(folder / "sweeps")
    except InputError as error:
        return [], {}, [str(error)]
    for path in (folder / "sweeps" / name for name in names if name.endswith(".json")):
        if path.name.startswith("."):
            continue
        try:
            with reading(path):
                record = json.loads(path.read_text(encoding="utf-8"))
            runs = {
                run: Run(run, str(condition), int(seed), int(seeds), "")
                for run, (condition, seed, seeds) in record["runs"].items()
            }
            commands[str(record["command"])] = None
        except (AttributeError, LookupError, TypeError, ValueError):
            problems.append(f"{path} is not the record of a sweep")
            continue
        planned |= runs
    return list(commands), planned, problems


def lacking(index: dict[str, Run], planned: dict[str, Run]) -> list[Run]:
    """The planned runs that are neither kept nor covered by others of their condition."""
    conditions: dict[str, dict[str, Run]] = defaultdict(dict)
    for name, run in index.items():
        conditions[run.condition][name] = run
    return [
        run
        for name, run in planned.items()
        if name not in index
        and not covered(conditions[run.condition], run.condition, run.seed, run.seeds)
    ]


def detail(kept: Experiment, index: dict, planned: dict, missing: list[Run]) -> list[str]:
    """The axes along which conditions differ, and how much is missing."""
    values: dict[str, dict[str, None]] = defaultdict(dict)
    for run, metadata in kept.all_metadata().items():
        if run in index:
            for name, value in stored_axes(metadata["settings"]).items():
                if name != "seeds" and value is not None:
                    values[name][str(value)] = None
    axes = {name: list(found) for name, found in values.items() if len(found) > 1}
    lines = [f"{len({run.condition for run in index.values()}):,} conditions"]
    for name, found in axes.items():
        text = f"  {name}: {', '.join(found)}"
        if len(text) > 90:
            text = f"  {name}: {len(found)} values, {', '.join(found[:2])}, ..., {found[-1]}"
        lines.append(text)
    if planned:
        seeds = sum(run.seeds for run in missing)
        lines.append(
            f"{len(missing):,} of {len(planned):,} planned runs missing"
            + (f", {seeds:,} networks" if missing else "")
        )
    return lines


def some(lines: list[str]) -> list[str]:
    """The first lines, and how many more there are."""
    rest = len(lines) - MOST
    return [*lines[:MOST], *([f"{rest} more files cannot be used"] if rest > 0 else [])]


def _row(kept: Experiment, index: dict, planned: dict, missing: list) -> tuple[str, ...]:
    state = "single runs"
    if planned:
        state = f"{len(missing):,} of {len(planned):,} missing" if missing else "complete"
    counts = sorted({run.seeds for run in index.values()})
    seeds = (
        "–" if not counts else f"{counts[0]}" if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"
    )
    size = f"{kept.size / 1e6:,.1f} MB" if kept.size >= 1e6 else f"{kept.size / 1e3:,.1f} kB"
    return kept.folder.name, f"{len(index):,}", state, seeds, f"{kept.rows:,}", size


def _commands(kept: Experiment) -> list[str]:
    """The most frequent commands of runs."""
    given = (metadata.get("command") for metadata in kept.all_metadata().values())
    counts = Counter(str(command) for command in given if command)
    lines = [command for command, _ in counts.most_common(MOST)]
    rest = len(counts) - len(lines)
    return [*lines, *([f"and {rest:,} other commands"] if rest else [])]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
