"""An experiment's folders exchanged for others, of fewer files or fewer runs, while it is in use.

New folders are built in ``.compacting``; each takes the place of the old one, which is ``.old-...``
until it is removed. Whoever finds such a folder finishes or undoes the exchange that left it.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import count
from pathlib import Path

from flowlab.errors import InputError
from flowlab.storage.files import listed, reading, storing, sync
from flowlab.storage.index import (
    MANIFEST,
    PACK,
    PARTS,
    Entry,
    Listing,
    files,
    footer_of,
    schema_of,
)

GROUP = 1 << 17  # rows of a row group, at least


@contextmanager
def lock(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold a lock: an experiment's ``.lock`` for moments, ``.compact-lock`` around it.

    Raises BlockingIOError where another holds it and this one does not ``wait``.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:  # made by another user: reading is enough
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(handle)


def steady(folder: Path, read: Callable):
    """What ``read`` gives while no folder is exchanged under it."""
    while True:
        _repair(folder)
        with _held(folder) as before:
            try:
                found, error = read(), None
            except InputError as raised:
                found, error = None, raised
            with _held(folder) as after:
                if before != after:
                    continue
        if error:
            raise error
        return found


def undo(folder: Path) -> None:
    """Finish or undo an exchange that was interrupted; the caller holds ``.lock``."""
    for part in PARTS:
        old, place = folder / f".old-{part}", folder / part
        if not os.path.lexists(old):
            continue
        if os.path.islink(old) or not os.path.isdir(old):
            raise InputError(f"{old} must be a folder or not there; something else is")
        if os.path.lexists(folder / ".compacting" / part):  # the new one is not in place
            if os.path.lexists(place):  # somebody made it since
                for path in place.iterdir():
                    os.replace(path, old / path.name)
                place.rmdir()
            os.rename(old, place)
        else:
            shutil.rmtree(old)


def clear(folder: Path) -> None:
    """Remove all that a compaction left which died; the caller holds ``.compact-lock``."""
    with lock(folder / ".lock"):
        undo(folder)
        building = folder / ".compacting"
        if os.path.isdir(building) and not os.path.islink(building):
            shutil.rmtree(building)
        else:
            building.unlink(missing_ok=True)


def rebuild(listing: Listing, drop: set[str], fold=False, landing=None, progress=None) -> None:
    """Exchange all folders for ones without the runs ``drop``, single files ``fold``-ed.

    ``landing`` is a dropped run's new files. The caller holds ``.compact-lock``. The new folders
    are built while runs may be saved; under ``.lock`` whatever else lies in the old ones is linked
    into the new, and these take their place.
    """
    try:
        _rebuild(listing, drop, fold, landing, progress)
    except (Exception, KeyboardInterrupt):
        with suppress(OSError):  # a full disk gets its space back
            clear(listing.folder)
        raise


def _rebuild(listing: Listing, drop: set[str], fold: bool, landing, progress) -> None:
    folder, building = listing.folder, listing.folder / ".compacting"
    for part in PARTS:
        if os.path.islink(folder / part):
            raise InputError(f"{folder / part} must be a folder to be compacted; it is a link")
    while True:
        clear(folder)
        parts = _there(folder)
        entries = {
            part: [e for e in listing.scan(part) if e.run not in drop and (fold or not e.stamp)]
            for part in parts
        }
        count_one = partial(_report, progress, count(1), sum(map(len, entries.values())))
        for part in parts:
            (building / part).mkdir(parents=True)
            entries[part] = _gather(listing, part, entries[part], count_one)
        with lock(folder / ".lock"):
            if parts != _there(folder):
                continue  # the first trained run was saved meanwhile
            if not all(_unchanged(folder / part, entries[part]) for part in parts):
                continue  # a run was saved anew meanwhile
            for part in parts:
                _carry(listing, part, entries[part], drop)
            for part, temporary in (landing or {}).items():
                os.replace(temporary, building / part / f"{next(iter(drop))}.parquet")
            for part in reversed(parts) if landing else parts:
                _sync(building / part)
                os.rename(folder / part, folder / f".old-{part}")
                os.rename(building / part, folder / part)
            _sync(folder)
            undo(folder)
            shutil.rmtree(building)
            if fold:  # little of the journals is of use
                for part in parts:
                    (folder / f".index-{part}.jsonl").unlink(missing_ok=True)
            return


def _there(folder: Path) -> list[str]:
    """The parts that an experiment has: curves where a run was trained."""
    return [part for part in PARTS if os.path.lexists(folder / part)]


def _repair(folder: Path) -> None:
    """Undo an exchange that was interrupted, and remove what a compaction left which died."""
    if any(os.path.lexists(folder / f".old-{part}") for part in PARTS):
        with storing(folder), lock(folder / ".lock"):
            undo(folder)
    if os.path.lexists(folder / ".compacting"):
        with suppress(OSError), lock(folder / ".compact-lock", wait=False):  # none that lives
            clear(folder)


@contextmanager
def _held(folder: Path) -> Iterator[list]:
    """Which folders stand in the experiment's, held open: else others may get their numbers."""
    found = []
    with ExitStack() as stack:
        for name in (*PARTS, *(f".old-{part}" for part in PARTS)):
            try:
                handle = os.open(folder / name, os.O_RDONLY | os.O_NONBLOCK)
            except OSError:
                found.append(None)
            else:
                stack.callback(os.close, handle)
                found.append(os.fstat(handle).st_ino)
        yield found


