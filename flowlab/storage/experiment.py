"""An experiment's folder: its runs saved, listed, read, removed and compacted.

A run is ``runs/<run>.parquet``, its prediction ``theory/<run>.parquet``, and if it was trained its
curve ``curves/<run>.parquet``; :meth:`compact` gathers those of a part (``runs``, ``theory`` or
``curves``) into few files, whose footers list their runs. Writers hold ``.lock`` for moments;
readers hold nothing and read again where a folder was exchanged under them.
"""

import fcntl
import json
import os
import uuid
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd

from flowlab.errors import InputError, unknown
from flowlab.schema import names
from flowlab.settings import stored_axes
from flowlab.storage import tables
from flowlab.storage.compaction import clear, lock, rebuild, steady, undo
from flowlab.storage.files import line, listed, make_folder, reading, storing, sync
from flowlab.storage.index import (
    LEAST,
    PARTS,
    Entry,
    Listing,
    Run,
    condition_of,
    covered,
    describe,
    files,
    missing_seeds,
    schema_of,
    trained,
)

__all__ = ["Experiment", "Run", "condition_of", "covered", "find", "load", "missing_seeds"]


def find(root: str | Path, holding: Iterable[str], problems: list[str]) -> dict[str, Path]:
    """The experiments under ``root``, by name: folders with an entry that ``holding`` names.

    Folders that cannot be read are left out, with a line each in ``problems``. Raises InputError
    where ``root`` is no folder or cannot be read.
    """
    root, holding, found = Path(root), set(holding), {}
    if not os.path.isdir(root):
        raise InputError(f"results_dir must be a folder; got {root}, which is not there")
    for name in listed(root):
        if name.startswith(".") or os.path.isfile(root / name):
            continue
        try:
            if holding & set(listed(root / name)):
                name.encode()
                found[name] = root / name
        except InputError as error:
            problems.append(str(error))
        except UnicodeEncodeError:
            problems.append(f"{root / name} cannot be read: its name is not UTF-8")
    return found


def load(folder: str | Path, columns: list[str] | None = None) -> pd.DataFrame:
    """All runs of an experiment as one frame: ``load("results/depth")``.

    ``results/depth/theory`` is the predictions, ``results/depth/curves`` the curves of training.
    Damaged tables are left out with a warning each.
    Raises InputError for a missing folder, unknown columns, no table, one of a newer flowlab.
    """
    folder = Path(folder)
    part = "runs"
    if folder.name in PARTS and not os.path.isdir(folder / "runs"):
        folder, part = folder.parent, folder.name
    if not os.path.isdir(folder):
        raise InputError(f"folder must be that of an experiment; got {folder}, which is not there")
    experiment = Experiment(folder)
    table = experiment.load(columns, part)
    experiment.refuse_newer()
    for problem in experiment.problems:
        warnings.warn(problem, stacklevel=2)
    if table.columns.empty:
        raise InputError(f"folder must hold tables; got none in {folder / part}")
    return table


