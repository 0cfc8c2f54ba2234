"""A sweep's plan: what is kept, what waits, what came of it."""

import hashlib
import json
import os
import shlex
import shutil
import sys
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pandas as pd
from filelock import FileLock, Timeout

from experiments.command import invocation, note
from experiments.ranking import check, ranking
from experiments.sweep.conditions import Condition
from experiments.sweep.progress import Watcher
from experiments.sweep.work import described, write_part
from flowlab.analysis.comparison import answer, differing, ordered, row
from flowlab.analysis.training import ends
from flowlab.analysis.verdicts import AGREEMENTS, judge, tally
from flowlab.errors import InputError
from flowlab.progress import QUIET, Progress
from flowlab.settings import Settings
from flowlab.storage import tables
from flowlab.storage.experiment import Experiment, Run, condition_of, missing_seeds
from flowlab.storage.files import storing, writable, write
from flowlab.storage.versions import versions

_SHOWN = 40  # conditions; a longer sweep does not print each
_READ = 500  # kept runs that are read for the ranking
_LISTED = 10  # of what went wrong
_JUDGED = {
    "agrees": "agrees with",
    "differs": "differs from",
    "undecided": "is not decided on",
    "no theory": "is silent on",
}


class Plan:
    """The conditions of a sweep: kept from before, waiting, refused.

    A condition is kept if its run is, or if others of the same settings hold all its seeds. If
    others made by the same code hold some, only the rest is measured. Raises InputError where
    results cannot be written or read.
    """

    def __init__(self, conditions: Sequence[Condition]):
        self.command = shlex.join(["python", "-m", "experiments.run", *sys.argv[1:]])
        self.refused = [(c.overrides, c.refusal) for c in conditions if c.refusal]
        self.stopped: str | None = None
        self.waiting: list[tuple[Condition, list[str]]] = []
        self.kept: list[tuple[Condition, list[str]]] = []
        self.by_other_code = 0
        self.outcomes: dict[int, dict] = {}
        self.took = "0 s"
        distinct = {
            (c.settings.results_dir, c.settings.experiment, c.settings.run()): c
            for c in reversed(conditions)
            if not c.refusal
        }
        if distinct:
            axes = pd.DataFrame([c.settings.axes() for c in distinct.values()])
            check(next(iter(distinct.values())).settings.rank, differing(axes))
        folders = defaultdict(list)
        for (results, experiment, run), condition in reversed(distinct.items()):
            folders[Path(results) / experiment].append((run, condition))
        for folder, own in folders.items():
            self._sort(folder, own)
        self.folders = list(folders)

    def _sort(self, folder: Path, conditions: list[tuple[str, Condition]]) -> None:
        writable(folder)
        code, index, alike = versions()["flowlab"], Experiment(folder).index(), defaultdict(list)
        for run in index.values():
            alike[run.condition].append(run)
        planned = {}
        for name, condition in conditions:
            settings, own = condition.settings, index.get(name)
            digest = condition_of(settings.resolved())
            planned[name] = [digest, settings.seed, settings.seeds]
            sharing = _sharing(settings, alike[digest])
            same = [own] if own else sharing
            of_code = [run for run in sharing if run.version == code and run != own]
            left = [run.run for run in of_code if own and run.within(own)]
            if settings.overwrite:
                self.waiting.append((condition, []))
            elif left:  # by a process that died before it removed what its run replaces
                self.waiting.append((condition, left))
            elif not missing_seeds({run.run: run for run in same}, *planned[name]):
                self.kept.append((condition, [run.run for run in same]))
                self.by_other_code += any(run.version != code for run in same)
            else:
                self.waiting.append((condition, [run.run for run in of_code]))
        name = hashlib.sha256(json.dumps(sorted(planned)).encode()).hexdigest()[:16]
        record = {"schema": tables.SCHEMA, "command": self.command, "runs": planned}
        write(json.dumps(record), folder / "sweeps" / f"{name}.json")

    @contextmanager
    def prepared(self) -> Iterator[Path]:
        """This sweep's folder of parts and journals, which stays where the sweep was stopped."""
        sweeps = self.folders[0].parent.absolute() / ".sweeps"
        if _others(sweeps):
            note(
                "another sweep is running on these results: what both want may be measured twice, "
                "and nothing is lost"
            )
        folder = sweeps / uuid.uuid4().hex[:12]
        with ExitStack() as stack:
            with storing(folder):
                sweeps.mkdir(parents=True, exist_ok=True)
                stack.enter_context(FileLock(_life(folder)))
                (folder / "journal").mkdir(parents=True)
            yield folder
            if self.stopped is None:
                shutil.rmtree(folder, ignore_errors=True)
                _life(folder).unlink()

    def write_parts(self, folder: Path, size: int) -> int:
        """Write the files of parts of ``size`` conditions; how many they are."""
        starts = range(0, len(self.waiting), size)
        for number, start in enumerate(starts):
            part = [
                described(start + k, condition.settings, extend)
                for k, (condition, extend) in enumerate(self.waiting[start : start + size])
            ]
            write_part(folder, number, part, command=self.command)
        return len(starts)

    @contextmanager
    def watched(self, folder: Path) -> Iterator[None]:
        """Shows how far the sweep is and takes what its processes report, while the body runs."""
        progress = Watcher(folder / "journal", len(self.waiting), len(self.kept), self._print)
        self.outcomes = progress.outcomes
        try:
            with progress:
                yield
        except KeyboardInterrupt:
            done = sum(outcome["event"] != "failed" for outcome in self.outcomes.values())
            raise KeyboardInterrupt(
                f"{done} of {len(self.waiting)} runs are done and kept; the same command does the "
                "rest"
            ) from None
        finally:
            self.took = progress.took()

    def _print(self, outcome: dict) -> None:
        if os.environ.get(QUIET) or len(self.waiting) > _SHOWN:
            return
        if outcome["event"] == "done":
            number = outcome["condition"]
            overrides = self.waiting[number][0].overrides
            print(
                f"{number + 1:>4}  {overrides}: {outcome['trend']} ({outcome['seconds']:.1f} s)",
                file=sys.stderr,
            )

    def report(self) -> None:
        """Say what happened and where to look; raises InputError if a condition could not run."""
        events = Counter(outcome["event"] for outcome in self.outcomes.values())
        failed = list(self.refused)
        for number, outcome in sorted(self.outcomes.items()):
            if outcome["event"] == "failed":
                failed.append((self.waiting[number][0].overrides, outcome["reason"]))
        kept = len(self.kept) + events["skipped"]
        total = len(self.kept) + len(self.waiting) + len(self.refused)
        parts = [f"{events['done']} measured in {self.took}"]
        parts += [f"{kept} kept from before"] if kept else []
        parts += [f"{len(failed)} failed"] if failed else []
        missing = len(self.waiting) - len(self.outcomes)
        parts += [f"{missing} not reached"] if missing else []
        print(f"\n{total} {_plural('run', total)}: {', '.join(parts)}.")
        self._rank()
        if self.by_other_code:
            print(
                f"{self.by_other_code} of those kept were made by another version of the code; "
                "overwrite=true measures them anew."
            )
        for folder in self.folders:
            print(f"Tables:  {folder / 'runs'}  (pandas.read_parquet opens the folder)")
        results = self.folders[0].parent if self.folders else "results"
        print(f"Draw:    {invocation('plots', f'results_dir={results}')}\n", flush=True)
        if self.stopped is not None:
            raise InputError(
                f"{self.stopped}; what is done is kept, and the same command does the rest"
            )
        if missing:
            raise InputError(
                f"{missing} of {total} runs were not reached; the same command does them"
            )
        if failed:
            lines = [f"{overrides}: {reason}" for overrides, reason in failed[:_LISTED]]
            lines += [f"and {len(failed) - _LISTED} more"] if len(failed) > _LISTED else []
            count = f"{len(failed)} of {total} conditions could not run: "
            raise InputError(count + "; ".join(lines))

    def _rank(self) -> None:
        """The answer: the runs ranked, and how many of them theory foresaw."""
        found, unread = self._comparison()
        if found.empty:
            return
        some, *_ = (c.settings for c, _ in (*self.waiting, *self.kept))
        print(f"\n{answer(found, some.kept_within)}\n")
        folders = ", ".join(f"flowlab.compare({str(folder)!r})" for folder in self.folders)
        if len(found) > 1:
            print(ranking(found, some.rank, folders))
        if unread:
            print(f"Not among them: {unread:,} kept from before; {folders} has all.")
        counts = tally(found["agreement"], AGREEMENTS)
        theory = ", ".join(f"{_JUDGED[word]} {n:,}" for word, n in counts.items())
        print(f"\nTheory {theory}.")

    def _comparison(self) -> tuple[pd.DataFrame, int]:
        """The runs of this sweep compared, and how many kept ones were not read for it."""
        rows, kept = [], list(self.kept)
        for number, outcome in sorted(self.outcomes.items()):
            condition = self.waiting[number][0]
            if outcome["event"] == "done":
                rows.append((condition.settings, outcome["judged"]))
            elif outcome["event"] == "skipped":
                kept.append((condition, [condition.settings.run()]))
        with Progress() as progress:
            progress.at("reading the runs kept from before")
            for done, (condition, runs) in enumerate(kept[:_READ]):
                progress(done, min(len(kept), _READ))
                with suppress(InputError):  # damaged since: whoever loads the folder is warned
                    rows.append((condition.settings, _judged(condition.settings, runs)))
        if not rows:
            return pd.DataFrame(), len(kept)
        axes = pd.DataFrame([settings.axes() for settings, _ in rows]).convert_dtypes()
        axes = axes.drop(columns="seeds")
        frame = axes[differing(axes)].join(pd.DataFrame([judged for _, judged in rows]))
        frame["seeds"] = [settings.seeds for settings, _ in rows]
        frame["run"] = [settings.run() for settings, _ in rows]
        return ordered(frame, rows[0][0].rank), max(0, len(kept) - _READ)


