"""A study is a sweep's YAML and the file of the same name, found by itself."""

import re
from pathlib import Path

import pandas as pd
import pytest
from omegaconf import OmegaConf

from experiments.command import CONF, groups
from flowlab import claims, studies
from flowlab.claims.claim import HOLDS
from flowlab.studies import Reading, Study
from flowlab.studies.study import first_run, runs_with
from tests.support.tables import curve, net, sweep

STUDIES = studies.load()
TESTS = Path(__file__).parent


def test_every_sweep_has_its_file_and_every_file_its_sweep():
    assert set(STUDIES) == set(groups()["experiment"])


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_asks_one_question_and_names_its_source(name):
    study = STUDIES[name]
    assert re.fullmatch(r"[A-Z][^?]*\?", study.question) and study.source
    kept = OmegaConf.load(CONF / "experiment" / f"{name}.yaml")["experiment"]
    assert (study.experiment or name) == kept
    assert study in studies.of(kept)


def test_figures_and_claims_have_names_of_their_own():
    figures = [drawing.name for study in STUDIES.values() for drawing in study.figures]
    assert len(figures) == len(set(figures)) == 35
    ids = [claim.id for study in STUDIES.values() for claim in study.findings]
    assert len(ids) == len(set(ids)) and set(ids) < set(claims.load())


@pytest.mark.parametrize("name", [name for name, study in STUDIES.items() if study.findings])
def test_findings_are_tested_on_wrong_tables(name):
    assert any(
        f"flowlab.studies.{name} " in path.read_text() or f"{name}.STUDY" in path.read_text()
        for path in TESTS.glob("test_*.py")
    )


def test_an_experiment_without_a_study_is_drawn_by_what_varies():
    assert studies.of("mine") == [studies.ANY]
    assert studies.of("single") == [studies.SINGLE]
    assert [study.figures[0].name for study in (studies.ANY, studies.SINGLE)] == [
        "sweep",
        "profiles",
    ]


def test_what_a_table_lacks_is_said():
    table, _ = sweep((0.1, {"skip": "none", "upstream": "gaussian"}))
    found, lacking = STUDIES["skip"].read(Reading(table))
    assert found == []
    assert len(lacking) == len(STUDIES["skip"].findings)
    assert all("must hold a run of skip=" in line and "\n" not in line for line in lacking)


def test_runs_are_chosen_by_their_settings():
    table, _ = sweep((0.1, {"sigma_w": 0.3}), (0.2, {"sigma_w": 0.1 + 0.2, "depth": 9}))
    assert set(runs_with(table, sigma_w=0.3)["run"]) == {"run0", "run1"}
    assert set(runs_with(table, depth=9)["run"]) == {"run1"}
    assert set(first_run(table, "depth")["run"]) == {"run1"}
    nulls = table.assign(padding=pd.array([None] * len(table), "string"))
    for frame in (table, nulls):
        with pytest.raises(claims.suite.InputError, match="a run of padding=zeros; got none"):
            runs_with(frame, padding="zeros")


def test_a_narrowed_reading_has_the_predictions_of_its_runs():
    reading = Reading(*sweep((0.1, {}), (0.2, {"init": "xavier"})), kept_within=3)
    one = reading.narrowed(lambda table: table[table["init"] == "xavier"])
    assert set(one.table["run"]) == set(one.prediction["run"]) == {"run1"}
    assert one.kept_within == 3
    none = Reading(reading.table, net("other", 0.1)[1]).narrowed(lambda table: table)
    assert none.prediction is None


def test_a_narrowed_reading_has_the_curves_of_its_runs():
    table, _ = sweep((0.1, {}), (0.2, {"init": "xavier"}))
    of = pd.concat([curve(f"run{k}", lambda examples: 1 / examples) for k in (0, 1)])
    reading = Reading(table, curve=of)
    one = reading.narrowed(lambda table: table[table["init"] == "xavier"])
    assert set(one.trained["run"]) == {"run1"} and set(one.sweep.curve["run"]) == {"run1"}
    with pytest.raises(claims.suite.InputError, match="must hold trained runs, with their curves"):
        Reading(table).trained  # noqa: B018


def test_runs_of_a_finding_that_name_an_optimizer_are_trained():
    net = {"depth": 2, "width": 6, "batch_size": 8}
    optimizer = {"name": "sgd", "steps": 3}
    trial = claims.suite.Trial(5, 4)
    table, of = trial.sweep([net, {**net, "training": optimizer}], times=0.75)
    assert set(table["step"].dropna()) == {1, 2, 3} and table["step"].isna().any()
    assert of["seed"].unique().tolist() == [5, 6, 7]
    assert trial.train(0.75, **net, training=optimizer).curve.equals(of)


def test_a_finding_is_measured_on_its_sweep_or_read_from_a_table():
    claim = STUDIES["skip"].findings[2]
    trial = claims.suite.Trial(0, 4)
    table, curve = trial.sweep(claim.runs, claim.times)
    assert curve is None
    assert claim.check(trial) == claim.find(Reading(table))
    assert HOLDS in claim.expected and isinstance(STUDIES["skip"], Study)
