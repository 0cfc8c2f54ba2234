"""The schema: every setting is a column, in one type, and words distinguish runs that differ."""

import dataclasses
import json
from functools import cache
from itertools import pairwise
from typing import get_args

import numpy as np
import pandas as pd
import pytest

import flowlab
from flowlab import schema, settings
from flowlab.errors import InputError
from flowlab.figures.runs import describe
from flowlab.measurement.table import axes_of, tidy
from flowlab.schema import Column, settings_of
from flowlab.settings import AXES, NETWORKS, Settings
from flowlab.storage.experiment import Experiment

TINY = {"depth": 3, "width": 4, "batch_size": 4, "seeds": 1, "dtype": "float64"}
# Runs between which every setting is read by one.
BASES = [
    *({"network": name} for name in NETWORKS),
    *({"network": name, "data": "gaussian"} for name in ("mlp", "cnn", "rnn")),
    {"network": "mlp", "skip": "scaled"},
    {"network": "cnn", "skip": "identity"},
    {"init": "normal"},
    {"upstream": "gaussian"},
    {"data": "file"},
    {"data": (np.eye(16), np.arange(16) % 4)},
    *({"training": name} for name in ("sgd", "adam", "adamw")),
    {"training": {"name": "sgd", "momentum": 0.9}},
    {"training": {"name": "sgd", "schedule": "step", "decay_every": 3}},
    {"training": {"name": "sgd", "clip": "norm"}},
    {"training": {"name": "sgd", "rule": "noise", "noise_scale": 9.0}},
]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A file of labelled rows, in which two columns can be labels."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(20, 16)), columns=[f"x{k}" for k in range(16)])
    table["first"], table["label"] = np.arange(20) % 3, np.arange(20) % 4
    path = tmp_path_factory.mktemp("data") / "rows.csv"
    table.to_csv(path, index=False)
    return str(path)


def made(base, **more):
    return flowlab.make(**TINY | base | more)


def with_value(run, key, value):
    """The run with another value of one setting, or None where a rule forbids it."""
    group, _, name = key.rpartition(".")
    if key in settings._GROUPS:
        group, name = key, "name"
    if group:
        changed = dataclasses.replace(getattr(run, group), **{name: value})
        run = dataclasses.replace(run, **{group: changed})
    else:
        run = dataclasses.replace(run, **{name: value})
    try:
        return run.validate()
    except InputError:
        return None


def others(key):
    """Values of a setting, made from its field alone."""
    own, setting = next(found[1:] for found in settings._every() if found[0] == key)
    kinds = get_args(own.type) or (own.type,)
    found = list(setting.choices)
    if not found:
        found = {bool: [True, False], int: [1, 2, 5, 7], float: [0.5, 2.0], str: ["a", "b"]}[
            next(kind for kind in (bool, int, float, str) if kind in kinds)
        ]
    return found


KEYS = [
    key
    for key, own, setting in settings._every()
    if own.init and (setting.measured or key == "experiment")
]


def pairs(key, path):
    """(run, the same with another value of the setting), where rules allow both."""
    for base in BASES:
        if base == {"data": "file"}:
            base = {"data": {"name": "file", "path": path}}
        run = made(base)
        for value in others(key):
            changed = with_value(run, key, value)
            if changed is not None and changed != run:
                yield run, changed


def frame_of(run):
    """A table of the run without its numbers."""
    seeds = np.arange(run.seed, run.seed + run.seeds)
    rows = {"seed": seeds, "layer": np.ones_like(seeds), "op": ["linear"] * len(seeds)}
    return tidy(axes_of(run), rows, {}, ["ok"] * len(seeds))


def differ(a, b):
    """The columns, the name of the run left out, in which two runs differ."""
    one, other = ({**axes_of(run), "seed": run.seed} for run in (a, b))
    return [name for name in one if name != "run" and one[name] != other[name]]


@pytest.mark.parametrize("key", KEYS)
def test_runs_that_differ_in_a_setting_differ_in_a_column_and_in_words(key, path):
    seen = [(a, b) for a, b in pairs(key, path) if differ(a, b)]
    assert seen, f"no base run reads {key}"
    for a, b in seen[:4]:
        table = pd.concat([frame_of(a), frame_of(b)], ignore_index=True)
        columns = table.drop(columns="run").groupby(table["run"]).agg(lambda values: set(values))
        assert a.run() == b.run() or not columns.iloc[0].equals(columns.iloc[1])
        if a.run() != b.run():
            labels = [run.label for run in describe(table)[0]]
            assert len(set(labels)) == 2 and not any("run=" in label for label in labels), labels


