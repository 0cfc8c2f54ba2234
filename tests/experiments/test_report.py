"""The command: bad input and folders that refuse are one line; nothing is half written."""

import pytest

from experiments import report
from flowlab.errors import InputError
from flowlab.storage import tables
from tests.support.reports import claims


@pytest.fixture
def results(tmp_path):
    """The least of which there is a report."""
    tables.write(claims(), tmp_path / "results/claims/claims.parquet", {"command": "claim it"})
    return tmp_path / "results"


def test_both_files_are_written_and_what_is_missing_is_noted(results, capsys):
    assert report.main([f"results_dir={results}", "title=Mine"]) == 0
    out, err = capsys.readouterr()
    assert [line.split("  ")[0] for line in out.splitlines()] == [
        str(results / name) for name in ("report.md", "report.html")
    ]
    assert err == "note: no benchmark yet: make bench\n"
    assert (results / "report.md").read_text("utf-8").startswith("# Mine\n")
    assert "<h1>Mine</h1>" in (results / "report.html").read_text("utf-8")


@pytest.mark.parametrize(
    "arguments, line",
    [
        (["results_dir={tmp}/none"], "results_dir must be a folder; got {tmp}/none"),
        (["results_dir={tmp}/file"], "results_dir must be a folder; got {tmp}/file"),
        (["results_dir={tmp}"], "results_dir must hold results; got none in {tmp}"),
        (["title= "], "title must hold a word"),
        (["tilte=a"], "did you mean title"),
        (["fast"], "options are written key=value; got fast"),
    ],
)
def test_bad_input_is_one_line(arguments, line, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert report.main([a.format(tmp=tmp_path) for a in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and err.count("\n") == 1
    assert line.format(tmp=tmp_path) in err


def test_a_folder_that_refuses_is_one_line(results, monkeypatch, capsys):
    (results / "report.md").mkdir()
    assert report.main([f"results_dir={results}"]) == 2
    assert capsys.readouterr().err.startswith(f"error: cannot write {results / 'report.md'}: ")
    assert not list(results.glob(".report*"))

    def refuse(folder):
        raise InputError(f"results_dir must be writable; {folder} is not")

    monkeypatch.setattr("experiments.report.writable", refuse)
    assert report.main([f"results_dir={results}"]) == 2
    assert capsys.readouterr().err == f"error: results_dir must be writable; {results} is not\n"
