"""``python -m experiments.ask``: theory's ranking, the kept runs beside it, what it would take."""

import re

import pytest

import flowlab
from experiments import ask
from flowlab.analysis.verdicts import foresee
from flowlab.measurement.setup import prepare

SMALL = {"depth": 6, "width": 16, "seeds": 3, "batch_size": 8, "activation": "tanh"}
TYPED = [f"{key}={value}" for key, value in SMALL.items()]


@pytest.fixture
def asking(tmp_path, monkeypatch, capsys):
    """Ask, in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def made(*arguments):
        return ask.main(list(arguments)), *capsys.readouterr()

    return made


def ranked(output):
    """The rows of the first ranking: the first word of each, in order."""
    lines = output.split("first:\n")[1].split("\n\n")[0].splitlines()[1:]
    return {line.split()[0]: line for line in lines}


def test_every_initialization_is_ranked_by_theory(asking):
    code, output, errors = asking(*TYPED)
    assert (code, errors) == (0, "")
    rows = ranked(output)
    assert len(rows) == 11 and "delta_orthogonal" not in rows
    changes = [float(re.search(r"-?\d+\.\d\d", row)[0]) for row in rows.values()]
    for init, change in zip(rows, changes, strict=True):
        settings = flowlab.make(init=init, **SMALL) if init != "orthogonal_relu" else None
        if settings is not None:
            verdict = foresee(flowlab.predict(settings), seeds=settings.seeds)
            assert f"{verdict.predicted:z.2f}" == f"{change:z.2f}"
    assert (
        "experiments.run -m depth=6 width=16 seeds=3 batch_size=8 activation=tanh init=" in output
    )


def test_measured_runs_are_marked_and_no_longer_to_be_measured(asking):
    run = flowlab.run(init="he", experiment="mine", **SMALL)
    code, output, _ = asking(*TYPED)
    row = ranked(output)["he"]
    assert code == 0
    assert f"{run.verdict.change.mean:z.2f} [" in row and row.endswith("in mine")
    assert "To measure the 10 that are not measured" in output
    assert "init=he," not in output.split("To measure")[1]


def test_kept_runs_of_other_settings_stand_apart(asking):
    flowlab.run(init="he", **SMALL | {"depth": 9})
    code, output, _ = asking("init=he", "activation=tanh")
    assert code == 0
    beside = output.split("Also kept with init=he activation=tanh")[1]
    assert "decades over 7 layers" in beside
    assert "experiments.run init=he activation=tanh\n" in beside


def test_one_condition_is_answered_in_a_sentence(asking):
    code, output, _ = asking("init=he", *TYPED)
    predicted = foresee(flowlab.predict(init="he", **SMALL), seeds=3)
    assert code == 0 and "first:" not in output
    assert f"By theory: {predicted.predicted:z.2f} [".replace("-", "−") in output


def test_where_theory_is_silent_it_says_why(asking):
    code, output, _ = asking("init=lecun", "network=transformer", "network.causal=true", "depth=4")
    assert code == 0
    assert "Theory is silent" in output and "causal" in output


def test_conditions_that_break_a_rule_are_named(asking):
    code, output, errors = asking("init=he", "skip=none,identity", "network=rnn,mlp", "depth=4")
    assert code == 0
    assert "skip=identity, network=rnn: skip must be none for network=rnn; got identity" in errors
    assert len(ranked(output)) >= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dpeth=5"], "setting must be a known name; got dpeth; did you mean depth?"),
        (["depth"], "settings are written key=value; got depth"),
        (["depth=x"], "depth must be an integer; got 'x'"),
        (["depth=0"], "depth must be at least 1; got 0"),
        (["init=hee"], "init must be one of"),
        (
            ["rank=worst"],
            "rank must be one of best, trained, kept, vanishing, exploding, differing",
        ),
        (["depth=" + ",".join(map(str, range(1, 300)))], "ask takes at most 200 combinations"),
    ],
)
def test_bad_questions_end_in_one_line(asking, arguments, message):
    code, output, errors = asking(*arguments)
    assert (code, output) == (2, "")
    assert errors.startswith(f"error: {message}") and errors.count("\n") == 1


def test_the_cost_scales_with_the_seeds():
    few, many = (ask._seconds(prepare(flowlab.make(depth=5, width=64, seeds=n))) for n in (4, 16))
    assert many == pytest.approx(4 * few, rel=1e-9)


def test_training_is_asked_for_by_name(asking):
    flowlab.run(init="he", **SMALL)
    trained = flowlab.run(init="he", training={"name": "sgd", "steps": 5}, **SMALL)
    code, output, errors = asking(*TYPED, "init=he")
    assert (code, errors) == (0, "") and "training" not in output and "Also kept" not in output
    code, output, errors = asking(*TYPED, "init=he", "training=sgd")
    assert (code, errors) == (0, "")
    change = f"{foresee(trained.prediction, seeds=3).predicted:z.2f}".replace("-", "−")
    assert f"By theory, at initialization: {change} [" in output
    # Of another budget, so that it stands apart, by what it reaches.
    _, other = output.split("Also kept with ")
    accuracy = 100 * trained.curve[trained.curve["step"] == 5]["held_out_accuracy"].mean()
    assert f"held-out accuracy {accuracy:.1f} %" in other.lower()
    assert "\nTo train it (" in other and other.rstrip().endswith("init=he training=sgd")
    code, output, errors = asking(*TYPED, "init=he", "training=sgd", "training.steps=5")
    row = output.split("Measured: ")[1].splitlines()[0]
    assert f"{trained.verdict.change.mean:z.2f} [" in row and "To train" not in output
    code, output, errors = asking(*TYPED, "training.lr=0.1")
    assert (code, output) == (2, "") and "training.lr needs an optimizer" in errors
