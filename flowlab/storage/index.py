"""What an experiment's folder holds: its runs by name, condition and seeds, and where each lies.

A run is a file of its own or rows of a compacted one; either's footer says all, so that nothing
but tables lies in a folder of tables. Footers are slow to read in thousands: journals beside the
folders repeat what those of single files say.
"""

import base64
import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from stat import S_ISREG
from threading import Lock
from typing import NamedTuple

import numpy as np

from flowlab.errors import InputError
from flowlab.schema import PREDICTED, REQUIRED
from flowlab.storage import tables
from flowlab.storage.files import line, listed, reading

# A run has a file in each, its curve if it was trained. Written in turn from the last to the first,
# removed from the first to the last: a run is there if its table is.
PARTS = ("runs", "theory", "curves")
# Columns of a table of each part.
LEAST = {"runs": REQUIRED, "theory": PREDICTED, "curves": ("run", "seed", "step")}
PACK = "0000-compacted-"  # begins the names of compacted files, which sort before digests
PACK_SCHEMA = 2  # flowlab 0.1.0 would take a file that lists its own runs for a single run's
MANIFEST = "_manifest.parquet"  # where flowlab 0.1.0 listed compacted runs, beside them
CACHED = 100  # files from which on a reader keeps what their footers say


class Run(NamedTuple):
    """A run that is kept: networks ``seed``, ..., ``seed + seeds - 1`` of one condition."""

    run: str
    condition: str
    seed: int
    seeds: int
    version: str

    def within(self, other: "Run") -> bool:
        """Whether another run has all of this one's seeds."""
        return other.seed <= self.seed and self.seed + self.seeds <= other.seed + other.seeds


class Entry(NamedTuple):
    """One table: a Run, then the file and the rows that hold it, and what the file says of it."""

    run: str
    condition: str
    seed: int
    seeds: int
    version: str
    file: str
    stamp: str  # of a single file: changes when it does; empty for a compacted one
    first: int
    rows: int
    schema: bytes
    metadata: str


def condition_of(resolved: dict) -> str:
    """The digest of resolved settings without ``seed`` and ``seeds``."""
    axes = {name: value for name, value in resolved.items() if name not in ("seed", "seeds")}
    return _digest(json.dumps(axes, sort_keys=True).encode())


def trained(entry: Entry) -> bool:
    """Whether an entry's networks were trained, so that a curve belongs to it."""
    # To look for the word takes a hundredth of the time that reading the metadata does.
    return '"training"' in entry.metadata and "training" in json.loads(entry.metadata)["settings"]


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


