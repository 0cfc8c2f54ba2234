"""Compiled code on disk: several writers, a killed one, edits of what is called."""

import os
import subprocess
import sys
from pathlib import Path

import numba
import pytest
from numba.core.caching import IndexDataCacheFile
from numba.core.runtime import rtsys

from flowlab.cache import _CacheFile
from flowlab.errors import Notice

ROOT = Path(__file__).resolve().parents[1]
PRIVATE = [
    "_cache_path",
    "_index_name",
    "_source_stamp",
    "_load_index",
    "_save_index",
    "_save_data",
]


@pytest.mark.parametrize("name", PRIVATE)
def test_numba_has_the_private_name(name, tmp_path):
    file = IndexDataCacheFile(str(tmp_path), "f", 1)
    assert hasattr(file, name), f"a cache file of Numba {numba.__version__} lacks {name}"


def test_a_compiled_function_has_the_private_names():
    function = numba.njit(test_numba_has_the_private_name)
    function.enable_caching()
    file = getattr(getattr(function, "_cache", None), "_cache_file", None)
    lacking = f"a function of Numba {numba.__version__} lacks _cache._cache_file"
    assert isinstance(file, IndexDataCacheFile), lacking
    lacking = f"a cache of Numba {numba.__version__} lacks _load_overload"
    assert hasattr(function._cache, "_load_overload"), lacking
    assert hasattr(rtsys, "initialize"), f"the runtime of Numba {numba.__version__} has changed"
    assert hasattr(numba.core.config, "CACHE_DIR"), f"Numba {numba.__version__} lacks CACHE_DIR"


@pytest.fixture
def cache(tmp_path):
    return lambda stamp=1: _CacheFile(str(tmp_path), "f", stamp)


def test_forms_written_at_once_keep_their_code(cache, tmp_path):
    processes = []
    for k in range(8):
        code = (
            "from flowlab.cache import _CacheFile\n"
            f"one = _CacheFile({str(tmp_path)!r}, 'f', 1)\n"
            f"for i in range(20): one.save(({k}, i), 'code of {k} ' + str(i))"
        )
        processes.append(subprocess.Popen([sys.executable, "-c", code], cwd=ROOT))
    assert [process.wait() for process in processes] == [0] * 8
    assert all(cache().load((k, i)) == f"code of {k} {i}" for k in range(8) for i in range(20))


def test_a_form_cut_short_is_not_taken_for_an_older_one(cache, monkeypatch):
    cache(stamp=1).save("int", "old code")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(IndexDataCacheFile, "_save_data", killed)
    with pytest.raises(KeyboardInterrupt):
        cache(stamp=2).save("int", "new code")
    assert cache(stamp=2).load("int") is None


def test_an_edit_drops_the_old_code(cache, tmp_path):
    cache(stamp=1).save("int", "old code")
    cache(stamp=2).save("int", "new code")
    assert cache(stamp=2).load("int") == "new code" and len(list(tmp_path.glob("*.nbc"))) == 1


KEEPER = """
import sys, tempfile, warnings
import numpy as np, user
from flowlab.errors import Notice
tempfile.tempdir = sys.argv[1]
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always", Notice)
    y = np.empty((1, 1))
    user.doubled(np.ones((1, 1)), y)
    user.tripled(y.copy(), y)
print(y[0, 0], sum(user.doubled.compiled.stats.cache_hits.values()))
for notice in caught:
    print(notice.message)
"""


