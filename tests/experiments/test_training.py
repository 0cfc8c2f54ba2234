"""Training by the command: what it writes and says, and what it refuses, in one line each."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import flowlab
from experiments import batch, ledger
from experiments.run import how
from flowlab import settings as of_settings
from flowlab.optimizers import OPTIMIZERS, PRESETS
from flowlab.settings import make

KEYWORDS = {"depth": 3, "width": 8, "batch_size": 8, "seeds": 2}
SMALL = [f"{key}={value}" for key, value in KEYWORDS.items()]
SGD = [*SMALL, "training=sgd", "training.steps=3"]


def written(folder: Path) -> list[str]:
    """The files that a user sees, by their folders."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(str(path.parent) for path in found if not path.name.startswith("."))


# What a run writes and says


def test_a_trained_run_writes_table_prediction_and_curve(call, tmp_path):
    code, output, errors = call(*SGD, "training.lr=0.05")
    assert (code, errors) == (0, "")
    assert written(tmp_path) == [f"results/single/{part}" for part in ("curves", "runs", "theory")]
    trained = flowlab.train(make(**KEYWORDS, training={"name": "sgd", "steps": 3, "lr": 0.05}))
    for part, frame in (("runs", trained.table), ("curves", trained.curve)):
        read = pd.read_parquet(tmp_path / "results/single" / part)
        pd.testing.assert_frame_equal(
            read.drop(columns="run"), frame.drop(columns="run"), check_exact=True
        )
        assert set(read["step"]) == {1, 2, 3} and f"({len(read)} rows" in output
    first = output.splitlines()[0]
    assert ", upstream=loss, training=sgd lr=0.05 steps=3: " in first
    assert "\nCurve:  results/single/curves/" in output


@pytest.mark.parametrize("size", [1, 2, 3])
def test_batches_of_any_size_are_trained_on(call, tmp_path, size):
    code, _, errors = call(*SGD, f"batch_size={size}")
    assert (code, errors) == (0, "")
    curve = flowlab.load(tmp_path / "results/single/curves")
    assert curve["examples"].unique().tolist() == [size, 2 * size, 3 * size]
    assert curve["training_loss"].notna().all() and curve["noise_scale_two_batches"].isna().all()


def test_training_is_named_as_it_is_typed():
    assert how(make()) == ""
    assert how(make(training="sgd")) == ", training=sgd lr=0.1"
    chosen = {"name": "adamw", "weight_decay": 0.1, "schedule": "cosine", "sharpness": True}
    expected = ", training=adamw lr=0.001 weight_decay=0.1 schedule=cosine sharpness=true"
    assert how(make(training=chosen)) == expected


def test_a_sweep_trains_every_condition(call, tmp_path):
    code, output, errors = call(
        *("-m", *SMALL, "training=sgd,adam", "training.lr=0.1,0.01", "training.steps=2")
    )
    assert (code, errors) == (0, "") and "4 runs: 4 measured" in output
    curves = flowlab.load(tmp_path / "results/single/curves")
    found = curves.groupby(["training", "training_lr"])["training_loss"].last()
    assert len(found) == 4 and found.nunique() == 4
    code, output, errors = call(*("-m", *SMALL, "training=sgd", "training.lr=0.1,0.01"))
    assert (code, errors) == (0, "")  # another budget


def test_presets_are_what_the_files_say():
    assert set(PRESETS) < set(OPTIMIZERS)
    for name in OPTIMIZERS:
        assert make(training=name) == make(training={"name": name})
    assert make(training={"name": "adam", "lr": 0.1}).training.lr == 0.1
    assert make(training="adam").training.lr == PRESETS["adam"]["lr"]


# What is refused

