"""A second process compiles what a run will call, and nothing else."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from flowlab import make
from flowlab.ahead import Ahead
from flowlab.numba_private import event

ROOT = Path(__file__).resolve().parents[1]
LISTED = """
import sys
from dataclasses import replace
import flowlab
from flowlab.ahead import calls
from flowlab.kernel import Kernel

settings = flowlab.make(**eval(sys.argv[1]))
listed = calls(replace(settings, seeds=2, threads=1))
assert all(not dispatcher.overloads for dispatcher, _ in listed)
flowlab.measure(settings)
called = {(dispatcher, types) for dispatcher, _ in listed for types in dispatcher.overloads}
modules = [module for name, module in sys.modules.items() if name.startswith("flowlab.")]
values = {id(value): value for module in modules for value in vars(module).values()}.values()
kernels = [own for own in values if isinstance(own, Kernel) and "compiled" in vars(own)]
called |= {(kernel.compiled, types) for kernel in kernels for types in kernel.compiled.overloads}
print(called == set(listed), len(listed) > 10)
"""


@pytest.mark.parametrize(
    "axes",
    [
        {"network": "mlp", "depth": 30, "width": 8, "batch_size": 8, "seeds": 3},
        {"network": "transformer", "depth": 3, "width": 8, "batch_size": 4, "seeds": 3},
    ],
)
def test_what_is_listed_is_what_a_measurement_calls(axes):
    command = [sys.executable, "-c", LISTED, repr(axes)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "True True\n", done.stderr


def test_the_process_starts_with_the_first_kernel_and_ends_with_the_run():
    settings = make(depth=2, width=8, batch_size=8, seeds=2, threads=2)
    with Ahead(settings) as ahead:
        assert ahead._process is None
        with event.trigger_event("numba:compile"):
            first = ahead._process
        with event.trigger_event("numba:compile"):
            assert ahead._process is first and first.poll() is None
    assert first.returncode is not None


@pytest.mark.parametrize("axes", [{"threads": 1}, {"threads": 2, "training": "sgd"}])
def test_one_thread_and_training_do_without(axes):
    with Ahead(make(depth=2, seeds=2, **axes)) as ahead, event.trigger_event("numba:compile"):
        assert ahead._process is None


def test_it_ends_where_its_run_was_killed(tmp_path):
    """The process that is named as its parent is not there, as after a kill."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    given = pickle.dumps(make(depth=2, width=8, batch_size=8, seeds=2))
    command = [sys.executable, "-m", "flowlab.ahead", "1234567890"]
    done = subprocess.run(command, env=environment, input=given, capture_output=True)
    assert (done.returncode, list(tmp_path.rglob("*.nbc"))) == (0, [])
