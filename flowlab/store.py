"""An experiment's folder: its runs saved, listed, read, removed and compacted.

A run is ``runs/<run>.parquet`` and its prediction ``theory/<run>.parquet``; :meth:`compact` gathers
those of a part (``runs`` or ``theory``) into few files, whose runs ``_manifest.parquet`` beside
them lists. Writers hold ``.lock`` for moments; readers hold nothing and read again where a folder
was exchanged under them.
"""

import fcntl
import hashlib
import json
import os
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache, partial
from itertools import count
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np
import pandas as pd

from flowlab import tables
from flowlab.errors import InputError, unknown

PARTS = ("runs", "theory")
REQUIRED = {"runs": tables.REQUIRED, "theory": tables.PREDICTED}
MANIFEST = "_manifest.parquet"
GROUP = 1 << 17  # rows of a row group, at least
CACHED = 100  # files from which on what their footers say is kept


class Run(NamedTuple):
    """A run that is kept: networks ``seed``, ..., ``seed + seeds - 1`` of one condition."""

    run: str
    condition: str
    seed: int
    seeds: int
    version: str


class _Entry(NamedTuple):
    """One table: a Run, then the file and the rows that hold it, and what the file tells of it."""

    run: str
    condition: str
    seed: int
    seeds: int
    version: str
    file: str
    stamp: str  # of a single file: changes when it does; empty in a manifest
    first: int
    rows: int
    schema: bytes
    metadata: str


def condition_of(resolved: dict) -> str:
    """The digest of resolved settings without ``seed`` and ``seeds``."""
    axes = {name: value for name, value in resolved.items() if name not in ("seed", "seeds")}
    return hashlib.sha256(json.dumps(axes, sort_keys=True).encode()).hexdigest()[:16]


def missing_seeds(index: dict[str, Run], condition: str, seed: int, seeds: int) -> list[range]:
    """The seeds among ``seed``, ..., ``seed + seeds - 1`` that no run of the condition has."""
    gaps, end = [], seed + seeds
    for run in sorted(
        (r for r in index.values() if r.condition == condition), key=lambda r: r.seed
    ):
        if run.seed > seed:
            gaps.append(range(seed, min(run.seed, end)))
        seed = max(seed, run.seed + run.seeds)
        if seed >= end:
            return [gap for gap in gaps if gap]
    return [*gaps, range(seed, end)]


def covered(index: dict[str, Run], condition: str, seed: int, seeds: int) -> bool:
    """Whether runs of the condition together have every seed."""
    return not missing_seeds(index, condition, seed, seeds)


