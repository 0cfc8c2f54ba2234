"""What a command loads: packages that a run has no use for would take longer than its numbers."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ["matplotlib", "sklearn", "scipy.stats", "scipy.optimize", "scipy.integrate"]
HEAVY += ["scipy.interpolate", "scipy.sparse", "pyarrow.dataset", "torch", "jax", "IPython"]
COMPILING = ["numba.cpython.setobj", "numba.typed.typedlist"]
RUN = f"""
import runpy, sys
sys.argv = ["run", "depth=3", "width=8", "batch_size=8", "seeds=2"]
try:
    runpy.run_module("experiments.run", run_name="__main__")
except SystemExit as done:
    print(done.code, [name for name in {HEAVY + COMPILING} if name in sys.modules])
"""


def test_a_run_loads_what_it_uses_and_no_compiler_once_kernels_are_kept(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    def said():
        command = [sys.executable, "-c", RUN]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout.splitlines()[-1]

    said()  # compiles what no process has compiled yet
    assert said() == "0 []"