@pytest.mark.parametrize("temporary", ["writable", "taken", "refusing"])
def test_a_project_and_a_home_that_refuse_cost_time_and_one_line(tmp_path, temporary):
    (tmp_path / "user.py").write_text(
        "from flowlab.kernel import kernel\n"
        '@kernel("...->...")\ndef doubled(x):\n    return 2 * x\n'
        '@kernel("...->...")\ndef tripled(x):\n    return 3 * x\n'
    )
    for name in ("__pycache__", "home", "refusing"):  # files, which refuse root as well
        (tmp_path / name).touch()
    (tmp_path / "writable").mkdir()
    (tmp_path / "taken").mkdir()
    own = f"flowlab-{os.geteuid()}"
    (tmp_path / "taken" / own).mkdir(0o755)  # others may have put code there
    environment = {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}", "HOME": str(tmp_path / "home")}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "home"), "NUMBA_CACHE_DIR": ""}

    def lines():
        command = [sys.executable, "-c", KEEPER, str(tmp_path / temporary)]
        done = subprocess.run(
            command, env=os.environ | environment, capture_output=True, text=True, check=True
        )
        return done.stdout.splitlines()

    result, notice = lines()
    assert result == "6.0 0"
    refused = f"neither {tmp_path} nor the home folder is writable"
    if temporary == "refusing":
        assert notice == f"compiled code is not kept, so every command compiles anew: {refused}"
        return
    place = notice.removeprefix("compiled code is kept in ").removesuffix(f": {refused}")
    assert Path(place).parent == tmp_path / temporary and list(Path(place).glob("*/*.nbc"))
    assert (Path(place).name == own) == (temporary == "writable")
    if temporary == "writable":
        assert lines() == ["6.0 1", notice]


def test_a_disk_that_refuses_code_costs_time_and_one_line(cache, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(IndexDataCacheFile, "_save_data", full)
    with pytest.warns(Notice, match="compiled code is not kept in .*: No space left") as caught:
        cache().save("int", "code")
        cache().save("float", "code")
    assert len(caught) == 1 and cache().load("int") is None


def test_an_edit_of_a_called_function_is_seen(tmp_path):
    (tmp_path / "helper.py").write_text(
        "from flowlab.kernel import jit\n@jit\ndef scale(x):\n    return 2.0 * x\n"
    )
    (tmp_path / "user.py").write_text(
        "from flowlab.kernel import kernel\nfrom helper import scale\n"
        '@kernel("...->...")\ndef scaled(x):\n    return scale(x)\n'
    )
    code = "import numpy as np, user; y = np.empty((1, 1)); user.scaled(np.ones((1, 1)), y); "
    code += "print(y[0, 0], sum(user.scaled.compiled.stats.cache_hits.values()))"

    def run():
        environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
        environment["NUMBA_CACHE_DIR"] = str(tmp_path / "cache")
        command = [sys.executable, "-c", code]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        ).stdout.split()

    assert run() == ["2.0", "0"]
    assert run() == ["2.0", "1"]
    helper = tmp_path / "helper.py"
    helper.write_text(helper.read_text().replace("2.0", "3.0 * 1.0"))
    assert run() == ["3.0", "0"]


SLOW = """
import sys, time
import numpy as np
from flowlab.cache import _Cache
import user

save = _Cache.save_overload
def slow(self, *given):
    print("compiled", flush=True)
    time.sleep(float(sys.argv[1]))
    save(self, *given)
_Cache.save_overload = slow
user.doubled(np.ones((1, 1)), y := np.empty((1, 1)))
print(y[0, 0], sum(user.doubled.compiled.stats.cache_hits.values()))
"""


@pytest.mark.parametrize("killed", [False, True])
def test_a_form_is_compiled_by_one_process_for_which_others_wait(tmp_path, killed):
    (tmp_path / "user.py").write_text(
        "from flowlab.kernel import kernel\n"
        '@kernel("...->...")\ndef doubled(x):\n    return 2 * x\n'
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    environment["NUMBA_CACHE_DIR"] = str(tmp_path / "cache")

    def start(seconds):
        command = [sys.executable, "-c", SLOW, str(seconds)]
        return subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
        )

    with start(600 if killed else 5) as first:
        assert first.stdout.readline() == "compiled\n"
        with start(0) as second:
            if killed:
                first.kill()
            own = ["compiled", "compiled", "2.0", "0"]  # the function and its lift
            assert second.communicate()[0].split() == (own if killed else ["2.0", "1"])
