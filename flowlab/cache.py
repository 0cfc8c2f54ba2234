"""Compiled code on disk, safe for several processes, for ones that are killed, and for edits.

Numba names a function's compiled forms 1, 2, ... and enters a name into the index before its file
is written. So two processes may give one name to two forms, and one that dies in between leaves
the name of an older file: either way a later process would run the wrong code. Nor does Numba see
edits of functions that are called from another file.

All of this goes by names that Numba does not promise to keep: no other file uses such names, and
pyproject.toml admits the versions of Numba that are known to have them.
"""

import glob
import hashlib
import os
import tempfile
import time
import uuid
import warnings
from contextlib import suppress
from fcntl import LOCK_EX, LOCK_NB, LOCK_UN, lockf
from functools import cache
from stat import S_IMODE

from filelock import FileLock

from flowlab.errors import Notice
from flowlab.numba_private import (
    Dispatcher,
    FunctionCache,
    IndexDataCacheFile,
    config,
    event,
    rtsys,
)

_PATIENCE = 120.0  # seconds for which another process may compile one form
_POLL = 0.02


class _Cache(FunctionCache):
    """Each form of a function is compiled by one process, for which others wait.

    Code is loaded without loading, first, all that compiling needs: a fifth of a second.
    """

    def load_overload(self, sig, target_context):
        rtsys.initialize(target_context)  # what compiled code calls
        found = self._load_overload(sig, target_context)
        if found is None and not self._claim(sig):
            with event.trigger_event("numba:compile"):  # elsewhere
                end = time.monotonic() + _PATIENCE
                while not self._claim(sig) and time.monotonic() < end:
                    time.sleep(_POLL)
            found = self._load_overload(sig, target_context)
        if found is not None:
            self._release(sig)
        return found

    def save_overload(self, sig, data):
        super().save_overload(sig, data)
        self._release(sig)

    def _claim(self, sig) -> bool:
        """Is this process to compile the form? Its claim ends with it at the latest."""
        with suppress(OSError):
            os.makedirs(self._cache_path, exist_ok=True)
            try:
                lockf(_claims(self._cache_path), LOCK_EX | LOCK_NB, 1, self._place(sig))
            except (BlockingIOError, PermissionError):
                return False
        return True

    def _release(self, sig) -> None:
        with suppress(OSError):
            lockf(_claims(self._cache_path), LOCK_UN, 1, self._place(sig))

    def _place(self, sig) -> int:
        """The byte of the file of claims that stands for the form."""
        name = f"{self._impl.filename_base} {sig}"
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big")


@cache
def _claims(folder: str) -> int:
    """The file of claims, which stays open: to close it would end them."""
    return os.open(os.path.join(folder, "flowlab.claims"), os.O_RDWR | os.O_CREAT, 0o666)


class _CacheFile(IndexDataCacheFile):
    """A name is never used twice, and enters the index once its file is there.

    Compiled code that cannot be read or written is compiled again and works as well.
    """

    def load(self, key):
        with suppress(OSError):
            return super().load(key)

    def save(self, key, data):
        try:
            self._save(key, data)
        except OSError as error:  # a full disk, a lock or a folder of another user's
            _say_lost(self._cache_path, error.strerror)

    def _save(self, key, data):
        stem = os.path.join(self._cache_path, self._index_name.removesuffix(".nbi"))
        with FileLock(os.path.join(self._cache_path, "flowlab.lock")):
            names = self._load_index()
            names[key] = f"{os.path.basename(stem)}.{uuid.uuid4().hex[:12]}.nbc"
            self._save_data(names[key], data)
            self._save_index(names)
            for path in glob.glob(f"{glob.escape(stem)}.*.nbc"):
                if os.path.basename(path) not in names.values():
                    os.unlink(path)  # of an older source


def keep(dispatcher: Dispatcher, file: str) -> Dispatcher:
    """Keep what ``dispatcher`` compiles, if its source ``file`` exists; returns it.

    Beside the source, in the home folder or, where neither is writable, in one for temporary files.
    """
    if os.path.exists(file):
        try:
            dispatcher.enable_caching()
        except RuntimeError:  # as Numba says that no folder is writable
            if not _fall_back(os.path.dirname(file)):
                return dispatcher
            dispatcher.enable_caching()
        dispatcher._cache.__class__ = _Cache
        own = dispatcher._cache._cache_file
        own.__class__ = _CacheFile
        own._source_stamp = (own._source_stamp, *map(_state, sorted(_sources(dispatcher))))
    return dispatcher


def ready() -> None:
    """Settle where compiled code is kept for the processes that this one is about to start."""
    try:
        FunctionCache(keep)
    except RuntimeError:
        _fall_back(os.path.dirname(__file__))


@cache
def _fall_back(home: str) -> bool:
    """Let compiled code go to a folder for temporary files, if there is one; says so, once.

    Processes that this one starts follow.
    """
    folder = _temporary()
    refused = f"neither {home} nor the home folder is writable"
    if folder is None:
        message = f"compiled code is not kept, so every command compiles anew: {refused}"
    else:
        os.environ["NUMBA_CACHE_DIR"] = config.CACHE_DIR = folder
        message = f"compiled code is kept in {folder}: {refused}"
    warnings.warn(message, Notice, stacklevel=2)
    return folder is not None


def _temporary() -> str | None:
    """This user's own folder for temporary files: what lies there is run."""
    with suppress(OSError):
        folder = os.path.join(tempfile.gettempdir(), f"flowlab-{os.geteuid()}")
        with suppress(FileExistsError):
            os.mkdir(folder, 0o700)
        found = os.lstat(folder)
        if found.st_uid == os.geteuid() and S_IMODE(found.st_mode) == 0o700:
            return folder
    with suppress(OSError):  # another user took the name
        return tempfile.mkdtemp(prefix="flowlab-")


@cache
def _say_lost(folder: str, reason: str | None) -> None:
    text = f"compiled code is not kept in {folder}: {reason or 'it refuses'}"
    warnings.warn(text, Notice, stacklevel=2)


def _sources(dispatcher: Dispatcher) -> set[str]:
    """The files of all compiled functions within reach of this one."""
    files, found, waiting = set(), set(), [dispatcher.py_func]
    while waiting:
        function = waiting.pop()
        files.add(function.__code__.co_filename)
        if id(function.__globals__) not in found:
            found.add(id(function.__globals__))
            reached = function.__globals__.values()
            waiting += [value.py_func for value in reached if isinstance(value, Dispatcher)]
    return files


def _state(file: str) -> tuple[str, int, int]:
    state = os.stat(file)
    return os.path.basename(file), state.st_mtime_ns, state.st_size
