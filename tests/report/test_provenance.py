"""Commands, versions, the benchmark and what is missing."""

from flowlab.report import gather
from flowlab.report.document import Fold, Items, Table
from tests.support.reports import COMMAND, WILD, section, store


def test_commands_and_versions_come_from_the_metadata(results, runs):
    store(results / "second", "c", *runs["c"], versions={"numpy": "1.2.3"}, command="other")
    meaning, commands, versions, missing = section(gather(results), "Provenance").blocks
    assert all(isinstance(fold, Fold) for fold in (meaning, commands, versions, missing))
    made = {
        a.text: b.lines for a, b in zip(commands.blocks[::2], commands.blocks[1::2], strict=True)
    }
    assert made["second:"] == ("other",)
    assert made["claims:"] == ("claim it",)
    assert made["benchmark:"] == ("python -m experiments.benchmark rounds=3",)
    assert (COMMAND,) in made.values()
    assert commands.summary == "4 commands that made the tables"
    (table,) = versions.blocks
    assert table.rows == (("numpy", "1.2.3", "1"), ("numpy", "9.8.7", "3"))
    assert missing.summary == "1 part is missing, unreadable or older"
    assert missing.blocks == (Items(("second has no figures yet: make plots",)),)


def test_the_benchmark_stands_whole(results):
    (fold,) = section(gather(results), "Benchmark").blocks
    text, table = fold.blocks
    assert "peer's time over flowlab's" in text.text
    assert table == Table("probe", ("form", "ratio", "first_s"), ((WILD, "2.12", "–"),))
