"""The store: what is saved is read back, through compactions, deaths and several processes."""

import json
import os
import shutil
import signal
import subprocess
import time
import warnings

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

import flowlab
from flowlab.errors import InputError
from flowlab.storage import compaction, index, tables
from flowlab.storage import experiment as stored
from flowlab.storage.experiment import Experiment, Run, covered, missing_seeds
from flowlab.storage.files import StorageError
from tests.support.children import child, close
from tests.support.runs import backdate, filled, made, trained


def assert_holds(experiment, *runs):
    """The folder holds these runs and no other, once, by every way of reading."""
    index = experiment.index()
    assert sorted(index) == sorted(run for run, *_ in runs)
    assert sorted(experiment.names("theory")) == sorted(index)
    for run, table, prediction, metadata, *curve in runs:
        pd.testing.assert_frame_equal(experiment.read(run), table, check_exact=True)
        pd.testing.assert_frame_equal(experiment.prediction(run), prediction, check_exact=True)
        for frame in curve:
            pd.testing.assert_frame_equal(experiment.curve(run), frame, check_exact=True)
        assert experiment.metadata(run) == {"schema": tables.SCHEMA, **metadata}
    assert sorted(experiment.names("curves")) == sorted(run for run, *more in runs if more[3:])
    for part, position in (("runs", 1), ("theory", 2), ("curves", 4)):
        frames = [run[position] for run in runs if len(run) > position]
        if not frames:
            assert experiment.load(part=part).empty
            continue
        expected = pd.concat(frames)
        keys = [name for name in ("run", "seed", "layer") if name in expected]
        expected = expected.sort_values(keys, ignore_index=True, kind="stable")
        for whole in (experiment.load(part=part), pd.read_parquet(experiment.folder / part)):
            whole = whole.sort_values("run", kind="stable", ignore_index=True)
            pd.testing.assert_frame_equal(whole, expected, check_exact=True)


JOURNALS = {f".index-{part}.jsonl" for part in index.PARTS}


def listed(folder):
    """Names in an experiment's folder and its parts, locks and journals aside."""
    names = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    return sorted(names - {".lock", ".compact-lock", ".partial", *JOURNALS, *index.PARTS})


COMPACTED = [f"{part}/0000-compacted-0.parquet" for part in ("runs", "theory")]


def test_a_run_saved_is_a_run_read(tmp_path):
    run, table, prediction, metadata = made(7)
    path = Experiment(tmp_path / "x").save(run, table, prediction, metadata)
    assert path == tmp_path / "x" / "runs" / f"{run}.parquet"
    assert listed(tmp_path / "x") == [f"{part}/{run}.parquet" for part in ("runs", "theory")]
    kept = Experiment(tmp_path / "x")
    condition = stored.condition_of(metadata["settings"])
    assert kept.index() == {run: Run(run, condition, 14, 2, "1.2")}
    assert (kept.rows, kept.files) == (6, 2)
    assert kept.size == sum(path.stat().st_size for path in kept.folder.glob("*/*.parquet"))
    assert_holds(kept, made(7))


def test_conditions_are_settings_without_seeds():
    settings = flowlab.make(depth=3, seed=5, seeds=7).resolved()
    other = flowlab.make(depth=3).resolved()
    assert stored.condition_of(settings) == stored.condition_of(other)
    assert stored.condition_of(settings) != stored.condition_of(flowlab.make(depth=4).resolved())


def test_compacted_runs_read_bit_for_bit_as_before(tmp_path):
    experiment = filled(tmp_path, 3, 1, 2)
    before = [pd.read_parquet(tmp_path / part) for part in ("runs", "theory")]
    calls = []
    experiment.compact(lambda done, total: calls.append((done, total)))
    assert calls == [(k, 6) for k in range(1, 7)]
    assert listed(tmp_path) == COMPACTED
    for part, frame in zip(("runs", "theory"), before, strict=True):
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / part), frame, check_exact=True)
        pd.testing.assert_frame_equal(experiment.load(part=part), frame, check_exact=True)
    for kept in (experiment, Experiment(tmp_path)):
        assert_holds(kept, made(1), made(2), made(3))
    filled(tmp_path, 0)  # merged with what was compacted before
    assert_holds(experiment, *map(made, range(4)))
    experiment.compact()
    assert listed(tmp_path) == COMPACTED
    assert_holds(experiment, *map(made, range(4)))
    assert not (tmp_path / "curves").exists()  # none was trained