def load(folder: str | Path, columns: list[str] | None = None) -> pd.DataFrame:
    """All runs of an experiment as one frame: ``load("results/depth")``.

    ``results/depth/theory`` is the predictions. Damaged tables are left out with a warning each.
    Raises InputError for a missing folder, unknown columns, no table, one of a newer flowlab.
    """
    folder = Path(folder)
    part = "runs"
    if folder.name in PARTS and not (folder / "runs").is_dir():
        folder, part = folder.parent, folder.name
    if not folder.is_dir():
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
    """The folder of one experiment.

    After :meth:`index`, :meth:`load` and :meth:`compact`, ``problems`` has one line for each file
    that was left out. Methods that write raise StorageError where the disk refuses.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.problems: list[str] = []
        self._newer: list[tables.NewerError] = []
        self._manifests: dict[str, tuple] = {}
        self._packs: dict[Path, _Pack] = {}
        self._swept = False

    # Reading

    def index(self) -> dict[str, Run]:
        """Every run kept, by name; raises NewerError for a table of a newer flowlab."""
        self.problems = []
        entries = self._steady(lambda: self._scan("runs"))
        self.refuse_newer()
        kept = {}
        for entry in entries:
            if entry.condition:
                kept[entry.run] = Run(*entry[:5])
            else:
                path = self.folder / "runs" / entry.file
                self.problems.append(f"{path} is not a table of this laboratory: no settings")
        return kept

    def refuse_newer(self) -> None:
        """Raise NewerError where the last look found a table of a newer flowlab."""
        if self._newer:
            raise self._newer[0]

    def names(self, part: str = "runs") -> list[str]:
        """The runs that have a readable table, in the order of :meth:`load`."""
        self.problems = []
        return [entry.run for entry in self._steady(lambda: self._scan(part))]

    def told(self) -> Iterator[tuple[str, dict]]:
        """Every run with the metadata saved beside it."""
        for entry in self._steady(lambda: self._scan("runs")):
            yield entry.run, json.loads(entry.metadata)

    @property
    def rows(self) -> int:
        """Rows of all runs."""
        return sum(entry.rows for entry in self._steady(lambda: self._scan("runs")))

    @property
    def files(self) -> int:
        """Files that hold tables and predictions."""
        return sum(1 for part in PARTS for _ in _files(self.folder / part))

    @property
    def size(self) -> int:
        """Bytes of all tables and predictions."""
        return sum(int(s.split("-")[0]) for p in PARTS for _, s in _files(self.folder / p))

    def has(self, run: str) -> bool:
        """Whether a run is kept."""
        return self._single(run, "runs") is not None or run in self._packed("runs")

    def read(self, run: str) -> pd.DataFrame:
        """One run's table; raises InputError where it is missing, damaged or foreign."""
        return self._read(run, "runs")

    def prediction(self, run: str) -> pd.DataFrame:
        """One run's prediction; raises InputError as :meth:`read` does."""
        return self._read(run, "theory")

    def metadata(self, run: str) -> dict:
        """What was saved beside one run's table; raises InputError as :meth:`read` does."""

        def find() -> dict:
            path = self._single(run, "runs")
            return tables.metadata(path) if path else json.loads(self._kept(run, "runs").metadata)

        return self._steady(find)

    def load(self, columns: list[str] | None = None, part: str = "runs") -> pd.DataFrame:
        """All runs (or of ``part`` theory, predictions) as one frame, of ``columns`` alone.

        What a run lacks is null. Raises InputError for an unknown column.
        """
        self.problems = []
        return self._steady(lambda: self._load(columns, part))

    def _load(self, columns, part: str) -> pd.DataFrame:
        import pyarrow as pa
        import pyarrow.dataset as ds

        entries = self._scan(part)
        if not entries:
            return pd.DataFrame(columns=columns or [])
        schemas = [_schema(text) for text in dict.fromkeys(entry.schema for entry in entries)]
        try:
            schema = pa.unify_schemas(schemas, promote_options="permissive")
        except (TypeError, ValueError) as error:
            raise InputError(f"{self.folder / part} holds unlike tables: {_line(error)}") from None
        for name in columns or ():
            if name not in schema.names:
                raise unknown("column", name, schema.names)
        paths = list(dict.fromkeys(str(self.folder / part / entry.file) for entry in entries))
        try:
            table = ds.dataset(paths, schema=schema, format="parquet").to_table(columns=columns)
        except (OSError, ValueError):
            # Rows can be damaged where the footer is whole: which file it is, one by one.
            sound = [path for path in paths if self._sound(Path(path), columns)]
            table = ds.dataset(sound, schema=schema, format="parquet").to_table(columns=columns)
        return table.to_pandas()

    def _sound(self, path: Path, columns=None) -> bool:
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(path) as file:
                names = file.schema_arrow.names
                file.read(columns and [name for name in columns if name in names])
        except (OSError, ValueError) as error:
            self.problems.append(f"{path} is damaged: {_line(error)}")
            return False
        return True

    def _read(self, run: str, part: str) -> pd.DataFrame:
        def find() -> pd.DataFrame:
            path = self._single(run, part)
            if path:
                return tables.read(path, REQUIRED[part])
            entry = self._kept(run, part)
            return self._pack(part, entry.file).rows(entry.first, entry.rows).to_pandas()

        return self._steady(find)

    def _single(self, run: str, part: str) -> Path | None:
        path = self.folder / part / f"{run}.parquet"
        return path if path.is_file() else None

    def _kept(self, run: str, part: str) -> _Entry:
        """A compacted run; raises InputError where there is none."""
        packed = self._packed(part)
        if run not in packed:
            raise InputError(f"no table at {self.folder / part / run}.parquet")
        return packed[run]

    def _steady(self, read: Callable):
        """What ``read`` gives while no folder is exchanged under it."""
        while True:
            self._repair()
            before = self._folders()
            try:
                found, error = read(), None
            except InputError as raised:
                found, error = None, raised
            if self._folders() == before:
                if error:
                    raise error
                return found

    def _folders(self) -> list:
        """Which folders stand in the experiment's, by inode."""
        found = []
        for name in (*PARTS, *(f".old-{part}" for part in PARTS)):
            try:
                found.append(os.stat(self.folder / name).st_ino)
            except OSError:
                found.append(None)
        return found

    # Listing

    def _scan(self, part: str) -> list[_Entry]:
        """Every readable table of a part, compacted ones first, then by file."""
        folder, cache = self.folder / part, self.folder / f".index-{part}"
        problems, self._newer = [], []
        packed = self._packed(part)
        known = {}
        with suppress(InputError, KeyError):
            known = {entry.file: entry for entry in _manifest(cache)}
        compacted = {entry.file for entry in packed.values()}
        singles, fresh = [], 0
        for name, stamp in _files(folder):
            if name in compacted:
                continue
            entry = known.get(name)
            if entry is None or entry.stamp != stamp:
                fresh += 1
                try:
                    entry = _describe(folder / name, stamp, part)
                except InputError as error:
                    if isinstance(error, tables.NewerError):
                        self._newer.append(error)
                    if (folder / name).exists():
                        problems.append(getattr(error, "note", str(error)))
                    continue
            singles.append(entry)
        if fresh >= CACHED:
            _cache(singles, cache)
        twice = [entry for entry in singles if entry.run in packed]
        problems += [f"{folder / entry.file} is compacted as well" for entry in twice]
        self.problems = [line for line in self.problems if line not in problems] + problems
        singles = sorted(entry for entry in singles if entry.run not in packed)
        return [*packed.values(), *singles]

    def _packed(self, part: str) -> dict[str, _Entry]:
        """The compacted runs of a part."""
        path = self.folder / part / MANIFEST
        try:
            stamp = _stamp(path)
        except FileNotFoundError:
            return {}
        known, packed = self._manifests.get(part, (None, None))
        if stamp != known:
            packed = {entry.run: entry for entry in _manifest(path)}
            self._manifests[part] = stamp, packed
            self._packs = {}
        return packed

    def _pack(self, part: str, file: str) -> "_Pack":
        path = self.folder / part / file
        if path not in self._packs:
            try:
                self._packs[path] = _Pack(path)
            except (OSError, ValueError) as error:
                raise InputError(f"{path} is damaged: {_line(error)}") from None
        return self._packs[path]

    # Writing

    def save(self, run: str, table: pd.DataFrame, prediction: pd.DataFrame, metadata: dict) -> Path:
        """Keep a run and its prediction, both whole or neither; the path of its table.

        ``metadata`` holds at least the resolved ``settings`` and ``versions``.
        """
        path = self.folder / "runs" / f"{run}.parquet"
        with ExitStack() as stack:
            stack.enter_context(tables.storing(path))
            if not self._swept:
                self._sweep()
            # The prediction first: a run exists when its table does.
            landing = {
                part: stack.enter_context(self._partial(run, part, tables.arrow(frame, metadata)))
                for part, frame in (("theory", prediction), ("runs", table))
            }
            with self._lock(".lock"):
                self._undo()
                if run not in self._packed("runs") and run not in self._packed("theory"):
                    self._land(run, landing)
                    return path
            with self._lock(".compact-lock"):
                self._rebuild({run}, landing=landing)
        return path

    def _land(self, run: str, landing: dict[str, Path]) -> None:
        paths = {part: self.folder / part / f"{run}.parquet" for part in landing}
        had = paths["runs"].exists()
        try:
            for part, temporary in landing.items():
                os.replace(temporary, paths[part])
        except BaseException:
            if not had:  # a prediction without its run is of no use
                paths["theory"].unlink(missing_ok=True)
            raise

    @contextmanager
    def _partial(self, run: str, part: str, table) -> Iterator[Path]:
        """A table in a temporary file, which its lock marks as that of a living process."""
        import pyarrow.parquet as pq

        with self._locked_file(f"{run}-{part}") as (path, file):
            try:
                pq.write_table(table, file, compression="zstd")
                file.flush()
                os.fsync(file.fileno())
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
                if path.exists():
                    yield path, file
                    return

    def _sweep(self) -> None:
        """Make the folders, and remove what dead processes left in ``.partial``."""
        for name in (".partial", *PARTS):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        for path in (self.folder / ".partial").iterdir():
            with suppress(OSError), open(path, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
        self._swept = True

    def remove(self, runs: Iterable[str]) -> None:
        """Remove runs and their predictions; those that are not kept are passed over."""
        runs = set(runs)
        with tables.storing(self.folder), self._lock(".compact-lock"):
            if any(runs & self._packed(part).keys() for part in PARTS):
                self._rebuild(runs)
                return
            with self._lock(".lock"):
                self._undo()
                for part in PARTS:
                    for run in runs:
                        (self.folder / part / f"{run}.parquet").unlink(missing_ok=True)

    def compact(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Gather the files of each part into few; ``progress`` is told tables done and in all.

        Runs may be saved and read meanwhile. Damaged and foreign files stay as they are.
        """
        self.problems = []
        if not self.folder.is_dir():
            raise InputError(f"no experiment at {self.folder}")
        with tables.storing(self.folder), self._lock(".compact-lock"):
            with self._lock(".lock"):
                self._undo()
            if any(entry.stamp for part in PARTS for entry in self._scan(part)):
                self._rebuild(set(), fold=True, progress=progress)

    def _rebuild(self, drop: set[str], fold=False, landing=None, progress=None) -> None:
        """Exchange both folders for ones without the runs ``drop``, single files ``fold``-ed.

        The caller holds ``.compact-lock``. New folders are built beside the old ones while runs
        may be saved; under ``.lock`` whatever else lies in the old ones is linked into the new,
        and these take their place.
        """
        building = self.folder / ".compacting"
        while True:
            with self._lock(".lock"):
                self._undo()
                shutil.rmtree(building, ignore_errors=True)
            entries = {
                part: [e for e in self._scan(part) if e.run not in drop and (fold or not e.stamp)]
                for part in PARTS
            }
            total = sum(map(len, entries.values()))
            told = partial(_tell, progress, count(1), total)
            for part in PARTS:
                (building / part).mkdir(parents=True)
                entries[part] = self._gather(part, entries[part], told)
            with self._lock(".lock"):
                if not all(self._unchanged(part, entries[part]) for part in PARTS):
                    continue  # a run was saved anew meanwhile
                for part in PARTS:
                    self._carry(part, entries[part], drop)
                for part, temporary in (landing or {}).items():
                    os.replace(temporary, building / part / f"{next(iter(drop))}.parquet")
                # Predictions come before their runs and go after them.
                for part in reversed(PARTS) if landing else PARTS:
                    _sync(building / part)
                    os.rename(self.folder / part, self.folder / f".old-{part}")
                    os.rename(building / part, self.folder / part)
                _sync(self.folder)
                self._undo()
                shutil.rmtree(building)
                for part in PARTS:
                    (self.folder / f".index-{part}").unlink(missing_ok=True)
                return

    def _gather(self, part: str, entries: list[_Entry], told: Callable) -> list[_Entry]:
        """Write entries into one file for each schema, and a manifest; those written."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        folder, written, gathered = self.folder / ".compacting" / part, [], []
        for number, text in enumerate(dict.fromkeys(entry.schema for entry in entries)):
            own = {b"flowlab": json.dumps({"schema": tables.SCHEMA, "compacted": True}).encode()}
            schema = _schema(text)
            schema = schema.with_metadata({**(schema.metadata or {}), **own})
            # Sorts before the digests: compacted runs are read first.
            path, first = folder / f"0000-compacted-{number}.parquet", 0
            mine = [entry for entry in entries if entry.schema == text]
            with open(path, "wb") as file, ThreadPoolExecutor(os.cpu_count()) as pool:
                with pq.ParquetWriter(file, schema, compression="zstd") as writer:
                    for group in _groups(mine):
                        rows = pool.map(partial(self._rows, part, schema), group)
                        found = [
                            pair for pair in zip(group, rows, strict=True) if pair[1] is not None
                        ]
                        for entry, table in found:
                            written.append(entry)
                            gathered.append(entry._replace(file=path.name, stamp="", first=first))
                            first += table.num_rows
                            told()
                        if found:
                            whole = pa.concat_tables([table for _, table in found])
                            writer.write_table(whole, row_group_size=max(whole.num_rows, 1))
                file.flush()
                os.fsync(file.fileno())
        if gathered:
            _list(gathered, folder / MANIFEST)
        for path in folder.iterdir():
            if path.name != MANIFEST and path.name not in {entry.file for entry in gathered}:
                path.unlink()  # none of its runs could be read
        return written

    def _rows(self, part: str, schema, entry: _Entry):
        """An entry's rows as they are stored; None for a single file that has none such."""
        import pyarrow.parquet as pq

        path = self.folder / part / entry.file
        try:
            if not entry.stamp:
                return self._pack(part, entry.file).rows(entry.first, entry.rows)
            with pq.ParquetFile(path) as file:
                table = file.read(use_threads=False)
        except (OSError, ValueError) as error:
            if not entry.stamp:
                raise InputError(f"{path} is damaged: {_line(error)}") from None
            self.problems.append(f"{path} is damaged: {_line(error)}")
            return None
        same = table.schema.equals(schema) and table.num_rows == entry.rows
        return table.replace_schema_metadata(schema.metadata) if same else None

    def _unchanged(self, part: str, entries: list[_Entry]) -> bool:
        stamps = dict(_files(self.folder / part))
        return all(stamps.get(entry.file) == entry.stamp for entry in entries if entry.stamp)

    def _carry(self, part: str, entries: list[_Entry], drop: set[str]) -> None:
        """Link what was not gathered into the new folder."""
        gone = {MANIFEST, *(e.file for e in entries), *(f"{run}.parquet" for run in drop)}
        gone |= {entry.file for entry in self._packed(part).values()}
        for path in (self.folder / part).iterdir():
            target = self.folder / ".compacting" / part / path.name
            if path.name in gone:
                continue
            if path.is_dir():
                shutil.copytree(path, target, copy_function=_link)
            else:
                _link(path, target)

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        with open(self.folder / name, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _repair(self) -> None:
        """Finish or undo an exchange of folders that was interrupted."""
        if any((self.folder / f".old-{part}").exists() for part in PARTS):
            with tables.storing(self.folder), self._lock(".lock"):
                self._undo()

    def _undo(self) -> None:
        """As :meth:`_repair`, under ``.lock``."""
        for part in PARTS:
            old, place = self.folder / f".old-{part}", self.folder / part
            if not old.exists():
                continue
            if (self.folder / ".compacting" / part).exists():  # the new one is not in place
                if place.exists():  # somebody made it since
                    for path in place.iterdir():
                        os.replace(path, old / path.name)
                    place.rmdir()
                os.rename(old, place)
            else:
                shutil.rmtree(old)


class _Pack:
    """A compacted file, of which one run is read by its rows."""

    def __init__(self, path: Path):
        import pyarrow.parquet as pq

        self._file = pq.ParquetFile(path)
        footer = self._file.metadata
        counts = [footer.row_group(k).num_rows for k in range(footer.num_row_groups)]
        self._starts = np.cumsum([0, *counts])
        self._group: tuple = (None, None)  # the one read last, for runs are read in order
        self._lock = Lock()

    def rows(self, first: int, count: int):
        """``count`` rows from the row ``first`` on, a pyarrow.Table."""
        if count == 0:
            return self._file.schema_arrow.empty_table()
        # Gathering aligns row groups with runs: a run lies in one.
        group = int(np.searchsorted(self._starts, first, side="right")) - 1
        with self._lock:
            if self._group[0] != group:
                self._group = group, self._file.read_row_group(group)
            return self._group[1].slice(first - self._starts[group], count)


def _describe(path: Path, stamp: str, part: str) -> _Entry:
    """What a single file's footer tells; raises InputError for a damaged or foreign one."""
    schema, rows, told = tables.footer(path)
    tables.readable(path, told)
    tables.complete(path, schema.names, REQUIRED[part])
    try:
        settings, version = told["settings"], str(told["versions"]["flowlab"])
        run = (condition_of(settings), int(settings["seed"]), int(settings["seeds"]), version)
    except (AttributeError, LookupError, TypeError, ValueError):
        run = ("", 0, 0, "")
    own = {name: text for name, text in (schema.metadata or {}).items() if name != b"flowlab"}
    plain = schema.with_metadata(own).serialize().to_pybytes()
    return _Entry(path.stem, *run, path.name, stamp, 0, rows, plain, json.dumps(told))


def _list(entries: list[_Entry], path: Path) -> None:
    """Write a manifest."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = dict(zip(_Entry._fields, map(list, zip(*entries, strict=True)), strict=True))
    own = {b"flowlab": json.dumps({"schema": tables.SCHEMA}).encode()}
    with open(path, "wb") as file:
        table = pa.table(columns).replace_schema_metadata(own)
        pq.write_table(table, file, compression="zstd", write_statistics=False)
        file.flush()
        os.fsync(file.fileno())


def _manifest(path: Path) -> list[_Entry]:
    """Read a manifest; raises InputError for a damaged one and that of a newer flowlab."""
    import pyarrow.parquet as pq

    tables.readable(path, tables.metadata(path))
    try:
        with pq.ParquetFile(path) as file:
            columns = file.read(columns=list(_Entry._fields)).to_pydict()
        return list(map(_Entry, *(columns[name] for name in _Entry._fields)))
    except (OSError, ValueError, LookupError) as error:
        raise InputError(f"{path} is damaged: {_line(error)}") from None


def _cache(entries: list[_Entry], path: Path) -> None:
    """Keep what footers tell, where the folder allows."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    with suppress(OSError):
        try:
            _list(entries, temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _groups(entries: list[_Entry]) -> Iterator[list[_Entry]]:
    """Entries in turn, together of GROUP rows or a few more."""
    group, rows = [], 0
    for entry in entries:
        group.append(entry)
        rows += entry.rows
        if rows >= GROUP:
            yield group
            group, rows = [], 0
    if group:
        yield group


def _files(folder: Path) -> Iterator[tuple[str, str]]:
    """The tables in a folder, each with its stamp."""
    with suppress(FileNotFoundError), os.scandir(folder) as items:
        for item in items:
            if item.name.endswith(".parquet") and not item.name.startswith((".", "_")):
                with suppress(FileNotFoundError):
                    yield item.name, _stamp(item)


def _stamp(file: os.DirEntry | Path) -> str:
    """What changes with a file: the clock alone may have jumped."""
    told = file.stat()
    return f"{told.st_size}-{told.st_mtime_ns}-{told.st_ino}"


@lru_cache
def _schema(text: bytes):
    import pyarrow as pa

    return pa.ipc.read_schema(pa.BufferReader(text))


def _tell(progress: Callable | None, done: Iterator[int], total: int) -> None:
    if progress:
        progress(next(done), total)


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
