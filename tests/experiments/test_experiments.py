"""Every sweep kept in conf/experiment works by its own command, at a size that takes no time."""

from itertools import product

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from experiments import command
from experiments.sweep import plugins
from flowlab import studies
from flowlab.settings import NETWORKS, Settings, frame, make

NAMES = command.groups()["experiment"]
TINY = {"depth": (3, 4), "width": (8, 9), "batch_size": (4, 5), "seeds": (2, 3)}
BUDGETS = {"steps": 3, "examples": 12, "epochs": 0.01}  # of training


def sweep(name):
    """The values that a file sweeps, as text, by setting."""
    params = OmegaConf.load(command.CONF / "experiment" / f"{name}.yaml").get("hydra")
    params = params.sweeper.params if params else {}
    return {key: str(values).split(",") for key, values in params.items()}


def budget(name):
    """A training's budget made tiny, in its own terms."""
    own = OmegaConf.load(command.CONF / "experiment" / f"{name}.yaml").get("training") or {}
    return [f"training.{key}={value}" for key, value in BUDGETS.items() if key in own]


@pytest.fixture
def composed():
    """Settings from overrides, by Hydra's own compose."""
    ConfigStore.instance().store(name="schema", node=Settings)
    plugins.register()
    with initialize_config_dir(str(command.CONF), version_base="1.3"):
        yield lambda *overrides: command.settings_of(compose("config", list(overrides)))


def test_every_network_has_a_file():
    assert set(command.groups()["network"]) == set(NETWORKS)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_has_the_same_defaults_in_files_and_in_python(name, composed):
    assert composed(f"network={name}") == make(network=name)


def first_comment(name):
    lines = (command.CONF / "experiment" / f"{name}.yaml").read_text().splitlines()
    comments = [line[2:] for line in lines if line.startswith("# ") and "@package" not in line]
    return comments[0]


@pytest.mark.parametrize("name", NAMES)
def test_the_first_comment_is_the_command_of_a_sweep_that_runs(name, call, tmp_path):
    words = first_comment(name).split()
    assert words[:3] == ["python", "-m", "experiments.run"]
    # Each axis keeps its first and its last value, sizes become tiny.
    axes = {key: [values[0], values[-1]] for key, values in sweep(name).items()}
    axes |= {key: list(map(str, TINY[key])) for key in axes if key in TINY}
    sizes = [f"{key}={small[0]}" for key, small in TINY.items() if key not in axes]
    sizes += [text for text in budget(name) if text.partition("=")[0] not in axes]
    swept = [f"{key}={','.join(values)}" for key, values in axes.items()]
    code, _, errors = call(*words[3:], *sizes, *swept)
    assert (code, errors) == (0, "")

    (folder,) = (tmp_path / "results").glob("[!.]*")
    table, theory = (pd.read_parquet(folder / part) for part in ("runs", "theory"))
    conditions = len(list(product(*axes.values())))
    assert table["run"].nunique() == theory["run"].nunique() == conditions
    assert set(table["experiment"]) == {folder.name}
    columns = frame().set_index("key")["column"]
    for key, values in axes.items():
        column = table[columns[key]].unique()
        if key != "init":  # two choices of init may share a name and differ in gain
            kind = float if isinstance(column[0], float) else str
            assert sorted(map(kind, column)) == sorted(map(kind, values))


@pytest.mark.parametrize("name", NAMES)
def test_every_swept_value_makes_valid_settings(name, composed):
    base = composed(f"experiment={name}")
    assert base.experiment == (studies.load()[name].experiment or name)
    seen = {base.run()}
    for key, values in sweep(name).items():
        assert len(values) == len(set(values))
        runs = [composed(f"experiment={name}", f"{key}={value}").run() for value in values]
        assert len(set(runs)) == len(runs), key
        seen.update(runs)
    assert len(seen) > 1 or not sweep(name)


@pytest.mark.parametrize(
    "received, nearest", [("dpeth", "depth"), ("inititalization", "initialization")]
)
def test_an_unknown_experiment_suggests_the_nearest(call, tmp_path, received, nearest):
    code, output, errors = call("-m", f"experiment={received}")
    assert code == 2 and output == "" and not list(tmp_path.iterdir())
    assert len(errors.splitlines()) == 1
    assert f"got {received} (did you mean {nearest}?)" in errors
