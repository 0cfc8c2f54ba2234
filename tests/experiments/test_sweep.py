"""Sweeps: what is planned, skipped, extended, refused; the same tables however they are made."""

import json
import os
import subprocess
import sys
from itertools import product

import pandas as pd
import pytest
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict

from experiments import choices
from experiments.sweep import plugins, work
from experiments.sweep.conditions import conditions
from experiments.sweep.progress import Journal
from experiments.sweep.work import Work
from flowlab.measurement import ensemble
from flowlab.settings import Settings, make
from flowlab.training import loop
from tests.support.sweeping import ROOT, assert_same

SMALL = ["width=8", "batch_size=8", "seeds=2", "data=gaussian"]


def process(folder, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "experiments.run", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        text=True,
        **options,
    )


def names(folder):
    return sorted(path.name for path in (folder / "results/single/runs").glob("*.parquet"))


def tables(folder):
    """Every table of a results folder by its path there."""
    found = sorted((folder / "results").rglob("*.parquet"))
    return {str(path.relative_to(folder)): pd.read_parquet(path) for path in found}


# --- From overrides to conditions -----------------------------------------------------------------


@pytest.fixture
def planned():
    ConfigStore.instance().store(name="schema", node=Settings)
    plugins.register()
    with initialize_config_dir(str(choices.CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()

        def plan(overrides):
            mode = RunMode.MULTIRUN
            config = loader.load_configuration("config", list(overrides), run_mode=mode)
            return conditions(loader, config, overrides)

        plan.loader = loader
        yield plan


@pytest.mark.parametrize(
    "axes",
    [
        {"depth": ["3", "4"], "width": ["8", "16"]},
        {"network": ["mlp", "cnn"], "init": ["he", "orthogonal"], "init.gain": ["1", "2.5"]},
        {"experiment": ["batchnorm"], "batch_size": ["4", "8"], "activation": ["relu"]},
        {"network": ["lstm"], "network.steps": ["3", "5"], "network.recurrent": ["null", "lecun"]},
        {"init.gain": ["1", "1e-3"], "skip": ["none", "'identity'"], "init": ["normal"]},
    ],
)
def test_conditions_are_what_hydra_composes(axes, planned):
    found = planned([f"{key}={','.join(values)}" for key, values in axes.items()])
    expected = []
    for values in product(*axes.values()):
        overrides = [f"{key}={value}" for key, value in zip(axes, values, strict=True)]
        config = planned.loader.load_configuration("config", overrides, run_mode=RunMode.RUN)
        with open_dict(config):
            config.pop("hydra")
        expected.append(OmegaConf.to_object(config))
    assert [condition.settings for condition in found] == expected
    assert [type(c.settings.init.gain) for c in found] == [type(e.init.gain) for e in expected]


def test_groups_are_composed_once(planned, monkeypatch):
    composed = []
    original = type(planned.loader).load_sweep_config
    monkeypatch.setattr(
        type(planned.loader),
        "load_sweep_config",
        lambda self, config, overrides: (
            composed.append(overrides) or original(self, config, overrides)
        ),
    )
    assert len(planned(["init=he,xavier", "depth=range(2,52)", "width=8,16"])) == 200
    assert len(composed) == 2


def test_a_refused_condition_does_not_stop_the_others(planned):
    bad, good = planned(["depth=0,2"])
    assert bad.refusal == "depth must be at least 1; got 0" and good.refusal is None
    assert (bad.overrides, good.overrides) == ("depth=0", "depth=2")


# --- The command ----------------------------------------------------------------------------------


def test_what_is_kept_is_skipped_until_overwritten(call, tmp_path):
    code, output, errors = call("-m", *SMALL, "depth=2,3")
    assert (code, errors) == (0, "") and "2 runs: 2 measured" in output
    first = tables(tmp_path)
    before = {path: os.stat(tmp_path / path) for path in first}
    code, output, errors = call("-m", *SMALL, "depth=2,3,4")
    assert (code, errors) == (0, "")
    assert "3 runs: 1 measured" in output and "2 kept from before" in output
    assert {path: os.stat(tmp_path / path).st_ino for path in first} == {
        path: state.st_ino for path, state in before.items()
    }
    code, output, _ = call("-m", *SMALL, "depth=2,3", "overwrite=true")
    assert code == 0 and "2 runs: 2 measured" in output and "kept from" not in output
    assert all(os.stat(tmp_path / path).st_ino != state.st_ino for path, state in before.items())
    assert_same(first, {path: table for path, table in tables(tmp_path).items() if path in first})
    assert not list((tmp_path / "results/.sweeps").iterdir())


def test_a_changed_default_is_another_run_and_other_code_is_noted(call, tmp_path, monkeypatch):
    call("-m", *SMALL, "depth=2")
    code, output, _ = call("-m", *SMALL, "depth=2", "init.gain=1.5")
    assert code == 0 and "1 measured" in output and len(names(tmp_path)) == 2
    for module in ("experiments.sweep.plan", "flowlab.runs"):
        monkeypatch.setattr(f"{module}.versions", lambda: {"flowlab": "9.9+code"})
    code, output, _ = call("-m", *SMALL, "depth=2")
    assert code == 0 and "1 kept from before" in output
    assert "another version of the code; overwrite=true" in output


@pytest.mark.parametrize("network", ["mlp", "resnet", "rnn"])
def test_widening_seeds_measures_only_new_ones(call, tmp_path, monkeypatch, network):
    common = ["-m", *SMALL[:2], "data=digits", f"network={network}", "depth=2"]
    wide, narrow = tmp_path / "wide", tmp_path / "narrow"
    for folder in (wide, narrow):
        folder.mkdir()
    monkeypatch.chdir(wide)
    call(*common, "seed=1", "seeds=6")
    monkeypatch.chdir(narrow)
    call(*common, "seed=2", "seeds=2")
    measured = []
    original = ensemble.measure
    monkeypatch.setattr(
        ensemble,
        "measure",
        lambda s, *more, **named: measured.append((s.seed, s.seeds)) or original(s, *more, **named),
    )
    code, _, _ = call(*common, "seed=1", "seeds=6")
    assert code == 0 and measured == [(1, 1), (4, 3)]
    assert_same(tables(narrow), tables(wide))  # the narrow run has given way
    code, output, _ = call(*common, "seed=3", "seeds=2")
    assert code == 0 and "1 kept from before" in output and len(measured) == 2


@pytest.mark.parametrize("more", [["network=rnn"], ["training.lr=300", "norm=batch"]])
def test_widening_seeds_trains_only_new_ones(call, tmp_path, monkeypatch, more):
    common = ["-m", *SMALL[:2], "depth=3", "training=sgd", "training.steps=6", *more]
    wide, narrow = tmp_path / "wide", tmp_path / "narrow"
    for folder, *seeds in ((wide, "seed=1", "seeds=6"), (narrow, "seed=2", "seeds=2")):
        folder.mkdir()
        monkeypatch.chdir(folder)
        assert call(*common, *seeds)[0] == 0
    trained, original = [], loop.train

    def train(settings, *more, **named):
        trained.append((settings.seed, settings.seeds))
        return original(settings, *more, **named)

    monkeypatch.setattr(loop, "train", train)
    code, _, errors = call(*common, "seed=1", "seeds=6")
    assert (code, errors) == (0, "") and trained == [(1, 1), (4, 3)]
    assert_same(tables(narrow), tables(wide))  # the narrow run has given way, its curve too


def test_runs_of_other_seeds_are_left_alone(call, tmp_path, monkeypatch):
    call("-m", *SMALL, "depth=2", "seed=0,2")
    read = []
    monkeypatch.setattr(work.Experiment, "read", lambda self, run: read.append(run))
    monkeypatch.setattr("experiments.sweep.plan._READ", 0)  # for the ranking
    code, output, _ = call("-m", *SMALL, "depth=2", "seed=2,4")
    assert code == 0 and "1 measured" in output and "1 kept" in output
    assert not read and len(names(tmp_path)) == 3


def test_seeds_of_other_code_are_not_mixed(call, tmp_path, monkeypatch):
    call("-m", *SMALL, "depth=2")
    for module in ("experiments.sweep.plan", "flowlab.runs"):
        monkeypatch.setattr(f"{module}.versions", lambda: {"flowlab": "9.9+code"})
    measured = []
    original = ensemble.measure
    monkeypatch.setattr(
        ensemble,
        "measure",
        lambda s, *more, **named: measured.append(s.seeds) or original(s, *more, **named),
    )
    assert call("-m", *SMALL, "depth=2", "seeds=3")[0] == 0
    assert measured == [3] and len(names(tmp_path)) == 2


def test_failures_are_named_with_their_overrides_and_the_rest_completes(
    call, tmp_path, monkeypatch
):
    original = ensemble.measure

    def failing(settings, *more, **named):
        if settings.depth == 3:
            raise ValueError("a defect")
        return original(settings, *more, **named)

    monkeypatch.setattr(ensemble, "measure", failing)
    code, output, errors = call("-m", *SMALL, "depth=0,2,3,4")
    assert code == 2 and len(errors.splitlines()) == 1
    assert "error: 2 of 4 conditions could not run: depth=0: depth must be at least 1" in errors
    assert "depth=3: unforeseen ValueError: a defect" in errors
    assert len(names(tmp_path)) == 2 and "2 failed" in output


def test_a_full_disk_stops_the_sweep_in_one_line(call, tmp_path, monkeypatch):
    original, writes = os.fsync, []

    def full(handle):
        writes.append(handle)
        if len(writes) > 6:
            raise OSError(28, "No space left on device")
        original(handle)

    monkeypatch.setattr(os, "fsync", full)
    code, _, errors = call("-m", *SMALL, "depth=range(2,12)", "hydra.launcher.workers=1")
    assert code == 2 and len(errors.splitlines()) == 1
    assert "No space left on device" in errors and "the same command does the rest" in errors
    kept = len(names(tmp_path))
    assert 0 < kept < 10
    monkeypatch.setattr(os, "fsync", original)
    code, output, _ = call("-m", *SMALL, "depth=range(2,12)", "hydra.launcher.workers=1")
    assert code == 0 and f"{10 - kept} measured" in output and len(names(tmp_path)) == 10


@pytest.mark.parametrize(
    "bad, parts",
    [
        ([], ["a sweep needs values"]),
        (["depth=range(5,5)"], ["a sweep needs values", "depth=range(5,5)"]),
        (["dpeth=1,2"], ["dpeth", "did you mean depth?"]),
        (["depth=2,x"], ["depth must be an integer; got x"]),
        (["depth=interval(1,5)"], ["a sweep lists its values"]),
        (["experiment=depth,skip"], ["experiment must be one in a sweep"]),
        (["depth=2", "hydra/launcher=slurm"], ["hydra/launcher must be one of", "got slurm"]),
        (["depth=2", "hydra.launcher.workers=0"], ["hydra.launcher.workers must be at least 1"]),
        (["depth=2", "hydra.sweeper.part=0"], ["hydra.sweeper.part must be at least 1; got 0"]),
        (["depth=2,3", "hydra/sweeper=basic"], ["hydra/launcher=local goes with"]),
    ],
)
def test_a_bad_sweep_is_refused_in_one_line_before_it_begins(call, tmp_path, bad, parts):
    code, _, errors = call("-m", *(SMALL if bad else []), *bad)
    assert code == 2 and len(errors.splitlines()) == 1, errors
    assert all(part in errors for part in parts), errors
    assert not list(tmp_path.rglob("*.parquet"))


@pytest.mark.parametrize("launcher", ["ray", "submitit_slurm"])
def test_a_launcher_that_is_not_installed_is_named_with_its_extra(call, launcher, monkeypatch):
    monkeypatch.setattr("experiments.overrides.find_spec", lambda name: None)
    code, _, errors = call("-m", *SMALL, "depth=2", f"hydra/launcher={launcher}")
    extra = {"ray": "ray", "submitit_slurm": "slurm"}[launcher]
    assert code == 2 and f"hydra/launcher={launcher} needs the extra {extra}" in errors


def test_results_of_a_newer_version_are_refused(call, tmp_path):
    call("-m", *SMALL, "depth=2")
    import pyarrow.parquet as pq

    (path,) = (tmp_path / "results/single/runs").glob("*.parquet")
    table = pq.read_table(path)
    stored = json.loads(table.schema.metadata[b"flowlab"]) | {"schema": 99}
    pq.write_table(table.replace_schema_metadata({b"flowlab": json.dumps(stored)}), path)
    code, _, errors = call("-m", *SMALL, "depth=2,3")
    assert code == 2 and len(errors.splitlines()) == 1 and "newer flowlab" in errors


# --- Processes ------------------------------------------------------------------------------------

SWEEP = ["-m", *SMALL, "depth=range(2,10)", "activation=relu,tanh"]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The tables of SWEEP made by one process."""
    folder = tmp_path_factory.mktemp("expected")
    assert process(folder, *SWEEP, "hydra.launcher.workers=1").wait(timeout=300) == 0
    return tables(folder)


@pytest.mark.parametrize(
    "how",
    [
        ["hydra.launcher.workers=2"],
        ["hydra.launcher.workers=3", "hydra.sweeper.part=1"],
        ["hydra.launcher.workers=2", "hydra.sweeper.part=5", "activation=tanh,relu"],
        ["hydra/launcher=basic", "threads=1"],
    ],
)
def test_tables_are_the_same_however_they_are_made(how, expected, tmp_path):
    assert process(tmp_path, *SWEEP, *how).wait(timeout=300) == 0
    assert_same(tables(tmp_path), expected)


def test_two_sweeps_at_once_spoil_nothing(expected, tmp_path):
    several = [process(tmp_path, *SWEEP, stderr=subprocess.PIPE) for _ in range(2)]
    messages = [one.communicate(timeout=300)[1] for one in several]
    assert [one.returncode for one in several] == [0, 0]
    assert set("".join(messages).splitlines()) <= {
        "note: another sweep is running on these results: what both want may be measured twice, "
        "and nothing is lost"
    }
    assert_same(tables(tmp_path), expected)


def test_a_log_has_no_control_characters(tmp_path, monkeypatch):
    with open(tmp_path / "log", "w") as log:
        done = process(tmp_path, *SWEEP, stdout=log, stderr=subprocess.STDOUT).wait(timeout=300)
    text = (tmp_path / "log").read_text()
    assert done == 0 and "16 runs: 16 measured" in text
    assert not any(ord(c) < 32 and c != "\n" for c in text)


# --- Parts ----------------------------------------------------------------------------------------


def test_a_condition_that_kills_its_processes_is_given_up(tmp_path):
    settings = make(depth=2, width=8, batch_size=8, seeds=2, data="gaussian")
    (tmp_path / "journal").mkdir()
    conditions = [work.described(k, settings, ()) for k in range(2)]
    work.write_part(tmp_path, 0, conditions, command="")
    journal = Journal(tmp_path / "journal", 0)
    for _ in range(work.ATTEMPTS):
        journal.write(0, "begun")
    journal.write(1, "done")
    (tmp_path / "journal" / "0.torn.1.jsonl").write_text('{"condition": 0, "ev')
    assert Work(str(tmp_path)).part(0) is None
    *_, last = [event for event in journal.earlier() if event["condition"] == 0]
    assert last["event"] == "failed" and "3 processes died" in last["reason"]


def test_an_abandoned_part_is_left_alone(tmp_path):
    assert "given up" in Work(str(tmp_path)).part(0)
    Journal(tmp_path / "journal", 0).write(0, "done")  # into a folder that is gone