@cache
def numbers(text):
    run = settings.from_plain(json.loads(text))
    if run.trained:
        training = dataclasses.replace(run.training, epochs=None, examples=None, steps=3)
        trained = flowlab.train(dataclasses.replace(run, training=training))
        frames = trained.table, trained.curve
    else:
        frames = (flowlab.measure(run),)
    known = [*schema.names("row"), *schema.names("measured"), *schema.names("curve"), "status"]
    return [frame[[name for name in known if name in frame]] for frame in frames]


@pytest.mark.parametrize("key", [key for key in KEYS if key != "experiment"])
def test_a_setting_that_is_null_changes_no_number(key, path):
    unseen = [(a, b) for a, b in pairs(key, path) if not differ(a, b)]
    for a, b in [*unseen[:6], *(pair for pair in unseen[6:] if pair[0].trained)][:12]:
        first, other = (json.dumps(dataclasses.asdict(run)) for run in (a, b))
        for ours, theirs in zip(numbers(first), numbers(other), strict=True):
            pd.testing.assert_frame_equal(ours, theirs, check_exact=True)


def test_columns_have_one_name_one_meaning_and_one_type():
    names = [axis.column.name for axis in AXES]
    assert len(set(names)) == len(names)
    tables = [
        flowlab.measure(made(base))
        for base in ({}, {"network": "rnn"}, {"network": "cnn"}, {"upstream": "ones"})
    ]
    for one, other in pairwise(tables):
        assert one.dtypes.equals(other.dtypes)
    trained = flowlab.train(made(TRAINED))
    assert trained.table.dtypes.equals(tables[0].dtypes)
    own = schema.names("run", "setting"), ["seed", "step"], schema.names("curve")
    assert list(trained.curve) == [name for names in own for name in names]
    columns = schema.columns()
    assert list(tables[0].columns) == list(columns)
    for name, column in columns.items():
        assert tables[0][name].dtype == pd.Series([], dtype=column.dtype).dtype, name
    assert all(column.meaning for column in schema.columns(*schema.PARTS).values())


@dataclasses.dataclass
class Grown:
    """Settings of which one was added when runs were kept."""

    old: int = schema.setting(1, "old")
    new: int = schema.setting(2, "new", later=True)
    place: str = schema.setting("here", "place", measured=False)


def test_a_later_setting_stands_in_no_digest_at_its_default():
    assert schema.resolved(Grown()) == {"old": 1}
    assert schema.resolved(Grown(new=3, place="there")) == {"old": 1, "new": 3}


def test_every_field_of_the_settings_says_what_it_is():
    groups = {*settings._GROUPS}
    for kind in (Settings, *(type(getattr(Settings(), group)) for group in groups)):
        described = {own.name for own, _ in settings_of(kind)}
        assert {field.name for field in dataclasses.fields(kind)} - groups == described
    frame = settings.frame()
    assert frame["key"].is_unique and frame["meaning"].str.len().gt(0).all()
    row = frame.set_index("key").loc["network.branch_maps"]
    assert (row["allowed"], row["column"]) == ("1, 2, null", "branch_maps")
    assert schema.frame().set_index("name").loc["attention_entropy", "unit"] == "nat"


def test_a_registered_column_stands_in_every_later_table(monkeypatch):
    monkeypatch.setattr(schema, "_COLUMNS", dict(schema._COLUMNS))
    kurtosis = Column("kurtosis", "", "fourth moment over the squared variance")
    schema.register(kurtosis)
    schema.register(kurtosis)
    rows = {"seed": [0, 1], "layer": [1, 1], "op": ["linear"] * 2}
    table = tidy({"network": "own"}, rows, {"kurtosis": [3.0, 2.0]}, ["ok", "ok"])
    assert list(table["kurtosis"]) == [3.0, 2.0] and list(table.columns)[-1] == "status"
    assert table["depth"].isna().all() and table["loss"].dtype == "string"
    assert tidy({}, rows, {}, ["ok"] * 2)["kurtosis"].isna().all()
    with pytest.raises(InputError, match="got kurtosis, which is known"):
        schema.register(Column("kurtosis", "nat", "another"))
    with pytest.raises(InputError, match="got kurtsis; did you mean kurtosis"):
        tidy({}, rows, {"kurtsis": [0.0, 0.0]}, ["ok"] * 2)