REFUSED = {
    "training.lr=-0.1": "training.lr must be a finite number above 0; got -0.1",
    "training.lr=0": "training.lr must be a finite number above 0; got 0.0",
    "training.lr=nan": "training.lr must be a finite number above 0; got nan",
    "training.lr=1e400": "training.lr must be a finite number above 0; got inf",
    "training.lr=x": "training.lr must be a number; got x",
    "training.lrr=1": "setting must be a known name; got training.lrr; did you mean training.lr?",
    "training.momentum=1": "training.momentum must be at least 0 and below 1; got 1.0",
    "training.momentum=-0.1": "training.momentum must be at least 0 and below 1; got -0.1",
    "training=adam training.beta1=1": "training.beta1 must be at least 0 and below 1; got 1.0",
    "training=adam training.beta2=-1": "training.beta2 must be at least 0 and below 1; got -1.0",
    "training=adam training.beta2=nan": "training.beta2 must be at least 0 and below 1; got nan",
    "training=adam training.eps=0": "training.eps must be a finite number above 0; got 0.0",
    "training.clip=norm training.clip_at=0": "training.clip_at must be a finite number above 0",
    "training.clip=norm training.clip_at=-1": "training.clip_at must be a finite number above 0",
    "training.clip=nrom": "got nrom; did you mean norm?",
    "training.weight_decay=-1": "training.weight_decay must be a finite number, at least 0; got -1",
    "training.epochs=0": "training.epochs must be a finite number above 0; got 0.0",
    "training.steps=0": "training.steps must be at least 1; got 0",
    "training.examples=0": "training.examples must be at least 1; got 0",
    "training.steps=null training.epochs=1e30": "training must have at most 2147483647 steps; got",
    "training=sdg": "training must be one of adam, adamw, none, sgd; got sdg; did you mean sgd?",
    "training=adma": "got adma; did you mean adam?",
    "training.name=sdg": "got sdg; did you mean sgd?",
    "training.schedule=cosin": "got cosin; did you mean cosine?",
    "training.schedule=step": "training.decay_every must be given for training.schedule=step",
    "training.decay_every=2": "training.decay_every must be given for training.schedule=step",
    "training.rule=linaer": "got linaer; did you mean linear?",
    "training.rule=noise": "training.noise_scale must be given for training.rule=noise",
    "training.warmup=9": "training.warmup must be at most the 3 steps of training; got 9",
    "training.warmup=-1": "training.warmup must be at least 0; got -1",
    "training.held_out=0": "training.held_out must be between 0 and 1; got 0.0",
    "training.held_out=1": "training.held_out must be between 0 and 1; got 1.0",
    "training.held_out=nan": "training.held_out must be between 0 and 1; got nan",
    "training.held_out=1e-4": "training.held_out must leave an example on either side of the 1797",
    "training.held_out=0.9999": "training.held_out must leave an example on either side",
    "training.log=0": "training.log must be at least 1; got 0",
    "batch_size=1439": "batch_size must be at most the 1438 training examples of digits; got 1439",
    "upstream=gaussian": "upstream must be loss for training; got gaussian",
    "upstream=ones": "upstream must be loss for training; got ones",
    "training.epochs=1": "training must have one budget, epochs, steps or examples; got epochs=1,",
    "training.beta1=0.5": "training.beta1 does not apply to training=sgd; got 0.5",
    "training=adam training.momentum=0.5": "training.momentum does not apply to training=adam",
    "training.nesterov=true": "training.momentum must be above 0 for training.nesterov; got 0.0",
}


@pytest.mark.parametrize("several", [False, True], ids=["run", "sweep"])
@pytest.mark.parametrize("bad", REFUSED)
def test_bad_training_is_one_line_and_no_table(call, tmp_path, bad, several):
    given = dict(text.partition("=")[::2] for text in [*SGD, *bad.split()])
    code, _, errors = call(*["-m"] * several, *(f"{key}={value}" for key, value in given.items()))
    assert code == 2 and errors.count("\n") == 1, errors
    assert errors.startswith("error: ") and REFUSED[bad] in errors
    assert [where for where in written(tmp_path) if not where.endswith("sweeps")] == []
    assert several or not list(tmp_path.iterdir())


@pytest.mark.parametrize("several", [False, True], ids=["run", "sweep"])
@pytest.mark.parametrize("option", ["lr=0.1", "lr=0.2", "steps=3", "sharpness=true", "clip=norm"])
def test_options_of_training_need_an_optimizer(call, tmp_path, option, several):
    code, output, errors = call(*["-m"] * several, *SMALL, f"training.{option}")
    assert (code, output) == (2, "") and not list(tmp_path.iterdir())
    name = option.partition("=")[0]
    assert errors == (
        f"error: training.{name} needs an optimizer, training=sgd, adam or adamw; "
        f"got training.{option} alone\n"
    )


def test_the_other_conditions_of_a_sweep_are_trained(call, tmp_path):
    code, output, errors = call("-m", *SGD, "training.lr=0.1,-1,0.2")
    assert code == 2 and "2 measured" in output
    assert errors == (
        "error: 1 of 3 conditions could not run: training.lr=-1: training.lr must be a finite "
        "number above 0; got -1.0\n"
    )
    assert len(list((tmp_path / "results/single/curves").iterdir())) == 2


@pytest.mark.parametrize(
    ("labels", "more", "message"),
    [
        (np.arange(40) % 3 + 0.5, [], "a regression takes loss=squared_error"),
        (np.where(np.arange(40) == 3, np.nan, 1.0), [], "labels of mine.npz must be"),
        (np.zeros(40, int), [], "labels of mine.npz must be of at least 2 classes; got only 0"),
        (np.ones((40, 2)), [], "labels of mine.npz must be one for each of the 40 rows"),
        (np.where(np.arange(40) == 3, np.nan, 1.0), ["loss=squared_error"], "mine.npz must be"),
    ],
)
def test_labels_that_fit_no_loss_are_refused(call, tmp_path, labels, more, message):
    np.savez(tmp_path / "mine.npz", X=np.random.default_rng(0).normal(size=(40, 6)), y=labels)
    code, output, errors = call(*SGD, "data=file", "data.path=mine.npz", *more)
    assert (code, output) == (2, "") and errors.count("\n") == 1
    assert errors.startswith("error: ") and message in errors
    assert [path.name for path in tmp_path.iterdir()] == ["mine.npz"]


@pytest.mark.parametrize("module", [ledger, batch])
def test_commands_that_measure_at_initialization_refuse_training(calling, tmp_path, module):
    code, output, errors = calling(lambda: module.COMMAND.compose(module.run))(*SGD)
    assert (code, output) == (2, "") and not list(tmp_path.iterdir())
    name = module.COMMAND.name
    rule = f"training must be none for {name}, which measures at initialization; got sgd"
    assert errors == f"error: {rule}\n"


def test_every_option_of_training_is_a_column():
    columns = of_settings.frame().set_index("key")["column"]
    options = [key for key in columns.index if key.startswith("training.")]
    assert all(columns[key] == key.replace(".", "_") for key in options) and len(options) > 20
