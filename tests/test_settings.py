"""Settings: rules in one line, and a name for a run that its folders do not change."""

import numpy as np
import pytest

import flowlab
from flowlab.errors import InputError


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"depth": 0}, "depth must be at least 1; got 0"),
        ({"depth": 2.5}, "depth must be an integer; got 2.5"),
        ({"width": -1}, "width must be at least 1; got -1"),
        ({"seeds": 0}, "seeds must be at least 1; got 0"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"init": "hee"}, "init must be one of .*; got hee; did you mean he?"),
        ({"activation": "rleu"}, "got rleu; did you mean relu?"),
        ({"dtype": "int8"}, "dtype must be one of float32, float64; got int8"),
        ({"dpeth": 5}, "got dpeth; did you mean depth?"),
        ({"skip": "fixup", "network": {"branch_maps": 1}}, "branch_maps must be 2 for skip=fixup"),
        ({"init": {"gain": float("nan")}}, "init.gain must be a finite number above 0; got nan"),
        ({"experiment": "a/b"}, "experiment must be a plain folder name"),
        ({"threads": 0}, "threads must be at least 1; got 0"),
        ({"threads": 1.5}, "threads must be an integer; got 1.5"),
        ({"depth": True}, "depth must be an integer; got True"),
        ({"network": {"kernel_size": 3.0}}, "network.kernel_size must be an integer; got 3.0"),
        ({"network": {"imge": 4}}, "network.key must be one of .*; got imge; did you mean image?"),
        ({"init": {"gain": "2"}}, "init.gain must be a number; got '2'"),
        ({"init": 3}, "init must be a name or a dictionary of settings; got 3"),
        ({"training": "sdg"}, "training must be one of .*; got sdg; did you mean sgd?"),
        (
            {"training": {"lr": 0.2}},
            "training.lr needs an optimizer, .* got 0.2",
        ),
        ({"training": {"name": "sgd", "lrr": 1}}, "got lrr; did you mean lr?"),
        ({"training": {"name": "sgd", "lr": -1}}, "training.lr must be a finite number above 0"),
        ({"training": {"name": "sgd", "lr": "1"}}, "training.lr must be a number; got '1'"),
        ({"training": {"name": "sgd", "steps": 2.5}}, "training.steps must be an integer; got 2.5"),
        ({"training": "sgd", "upstream": "ones"}, "upstream must be loss for training; got ones"),
    ],
)
def test_bad_settings_are_one_line(axes, message):
    with pytest.raises(InputError, match=message) as error:
        flowlab.make(**axes)
    assert "\n" not in str(error.value)


def test_a_run_is_named_by_what_determines_its_numbers():
    run = flowlab.make(depth=3).run()
    same = flowlab.make(depth=3, results_dir="elsewhere", memory_gib=1.0, threads=1, experiment="x")
    assert same.run() == run
    assert flowlab.make(depth=np.int32(3), init={"gain": 1}).run() == run
    for axes in ({"depth": 4}, {"seeds": 3}, {"init": {"gain": 2.0}}, {"data": "gaussian"}):
        assert flowlab.make(**{"depth": 3, **axes}).run() != run


@pytest.mark.parametrize(
    ("axes", "run"),
    [
        ({}, "e07e2bf2a47f0603"),
        ({"depth": 3}, "0d6eb86f49ef6c38"),
        ({"init": "xavier", "depth": 20}, "4ddbf07a4b8905e0"),
        (
            {"init": {"name": "normal", "sigma_w": 1.5, "sigma_b": 0.2}, "activation": "tanh"},
            "1a855f372cf7a53f",
        ),
        ({"network": "transformer"}, "55ad252fab5e7c9e"),
        ({"network": "resnet"}, "90eb21755fb25786"),
        ({"network": "lstm", "data": "gaussian"}, "447b661e849f889d"),
        ({"data": {"name": "file", "path": "my.csv", "target": "label"}}, "2a40074c721daee1"),
        ({"init": "orthogonal_relu"}, "02af92049ecb47aa"),
        ({"training": "none"}, "e07e2bf2a47f0603"),
        ({"training": "sgd", "depth": 10}, "63478603b9be0ad9"),
        ({"training": {"name": "adam", "lr": 0.01, "epochs": 5}, "depth": 10}, "9a8a940c269bda1b"),
    ],
)
def test_known_runs_keep_their_names(axes, run):
    """A digest that changes would measure everything that users keep anew."""
    assert flowlab.make(**axes).run() == run


def test_names_of_initial_gains():
    for name in ("orthogonal", "delta_orthogonal"):
        made = flowlab.make(init=f"{name}_relu").init
        assert (made.name, made.gain) == (name, np.sqrt(2))
        assert flowlab.make(init={"name": f"{name}_relu", "gain": 3}).init.gain == 3
    with pytest.raises(InputError, match=r"init.name must be text"):
        flowlab.make(init={"name": ["he"]})


@pytest.mark.parametrize("name", ["", ".", "..", " ", "a\nb", "a\0b", "a:b"])
def test_experiments_are_plain_folder_names(name):
    with pytest.raises(InputError, match="experiment must be a plain folder name; got"):
        flowlab.make(experiment=name)
