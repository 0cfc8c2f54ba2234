"""Damaged results folders: every command gives one line for each damaged thing and does the rest.

Each place of an experiment is damaged in an experiment of its own, beside one that is whole.
"""

import os
import shutil

import pytest

import flowlab
from experiments import compact, plots, report, results, run
from experiments.command import guarded
from flowlab import runs as flowlab_runs
from flowlab import studies
from flowlab.storage import index
from flowlab.storage.experiment import Experiment
from flowlab.storage.files import write
from flowlab.studies import Drawing, Study
from flowlab.training.loop import Trained

NAME = os.fsdecode(b"\xff")  # not UTF-8
LONG = "x" * 240
READERS = {"plots", "report", "results", "compact"}
WRITERS = {"compact", "run"}
# Where damage stands, and the commands that must say so of what is neither file nor folder.
FOLDERS = {
    "runs": READERS | WRITERS,
    "theory": {"plots", "report"} | WRITERS,
    "curves": READERS | WRITERS,
    "figures": {"plots", "report"},
    "ledger": {"report"},
    "sweeps": {"results"},
    ".partial": {"run"},
    ".compacting": set(),
    ".old-runs": READERS | WRITERS,
    ".old-theory": READERS | WRITERS,
    ".old-curves": READERS | WRITERS,
}
FILES = {
    "runs/RUN.parquet": READERS,
    "theory/RUN.parquet": {"plots", "report", "compact"},
    "curves/RUN.parquet": READERS,
    f"runs/{NAME}.parquet": READERS,
    f"runs/{LONG}.parquet": READERS,
    f"runs/{index.MANIFEST}": READERS | WRITERS,
    f"theory/{index.MANIFEST}": {"plots", "report"} | WRITERS,
    f"runs/{index.PACK}0.parquet": READERS,
    f"theory/{index.PACK}0.parquet": {"plots", "compact"},
    "ledger/odd.parquet": {"report"},
    "figures/profiles.png": {"report"},
    "figures/profiles.json": {"report"},
    f"figures/{NAME}.png": {"report"},
    "sweeps/odd.json": {"results"},
    ".index-runs.jsonl": set(),
    ".index-theory.jsonl": set(),
    ".index-curves.jsonl": set(),
    ".lock": set(),
    ".compact-lock": set(),
}
PLACES = {**FOLDERS, **FILES}
KINDS = {
    "a file": lambda path: path.write_bytes(b"text\n"),
    "a folder": lambda path: path.mkdir(),
    "nothing": lambda path: path.touch(),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to its folder": lambda path: path.symlink_to("."),
    "a pipe": os.mkfifo,
}
BROKEN = ("a link to nothing", "a link to itself", "a pipe")  # wherever they stand


def put(path, kind):
    """Put a kind of thing where a file or a folder stands, or stood."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    path.parent.mkdir(exist_ok=True)
    KINDS[kind](path)


def settings(root, experiment, depth=2):
    axes = {"depth": depth, "width": 2, "batch_size": 2, "seeds": 2}
    training = {"name": "sgd", "steps": 2}
    return flowlab.make(**axes, training=training, experiment=experiment, results_dir=str(root))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An experiment of one trained run, drawn."""
    root = tmp_path_factory.mktemp("whole")
    flowlab.run(settings(root, "well"), command="make it")
    plots.plots(str(root))
    return root / "well"


@pytest.fixture
def commands(tmp_path, monkeypatch, whole):
    """The commands on a results folder; figures are not painted and a run is not trained anew."""

    def touch(figure, stem):
        return (write(b"painted", stem.with_suffix(".png")),)

    kept = Experiment(whole)
    (name,) = kept.index()
    trained, prediction = Trained(kept.read(name), kept.curve(name)), kept.prediction(name)
    drawing = Drawing("profiles", lambda *_: "Norms", lambda *_: None, lambda *_: "Drawn.")
    monkeypatch.setattr(studies, "of", lambda _: [Study("What?", "nowhere", (drawing,))])
    monkeypatch.setattr(plots, "save", touch)
    monkeypatch.setattr(Drawing, "figure", lambda *_: None)
    monkeypatch.setattr(results, "MOST", 100)
    monkeypatch.setattr(flowlab_runs.loop, "train", lambda *_, **named: trained)
    monkeypatch.setattr(flowlab_runs, "predicted", lambda *_: prediction)
    option = [f"results_dir={tmp_path}"]

    def runs():
        codes = [guarded(lambda s=s: run.run(s)) for s in saved(tmp_path)]
        return max(codes)

    return {
        "run": runs,
        "plots": lambda: plots.main(option),
        "report": lambda: report.main(option),
        "results": lambda: results.main(option),
        "compact": lambda: compact.main(option),
    }


def saved(root):
    return [settings(root, path.name, 3) for path in sorted(root.iterdir()) if path.is_dir()]


def lines_about(place, errors):
    """The lines that name a path under the results folder."""
    return [row for row in errors if ascii(place)[1:-1] in row]


@pytest.mark.parametrize("command", ["run", *sorted(READERS)])
@pytest.mark.parametrize("kind", KINDS)
def test_one_line_for_each_damaged_thing_and_the_rest_is_done(
    kind, command, commands, whole, tmp_path, capsys
):
    shutil.copytree(whole, tmp_path / "well")
    name = next((whole / "runs").iterdir()).stem
    damaged = {}
    for number, (place, expected) in enumerate(PLACES.items()):
        if (kind == "a file" and place in FILES) or (kind == "a folder" and place in FOLDERS):
            continue
        experiment = f"e{number:02}"
        shutil.copytree(whole, tmp_path / experiment)
        put(tmp_path / experiment / place.replace("RUN", name), kind)
        damaged[experiment] = place, expected
    code = commands[command]()
    output, errors = capsys.readouterr()
    errors = errors.splitlines()
    assert code in (0, 2)
    assert all(row.startswith(("note: ", "error: ")) for row in errors), errors
    for experiment, (place, expected) in damaged.items():
        messages = lines_about(f"{experiment}/", errors)
        # The others of what follows: either figure is stale perhaps.
        assert len(messages) <= 3, (place, messages)
        assert len(lines_about(f"{experiment}/{place.replace('RUN', name)}", messages)) <= 1, (
            messages
        )
        must = kind in BROKEN or (kind == "a file" and place in FOLDERS)
        if must and command in expected:
            assert messages, place
    assert not lines_about("well/", errors)
    assert done(command, tmp_path, output)


def done(command, root, output):
    """Whether a command did its work in the experiment that is whole."""
    return {
        "run": len(Experiment(root / "well").index()) == 2,
        "plots": f"{root}/well/figures/profiles.png" in output,
        "report": "\n### well\n" in (root / "report.md").read_text()
        if command == "report"
        else None,
        "results": any(row.startswith("well ") for row in output.splitlines()),
        "compact": "well: 3 files" in output,
    }[command]
