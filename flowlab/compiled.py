"""Compiled code on disk, safe for several processes, for ones that are killed, and for edits.

Numba names a function's compiled forms 1, 2, ... and enters a name into the index before its file
is written. So two processes may give one name to two forms, and one that dies in between leaves
the name of an older file: either way a later process would run the wrong code. Nor does Numba see
edits of functions that are called from another file.
"""

import glob
import os
import uuid

from filelock import FileLock
from numba.core.caching import IndexDataCacheFile
from numba.core.dispatcher import Dispatcher


class _CacheFile(IndexDataCacheFile):
    """A name is never used twice, and enters the index once its file is there."""

    def save(self, key, data):
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
    """Keep what ``dispatcher`` compiles beside its source ``file``, if that exists; returns it."""
    if os.path.exists(file):
        dispatcher.enable_caching()
        own = dispatcher._cache._cache_file
        own.__class__ = _CacheFile
        own._source_stamp = (own._source_stamp, *map(_state, sorted(_sources(dispatcher))))
    return dispatcher


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
