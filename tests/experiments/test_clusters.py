"""Sweeps by the launchers of others: the same tables, also when a node dies.

Ray and submitit are extras: what is not installed is not tested.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from importlib.util import find_spec

import pytest
from omegaconf import OmegaConf

from experiments.sweep import engines
from flowlab.errors import InputError
from tests.support.sweeping import (
    PATIENCE,
    ROOT,
    Sweep,
    assert_same,
    assert_within,
    before_measuring,
    kept,
)

SMALL = ["-m", "width=8", "batch_size=8", "data=gaussian", "seeds=2"]
SWEEP = [*SMALL, "depth=2,3,4,5,6,8,10,20", "activation=relu,tanh,identity"]
# On a cluster a condition takes as long as needed to strike while some are measured.
SLOW = before_measuring("time.sleep(0.5)")


def needs(package: str):
    missing = find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"{package} is not installed")


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The tables of SWEEP by this machine's processes."""
    folder = tmp_path_factory.mktemp("local")
    assert Sweep(folder, *SWEEP).end()[0] == 0
    return kept(folder)


DEADLY = before_measuring(
    "(settings.depth, settings.activation) == (4, 'relu') and os.kill(os.getpid(), 9)"
)
ENGINES = [
    pytest.param(["hydra/launcher=submitit_local"], marks=needs("submitit"), id="submitit"),
    pytest.param(
        ["hydra/launcher=ray", "hydra.launcher.ray.init.address=local"],
        marks=needs("ray"),
        id="ray",
    ),
]


@pytest.mark.parametrize("engine", ENGINES)
def test_engines_make_the_same_tables_and_name_failures(engine, expected, tmp_path):
    sweep = [*SMALL, "depth=0,2,3,4,5,6,8,10,20", "activation=relu,tanh,identity", *engine]
    code, output, errors = Sweep(tmp_path, *sweep, hook=DEADLY).end()
    assert code == 2 and len(errors.splitlines()) == 1, errors
    assert "4 of 27 conditions could not run: depth=0 activation=relu: depth must be" in errors
    assert "depth=4 activation=relu: 3 processes died over it" in errors
    assert "23 measured" in output and "4 failed" in output
    code, output, errors = Sweep(tmp_path, *SWEEP, *engine).end()
    assert (code, errors) == (0, "")
    assert "1 measured" in output and "23 kept from before" in output
    assert_same(kept(tmp_path), expected)
    assert not list((tmp_path / "results/.sweeps").iterdir())


# --- Slurm ----------------------------------------------------------------------------------------


SBATCH = """#!{python}
import re, sys
text = open(sys.argv[-1]).read()
open({record!r}, 'a').write(text)
print('Submitted batch job 77')
"""


@needs("submitit")
def test_slurm_is_asked_for_what_was_configured(tmp_path):
    """What is handed to sbatch; there is no Slurm here that would run it."""
    programs, record = tmp_path / "bin", tmp_path / "submitted"
    programs.mkdir()
    states = "JobID|State|NodeList\\n" + "".join(f"77_{n}|FAILED|one\\n" for n in range(6))
    for name, text in (
        ("sbatch", SBATCH.format(python=sys.executable, record=str(record))),
        ("sacct", f"#!/bin/sh\nprintf '{states}'\n"),
        ("srun", "#!/bin/sh\n"),
    ):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    code, _, errors = Sweep(
        tmp_path,
        *SWEEP,
        "hydra/launcher=submitit_slurm",
        "hydra.launcher.partition=short",
        "hydra.launcher.cpus_per_task=3",
        "hydra.launcher.mem_gb=5",
        "hydra.launcher.timeout_min=17",
        "hydra.launcher.array_parallelism=4",
        "hydra.sweeper.part=4",
        PATH=f"{programs}{os.pathsep}{os.environ['PATH']}",
    ).end()
    asked = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2]
        for line in record.read_text().splitlines()
        if line.startswith("#SBATCH --")
    )
    assert asked["job-name"] == "flowlab"
    assert asked["partition"] == "short"
    assert asked["cpus-per-task"] == "3"
    assert asked["mem"] == "5GB"
    assert asked["time"] == "17"
    assert asked["array"] == "0-5%4"  # 24 conditions in parts of four
    assert code == 2 and len(errors.splitlines()) == 1, errors
    assert "hydra/launcher=submitit_slurm: Job 77_0" in errors and "(state: FAILED)" in errors
    assert "what is done is kept, and the same command does the rest" in errors


