"""The command line: text as it is typed, choices of a user's own, and unforeseen errors."""

from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

import flowlab
from experiments import command, overrides
from flowlab.optimizers import OPTIMIZERS
from flowlab.settings import NETWORKS, Settings
from flowlab.storage import tables

SMALL = ["depth=2", "width=2", "batch_size=2", "seeds=1"]
TEXTS = [
    *("2024_06_30", "1.10", "1e3", "007", "0x10", "inf", "nan", "true", "None"),
    *("données", "日本", "a b", "a[1]", "a(b)", "[a]", "(", "[", "{x}", "{a:1}", "choice"),
    *("a=b", "it's", 'say "x"', "'", "a'b\"c", "a\\b", "a\\", "\\'", "a:b", "a;b", "a#b", "a$b"),
    *("*?", "<>", "`x`", "a&b|c", "a\nb", "a\tb", "-x", "~x", "+", "!", "@x", "%41"),
]


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_taken_as_it_is_typed(text):
    read = overrides.check_overrides([f"results_dir={text}", f"data.target={text}"])
    parser = overrides._PARSER
    values = [override.value() for override in parser.parse_overrides(read.overrides)]
    assert values == [text, text]


@pytest.mark.parametrize(
    "value", ["a", "a/b-c.d", "'2024_06_30'", '"a, b"', "null", "${data.path}", "${oc.env:HOME}/x"]
)
def test_what_hydra_takes_for_text_stays_what_it_is(value):
    assert overrides.as_typed("results_dir", value) == value


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ("1.10,1.2", ["1.10", "1.2"]),
        ("2024_06_30,données", ["2024_06_30", "données"]),
        ("'a,b',a b", ["a,b", "a b"]),
        ("a[1,2],b", ["a[1,2]", "b"]),
        ("choice(a,b)", ["a", "b"]),
        ("it's,b", ["it's", "b"]),
    ],
)
def test_several_texts_are_taken_each(value, texts):
    read = overrides.check_overrides(["-m", f"results_dir={value}"])
    (override,) = overrides._PARSER.parse_overrides(read.overrides)
    transformer = override._convert_value
    assert list(override.sweep_iterator(transformer=transformer)) == texts


def test_numbers_stay_numbers():
    given = ["-m", "depth=1_0", "init.gain=1.10", "seed=1,2", "network.causal=true"]
    read = overrides.check_overrides(given)
    assert read.overrides == given[1:]


@pytest.mark.parametrize("several", [[], ["-m"]])
@pytest.mark.parametrize("text", ["2024_06_30", "1.10", "données [1] a=b"])
def test_results_stand_where_the_user_said(call, tmp_path, several, text):
    arguments = [*several, *SMALL, f"results_dir={text}"]
    code, output, errors = call(*arguments)
    assert (code, errors) == (0, "")
    (path,) = Path(tmp_path, text).glob("single/runs/*.parquet")
    shown = f"'results_dir={text}'" if " " in text else f"results_dir={text}"
    assert f"experiments.plots {shown}" in output
    assert [p.name for p in tmp_path.iterdir()] == [text]
    assert text in tables.metadata(path)["command"]


def test_columns_and_files_of_any_name(call, tmp_path):
    frame = pd.DataFrame({"a": [1, 2, 3], "1.10": ["x", "y", "x"], "b": [4, 6, 5]})
    frame.to_parquet("données (1).parquet")
    data = ["data=file", "data.path=données (1).parquet", "data.target=1.10"]
    code, _, errors = call(*SMALL, *data)
    assert (code, errors) == (0, "")
    (path,) = tmp_path.glob("results/single/runs/*.parquet")
    settings = tables.metadata(path)["settings"]
    assert (settings["data"]["path"], settings["data"]["target"]) == ("données (1).parquet", "1.10")
    table = pd.read_parquet(path)
    assert table["fan_out"].tolist() == [2, 2] and table["fan_in"].iat[0] == 2


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("results_dir=a,b", "several values need a sweep, -m, and a comma quotes of its own"),
        ("depth=)", "depth must be a value, or values between commas; got )"),
        ("depth=[", "depth must be a value, or values between commas; got ["),
        ("results_dir=a${b", "results_dir must be a value, or values between commas; got a${b"),
        ("results_dir=", "results_dir must be the name of a folder; got ''"),
        ("init=007", "init must be one of "),
        ("hydra=1", "setting must be "),
        ("--experimental-rerun=x", "--experimental-rerun is not offered"),
        ("--config-dir=nowhere", "--config-dir must be a folder; got nowhere"),
        ("--resolve", "The --resolve flag can only be used in conjunction with"),
        ("-s", "Expecting one subcommand"),
    ],
)
def test_what_cannot_be_read_is_one_line(call, tmp_path, bad, message):
    code, output, errors = call(bad)
    assert (code, output) == (2, "")
    assert errors.startswith(f"error: {message}") and errors.count("\n") == 1
    assert not list(tmp_path.iterdir())