def test_trained_runs_have_curves_beside_runs_that_have_none(tmp_path):
    experiment = filled(tmp_path, 1, 2)
    experiment.compact()
    for number in (3, 4):
        experiment.save(*trained(number))
    runs = [made(1), made(2), trained(3), trained(4)]
    assert experiment.files == 2 + 6
    for kept in (experiment, Experiment(tmp_path)):
        assert_holds(kept, *runs)
    whole = flowlab.load(tmp_path / "curves")
    assert set(whole["run"]) == {trained(3)[0], trained(4)[0]} and len(whole) == 16
    some = ["step", "held_out_loss"]
    assert list(flowlab.load(tmp_path / "curves", some)) == some
    with pytest.raises(InputError, match=f"no table at .*curves/{made(1)[0]}.parquet"):
        experiment.curve(made(1)[0])
    experiment.compact()
    packed = [*COMPACTED, "curves/0000-compacted-0.parquet"]
    # Settings name the training or do not: one schema.
    assert listed(tmp_path) == sorted(packed)
    assert_holds(Experiment(tmp_path), *runs)
    anew = (*trained(4)[:4], trained(4)[4].assign(held_out_loss=2.0))
    experiment.save(*anew)
    experiment.remove([trained(3)[0]])
    assert_holds(Experiment(tmp_path), made(1), made(2), anew)


def test_where_no_run_was_trained_there_are_no_curves(tmp_path):
    experiment = filled(tmp_path, 1)
    assert experiment.load(part="curves").empty and experiment.names("curves") == []
    with pytest.raises(InputError, match=r"folder must hold tables; got none in .*curves"):
        flowlab.load(tmp_path / "curves")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("spoil", [os.unlink, lambda path: path.write_bytes(b"torn")])
def test_a_trained_run_without_its_curve_is_not_kept(tmp_path, spoil, packed):
    experiment = Experiment(tmp_path)
    for number in (1, 2):
        experiment.save(*trained(number))
    if packed:
        experiment.compact()
    spoil(next((tmp_path / "curves").iterdir()))
    lost = {trained(1)[0], trained(2)[0]} - set(experiment.names("curves"))
    assert len(lost) == 1 + packed
    for kept in (experiment, Experiment(tmp_path)):
        assert set(kept.index()) == {trained(1)[0], trained(2)[0]} - lost
        assert [kept.has(run) for run in sorted(lost)] == [False] * len(lost)
        line = f"lacks {len(lost)} of 2 trained runs, which count as not kept"
        assert kept.problems[-1] == f"{tmp_path / 'curves'} {line}"
        assert len(kept.problems) == 1 + (spoil is not os.unlink)
        assert all("\n" not in problem for problem in kept.problems)
        assert len(kept.load()) == 12  # what was measured can still be read
    for number in (1, 2):
        if trained(number)[0] in lost:
            experiment.save(*trained(number))
    left = [path for path in (tmp_path / "curves").glob("0000*")]
    if not left:
        assert_holds(Experiment(tmp_path), trained(1), trained(2))
    assert set(Experiment(tmp_path).index()) == {trained(1)[0], trained(2)[0]}


def test_row_groups_hold_whole_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(compaction, "GROUP", 10)
    experiment = filled(tmp_path, *range(7))
    empty = made(9)
    empty = (empty[0], empty[1].head(0), *empty[2:])
    experiment.save(*empty)
    experiment.compact()
    assert_holds(experiment, *map(made, range(7)), empty)
    experiment.remove([made(2)[0]])
    assert_holds(experiment, *(made(k) for k in range(7) if k != 2), empty)


def test_unlike_tables_keep_their_columns_and_types(tmp_path):
    text = pd.array(["a"] * 6, dtype="string")
    runs = [made(1), made(2, extra=1.5), made(3, extra=np.int32(4)), made(4, extra=text)]
    for run in runs:
        Experiment(tmp_path).save(*run)
    Experiment(tmp_path).compact()
    experiment = Experiment(tmp_path)
    assert experiment.files == 8
    for run, table, prediction, _ in runs:
        pd.testing.assert_frame_equal(experiment.read(run), table, check_exact=True)
        pd.testing.assert_frame_equal(experiment.prediction(run), prediction, check_exact=True)
    with pytest.raises(InputError, match="holds unlike tables"):
        experiment.load()
    experiment.remove([runs[3][0]])
    whole = experiment.load().set_index("run")
    assert whole["extra"].isna().groupby("run").all().tolist() == [True, False, False]


