"""The benchmark of a sweep of depth: processes of their own, and estimates that say they are."""

import os
import signal
from contextlib import nullcontext
from importlib.util import find_spec
from itertools import pairwise

import pandas as pd
import pytest

import flowlab
from experiments.benchmarks import depth_sweep, depths
from experiments.benchmarks.depths import KEPT, OURS, DepthTime, estimate, spaced

TINY = {"width": 4, "batch": 3, "seeds": 2, "count": 3, "deepest": 6, "threads": 1}


def test_depths_are_spaced_evenly_by_their_logarithms():
    found = spaced(20, 1000)
    assert len(found) == 20 and (found[0], found[-1]) == (2, 1000)
    steps = [b / a for a, b in pairwise(found[6:])]
    assert max(steps) < 1.1 * min(steps)
    assert spaced(20, 6) == [2, 3, 4, 5, 6] and spaced(3, 1) == [2]


@pytest.mark.parametrize("timed", [(2, 8), (2, 8, 32), (4, 8, 16, 64)])
def test_what_is_a_line_in_depth_is_estimated_exactly(timed):
    line = {depth: 3 + 0.5 * depth for depth in (2, 4, 8, 16, 32, 64)}
    found = DepthTime(1.0, {depth: line[depth] for depth in timed})
    asked = [depth for depth in line if depth >= timed[0]]
    assert estimate(found, asked) == pytest.approx(1 + sum(line[d] for d in asked))


def test_an_estimate_never_exceeds_what_grows_faster():
    square = {depth: 0.01 * depth**2 for depth in (2, 4, 8, 16, 32)}
    found = DepthTime(0.0, {depth: square[depth] for depth in (2, 4, 8)})
    assert found.total < estimate(found, list(square)) < sum(square.values())


def test_little_is_not_extrapolated_from():
    assert pd.isna(estimate(DepthTime(1.0, {2: 1.0}), [2, 4]))
    assert estimate(DepthTime(1.0, {2: 1.0, 4: 2.0}), [2, 4]) == 4.0
    # By chance: what is deeper takes no less than the deepest that was timed.
    falling = DepthTime(0.0, {2: 2.0, 4: 1.0})
    assert estimate(falling, [2, 4, 8]) == 4.0


def row(form, ratio, measured, timed=20, deepest=1000):
    return {"form": form, "seconds": 10 * ratio, "ratio": ratio, "measured": measured} | {
        "timed": timed,
        "depths": 20,
        "deepest": deepest,
    }


def test_report_says_what_is_estimated():
    rows = [row(OURS, 1.0, 10.0), row(KEPT, 0.5, 5.0), row("torch batched by hand", 3.0, 30.0)]
    rows += [row("jax unrolled, vmap", 20.0, 50.0, 5, 52), row("torch hooks", float("nan"), 9.0, 1)]
    assert depths.report(pd.DataFrame(rows)) == (
        "The sweep takes flowlab 10 s, compilation included, and 5 s with kernels kept; "
        "3.0 times as long with torch batched by hand; 20.0 times as long with jax unrolled, vmap "
        "(75% of it estimated from 5 of 20 depths, up to 52); torch hooks did not get through two "
        "depths."
    )
    assert depths.report(pd.DataFrame(rows[1:2])) == "The sweep of depth was not timed."


def test_flowlab_has_processes_of_its_own(said, monkeypatch):
    monkeypatch.setattr(depths, "PEERS", ())
    monkeypatch.setattr(depths.tempfile, "TemporaryDirectory", nullcontext)  # kernels that are kept
    found = pd.DataFrame(depths.rows(said.append, **TINY)).set_index("form")
    assert list(found.index) == [OURS, KEPT]
    assert (found["timed"] == 3).all() and (found["deepest"] == 6).all()
    assert (found["seconds"] == found["measured"]).all() and (found["start"] > 0).all()
    assert f"{OURS}: depth 6" in said


@pytest.mark.parametrize("form", depths.PEERS)
def test_a_peer_goes_through_depths_in_their_order(form, capsys, monkeypatch):
    if not find_spec(form.split()[0]):
        pytest.skip("not installed")
    if form.startswith("torch"):  # whose process keeps no subnormal numbers: this one does
        monkeypatch.setattr("torch.set_flush_denormal", lambda mode: None)
    depth_sweep.work(form, width=4, batch=3, seeds=2, threads=1, depths=[3, 2])
    assert capsys.readouterr().out.split() == ["ready", "3", "2"]


def test_flowlabs_part_takes_every_initialization(monkeypatch, capsys):
    measured = []
    monkeypatch.setattr("flowlab.measure", lambda **given: measured.append(given))
    depth_sweep.work(KEPT, width=4, batch=3, seeds=2, threads=1, depths=[2, 5])
    assert [given["depth"] for given in measured] == [2] * 4 + [5] * 4
    made = [flowlab.make(**given) for given in measured]
    assert len({settings.run() for settings in made}) == 8


@pytest.fixture
def script(monkeypatch, tmp_path):
    """Puts a script in place of the sweep."""

    def put(text):
        monkeypatch.setattr(depths.depth_sweep, "__name__", "script")
        (tmp_path / "script.py").write_text(text)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        return {"threads": 1, "depths": [2, 4, 8, 16, 32]}

    return put


SLOW = """
import os, time
print(os.getpid(), flush=True)
for _ in range(3):
    print("done", flush=True)
time.sleep(60)
"""


def test_a_peer_whose_time_is_over_is_ended(script, said):
    found = depths._child("torch", script(SLOW), said.append, seconds=0.1)
    assert list(found.seconds) == [2, 4, 8]
    assert said[-1] == "torch: depth 16"


def test_kernels_are_compiled_into_a_folder_of_its_own(script, said):
    shape = script("import os\nassert os.environ['NUMBA_CACHE_DIR'] == 'mine'\nprint('ready')")
    assert depths._child(OURS, shape, said.append, cache="mine").start > 0
    assert pd.isna(depths._child(OURS, shape, said.append).start)


def test_an_interrupt_ends_the_process(script, monkeypatch):
    started = []
    monkeypatch.setattr(
        depths, "arrives", lambda lines, _: started.append(lines.get(timeout=20)) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        depths._child("torch", script(SLOW), print)
    with pytest.raises(ProcessLookupError):
        os.kill(int(started[0]), signal.SIGTERM)


def test_a_peer_that_fails_is_said_to_have_failed(script, said, capsys):
    found = depths._child("torch", script("print('ready')\nraise SystemError('why')"), said.append)
    assert found.seconds == {} and found.start > 0
    assert capsys.readouterr().err == "note: torch ended early: SystemError: why\n"