class Listing:
    """Finds the tables of an experiment; remembers what it found."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.problems: list[str] = []
        self.newer: list[tables.NewerError] = []
        self.journals = {part: FooterJournal(folder / f".index-{part}.jsonl") for part in PARTS}
        self._compacted: dict[str, tuple] = {}
        self._packs: dict[Path, Pack] = {}

    def scan(self, part: str) -> list[Entry]:
        """Every readable table of a part, compacted ones first, then by file.

        Raises InputError where the folder cannot be read, or a manifest in it.
        """
        folder = self.folder / part
        found = [(name, stamp) for name, stamp in files(folder) if not name.startswith(PACK)]
        packed, refused = self._look(part)
        refused, known = list(refused), self.journals[part].read()
        singles, fresh = [], []
        for name, stamp in found:
            entry = known.get(name)
            if entry is None or entry.stamp != stamp:
                try:
                    entry = describe(folder / name, part)._replace(stamp=stamp)
                except InputError as error:
                    if os.path.lexists(folder / name):
                        refused.append(error)
                    continue
                fresh.append(entry)
            singles.append(entry)
        self.newer = [error for error in refused if isinstance(error, tables.NewerError)]
        problems = [getattr(error, "note", str(error)) for error in refused]
        if len(fresh) >= CACHED:
            self.journals[part].append(fresh)
        twice = [entry for entry in singles if entry.run in packed]
        problems += [f"{folder / entry.file} is compacted as well" for entry in twice]
        self.problems = [line for line in self.problems if line not in problems] + problems
        singles = sorted(entry for entry in singles if entry.run not in packed)
        return [*packed.values(), *singles]

    def packed(self, part: str) -> dict[str, Entry]:
        """The compacted runs of a part; raises InputError for a manifest that cannot be read."""
        return self._look(part)[0]

    def _look(self, part: str) -> tuple[dict[str, Entry], list[InputError]]:
        """The compacted runs of a part, and what is wrong with compacted files that are left out.

        Raises InputError for a manifest that cannot be read.
        """
        folder, now, manifest = self.folder / part, [], []
        if self.dated(part):
            with reading(folder / MANIFEST):
                now = [(MANIFEST, stamp(folder / MANIFEST))]
        now += files(folder, PACK)
        if now != self._compacted.get(part, ([],))[0]:
            if self.dated(part):
                manifest = _read_manifest(folder / MANIFEST)
            packed, refused = {}, []
            names = [*(name for name, _ in now if name != MANIFEST), *(e.file for e in manifest)]
            for name in dict.fromkeys(names):
                try:
                    own = [entry for entry in manifest if entry.file == name]
                    own = own or contents(folder / name)
                    if twice := packed.keys() & {entry.run for entry in own}:
                        raise InputError(f"{folder / name} holds {min(twice)}, as another does")
                except InputError as error:
                    refused.append(error)
                else:
                    packed |= {entry.run: entry for entry in own}
            self._compacted[part] = now, packed, refused
            self._packs = {}
        return self._compacted[part][1:] if now else ({}, [])

    def dated(self, *parts: str) -> bool:
        """Whether an older flowlab compacted one of the parts, and put a manifest beside it."""
        return any(os.path.lexists(self.folder / part / MANIFEST) for part in parts or PARTS)

    def rows(self, part: str, entry: Entry):
        """The rows of a compacted run, a pyarrow.Table; raises InputError for a damaged file."""
        path = self.folder / part / entry.file
        with reading(path):
            if path not in self._packs:
                self._packs[path] = Pack(path)
            return self._packs[path].rows(entry.first, entry.rows)


class Pack:
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
        # Compaction aligns row groups with runs: a run lies in one.
        group = int(np.searchsorted(self._starts, first, side="right")) - 1
        with self._lock:
            if self._group[0] != group:
                self._group = group, self._file.read_row_group(group)
            return self._group[1].slice(first - self._starts[group], count)


_WRITTEN: set[tuple] = set()  # schemas that this process wrote, by journal


class FooterJournal:
    """A cache of what footers say, a JSON line for each, appended by who wrote or read the file.

    A file's last line counts, and only while its stamp is the file's. Lines that are torn are
    passed over. Schemas are many runs' own: they have lines of their own, and a digest.
    """

    def __init__(self, path: Path):
        self._path = path
        self._forget(None)

    def _forget(self, inode: int | None) -> None:
        self._inode, self._end = inode, 0
        self._entries: dict[str, Entry] = {}
        self._schemas: dict[str, bytes] = {}

    def read(self) -> dict[str, Entry]:
        """What is known, by file."""
        if not self._usable():
            return {}
        with suppress(OSError), open(self._path, "rb") as file:
            stat = os.fstat(file.fileno())
            if stat.st_ino != self._inode or stat.st_size < self._end:
                self._forget(stat.st_ino)
            file.seek(self._end)
            text = file.read()
            whole = text[: text.rfind(b"\n") + 1]
            self._end += len(whole)
            for row in whole.splitlines():
                with suppress(ValueError, LookupError, TypeError):
                    self._take(json.loads(row))
        return self._entries

    def _usable(self) -> bool:
        """Whether a file stands there, or nothing: opening a pipe would wait for ever."""
        return os.path.isfile(self._path) or not os.path.lexists(self._path)

    def _take(self, line: list | dict) -> None:
        if isinstance(line, dict):
            self._schemas |= {name: base64.b64decode(text) for name, text in line.items()}
        else:
            entry = Entry(*line)
            self._entries[entry.file] = entry._replace(schema=self._schemas[entry.schema])

    def append(self, entries: Iterable[Entry]) -> None:
        """Add lines for files, where the folder allows."""
        if not entries or not self._usable():
            return
        with suppress(OSError), open(self._path, "ab", buffering=0) as file:
            inode, rows = os.fstat(file.fileno()).st_ino, [""]  # which ends a torn line
            if inode == self._inode:  # read, so known for sure
                written = {(self._path, inode, name) for name in self._schemas}
            else:
                written = _WRITTEN
            for entry in entries:
                name = _digest(entry.schema)
                key = (self._path, inode, name)
                if key not in written:
                    written.add(key)
                    _WRITTEN.add(key)
                    rows.append(json.dumps({name: base64.b64encode(entry.schema).decode()}))
                rows.append(json.dumps(entry._replace(schema=name)))
            file.write("\n".join([*rows, ""]).encode())


def describe(path: Path, part: str) -> Entry:
    """What a single file's footer says; raises InputError for a damaged or foreign one."""
    schema, rows, metadata = tables.footer(path)
    if "compacted" in metadata:
        raise InputError(f"{path} holds compacted runs: its name must begin with {PACK}")
    tables.readable(path, metadata)
    tables.complete(path, schema.names, LEAST[part])
    try:
        settings, version = metadata["settings"], str(metadata["versions"]["flowlab"])
        run = (condition_of(settings), int(settings["seed"]), int(settings["seeds"]), version)
    except (AttributeError, LookupError, TypeError, ValueError):
        run = ("", 0, 0, "")
    own = {name: text for name, text in (schema.metadata or {}).items() if name != b"flowlab"}
    plain = schema.with_metadata(own).serialize().to_pybytes()
    return Entry(path.stem, *run, path.name, stamp(path), 0, rows, plain, json.dumps(metadata))


