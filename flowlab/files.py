"""Files written whole or not at all, and folders that take them."""

import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from flowlab.errors import InputError


_NAME, _PATH = 255, 3900  # bytes: what file systems take, with room for the files' own names


class StorageError(InputError):
    """The folder or the disk refuses: full, read-only, over a quota, not permitted."""


@contextmanager
def storing(path: str | Path) -> Iterator[None]:
    """Tell an error of the disk in one line, as StorageError about ``path``."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from None


@contextmanager
def replacing(path: str | Path) -> Iterator[IO[bytes]]:
    """A new file that takes the place of ``path`` when the body ends, and vanishes if it raises.

    Missing folders are made. Raises StorageError where the folder or the disk refuses.
    """
    path = Path(path)
    # A name that begins with a dot: readers of the folder pass over it.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb") as file:
                yield file
                sync(file)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def sync(file: IO[bytes]) -> None:
    """Let nothing of a file be lost with the machine's power."""
    file.flush()
    os.fsync(file.fileno())


def write(content: str | bytes, path: str | Path) -> Path:
    """Write a file as :func:`replacing` does; its path."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)
    return Path(path)


def writable(folder: str | Path) -> None:
    """Raise InputError, before any work is done, where results could not be written."""
    folder = Path(folder).absolute()
    longest = max(len(os.fsencode(part)) for part in folder.parts)
    if longest > _NAME or len(os.fsencode(folder)) > _PATH:
        raise InputError(
            f"results_dir must have names of at most {_NAME} bytes, {_PATH} in all; got "
            f"{longest} and {len(os.fsencode(folder))}"
        )
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not existing.is_dir():
        raise InputError(f"results_dir must be a folder; {existing} is a file")
    try:
        handle, probe = tempfile.mkstemp(prefix=".probe.", dir=existing)
    except OSError as error:
        raise InputError(
            f"results_dir must be writable; {existing} is not ({error.strerror})"
        ) from None
    os.close(handle)
    os.unlink(probe)