TYPES = {"string", "Int64", "Float64", "boolean", "int64", "float64"}


TRAINED = {"training": {"name": "sgd", "steps": 3}}


@pytest.mark.parametrize(
    "axes",
    [*({"network": name} for name in ("mlp", "rnn", "transformer")), TRAINED],
    ids=["mlp", "rnn", "transformer", "trained"],
)
def test_types_are_those_of_the_schema_wherever_a_table_comes_from(axes, tmp_path):
    known = {name: column.dtype for name, column in schema.columns(*schema.PARTS).items()}
    assert set(known.values()) == TYPES
    done = flowlab.run(**TINY, **axes, experiment="x", results_dir=str(tmp_path))
    experiment = Experiment(tmp_path / "x")
    frames = {"runs": done.table, "theory": done.prediction}
    frames |= {} if done.curve is None else {"curves": done.curve}
    reads = {"runs": experiment.read, "theory": experiment.prediction, "curves": experiment.curve}
    for part, frame in frames.items():
        expected = {name: known[name] for name in frame}
        for _ in range(2):
            read = reads[part](done.path.stem)
            folder = tmp_path / "x" / part
            loaded = experiment.load(part=part)
            for table in (frame, read, loaded, pd.read_parquet(folder)):
                assert {name: str(table[name].dtype) for name in table} == expected
            experiment.compact()


# Columns that tables had before every setting was one.
OLD = "run experiment network init data depth width activation skip norm batch_size upstream "
OLD += "reduction dtype seeds branch_scale padding kernel_size steps recurrent radius heads "
OLD += "placement gain sigma_w sigma_b seed layer op fan_in fan_out time"


def old_table(table):
    """A table as it was before: fewer columns, plain types."""
    table = table[[*OLD.split(), *schema.names("measured"), "status"]].copy()
    plain = {"string": "str", "Int64": "int64", "Float64": "float64"}
    nullable = "branch_scale padding kernel_size steps recurrent radius heads placement time"
    for name in table:
        if name not in nullable.split():
            table[name] = table[name].astype(plain.get(str(table[name].dtype), table[name].dtype))
    return table


@pytest.mark.parametrize("compacted", [False, True])
def test_old_and_new_tables_are_read_together(tmp_path, compacted):
    versions = {"flowlab": "0"}
    experiment, runs = Experiment(tmp_path), []
    for number, base in enumerate(
        [{"network": "cnn", "depth": 4}, {"upstream": "ones"}, {"network": "transformer"}] * 2
    ):
        run = made(base, seed=number)
        table = flowlab.measure(run)
        runs.append((run, table))
        metadata = {"settings": run.resolved(), "versions": versions}
        kept = old_table(table) if number < 3 else table
        experiment.save(run.run(), kept, flowlab.predict(run), metadata)
    if compacted:
        experiment.compact()
    loaded = flowlab.load(tmp_path)
    assert list(loaded.columns) == schema.names()
    for run, table in runs:
        mine = loaded[loaded["run"] == run.run()].reset_index(drop=True)
        pd.testing.assert_frame_equal(mine, table, check_exact=True)
    some = flowlab.load(tmp_path, columns=["loss", "seed"])
    assert list(some.columns) == ["loss", "seed"] and some["loss"].isna().any()
    whole = pd.read_parquet(tmp_path / "runs")
    assert len(whole) == len(loaded) and set(OLD.split()) <= set(whole)
    assert not compacted or set(whole) == set(loaded)


def test_seeds_of_an_old_table_are_joined_with_new_ones(tmp_path):
    axes = {**TINY, "network": "rnn", "results_dir": str(tmp_path)}
    few, more = flowlab.make(**axes | {"seeds": 2}), flowlab.make(**axes | {"seeds": 4})
    kept = old_table(flowlab.measure(few))
    experiment = Experiment(tmp_path / "single")
    metadata = {"settings": few.resolved(), "versions": {"flowlab": "0"}}
    experiment.save(few.run(), kept, flowlab.predict(few), metadata)
    done = flowlab.run(more, extend=[few.run()])
    pd.testing.assert_frame_equal(done.table, flowlab.measure(more), check_exact=True)
    assert experiment.names() == [more.run()]