def _judged(settings: Settings, runs: list[str]) -> dict:
    """The row of a comparison of a condition, from the runs that hold its seeds."""
    experiment = Experiment(Path(settings.results_dir) / settings.experiment)
    table = pd.concat([experiment.read(run).assign(run=runs[0]) for run in runs])
    seeds = range(settings.seed, settings.seed + settings.seeds)
    table = table[table["seed"].isin(seeds)]
    prediction = experiment.prediction(runs[0])
    judged = row(judge(table, prediction, settings.kept_within))
    if not settings.trained:
        return judged
    curve = pd.concat([experiment.curve(run) for run in runs])
    return judged | ends(curve[curve["seed"].isin(seeds)])


def _sharing(settings: Settings, runs: list[Run]) -> list[Run]:
    """The runs that hold some of the settings' seeds."""
    first, end = settings.seed, settings.seed + settings.seeds
    return [run for run in runs if run.seed < end and first < run.seed + run.seeds]


def _life(folder: Path) -> Path:
    """The file that a sweep holds locked from before its folder is there until it ends."""
    return folder.with_name(f"{folder.name}.alive")


def _others(sweeps: Path) -> int:
    """How many other sweeps run; the folders of those that died are removed."""
    alive = 0
    for folder in sweeps.glob("*/"):
        try:
            with FileLock(_life(folder), timeout=0):
                shutil.rmtree(folder, ignore_errors=True)
                _life(folder).unlink()
        except Timeout:
            alive += 1
    return alive


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}s"
