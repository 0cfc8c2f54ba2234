"""A study's section: question, answer, figure and findings of the tables that are there."""

import pandas as pd
import pytest

import flowlab
from experiments import plots
from flowlab import studies
from flowlab.report import gather
from flowlab.report.document import Code, Fold, Items, Picture, Reference, Table, Text
from flowlab.storage import tables
from tests.support.reports import COMMAND, FOLDER, section, store


@pytest.fixture
def skips(tmp_path):
    """Two depths of a skip connection as its study has them."""
    for depth in (3, 6):
        axes = {"depth": depth, "width": 8, "batch_size": 2, "seeds": 4, "upstream": "gaussian"}
        settings = flowlab.make(skip="mix", experiment="skip", **axes)
        made = flowlab.measure(settings), flowlab.predict(settings)
        run = settings.run()
        store(tmp_path / "skip", run, *(f.assign(run=run) for f in made), settings.resolved())
    return tmp_path


def findings(root):
    """The findings' rows and what cannot be read."""
    (fold,) = (b for b in section(gather(root), "skip").blocks if isinstance(b, Fold))
    (table,) = (b for b in fold.blocks if isinstance(b, Table))
    (absent,) = (b for b in fold.blocks if isinstance(b, Items))
    return table.rows, absent.items


def test_question_answer_figure_findings_and_command_stand_together(skips, capsys):
    plots.plots(str(skips))
    printed = capsys.readouterr().out
    blocks = section(gather(skips), "skip").blocks
    kinds = [type(b) for b in blocks if not isinstance(b, Items)]
    assert kinds == [Text, Text, Text, Picture, Fold, Reference, Code]
    question, other, sentence, picture = [b for b in blocks if not isinstance(b, Items)][:4]
    assert question.text.startswith("Which skip connections keep the gradient")
    assert other.text.startswith("Does a branch of skip=scaled")
    assert sentence.strong and sentence.text == picture.title
    (row,), absent = findings(skips)
    assert row[0] == "R1-mix" and row[3].startswith("5 blocks multiply ‖δ‖² by ")
    assert f"R1-mix {row[1]}: {row[3]}" in printed
    assert {line.split()[0] for line in absent} == {
        *("S8", "R1-identity", "R1-inverse_sqrt_depth", "R1-inverse_depth")
    }
    assert all(line in printed for line in absent)
    *_, runs, code = blocks
    assert (runs.text, runs.section) == ("2 runs, one by one:", "All runs")
    assert runs.filters == {"experiment": "skip"}
    assert code == Code((COMMAND,))


def test_findings_are_those_of_the_tables_that_are_there(skips):
    (deepest,) = (
        path
        for path in (skips / "skip/runs").iterdir()
        if pd.read_parquet(path)["depth"].iat[0] == 6
    )
    table = pd.read_parquet(deepest)
    travelled = table["depth"] - table["layer"]
    wrong = table.assign(delta_log10_norm=table["delta_log10_norm"] + travelled)
    tables.write(wrong, deepest, tables.metadata(deepest))
    (row,), _ = findings(skips)
    assert row[1] == "does not hold (expected: holds)"
    noted = [b for b in section(gather(skips), "skip").blocks if isinstance(b, Items)]
    assert noted[0].items[0].startswith("R1-mix does not hold (expected: holds): 5 blocks")
    deepest.unlink()
    (row,), _ = findings(skips)
    assert row[3].startswith("2 blocks multiply")


def test_an_experiment_of_ones_own_has_an_answer_and_a_ranking(results):
    sentence, picture, ranking, _, _ = section(gather(results), FOLDER).blocks
    assert sentence.strong and sentence.text.startswith("All 3 runs keep the gradient")
    assert isinstance(picture, Picture)
    assert ranking.summary == "Ranking of 3 runs, the least change first"
    (table,) = ranking.blocks
    sizes = [abs(float(row[1].split()[0].replace("−", "-"))) for row in table.rows]
    assert sizes == sorted(sizes)
    assert {row[0] for row in table.rows} == {
        *("init=he, depth=3", "init=he, depth=4", "init=xavier, depth=4")
    }


def test_studies_with_figures_have_places_of_their_own():
    ranks = [study.rank for study in studies.load().values() if study.figures]
    assert len(ranks) == len(set(ranks))
    assert sum(rank < studies.ANY.rank for rank in ranks) < 7  # room for a sweep of one's own
