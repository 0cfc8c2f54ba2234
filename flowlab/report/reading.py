"""Reads a results folder: each experiment once, judged once; what cannot be used is named."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pandas as pd

from flowlab import schema
from flowlab.analysis.comparison import differing, ordered, row
from flowlab.analysis.training import ends
from flowlab.analysis.verdicts import READ, Verdict, judge
from flowlab.errors import InputError
from flowlab.report.document import Picture
from flowlab.report.words import count
from flowlab.storage import tables
from flowlab.storage.experiment import Experiment, find
from flowlab.storage.files import listed
from flowlab.storage.files import reading as reading_of

if TYPE_CHECKING:  # they come with matplotlib
    from flowlab.studies import Reading, Study

PARTS = ("runs", ".old-runs", "ledger", "figures")
CURVE = ("run", "seed", "step", "examples", "training_status")  # of every curve of training
_UNUSABLE = (ArithmeticError, LookupError, TypeError, ValueError)  # of tables of another making


class Watch(Protocol):
    """Follows what is read: ``at`` names an experiment, a call says how many of its runs."""

    def at(self, what: str) -> None: ...

    def __call__(self, done: int, total: int) -> None: ...


@dataclass
class Chapter:
    """What one experiment's folder holds.

    ``settings`` and ``judged`` have a row for each run that can be judged, by its name: all
    settings, and the measures of a comparison. ``reading`` is the table of these runs. ``answers``
    has each study's sentence; ``pictures`` are the figures by name, those of studies first.
    ``commands`` has each command with the number of tables it wrote.
    """

    name: str
    studies: list["Study"] = field(default_factory=list)
    own: bool = False  # no study is about it
    reading: "Reading | None" = None
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    settings: pd.DataFrame = field(default_factory=pd.DataFrame)
    judged: pd.DataFrame = field(default_factory=pd.DataFrame)
    answers: list[tuple["Study", str]] = field(default_factory=list)
    pictures: dict[str, Picture] = field(default_factory=dict)
    commands: Counter = field(default_factory=Counter)

    @property
    def rank(self) -> tuple[int, str]:
        """Its place in the report."""
        # A study without figures adds its runs and findings to those of another.
        return min(study.rank for study in self.studies if study.figures), self.name

    @property
    def comparison(self) -> pd.DataFrame:
        """The frame of ``compare`` for its runs."""
        rows = self.settings[differing(self.settings.drop(columns="seeds", errors="ignore"))].join(
            self.judged
        )
        return ordered(rows.rename_axis("run").reset_index())


class Reader:
    """Reads files under ``root`` and keeps account of versions and of what could not be read."""

    def __init__(self, root: Path, kept_within: float, watch: Watch | None = None):
        self.root, self.kept_within, self.watch = root, kept_within, watch
        self._missing: dict[str, None] = {}
        self.versions: Counter = Counter()

    @property
    def missing(self) -> list[str]:
        """What could not be had, a line each."""
        return list(self._missing)

    def lack(self, line: object) -> None:
        """Note a part that could not be had; paths begin in the results folder."""
        self._missing[str(line).replace(f"{self.root}/", "")] = None

    @contextmanager
    def lacking(self) -> Iterator[None]:
        """What the body cannot use is noted."""
        try:
            yield
        except InputError as error:
            self.lack(error)

    def at(self, what: str) -> None:
        """Say what is done now."""
        if self.watch:
            self.watch.at(what)

    def files(self, folder: Path, *suffixes: str) -> list[Path] | None:
        """What a folder holds with these suffixes, by name; None, and a note, if unreadable."""
        with self.lacking():
            names = listed(folder)
            return [folder / n for n in names if n.endswith(suffixes) and not n.startswith(".")]
        return None

    def checked(self, path: Path, stored: dict) -> dict:
        """A table's metadata as read; raises InputError where it is of another making."""
        try:
            settings, versions = stored.get("settings", {}), stored.get("versions", {})
            settings.items(), versions.items()
        except AttributeError:
            raise InputError(f"{path} is not a table of this laboratory: its metadata") from None
        tables.readable(path, stored)
        self.versions.update((str(name), str(number)) for name, number in versions.items())
        return {**stored, "command": str(stored.get("command", ""))}

    def table(self, path: Path) -> tuple[pd.DataFrame, str]:
        """A table that is not of runs, and its command; raises InputError as ``checked`` does."""
        command = self.checked(path, tables.metadata(path))["command"]
        with reading_of(path):
            return pd.read_parquet(path), command

    def chapters(self) -> list[Chapter]:
        """Every experiment that holds something, in the order of the report."""
        problems: list[str] = []
        found = find(self.root, PARTS, problems)
        for problem in problems:
            self.lack(problem)
        chapters = [self._chapter(folder) for folder in found.values() if _holds_something(folder)]
        return sorted(chapters, key=lambda chapter: chapter.rank)

    def _chapter(self, folder: Path) -> Chapter:
        self.at(f"reading {folder.name}")
        from flowlab import studies

        asked = studies.of(folder.name)
        chapter = Chapter(folder.name, asked, own=asked == [studies.ANY])
        kept = Experiment(folder)
        names = self._runs(kept, chapter)
        for path in self.files(folder / "ledger", ".parquet") or ():
            with self.lacking():
                chapter.commands[self.checked(path, tables.metadata(path))["command"]] += 1
        if chapter.verdicts:
            self.at(f"answers of {folder.name}")
            for study in asked:
                if study.figures:
                    with self.lacking():
                        chapter.answers.append((study, study.answer(chapter.reading)))
        self._pictures(folder, chapter, names)
        return chapter

    # Runs

    def _runs(self, kept: Experiment, chapter: Chapter) -> set[str] | None:
        """Read and judge the runs; the names of those that are kept, None if unreadable."""
        from flowlab.studies import Reading

        try:
            stored = kept.all_metadata()
            problems = kept.problems
            table = kept.load()
        except InputError as error:
            self.lack(error)
            return None
        for problem in dict.fromkeys([*problems, *kept.problems]):
            self.lack(problem)
        found = self._part(kept, "theory", schema.PREDICTED, set(stored))
        prediction = pd.DataFrame() if found is None else found
        rows = _by_run(table, READ)
        curves = _by_run(prediction, [n for n in prediction if n not in schema.names("setting")])
        images = []
        for number, (run, metadata) in enumerate(stored.items()):
            if self.watch:
                self.watch(number, len(stored))
            with self.lacking():
                path = kept.folder / "runs" / f"{run}.parquet"
                metadata = self.checked(path, metadata)
                chapter.verdicts[run] = self._verdict(path, rows.get(run), curves.get(run))
                chapter.commands[metadata["command"]] += 1
                images.append((metadata["settings"].get("network") or {}).get("image"))
        if not chapter.verdicts:
            return set(stored)
        table = table[table["run"].isin(chapter.verdicts)]
        silent = len(chapter.verdicts) - len(curves.keys() & chapter.verdicts.keys())
        if silent and found is not None:
            self.lack(f"{kept.folder / 'theory'} lacks {silent} of {len(chapter.verdicts)} runs")
        chapter.settings = _settings(table)
        chapter.judged = pd.DataFrame.from_dict(
            {run: row(verdict) for run, verdict in chapter.verdicts.items()}, "index"
        )
        seeds = table.groupby("run", observed=True)["seed"].nunique()
        chapter.judged["seeds"] = seeds
        prediction = prediction[prediction["run"].isin(list(chapter.verdicts))] if curves else None
        training = self._part(kept, "curves", CURVE, set(chapter.verdicts))
        training = None if training is None or training.empty else training
        if training is not None:
            ended = {run: ends(of) for run, of in training.groupby("run", observed=True)}
            chapter.judged = chapter.judged.join(pd.DataFrame.from_dict(ended, "index"))
        chapter.reading = Reading(table, prediction, self.kept_within, images[0], training)
        return set(stored)

    def _part(
        self, kept: Experiment, part: str, least: Iterable[str], runs: set[str]
    ) -> pd.DataFrame | None:
        """Predictions or curves of these runs; a note for each that cannot be used, None for all.

        ``least`` are the columns that they must have.
        """
        with self.lacking():
            frame = kept.load(part=part)
            for problem in kept.problems:
                self.lack(problem)
            lacking = [name for name in least if name not in frame]
            if lacking and len(frame):
                what = {"theory": "predictions", "curves": "curves"}[part]
                raise InputError(f"{kept.folder / part} holds no {what}: no {lacking[0]}")
            return frame[frame["run"].isin(runs)] if len(frame) else frame
        return None

    def _verdict(self, path: Path, rows: pd.DataFrame | None, curve) -> Verdict:
        """The verdict on a run; raises InputError where its table cannot be judged."""
        if rows is None:
            raise InputError(f"{path} cannot be judged: it has no rows of this run")
        try:
            return judge(rows, curve, self.kept_within)
        except _UNUSABLE as error:
            raise InputError(f"{path} cannot be judged: {error}") from None

    # Figures

    def _pictures(self, folder: Path, chapter: Chapter, runs: set[str] | None) -> None:
        """Read the figures: those of studies first, in their order, then others by name."""
        files = self.files(folder / "figures", ".png", ".json")
        if files == []:
            self.lack(f"{folder.name} has no figures yet: make plots")
        drawings = {d.name: d for study in chapter.studies for d in study.figures}
        known = {study.figures[0].name: answer for study, answer in chapter.answers}
        stems = {path.stem: path.with_suffix("") for path in files or ()}
        of_studies = [name for name in drawings if name in stems]
        for name in dict.fromkeys([*of_studies, *stems]):
            with self.lacking():
                picture, finding, shown = self._picture(stems[name], folder)
                chapter.pictures[name] = picture
                gone = sum(not _there(run, folder, runs) for run in shown)
                checked = chapter.reading is not None and finding and name in drawings
                if gone:
                    self.lack(f"{picture.path} shows {count(gone, 'table')} not kept: make plots")
                elif checked and finding != (known.get(name) or _finding(drawings[name], chapter)):
                    self.lack(f"{picture.path} is older than the tables: make plots")

    def _picture(self, stem: Path, folder: Path) -> tuple[Picture, str, list[str]]:
        """A figure, its finding and runs; raises InputError for one that no reader could see."""
        png, svg, described = (stem.with_name(stem.name + s) for s in (".png", ".svg", ".json"))
        if not os.path.lexists(png):
            raise InputError(f"{png} is missing: make plots")
        path, content = png, _whole(png)
        if os.path.lexists(svg):
            with self.lacking():
                drawn = _whole(svg)
                if len(drawn) <= len(content):  # the other one would only make the page larger
                    path, content = svg, drawn
        place = path.relative_to(self.root).as_posix()
        try:
            with reading_of(described):
                read = json.loads(described.read_text(encoding="utf-8"))
            finding, caption = str(read["finding"]), str(read["caption"])
            fixed, runs = str(read.get("fixed", "")), [str(run) for run in read["runs"]]
        except (LookupError, TypeError, ValueError):
            self.lack(f"{described} is missing or damaged: make plots")
            return Picture(place, content, stem.name, "Its description is missing."), "", []
        parts = [caption, f"Fixed: {fixed}." if fixed else ""]
        if runs:
            parts.append(
                f"Source: {count(len(runs), 'table')}, named in {described.relative_to(self.root)}."
            )
        return Picture(place, content, finding, " ".join(filter(None, parts))), finding, runs