def test_removed_runs_are_gone(tmp_path):
    experiment = filled(tmp_path, *range(4))
    experiment.remove([made(0)[0], "never there"])
    assert_holds(experiment, made(1), made(2), made(3))
    experiment.compact()
    experiment.save(*made(5))
    experiment.remove([made(2)[0], made(5)[0]])
    assert_holds(experiment, made(1), made(3))
    experiment.remove(list(experiment.index()))
    assert experiment.index() == {} and listed(tmp_path) == []


def test_a_compacted_run_saved_again_is_there_once(tmp_path):
    experiment = filled(tmp_path, 1, 2)
    experiment.compact()
    run, table, prediction, metadata = made(2)
    anew = (run, table * 1, prediction, {**metadata, "command": "again"})
    anew[1]["delta_log10_norm"] += 1
    experiment.save(*anew)
    assert_holds(experiment, made(1), anew)


# Deaths


def numbered(monkeypatch, deadly, step):
    """Let the call number ``step`` of any function that moves files be the process's last."""
    calls = []

    def wrap(module, name):
        true = getattr(module, name)

        def call(*arguments, **options):
            calls.append(name)
            if len(calls) == step + 1:
                deadly()
            return true(*arguments, **options)

        monkeypatch.setattr(module, name, call)

    for module, name in (
        *((os, name) for name in ("rename", "replace", "link", "fsync", "unlink", "rmdir")),
        *((shutil, name) for name in ("rmtree",)),
    ):
        wrap(module, name)
    return calls


class Death(BaseException):
    """Passes by whatever handles errors, as a kill does."""


def die():
    raise Death


@pytest.mark.parametrize("make", [made, trained])
@pytest.mark.parametrize("work", ["compact", "compact again", "remove", "save anew"])
def test_death_at_any_step_is_repaired_by_the_next_reader(tmp_path, monkeypatch, work, make):
    pristine = tmp_path / "pristine"
    first, second, third = made(1), make(2), make(3)
    for run in (first, second):
        Experiment(pristine).save(*run)
    if work != "compact":
        Experiment(pristine).compact()
        Experiment(pristine).save(*third)
    anew = (*second[:3], {**second[3], "command": "again"}, *second[4:])
    before = [first, second, *([third] if work != "compact" else [])]
    actions = {
        "compact": (lambda e: e.compact(), before),
        "compact again": (lambda e: e.compact(), before),
        "remove": (lambda e: e.remove([second[0]]), [first, third]),
        "save anew": (lambda e: e.save(*anew), [first, anew, third]),
    }
    action, after = actions[work]
    for step in range(1000):
        folder = tmp_path / f"{step}"
        shutil.copytree(pristine, folder)
        with monkeypatch.context() as patch:
            calls = numbered(patch, die, step)
            try:
                action(Experiment(folder))
                died = False
            except Death:
                died = True
        if work in ("compact", "compact again") or not died:
            assert_holds(Experiment(folder), *after)
        else:
            # The parts go one after the other: a run is there as it was, or as it shall be.
            found = set(Experiment(folder).index())
            assert found in ({r for r, *_ in before}, {r for r, *_ in after})
            assert len(pd.read_parquet(folder / "runs")) == 6 * len(found)
            assert not Experiment(folder).problems
        action(Experiment(folder))  # what died is done anew
        assert set(Experiment(folder).index()) == {r for r, *_ in after}
        assert len(pd.read_parquet(folder / "runs")) == 6 * len(after)
        assert not [name for name in listed(folder) if name.startswith(".old")]
        if not died:
            break
        shutil.rmtree(folder)
    assert step > 10 and calls.count("rename") == (4 if make is made else 6)


def test_files_put_where_a_folder_was_missing_are_kept(tmp_path):
    filled(tmp_path, 1, 2)
    (tmp_path / ".compacting/runs").mkdir(parents=True)
    (tmp_path / "runs").rename(tmp_path / ".old-runs")
    tables.write(made(3)[1], tmp_path / "runs" / f"{made(3)[0]}.parquet", made(3)[3])
    assert set(Experiment(tmp_path).index()) == {made(k)[0] for k in (1, 2, 3)}