def _gather(listing: Listing, part: str, entries: list[Entry], count_one: Callable) -> list[Entry]:
    """Write entries into one file for each schema; those written."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder, written = listing.folder / ".compacting" / part, []
    # What cannot be read keeps its name.
    taken = {*listed(listing.folder / part)} - {e.file for e in listing.packed(part).values()}
    names = (f"{PACK}{number}.parquet" for number in count())
    free = (name for name in names if name not in taken)
    # The first file has most columns, for readers that take them from the first.
    kinds = dict.fromkeys(entry.schema for entry in entries)
    kinds = sorted(kinds, key=lambda text: -len(schema_of(text).names))
    for text in kinds:
        schema, gathered = schema_of(text), []
        path, first = folder / next(free), 0
        mine = [entry for entry in entries if entry.schema == text]
        with open(path, "wb") as file, ThreadPoolExecutor(os.cpu_count()) as pool:
            with pq.ParquetWriter(file, schema, compression="zstd") as writer:
                for group in _groups(mine):
                    rows = pool.map(partial(_rows, listing, part, schema), group)
                    found = [pair for pair in zip(group, rows, strict=True) if pair[1] is not None]
                    for entry, table in found:
                        written.append(entry)
                        gathered.append(entry._replace(file=path.name, stamp="", first=first))
                        first += table.num_rows
                        count_one()
                    if found:
                        whole = pa.concat_tables([table for _, table in found])
                        writer.write_table(whole, row_group_size=max(whole.num_rows, 1))
                if gathered:
                    writer.add_key_value_metadata(footer_of(gathered))
            sync(file)
        if not gathered:
            path.unlink()  # none of its runs could be read
    return written


def _rows(listing: Listing, part: str, schema, entry: Entry):
    """An entry's rows as they are stored; None for a single file that has none such."""
    import pyarrow.parquet as pq

    if not entry.stamp:
        return listing.rows(part, entry)
    path = listing.folder / part / entry.file
    try:
        with reading(path), pq.ParquetFile(path) as file:
            table = file.read(use_threads=False)
    except InputError as error:
        listing.problems.append(str(error))
        return None
    same = table.schema.equals(schema) and table.num_rows == entry.rows
    return table.replace_schema_metadata(schema.metadata) if same else None


def _groups(entries: list[Entry]) -> Iterator[list[Entry]]:
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


def _unchanged(folder: Path, entries: list[Entry]) -> bool:
    stamps = dict(files(folder))
    return all(stamps.get(entry.file) == entry.stamp for entry in entries if entry.stamp)


def _carry(listing: Listing, part: str, entries: list[Entry], drop: set[str]) -> None:
    """Link what was not gathered into the new folder."""
    gone = {MANIFEST, *(e.file for e in entries), *(f"{run}.parquet" for run in drop)}
    gone |= {entry.file for entry in listing.packed(part).values()}
    for path in (listing.folder / part).iterdir():
        target = listing.folder / ".compacting" / part / path.name
        if path.name in gone:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, target, symlinks=True, copy_function=_link)
        else:
            _link(path, target)


def _report(progress: Callable | None, done: Iterator[int], total: int) -> None:
    if progress:
        progress(next(done), total)


def _link(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:  # a file system without links
        shutil.copy2(source, target, follow_symlinks=False)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