# A user's own folder of configuration


@pytest.fixture
def mine(tmp_path):
    for name, text in {
        "init/mine.yaml": "name: he\ngain: 1.5\n",
        "init/1.10.yaml": "name: lecun\n",
        "experiment/mine.yaml": "# @package _global_\nexperiment: mine\nwidth: 3\n"
        "hydra:\n  sweeper:\n    params:\n      init: mine,he\n",
    }.items():
        path = tmp_path / "own" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "own"


def kept(folder):
    """The settings of the runs in a folder."""
    return [tables.metadata(p)["settings"] for p in sorted(folder.glob("*.parquet"))]


def test_choices_of_a_folder_of_ones_own(call, tmp_path, mine):
    for name, gain in (("mine", 1.5), ("1.10", 1.0)):
        code, _, errors = call("--config-dir", str(mine), *SMALL, f"init={name}", "results_dir=a")
        assert (code, errors) == (0, "")
        assert gain in [settings["init"]["gain"] for settings in kept(tmp_path / "a/single/runs")]
    code, _, errors = call("--config-dir", "own", "-m", *SMALL, "init=mine,lecun", "results_dir=b")
    assert (code, errors) == (0, "")
    gains = sorted(settings["init"]["gain"] for settings in kept(tmp_path / "b/single/runs"))
    assert gains == [1.0, 1.5]
    code, _, errors = call(
        *("--config-dir", "own", "-m", "experiment=mine", "depth=2", "batch_size=2", "seeds=1")
    )
    assert (code, errors) == (0, "")
    runs = kept(tmp_path / "results/mine/runs")
    assert sorted((s["init"]["gain"], s["width"]) for s in runs) == [(1.0, 3), (1.5, 3)]
    code, _, errors = call("--config-dir", "own", "init=mien")
    assert code == 2 and errors.endswith("got mien; did you mean mine?\n")
    code, _, errors = call("init=mine")
    assert code == 2 and "got mine" in errors


# In Python the choices have the same names


@pytest.mark.parametrize(
    ("group", "choice"),
    [(g, c) for g in ("init", "network", "data", "training") for c in command.groups()[g]],
)
def test_choices_are_the_same_in_python(group, choice):
    ConfigStore.instance().store(name="schema", node=Settings)
    extra = {"data": {"file": {"path": "my.csv"}}}.get(group, {}).get(choice, {})
    with initialize_config_dir(str(command.CONF), version_base="1.3"):
        given = [f"{group}={choice}", *(f"{group}.{key}={value}" for key, value in extra.items())]
        config = compose("config", overrides=[*given, "hydra/sweeper=basic"])
    composed = OmegaConf.to_object(config)
    made = flowlab.make(**{group: {"name": choice, **extra} if extra else choice})
    assert made == composed and made.run() == composed.run()


def test_optimizers_of_python_and_of_the_command_are_the_same():
    assert command.groups()["training"] == sorted(OPTIMIZERS)


def test_networks_of_python_and_of_the_command_are_the_same():
    assert set(NETWORKS) == set(command.groups()["network"])


# What nobody foresaw


@pytest.mark.parametrize(
    "error",
    [TypeError("a\nb"), OverflowError("too large"), RecursionError(), ZeroDivisionError("by 0")],
)
def test_a_defect_is_named_as_one(capsys, monkeypatch, error):
    def action():
        raise error

    monkeypatch.delenv("FLOWLAB_DEBUG", raising=False)
    assert command.guarded(action) == 70
    line = capsys.readouterr().err
    assert line.startswith(f"error: unforeseen {type(error).__name__}: ")
    assert line.endswith("this is a defect of flowlab, and FLOWLAB_DEBUG=1 shows where\n")
    assert line.count("\n") == 1
    monkeypatch.setenv("FLOWLAB_DEBUG", "1")
    assert command.guarded(action) == 70
    message = capsys.readouterr().err
    assert message.startswith("Traceback") and message.endswith(line) and "in action" in message


def test_defects_within_a_run_are_one_line_too(calling, tmp_path, capsys):
    def broken(settings):
        raise AttributeError("no such thing")

    code, output, errors = calling(lambda: command.main(broken))(*SMALL)
    assert (code, output) == (70, "")
    assert errors.startswith("error: unforeseen AttributeError: no such thing; this is a defect")
    assert errors.count("\n") == 1


def test_memory_that_runs_out_is_no_defect(capsys):
    def action():
        raise MemoryError("Unable to allocate 37.3 GiB")

    assert command.guarded(action) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: memory ran out (Unable to allocate 37.3 GiB)")
    assert line.count("\n") == 1