@pytest.mark.parametrize("make", [made, trained])
def test_a_save_that_dies_leaves_nothing_to_read(tmp_path, monkeypatch, make):
    for step in range(100):
        folder = tmp_path / f"{step}"
        Experiment(folder).save(*make(1))
        with monkeypatch.context() as patch:
            numbered(patch, die, step)
            try:
                Experiment(folder).save(*make(2))
                break
            except Death:
                pass
        kept = Experiment(folder)
        assert len(kept.index()) <= len(kept.names("theory"))
        assert make is made or len(kept.index()) <= len(kept.names("curves"))
        assert_holds(kept, make(1), *([make(2)] if len(kept.index()) == 2 else []))
        Experiment(folder).save(*make(2))
        assert_holds(Experiment(folder), make(1), make(2))
    assert step >= 4


def test_a_disk_that_refuses_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    experiment = filled(tmp_path, 1)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    true = os.replace
    second = [lambda *a: true(*a), full]
    for name, refusal in (
        ("os.fsync", full),
        ("pyarrow.parquet.ParquetWriter.write_table", full),
        ("os.replace", full),
        ("os.replace", lambda *a: second.pop(0)(*a)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(name, refusal)
            with pytest.raises(StorageError, match=r"cannot write .*: No space left") as e:
                experiment.save(*made(2))
        assert "\n" not in str(e.value) and f"{made(2)[0]}.parquet" in str(e.value)
        assert_holds(experiment, made(1))
        assert not os.listdir(tmp_path / ".partial")
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(StorageError, match="No space left on device"):
            experiment.compact()
    assert_holds(experiment, made(1))


# Several processes


def test_what_a_killed_writer_left_is_swept_and_what_a_living_one_writes_is_not(tmp_path):
    code = "with experiment._partial('a', 'runs', made(1)[1], {}):\n"
    code += "    print('writing', flush=True); sys.stdin.read()\n"
    (tmp_path / ".partial").mkdir()
    writer = child(tmp_path, code)
    assert writer.stdout.readline() == "writing\n"
    for clock in (0, 4e9):  # a clock that jumps makes nothing old or young
        (partial,) = (tmp_path / ".partial").iterdir()
        os.utime(partial, (clock, clock))
        filled(tmp_path, 1)
        assert partial.exists()
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    close(writer)
    assert partial.exists()
    filled(tmp_path, 1)
    assert not partial.exists()


def test_savers_readers_and_a_compactor_at_once(tmp_path):
    experiment = filled(tmp_path, 0)
    codes = [f"filled(experiment.folder, *range({k}, 41, 2))" for k in (1, 2)]
    codes.append("for _ in range(6): experiment.compact()")
    children = [child(tmp_path, code) for code in codes]
    seen, counts = 0, []
    while any(process.poll() is None for process in children):
        table = experiment.load(["run"])
        counts.append(table.groupby("run").size())
        assert (counts[-1] == 6).all() and len(counts[-1]) >= seen  # none twice, none lost
        seen = len(counts[-1])
    for process in children:
        close(process)
    assert [process.returncode for process in children] == [0, 0, 0]
    experiment.compact()
    assert listed(tmp_path) == COMPACTED
    assert_holds(experiment, *map(made, range(41)))


def test_a_save_survives_a_sweep_before_its_lock(tmp_path, monkeypatch):
    experiment, true, swept = filled(tmp_path, 1), stored.fcntl.flock, []

    def flock(file, how):
        if how == stored.fcntl.LOCK_EX and not swept and ".partial" in str(file.name):
            swept.append(file.name)
            Experiment(tmp_path)._sweep(())
            assert not os.path.exists(file.name)
        true(file, how)

    monkeypatch.setattr(stored.fcntl, "flock", flock)
    experiment.save(*made(2))
    assert swept
    assert_holds(Experiment(tmp_path), made(1), made(2))


def test_killed_processes_lose_no_run_that_was_reported(tmp_path):
    filled(tmp_path, 0)
    work = """
import itertools
for k in itertools.count({start}, 3):
    experiment.save(*made(k)); print("saved", k, flush=True)
    if k % 4 == 0:
        print("removing", k, flush=True); experiment.remove([made(k)[0]])
        print("removed", k, flush=True)
    if k % 5 == 0: experiment.compact()
"""
    rng, saved, removing, removed = np.random.default_rng(0), {0}, set(), set()
    children = [child(tmp_path, work.format(start=start)) for start in (1, 2, 3)]
    for process in children:
        assert process.stdout.readline().startswith("saved")
    saved |= {1, 2, 3}
    for process, wait in zip(children, rng.uniform(0.1, 0.5, 3), strict=True):
        time.sleep(wait)
        process.kill()
        for row in process.stdout.read().splitlines():
            word, number = row.split()
            {"saved": saved, "removing": removing, "removed": removed}[word].add(int(number))
        process.wait()
        close(process)
    kept = Experiment(tmp_path)
    found = [int(run, 16) for run in kept.index()]
    assert saved - removing <= set(found) and not removed & set(found)
    assert (kept.load(["run"]).groupby("run").size() == 6).all()
    assert kept.problems == []
    for k in found:
        pd.testing.assert_frame_equal(kept.read(made(k)[0]), made(k)[1], check_exact=True)
        pd.testing.assert_frame_equal(kept.prediction(made(k)[0]), made(k)[2], check_exact=True)


def test_a_save_during_compaction_survives(tmp_path, monkeypatch):
    experiment = filled(tmp_path, 1, 2)
    true, late = compaction._gather, [made(3), (*made(1)[:3], {**made(1)[3], "command": "anew"})]

    def gather(*arguments):
        written = true(*arguments)
        if late:
            Experiment(tmp_path).save(*late.pop())
        return written

    monkeypatch.setattr(compaction, "_gather", gather)
    anew = late[1]
    experiment.compact()
    assert late == []
    assert_holds(experiment, anew, made(2), made(3))


# What cannot be used


def restated(path, **said):
    """Let a file's footer say something else."""
    own = json.dumps(tables.metadata(path) | said)
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata(table.schema.metadata | {b"flowlab": own}), path)


def spoilt(folder, number, content):
    path = folder / "runs" / f"{number}.parquet"
    path.write_bytes(content)
    return path


def test_damaged_and_foreign_files_are_named_and_left(tmp_path):
    experiment = filled(tmp_path, 1, 2)
    whole = (tmp_path / "runs" / f"{made(1)[0]}.parquet").read_bytes()
    cut = spoilt(tmp_path, "cut", whole[:-100])
    rows = spoilt(tmp_path, "rows", whole[:4] + bytes(300) + whole[304:])
    foreign = tmp_path / "runs" / "foreign.parquet"
    pd.DataFrame({"a": [1]}).to_parquet(foreign)
    bare = tables.write(made(4)[1], tmp_path / "runs" / "bare.parquet", {})
    assert set(experiment.index()) == {made(1)[0], made(2)[0], "rows"}
    named = sorted(line.split()[0] for line in experiment.problems)
    assert named == sorted(map(str, (cut, foreign, bare)))
    assert not any("\n" in line for line in experiment.problems)
    for _ in range(2):
        table = experiment.load(["run", "delta_log10_norm"])
        assert len(table) == 18 and set(table["run"]) == {made(k)[0] for k in (1, 2, 4)}
        assert sorted(line.split()[0] for line in experiment.problems) == sorted(
            map(str, (cut, foreign, rows))
        )
        experiment.compact()
        assert cut.exists() and rows.exists() and foreign.exists() and not bare.exists()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert len(flowlab.load(tmp_path)) == 18
    assert len(caught) == 3


def test_a_newer_table_is_an_error_of_one_line(tmp_path):
    experiment = filled(tmp_path, 1)
    path = tables.write(made(2)[1], tmp_path / "runs" / "b.parquet", {**made(2)[3], "schema": 2})
    message = f"{path} was made by a newer flowlab (schema 2; this one reads 1)"
    for look in (experiment.index, lambda: flowlab.load(tmp_path)):
        with pytest.raises(tables.NewerError) as error:
            look()
        assert str(error.value) == message
    experiment.compact()
    assert path.exists() and len(experiment.load()) == 6


def compacted(folder):
    """Two runs, compacted, and the path of their tables' file."""
    filled(folder, 1, 2).compact()
    return folder / "runs" / "0000-compacted-0.parquet"


def test_damaged_rows_of_a_compacted_file_are_never_dropped(tmp_path):
    path = compacted(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:4] + bytes(300) + whole[304:])
    experiment = filled(tmp_path, 3)
    for work in (
        lambda kept: kept.compact(),
        lambda kept: kept.remove([made(1)[0]]),
        lambda kept: kept.read(made(1)[0]),
    ):
        with pytest.raises(InputError, match=r"compacted-0\.parquet is damaged") as error:
            work(Experiment(tmp_path))
        assert "\n" not in str(error.value)
        assert len(Experiment(tmp_path).names()) == 3
    assert len(experiment.load()) == 6 and "is damaged" in experiment.problems[0]


