"""What is read: every run judged once from its own tables; the rest named and left out."""

import json
import re
import shutil
import subprocess
import sys
from html import unescape

import pandas as pd
import pytest

import flowlab
from experiments import report
from flowlab.analysis.comparison import compare
from flowlab.report import gather, markdown
from flowlab.report.document import Picture
from flowlab.report.reading import Reader
from flowlab.storage.experiment import Experiment, load
from tests.support.reports import FOLDER, Page, blocks, store


def test_each_run_is_judged_once_from_its_own_tables(results, runs, monkeypatch):
    judged = []
    judge = flowlab.report.reading.judge

    def counted(*given):
        judged.append(given)
        return judge(*given)

    monkeypatch.setattr("flowlab.report.reading.judge", counted)
    (chapter,) = Reader(results, 1.0).chapters()
    assert len(judged) == len(runs)
    for name, (table, prediction, _) in runs.items():
        assert chapter.verdicts[name] == flowlab.judge(table, prediction)


def test_the_comparison_is_that_of_compare(results):
    (chapter,) = Reader(results, 1.0).chapters()
    folder = results / FOLDER
    expected = compare(load(folder), load(folder / "theory"))
    assert list(chapter.comparison) == list(expected)
    assert chapter.comparison.astype(str).equals(expected.astype(str))


def test_compacted_runs_give_the_same_document(results):
    before = gather(results)
    Experiment(results / FOLDER).compact()
    assert gather(results) == before


def test_what_is_missing_is_named_and_the_rest_written(results, runs, capsys):
    folder = results / FOLDER
    store(results / "bare", "b", *runs["b"])
    (results / "bare" / "theory" / "b.parquet").unlink()
    (folder / "runs" / "broken.parquet").write_bytes(b"PAR1 not really")
    runs["c"][0].to_parquet(folder / "runs" / "foreign.parquet")
    table, prediction, settings = runs["c"]
    store(folder, "empty", table.head(0), prediction.assign(run="empty"), settings)
    odd = (frame.assign(run="odd") for frame in (table, prediction))
    store(folder, "odd", *odd, "no settings")
    store(folder, "later", table, prediction, settings, schema=99)
    (folder / "theory" / "c.parquet").write_bytes(b"")
    (folder / "figures" / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (folder / "figures" / "gone.json").write_text("{}")
    (folder / "figures" / "sweep.json").write_text("[")
    (folder / "figures" / "sweep.svg").write_text("<svg")
    shutil.rmtree(results / "claims")
    shutil.rmtree(results / "benchmark")
    assert report.main([f"results_dir={results}"]) == 0
    page, twin = ((results / f"report.{kind}").read_text("utf-8") for kind in ("html", "md"))
    notes = capsys.readouterr().err
    for line in (
        "no claims yet: make claims",
        "no benchmark yet: make bench",
        "bare has no figures yet: make plots",
        "bare/theory lacks 1 of 1 runs",
        f"{FOLDER}/runs/broken.parquet is damaged",
        f"{FOLDER}/runs/foreign.parquet is not a table of this laboratory",
        f"{FOLDER}/runs/empty.parquet cannot be judged",
        f"{FOLDER}/runs/odd.parquet is not a table of this laboratory",
        f"{FOLDER}/runs/later.parquet has schema 99; this version reads 1",
        f"{FOLDER}/theory/later.parquet has schema 99; this version reads 1",
        f"{FOLDER}/theory lacks 1 of 3 runs",
        f"{FOLDER}/theory/c.parquet is damaged",
        f"{FOLDER}/figures/cut.png is damaged",
        f"{FOLDER}/figures/gone.png is missing",
        f"{FOLDER}/figures/sweep.json is missing or damaged",
        f"{FOLDER}/figures/sweep.svg is damaged",
    ):
        assert len(re.findall(f"^note: {re.escape(line)}.*$", notes, re.MULTILINE)) == 1
        assert line in unescape(page)
        assert markdown._text(line) in twin
    assert notes.count("\n") == 16
    assert len(Page(page).all("img")) == 2  # on top and in its section
    assert str(results) not in page


def test_a_run_without_prediction_is_judged(results):
    (results / FOLDER / "theory" / "c.parquet").unlink()
    (chapter,) = Reader(results, 1.0).chapters()
    assert chapter.verdicts["c"].agreement == "no theory"
    assert chapter.verdicts["a"].agreement != "no theory"


def test_the_curves_of_trained_runs_are_read(tmp_path):
    of = {"depth": 2, "width": 8, "batch_size": 16, "seeds": 3, "results_dir": str(tmp_path)}
    run = flowlab.run(**of, training={"name": "sgd", "steps": 3})
    (chapter,) = Reader(tmp_path, 1.0).chapters()
    assert len(chapter.reading.curve) == len(run.curve) == 3 * 3
    path = tmp_path / "single" / "curves" / run.path.name
    pd.read_parquet(path).drop(columns="held_out_loss").to_parquet(path)
    reader = Reader(tmp_path, 1.0)
    (chapter,) = reader.chapters()
    assert chapter.reading.curve is None
    assert any(line.startswith(f"single/curves/{path.name} is not") for line in reader.missing)


def test_a_stale_figure_is_named(results):
    next((results / FOLDER / "runs").glob("*.parquet")).unlink()
    assert any("shows 1 table not kept: make plots" in line for line in gather(results).missing)


def test_a_figure_that_says_something_else_than_the_tables_is_named(results):
    assert gather(results).missing == ()
    described = results / FOLDER / "figures" / "sweep.json"
    read = json.loads(described.read_text())
    described.write_text(json.dumps(read | {"finding": "All is well"}))
    (line,) = gather(results).missing
    assert line.endswith("is older than the tables: make plots")


def test_the_smaller_of_a_figures_files_is_embedded(results):
    figures = results / FOLDER / "figures"
    small, large = sorted((figures / f"sweep.{k}" for k in ("svg", "png")), key=size)
    (picture,) = blocks(gather(results), Picture)
    assert picture.content == small.read_bytes()
    if small.suffix == ".svg":
        small.write_text(small.read_text() + " " * size(large))
    else:
        small.unlink()
    (picture,) = blocks(gather(results), Picture)
    assert picture.path.endswith(".png")


def size(path):
    return path.stat().st_size


@pytest.mark.parametrize("named", ["ledger/x.parquet", "estimators/x.parquet"])
def test_figures_of_other_tables_are_checked_against_these(results, named):
    folder = results / FOLDER
    (folder / named).parent.mkdir()
    (folder / named).write_bytes(b"x")
    for kind in ("png", "json"):
        shutil.copy(folder / f"figures/sweep.{kind}", folder / f"figures/other.{kind}")
    described = folder / "figures/other.json"
    described.write_text(json.dumps(json.loads(described.read_text()) | {"runs": [named]}))
    assert not [line for line in gather(results).missing if "figures" in line]
    (folder / named).unlink()
    assert any("shows 1 table not kept" in line for line in gather(results).missing)


def test_importing_the_report_is_light():
    code = "import sys, flowlab.report; print({'matplotlib', 'hydra'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