def _holds_something(folder: Path) -> bool:
    try:
        return any(listed(folder / part) for part in PARTS)
    except InputError:  # which reading it says
        return True


def _by_run(frame: pd.DataFrame, columns: Iterable[str]) -> dict[str, pd.DataFrame]:
    """The rows of each run, of those of ``columns`` that there are."""
    if frame.empty:
        return {}
    named = frame[[name for name in columns if name in frame]]
    return dict(iter(named.groupby("run", observed=True)))


def _settings(table: pd.DataFrame) -> pd.DataFrame:
    """The settings of each run, by its name."""
    names = [name for name in schema.names("setting") if name in table]
    return table.drop_duplicates("run").set_index("run")[names]


def _there(run: str, folder: Path, runs: set[str] | None) -> bool:
    """Whether a table that a figure shows is kept, ``runs/<run>.parquet`` perhaps compacted.

    ``runs`` are those kept, None where that is not known.
    """
    path = Path(run)
    if path.parent.name == "runs":
        return runs is None or path.stem in runs
    return os.path.lexists(folder / path)


def _finding(drawing, chapter: Chapter) -> str | None:
    """What the tables say now where a figure was drawn from them; None if they cannot."""
    try:
        return drawing.finding(drawing.shown(chapter.reading))
    except InputError:  # they no longer hold what it shows
        return None


def _whole(path: Path) -> bytes:
    """An image's bytes; raises InputError where it is cut or something else."""
    with reading_of(path):
        content = path.read_bytes()
    png = content.startswith(b"\x89PNG\r\n\x1a\n") and content[-8:-4] == b"IEND"
    svg = b"<svg" in content[:1000] and content.rstrip().endswith(b"</svg>")
    if not (svg if path.suffix == ".svg" else png):
        raise InputError(f"{path} is damaged: make plots")
    return content