@pytest.mark.parametrize(
    "spoil, problem",
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "is damaged: "),
        (lambda path: restated(path, compacted="eJw="), "is damaged: "),
        (lambda path: restated(path, compacted=True), "cannot be read: the manifest"),
        (lambda path: restated(path, schema=3), "was made by a newer flowlab (schema 3; this one"),
        (lambda path: shutil.copy(path, path.with_name(f"{index.PACK}1.parquet")), "as another"),
    ],
)
def test_a_compacted_file_that_cannot_be_used_stays_beside_the_others(tmp_path, spoil, problem):
    path = compacted(tmp_path)
    spoil(path)
    experiment = filled(tmp_path, 3, 4)
    held = {made(k)[0] for k in ((1, 2, 3, 4) if problem == "as another" else (3, 4))}
    left = tmp_path / "runs" / f"{index.PACK}{int(problem == 'as another')}.parquet"
    content = left.read_bytes()
    for _ in range(2):
        assert set(experiment.names()) == held
        assert len(experiment.problems) == 1 and str(left) in experiment.problems[0]
        assert len(experiment.load()) == 6 * len(held)
        experiment.compact()
        assert left.read_bytes() == content and len(list((tmp_path / "runs").iterdir())) == 2
    left.unlink()
    assert set(experiment.index()) == held and experiment.problems == []