def footer_of(entries: list[Entry]) -> dict[str, str]:
    """The metadata of a compacted file, which list its runs; they have one schema."""
    schema = base64.b64encode(entries[0].schema).decode()
    text = json.dumps([schema, [entry._replace(file="", schema="") for entry in entries]])
    # Readers in other languages want metadata to be text.
    packed = base64.b64encode(zlib.compress(text.encode())).decode()
    return {"flowlab": json.dumps({"schema": PACK_SCHEMA, "compacted": packed})}


def contents(path: Path) -> list[Entry]:
    """The runs in a compacted file; raises InputError for a damaged or foreign one."""
    metadata = tables.footer(path)[2]
    if metadata.get("compacted") is True:
        raise InputError(f"{path} cannot be read: the manifest that listed its runs is gone")
    tables.readable(path, metadata, PACK_SCHEMA)
    try:
        schema, rows = json.loads(zlib.decompress(base64.b64decode(metadata["compacted"])))
        own = {"file": path.name, "schema": base64.b64decode(schema)}
        return [Entry(*row)._replace(**own) for row in rows]
    except (ValueError, LookupError, TypeError, zlib.error) as error:
        raise InputError(f"{path} is damaged: {line(error)}") from None


def _read_manifest(path: Path) -> list[Entry]:
    """Read a manifest; raises InputError for a damaged one and that of a newer flowlab."""
    import pyarrow.parquet as pq

    tables.readable(path, tables.metadata(path))
    with reading(path):
        with pq.ParquetFile(path) as file:
            columns = file.read(columns=list(Entry._fields)).to_pydict()
        return list(map(Entry, *(columns[name] for name in Entry._fields)))


def files(folder: Path, beginning: str = "") -> Iterator[tuple[str, str]]:
    """The tables in a folder whose names begin so, with their stamps, "" for what cannot be one.

    Raises InputError where the folder cannot be read.
    """
    for name in listed(folder):
        hidden = name.startswith((".", "_"))
        if name.startswith(beginning) and name.endswith(".parquet") and not hidden:
            try:
                yield name, stamp(os.path.join(folder, name))
            except OSError:
                yield name, ""


def stamp(path: str | Path) -> str:
    """What changes with a file, since the clock alone may have jumped; "" for what is no file."""
    found = os.stat(path)
    regular = S_ISREG(found.st_mode)
    return f"{found.st_size}-{found.st_mtime_ns}-{found.st_ino}" if regular else ""


@lru_cache
def schema_of(text: bytes):
    """The pyarrow.Schema of an entry."""
    import pyarrow as pa

    return pa.ipc.read_schema(pa.BufferReader(text))


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:16]
