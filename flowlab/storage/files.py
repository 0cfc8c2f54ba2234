"""Files written whole or not at all, folders that take them, and whatever stands in their place."""

import os
import stat
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
def reading(path: str | Path) -> Iterator[None]:
    """Give what a file raises that cannot be read in one line, as InputError about ``path``.

    Nothing is opened that is no file: a pipe would wait for ever.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise InputError(f"{path} cannot be read: it is not a file")
        yield
    except InputError:
        raise
    except UnicodeEncodeError:
        raise InputError(f"{path} cannot be read: its name is not UTF-8") from None
    except OSError as error:
        raise InputError(_unreadable(path, error)) from None
    except (ValueError, LookupError, NotImplementedError) as error:  # as parsers raise
        raise InputError(f"{path} is damaged: {line(error)}") from None


def listed(folder: str | Path) -> list[str]:
    """The names in a folder, sorted; none where nothing is there.

    Raises InputError where the folder refuses, or something else stands in its place.
    """
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError as error:
        if os.path.islink(folder):
            raise InputError(_unreadable(folder, error)) from None
        return []
    except OSError as error:
        raise InputError(_unreadable(folder, error)) from None


def line(error: Exception) -> str:
    """An error's first line."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def _unreadable(path: str | Path, error: OSError) -> str:
    if error.errno is None:  # pyarrow's, of what it read
        return f"{path} is damaged: {line(error)}"
    if isinstance(error, FileNotFoundError) and os.path.islink(path):
        return f"{path} cannot be read: it is a link to nothing"
    return f"{path} cannot be read: {os.strerror(error.errno)}"


@contextmanager
def storing(path: str | Path) -> Iterator[None]:
    """Turn an error of the disk into one line, a StorageError about ``path``."""
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
    make_folder(path.parent)
    # A name that begins with a dot: readers of the folder pass over it.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")
    with storing(path):
        try:
            with open(temporary, "xb") as file:
                yield file
                sync(file)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def make_folder(path: str | Path) -> None:
    """Make a folder and those above it; raises StorageError where something else stands there."""
    with storing(path):
        try:
            os.makedirs(path, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            taken = next(p for p in (Path(path), *Path(path).parents) if os.path.lexists(p))
            raise StorageError(f"{taken} must be a folder; something else is there") from None


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