class Experiment:
    """The folder of one experiment. Methods that write raise StorageError where the disk refuses.

    After :meth:`index`, :meth:`load` and :meth:`compact`, ``problems`` has one line for each file
    that was left out.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._listing = Listing(self.folder)
        self._swept = False

    # Reading

    @property
    def problems(self) -> list[str]:
        return self._listing.problems

    def _entries(self, part: str = "runs") -> list[Entry]:
        return steady(self.folder, lambda: self._listing.scan(part))

    def index(self) -> dict[str, Run]:
        """Every run kept, by name; raises NewerError for a table of a newer flowlab.

        A trained run whose curve is missing or damaged is not kept.
        """
        self._listing.problems = []
        entries = self._entries()
        self.refuse_newer()
        kept, curved = {}, set()
        for entry in entries:
            if entry.condition:
                kept[entry.run] = Run(*entry[:5])
                curved |= {entry.run} if trained(entry) else set()
            else:
                path = self.folder / "runs" / entry.file
                self.problems.append(f"{path} is not a table of this laboratory: no settings")
        if curved:
            bare = curved - {entry.run for entry in self._entries("curves")}
            self.refuse_newer()
            if bare:
                self.problems.append(
                    f"{self.folder / 'curves'} lacks {len(bare)} of {len(curved)} trained runs, "
                    "which count as not kept"
                )
            kept = {run: one for run, one in kept.items() if run not in bare}
        return kept

    def refuse_newer(self) -> None:
        """Raise NewerError where the last look found a table of a newer flowlab."""
        if self._listing.newer:
            raise self._listing.newer[0]

    def names(self, part: str = "runs") -> list[str]:
        """The runs that have a readable table, in the order of :meth:`load`."""
        self._listing.problems = []
        return [entry.run for entry in self._entries(part)]

    def all_metadata(self, part: str = "runs") -> dict[str, dict]:
        """The metadata saved beside each readable table, by run, in the order of :meth:`load`."""
        self._listing.problems = []
        return {entry.run: json.loads(entry.metadata) for entry in self._entries(part)}

    @property
    def rows(self) -> int:
        """Rows of all runs."""
        return sum(entry.rows for entry in self._entries())

    @property
    def files(self) -> int:
        """Files that hold tables, predictions and curves."""
        return len(self._stamps())

    @property
    def size(self) -> int:
        """Bytes of all tables, predictions and curves."""
        return sum(int(stamp.split("-")[0]) for stamp in self._stamps())

    def _stamps(self) -> list[str]:
        """The stamps of all these files; none of a part that cannot be read."""
        found = []
        for part in PARTS:
            with suppress(InputError):
                found += [stamp for _, stamp in files(self.folder / part) if stamp]
        return found

    def has(self, run: str) -> bool:
        """Whether a run is kept, with its curve if it was trained."""

        def find() -> bool:
            entry = self._found(run, "runs")
            return entry is not None and not (trained(entry) and not self._found(run, "curves"))

        return steady(self.folder, find)

    def _found(self, run: str, part: str) -> Entry | None:
        """What a run's file says, None where it is missing or damaged."""
        path = self._single(run, part)
        with suppress(InputError):
            return describe(path, part) if path else self._listing.packed(part).get(run)

    def read(self, run: str) -> pd.DataFrame:
        """One run's table; raises InputError where it is missing, damaged or foreign."""
        return self._read(run, "runs")

    def prediction(self, run: str) -> pd.DataFrame:
        """One run's prediction; raises InputError as :meth:`read` does."""
        return self._read(run, "theory")

    def curve(self, run: str) -> pd.DataFrame:
        """One trained run's curve; raises InputError as :meth:`read` does."""
        return self._read(run, "curves")

    def metadata(self, run: str) -> dict:
        """What was saved beside one run's table; raises InputError as :meth:`read` does."""

        def find() -> dict:
            path = self._single(run, "runs")
            return tables.metadata(path) if path else json.loads(self._packed(run, "runs").metadata)

        return steady(self.folder, find)

    def _read(self, run: str, part: str) -> pd.DataFrame:
        def find() -> pd.DataFrame:
            path = self._single(run, part)
            if path:
                return tables.read(path, LEAST[part])
            return tables.frame(self._listing.rows(part, self._packed(run, part)))

        return steady(self.folder, find)

    def _single(self, run: str, part: str) -> Path | None:
        path = self.folder / part / f"{run}.parquet"
        return path if os.path.lexists(path) else None

    def _packed(self, run: str, part: str) -> Entry:
        """A compacted run; raises InputError where there is none."""
        packed = self._listing.packed(part)
        if run not in packed:
            raise InputError(f"no table at {self.folder / part / run}.parquet")
        return packed[run]

    def load(self, columns: list[str] | None = None, part: str = "runs") -> pd.DataFrame:
        """All runs as one frame, of ``columns`` alone; predictions of ``part`` theory, of curves
        those of training, none where no run was trained.

        What a run lacks is null; settings that older tables lack are taken from their metadata.
        Raises InputError for an unknown column.
        """
        self._listing.problems = []
        return steady(self.folder, lambda: self._load(columns, part))

    def _load(self, columns, part: str) -> pd.DataFrame:
        import pyarrow as pa

        entries = self._listing.scan(part)
        if not entries:
            return pd.DataFrame(columns=columns or [])
        schemas = [schema_of(text) for text in dict.fromkeys(entry.schema for entry in entries)]
        # Types of columns are those of the newest tables, which have most of them.
        schemas.sort(key=lambda schema: -len(schema.names))
        try:
            schema = pa.unify_schemas(schemas, promote_options="permissive")
        except (TypeError, ValueError) as error:
            raise InputError(f"{self.folder / part} holds unlike tables: {line(error)}") from None
        for name in columns or ():
            if name not in schema.names:
                raise unknown("column", name, schema.names)
        if columns:
            schema = pa.schema([schema.field(name) for name in columns], schema.metadata)
        wanted = defaultdict(list)
        for entry in entries:
            wanted[entry.file].append(entry)
        wanted = list(wanted.values())
        # Handing files to threads one by one would cost as much as reading them.
        groups = [wanted[start : start + 64] for start in range(0, len(wanted), 64)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found = chain.from_iterable(pool.map(partial(self._columns, part, schema), groups))
            return tables.frame(pa.concat_tables([schema.empty_table(), *found]))

    def _columns(self, part: str, schema, files: list[list[Entry]]) -> list:
        """The tables of files, each given by its runs; damaged files are left out."""
        import pyarrow.parquet as pq

        found = []
        for runs in files:
            entry = runs[0]
            path, single = self.folder / part / entry.file, bool(entry.stamp)
            own = set(schema_of(entry.schema).names)
            try:
                # Of a single file, reading ahead and threads cost more than the reading.
                with reading(path), pq.ParquetFile(path, pre_buffer=not single) as file:
                    names = [name for name in schema.names if name in own]
                    table = file.read(names, use_threads=not single)
                found.append(_conformed(_filled(table, schema, runs), schema))
            except InputError as error:
                self.problems.append(str(error))
        return found

    # Writing

    def save(
        self,
        run: str,
        table: pd.DataFrame,
        prediction: pd.DataFrame,
        metadata: dict,
        curve: pd.DataFrame | None = None,
    ) -> Path:
        """Keep a run, its prediction and its ``curve`` if it was trained, all whole or none; the
        path of its table.

        ``metadata`` holds at least the resolved ``settings`` and ``versions``.
        """
        path = self.folder / "runs" / f"{run}.parquet"
        frames = {"runs": table, "theory": prediction}
        frames |= {} if curve is None else {"curves": curve}
        with ExitStack() as stack:
            stack.enter_context(storing(path))
            self._sweep(frames)
            landing = {
                part: stack.enter_context(self._partial(run, part, frames[part], metadata))
                for part in reversed(PARTS)
                if part in frames
            }
            with lock(self.folder / ".lock"):
                undo(self.folder)
                if not any(run in self._listing.packed(part) for part in PARTS):
                    self._land(run, landing)
                    return path
            with lock(self.folder / ".compact-lock"):
                rebuild(self._listing, {run}, landing=landing)
        return path

    def _land(self, run: str, landing: dict[str, Path]) -> None:
        paths = {part: self.folder / part / f"{run}.parquet" for part in landing}
        had = os.path.lexists(paths["runs"])
        try:
            for part, temporary in landing.items():
                os.replace(temporary, paths[part])
        except BaseException:
            if not had:  # a prediction or a curve without its run is of no use
                for path in paths.values():
                    path.unlink(missing_ok=True)
            raise
        with suppress(InputError):  # whoever reads it reports it
            for part, path in paths.items():
                self._listing.journals[part].append([describe(path, part)])

    @contextmanager
    def _partial(self, run: str, part: str, table: pd.DataFrame, metadata: dict) -> Iterator[Path]:
        """A table in a temporary file, which its lock marks as that of a living process."""
        with self._locked_file(f"{run}-{part}") as (path, file):
            try:
                tables.put(table, metadata, file)
                sync(file)
                yield path
            finally:
                path.unlink(missing_ok=True)

    @contextmanager
    def _locked_file(self, name: str):
        """A new file of ``.partial`` and its path, locked before another process swept it."""
        while True:
            path = self.folder / ".partial" / f"{name}-{uuid.uuid4().hex}"
            with open(path, "xb") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if os.path.lexists(path):
                    yield path, file
                    return

    def _sweep(self, parts: Iterable[str]) -> None:
        """Make the folders of ``parts``, and once remove what dead processes left unfinished."""
        for name in (".partial", *parts):
            make_folder(self.folder / name)
        if self._swept:
            return
        for path in (self.folder / ".partial").iterdir():
            with suppress(OSError), lock(path, wait=False):
                path.unlink()
        if self._listing.dated():
            with suppress(InputError), lock(self.folder / ".compact-lock"):  # else it is reported
                if self._listing.dated():
                    rebuild(self._listing, set())
        self._swept = True

    def remove(self, runs: Iterable[str]) -> None:
        """Remove runs with all that belongs to them; those that are not kept are passed over."""
        runs = set(runs)
        with storing(self.folder), lock(self.folder / ".compact-lock"):
            if any(runs & self._listing.packed(part).keys() for part in PARTS):
                rebuild(self._listing, runs)
                return
            with lock(self.folder / ".lock"):
                undo(self.folder)
                for part in PARTS:
                    for run in runs:
                        (self.folder / part / f"{run}.parquet").unlink(missing_ok=True)

    def compact(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Gather the files of each part into few; ``progress(done, total)`` counts tables.

        Runs may be saved and read meanwhile. Damaged and foreign files stay as they are.
        """
        self._listing.problems = []
        if not os.path.isdir(self.folder):
            raise InputError(f"no experiment at {self.folder}")
        with storing(self.folder), lock(self.folder / ".compact-lock"):
            clear(self.folder)
            entries = [entry for part in PARTS for entry in self._listing.scan(part)]
            if any(entry.stamp for entry in entries) or self._listing.dated():
                rebuild(self._listing, set(), fold=True, progress=progress)


def _filled(table, schema, runs: list[Entry]):
    """A file's table with the columns of settings that it lacks, from what is stored beside it."""
    import pyarrow as pa

    lacking = set(schema.names) - set(table.column_names)
    lacking = [name for name in names("setting") if name in lacking]
    if not lacking or sum(entry.rows for entry in runs) != table.num_rows:
        return table
    runs = sorted(runs, key=lambda entry: entry.first)
    axes = [stored_axes(json.loads(entry.metadata).get("settings")) for entry in runs]
    place = np.repeat(np.arange(len(runs)), [entry.rows for entry in runs])
    for name in lacking:
        values = pa.array([own.get(name) for own in axes], schema.field(name).type)
        table = table.append_column(name, values.take(pa.array(place)))
    return table


def _conformed(table, schema):
    """A table with the columns of a schema, in its types; those that are missing are null."""
    import pyarrow as pa

    held = set(table.column_names)
    for name in schema.names:
        if name not in held:
            table = table.append_column(name, pa.nulls(table.num_rows, schema.field(name).type))
    table = table.select(schema.names)
    return table if table.schema.equals(schema) else table.cast(schema)