# --- Ray ------------------------------------------------------------------------------------------


@needs("grpc")
def test_an_address_where_somebody_else_listens_is_refused(monkeypatch):
    monkeypatch.setattr(engines, "_ANSWER", 1.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(InputError, match=f"no Ray cluster answers at {address} .*says nothing"):
            engines.check(OmegaConf.create({"ray": {"init": {"address": address}}}))


def test_an_address_where_nobody_listens_is_refused():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for form in (address, f"ray://{address}"):
            launcher = OmegaConf.create({"ray": {"init": {"address": form}}})
            with pytest.raises(InputError, match=f"no Ray cluster answers at {form}"):
                engines.check(launcher)
    for here in (None, "auto", "local"):
        engines.check(OmegaConf.create({"ray": {"init": {"address": here}}}))


RAY = [sys.executable, "-m", "ray.scripts.scripts"]
OPEN = {"RAY_AUTH_MODE": "disabled"}  # to whoever is on this machine
NODE = ["--num-cpus=1", "--node-ip-address=127.0.0.1", "--disable-usage-stats"]


class Node:
    """A node of a Ray cluster with one core, on this machine's loopback."""

    def __init__(self, folder, *how: str):
        (folder / "sitecustomize.py").write_text(SLOW)
        self.process = subprocess.Popen(
            [*RAY, "start", "--block", *NODE, *how],
            cwd=folder,
            env=os.environ | OPEN | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def kill(self) -> None:
        """Kill all its processes at once."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def cluster(folder):
    """A cluster of two nodes: its address, and the second."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address, nodes = f"127.0.0.1:{port}", []
    try:
        nodes.append(Node(folder, "--head", f"--port={port}", "--include-dashboard=false"))
        _until_listening(port)
        nodes.append(Node(folder, f"--address={address}"))
        _until_nodes(address, 2)
        yield address, nodes[1]
    finally:
        for node in nodes:
            if node.process.poll() is None:
                node.kill()


def _until_listening(port: int) -> None:
    limit = time.monotonic() + PATIENCE
    while time.monotonic() < limit:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the first node does not listen")


def _until_nodes(address: str, count: int) -> None:
    program = (
        "import ray, time\n"
        f"ray.init(address='{address}', log_to_driver=False, logging_level='ERROR')\n"
        f"while sum(node['Alive'] for node in ray.nodes()) < {count}: time.sleep(0.1)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ | OPEN)


@needs("ray")
def test_a_node_that_dies_costs_nothing_but_time(expected, tmp_path):
    (tmp_path / "nodes").mkdir()
    with cluster(tmp_path / "nodes") as (address, second):
        ray = ["hydra/launcher=ray", f"hydra.launcher.ray.init.address={address}"]
        sweep = Sweep(tmp_path, *SWEEP, *ray, "hydra.sweeper.part=2", **OPEN)
        assert sweep.until(lambda: sweep.events() >= 16)
        before = kept(tmp_path)
        assert 0 < len(before) < 48
        second.kill()
        code, output, errors = sweep.end()
        assert (code, errors) == (0, ""), errors
        assert "24 measured" in output
        assert_within(before, expected)
        assert_same(kept(tmp_path), expected)
        code, output, _ = Sweep(tmp_path, *SWEEP, *ray, **OPEN).end()
        assert code == 0 and "24 kept from before" in output
    assert not list((tmp_path / "results/.sweeps").iterdir())