def test_a_compacted_file_by_another_name_is_not_one_run(tmp_path):
    path = compacted(tmp_path)
    path.rename(path.with_name("mine.parquet"))
    experiment = filled(tmp_path, 3)
    assert list(experiment.index()) == [made(3)[0]]
    assert experiment.problems == [
        f"{path.with_name('mine.parquet')} holds compacted runs: its name must begin with "
        "0000-compacted-"
    ]
    path.with_name("mine.parquet").rename(path)
    assert_holds(experiment, made(1), made(2), made(3))


# What flowlab 0.1.0 compacted


@pytest.mark.parametrize("work", [lambda e: e.compact(), lambda e: e.save(*made(3))])
def test_a_manifest_beside_the_data_is_read_and_gone_after_the_next_write(tmp_path, work):
    compacted(tmp_path)
    backdate(tmp_path)
    assert len(listed(tmp_path)) == 4
    assert_holds(Experiment(tmp_path), made(1), made(2))
    work(Experiment(tmp_path))
    assert not list(tmp_path.glob(f"*/{index.MANIFEST}"))
    kept = Experiment(tmp_path)
    assert_holds(kept, made(1), made(2), *([made(3)] if made(3)[0] in kept.index() else []))


def test_death_while_a_manifest_is_put_right_loses_nothing(tmp_path, monkeypatch):
    pristine = tmp_path / "pristine"
    compacted(pristine)
    backdate(pristine)
    for step in range(1000):
        folder = tmp_path / f"{step}"
        shutil.copytree(pristine, folder)
        with monkeypatch.context() as patch:
            numbered(patch, die, step)
            try:
                Experiment(folder).save(*made(3))
                break
            except Death:
                pass
        late = [made(3)] if made(3)[0] in Experiment(folder).index() else []
        assert_holds(Experiment(folder), made(1), made(2), *late)
        shutil.rmtree(folder)
    assert step > 10
    assert_holds(Experiment(folder), made(1), made(2), made(3))


