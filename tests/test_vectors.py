"""The width of compiled vectors: asked for, or measured once for a machine."""

import json
import os
import subprocess
import sys
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import flowlab
from flowlab import vectors
from flowlab.kernel import kernel
from flowlab.storage.versions import versions

ROOT = Path(__file__).resolve().parents[1]
WIDE = "+avx2,+fma,+avx512f,+avx512dq,+avx512bw,+avx512vl"


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with AVX-512 on which nothing is settled; what it measures is noted."""
    own = SimpleNamespace(measured=[], answer=512, folder=tmp_path / "kept")

    def measured():
        own.measured.append(own.answer)
        return own.answer

    monkeypatch.setenv(vectors.VARIABLE, "")
    monkeypatch.setattr(vectors, "config", SimpleNamespace(CPU_FEATURES=None))
    monkeypatch.setattr(vectors, "host_features", lambda: WIDE)
    monkeypatch.setattr(vectors, "_measured", measured)
    monkeypatch.setattr(
        vectors, "FunctionCache", lambda _: SimpleNamespace(cache_path=str(own.folder))
    )
    return own


def settled(monkeypatch):
    """The width of a process that starts now."""
    monkeypatch.setattr(vectors, "config", SimpleNamespace(CPU_FEATURES=None))
    monkeypatch.setenv(vectors.VARIABLE, "")
    vectors.settle()
    return vectors.width()


@pytest.mark.parametrize(
    "wide, width",
    [
        ({"normals": 0.98, "tanh": 0.98, "norm": 0.078}, 512),
        ({"normals": 1.55, "tanh": 2.4, "norm": 0.087}, 256),  # within GAIN
        ({"normals": 1.0, "tanh": 3.0, "norm": 0.2}, 256),
    ],
)
def test_the_wider_vectors_are_taken_where_they_are_faster(wide, width):
    assert vectors.faster({"normals": 1.59, "tanh": 2.5, "norm": 0.088}, wide) == width


@pytest.mark.parametrize("answer", vectors.WIDTHS)
def test_a_machine_measures_once(machine, monkeypatch, answer):
    machine.answer = answer
    assert settled(monkeypatch) == answer
    machine.answer = 768 - answer
    assert settled(monkeypatch) == answer and machine.measured == [answer]
    assert os.environ[vectors.VARIABLE] == str(answer)  # for processes that this one starts


def test_processes_that_start_together_measure_once(machine):
    with ThreadPool(8) as pool:
        assert pool.map(lambda _: vectors._kept(), range(8)) == [512] * 8
    assert machine.measured == [512]


def test_nothing_is_kept_of_a_measurement_cut_short_or_a_damaged_file(machine, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    measured = vectors._measured
    monkeypatch.setattr(vectors, "_measured", interrupted)
    with pytest.raises(KeyboardInterrupt):
        vectors._kept()
    assert not list(machine.folder.glob("*.json"))
    monkeypatch.setattr(vectors, "_measured", measured)
    assert vectors._kept() == 512
    (kept,) = machine.folder.glob("*.json")
    kept.write_text("51")
    assert vectors._kept() == 512 and machine.measured == [512, 512]


@pytest.mark.parametrize("width", vectors.WIDTHS)
def test_the_environment_decides(machine, monkeypatch, width):
    monkeypatch.setenv(vectors.VARIABLE, str(width))
    vectors.settle()
    assert vectors.width() == width and machine.measured == []
    assert versions()["vectors"] == f"{width} bits"


def test_a_width_that_is_none_is_refused_in_one_line(monkeypatch):
    monkeypatch.setenv(vectors.VARIABLE, "300")

    @kernel("...->...")
    def doubled(x):
        return 2 * x

    with pytest.raises(flowlab.InputError, match=r"^FLOWLAB_VECTORS must be 256 or 512; got 300$"):
        doubled(np.ones((1, 1)), np.ones((1, 1)))


@pytest.mark.parametrize("features, given", [("+avx2,-avx512f", None), (WIDE, "+avx2")])
def test_other_machines_and_features_of_a_users_own_stay(machine, monkeypatch, features, given):
    monkeypatch.setattr(vectors, "host_features", lambda: features)
    monkeypatch.setattr(vectors, "config", SimpleNamespace(CPU_FEATURES=given))
    vectors.settle()
    assert given == vectors.config.CPU_FEATURES and vectors.width() == 256
    assert machine.measured == [] and "vectors" not in versions()


ASSEMBLY = f"""
from numba import float32
from numba.core import codegen
codegen.get_host_cpu_features = lambda: {WIDE!r}
from flowlab.kernel import kernel

@kernel("...->...")
def squared(x):
    return x * x + 1

squared.compiled.compile((float32[:, ::1], float32[:, ::1]))  # and not run
(text,) = squared.compiled.inspect_asm().values()
print("zmm" in text)
"""


@pytest.mark.parametrize("width", vectors.WIDTHS)
def test_compiled_code_has_vectors_of_that_width(width):
    environment = os.environ | {"NUMBA_CPU_NAME": "skylake-avx512", vectors.VARIABLE: str(width)}
    done = subprocess.run(
        [sys.executable, "-c", ASSEMBLY], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.stdout == f"{width == 512}\n", done.stderr


def test_a_trial_times_kernels_once_for_each_line():
    with vectors._trial(256) as trial:
        for _ in range(2):
            trial.stdin.write("\n")
            trial.stdin.flush()
            seconds = json.loads(trial.stdout.readline())
            assert set(seconds) == {"normals", "tanh", "norm"} and min(seconds.values()) > 0


def test_trials_that_fail_leave_the_width_as_it_is(monkeypatch):
    command = [sys.executable, "-c", ""]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    failing = lambda _: subprocess.Popen(command, text=True, **pipes)  # noqa: E731
    monkeypatch.setattr(vectors, "_trial", failing)
    assert vectors._measured() == 256
