"""The table of all runs: none is cut, every setting that varies is a column."""

import flowlab
from flowlab.report import gather
from flowlab.report.document import Lookup, Table
from tests.support.reports import FOLDER, blocks, store


def lookup(root):
    (found,) = blocks(gather(root), Lookup)
    return found


def column(table, name):
    return [row[table.columns.index(name)] for row in table.rows]


def test_every_run_stands_there_with_what_sets_it_apart(results, runs):
    table = lookup(results)
    measures = ("decades [95 %]", "trend", "theory", "difference", "agreement", "rate")
    assert table.columns == ("experiment", "init", "depth", *measures, "seeds", "run")
    assert sorted(column(table, "run")) == sorted(runs)
    for row in table.rows:
        table_of, prediction, settings = runs[row[-1]]
        verdict = flowlab.judge(table_of, prediction)
        assert row[:3] == (FOLDER, settings["init"]["name"], str(settings["depth"]))
        assert row[3] == f"{verdict.change:z.2f}".replace("-", "−")
        assert (row[4], row[7]) == (verdict.trend, verdict.agreement)
        assert row[5] == f"{verdict.predicted:z.2f}".replace("-", "−")
        assert row[-2] == "3"


def test_the_least_change_stands_first(results):
    cells = column(lookup(results), "decades [95 %]")
    sizes = [abs(float(cell.split()[0].replace("−", "-"))) for cell in cells]
    assert sizes == sorted(sizes)


def test_no_table_is_cut(tmp_path, runs):
    table, prediction, settings = runs["c"]
    for k in range(60):
        made = (table.assign(run=f"r{k}"), prediction.assign(run=f"r{k}"), settings)
        store(tmp_path / "many", f"r{k}", *made)
    runs_of = {t.caption: t.rows for t in blocks(gather(tmp_path), Table) if "Run" in t.columns}
    assert [len(rows) for rows in runs_of.values()] == [60]
    assert len(lookup(tmp_path).rows) == 60


def test_settings_that_apply_to_some_are_columns_where_they_differ(results):
    for steps in (4, 8):
        network = {"name": "rnn", "steps": steps}
        settings = flowlab.make(network=network, width=6, batch_size=4, seeds=2, depth=1)
        made = [flowlab.measure(settings), flowlab.predict(settings), settings.resolved()]
        store(results / "time", settings.run(), *made)
    table = lookup(results)
    assert set(column(table, "network")) == {"mlp", "rnn"}
    assert sorted(column(table, "steps")) == ["4", "8", "–", "–", "–"]
    assert "heads" not in table.columns  # applies to none
    assert "radius" not in table.columns  # the same wherever it applies