def test_a_manifest_that_cannot_be_put_right_hinders_no_save(tmp_path):
    path = compacted(tmp_path)
    backdate(tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    experiment = filled(tmp_path, 3)
    assert len(experiment.names()) == 3 and len(experiment.load()) == 6
    assert (tmp_path / "runs" / index.MANIFEST).exists()
    with pytest.raises(InputError, match=r"compacted-0\.parquet is damaged"):
        experiment.compact()


def test_the_journal_of_footers_is_only_a_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "CACHED", 1)
    experiment = filled(tmp_path, 1, 2, 3)
    journal = tmp_path / ".index-runs.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(tables, "footer", None)  # is not read: what was saved is given
        found = Experiment(tmp_path).index()
    assert set(found) == {made(k)[0] for k in (1, 2, 3)}
    path = tmp_path / "runs" / f"{made(2)[0]}.parquet"
    for clock in (0, 4e9):
        os.utime(path, (clock, clock))
        assert Experiment(tmp_path).index() == found
    state = path.stat()
    metadata = json.loads(json.dumps(made(2)[3]).replace("1.2", "3.4"))
    experiment.save(*made(2)[:3], metadata)
    assert path.stat().st_size == state.st_size
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert Experiment(tmp_path).index()[made(2)[0]].version == "3.4"
    text = journal.read_bytes()
    for content in (b"nonsense", b"[1]\n{}\n", text[:-20], b""):  # torn, foreign, lost
        journal.write_bytes(content)
        assert set(Experiment(tmp_path).index()) == set(found)
        filled(tmp_path, 1)
        with monkeypatch.context() as patch:
            patch.setattr(tables, "footer", None)
            assert set(Experiment(tmp_path).index()) == set(found)


def test_a_copied_folder_is_indexed_from_its_files(tmp_path):
    index = filled(tmp_path / "x", 1, 2).index()
    filled(tmp_path / "x", 1)
    subprocess.run(["cp", "-r", tmp_path / "x", tmp_path / "y"], check=True)
    metadata = json.loads(json.dumps(made(2)[3]).replace("1.2", "3.4"))
    tables.write(made(2)[1], tmp_path / "y" / "runs" / f"{made(2)[0]}.parquet", metadata)
    copied = Experiment(tmp_path / "y").index()
    assert copied[made(1)[0]] == index[made(1)[0]]
    assert copied[made(2)[0]].version == "3.4"


# Seeds and columns


@pytest.mark.parametrize(
    "kept, seed, seeds, expected",
    [
        ([], 0, 4, [range(0, 4)]),
        ([(0, 4)], 0, 4, []),
        ([(0, 8)], 2, 3, []),
        ([(0, 2), (6, 2)], 0, 8, [range(2, 6)]),
        ([(1, 2), (2, 3), (2, 1)], 0, 6, [range(0, 1), range(5, 6)]),
        ([(4, 4), (0, 4)], 0, 8, []),
        ([(8, 4)], 0, 4, [range(0, 4)]),
        ([(0, 2), (10, 2)], 4, 3, [range(4, 7)]),
        ([(3, 1), (5, 9)], 2, 8, [range(2, 3), range(4, 5)]),
    ],
)
def test_missing_seeds_are_those_of_no_run(kept, seed, seeds, expected):
    index = {f"{k}": Run(f"{k}", "c", *span, "") for k, span in enumerate(kept)}
    index["other"] = Run("other", "d", 0, 100, "")
    assert missing_seeds(index, "c", seed, seeds) == expected
    assert covered(index, "c", seed, seeds) == (not expected)
    had = {s for first, n in kept for s in range(first, first + n)}
    assert {s for gap in expected for s in gap} == set(range(seed, seed + seeds)) - had


def test_columns_and_folders_are_checked(tmp_path):
    filled(tmp_path / "x", 1)
    for folder in (tmp_path / "x", str(tmp_path / "x" / "runs"), tmp_path / "x" / "theory"):
        assert list(flowlab.load(folder, ["layer", "run"])) == ["layer", "run"]
    assert "seed" not in flowlab.load(tmp_path / "x" / "theory")
    (tmp_path / "none").mkdir()
    for folder, columns, message in (
        (tmp_path / "x", ["dleta_log10_norm"], "did you mean delta_log10_norm"),
        (tmp_path / "y", None, "y, which is not there"),
        (tmp_path / "none", None, "got none in"),
    ):
        with pytest.raises(InputError, match=message) as error:
            flowlab.load(folder, columns)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match=r"no table at .*runs/b\.parquet"):
        Experiment(tmp_path / "x").read("b")
