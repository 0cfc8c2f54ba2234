"""Every run in one table, to be sorted and filtered by every setting in which runs differ."""

from collections.abc import Iterator

import pandas as pd

from flowlab import schema
from flowlab.analysis.comparison import accuracy_words
from flowlab.report.document import Lookup, Section, Text
from flowlab.report.reading import Chapter
from flowlab.report.words import NOTHING, decades, setting

TITLE = "All runs"
# Settings that stand before the measures; rarer ones stand behind them.
FIRST = ("network", "init", "activation", "depth", "width", "skip", "norm", "batch_size")
MEASURES = ("decades [95 %]", "trend", "theory", "difference", "agreement", "rate")
ENDS = ("accuracy [95 %]", "held-out loss", "diverged")  # of trained runs
HINT = (
    "One row for each run, the least change first. A heading sorts; the boxes below the headings "
    "filter, numbers also by >1, <−2 or 10..50."
)


def section(chapters: list[Chapter]) -> list[Section]:
    """The table of all runs; nothing where there is none."""
    records = [record for chapter in chapters for record in _records(chapter)]
    if not records:
        return []
    records.sort(key=lambda record: record[0])
    rows = [row for _, row in records]
    settings = [name for name in schema.names("setting") if name != "seeds"]
    # Where a setting applies follows from others: null is no value that sets runs apart.
    values = {name: {row.get(name, NOTHING) for row in rows} - {NOTHING} for name in settings}
    varying = [name for name in settings if len(values[name]) > 1]
    first = [name for name in FIRST if name in varying]
    rest = [name for name in varying if name not in first]
    ends = [name for name in ENDS if any(name in row for row in rows)]
    columns = ("experiment", *first, *ends, *MEASURES, *rest, "seeds", "run")
    cells = tuple(tuple(row.get(name, NOTHING) for name in columns) for row in rows)
    return [Section(TITLE, (Text(HINT), Lookup("Every run that can be judged", columns, cells)))]


def _records(chapter: Chapter) -> Iterator[tuple[tuple, dict[str, str]]]:
    """A sort key and the cells of each run of an experiment by column."""
    if not chapter.verdicts:
        return
    settings = chapter.settings.drop(columns="seeds", errors="ignore")
    for run, judged in chapter.judged.iterrows():
        own = {name: setting(value) for name, value in settings.loc[run].items()}
        size = abs(judged["decades"])
        interval = ""
        if judged["low"] == judged["low"]:
            interval = f" [{decades(judged['low'])}, {decades(judged['high'])}]"
        own |= {
            **{"experiment": chapter.name, "run": str(run), "seeds": str(judged["seeds"])},
            "decades [95 %]": decades(judged["decades"]) + interval,
            **{name: decades(judged[name]) for name in ("theory", "difference")},
            **{name: judged[name] or NOTHING for name in ("agreement", "trend")},
            "rate": judged["rate"].replace("-", "−") or NOTHING,
        }
        if "accuracy" in judged and judged["diverged"] == judged["diverged"]:
            own |= _ends(judged)
        yield (size != size, size if size == size else 0.0, chapter.rank, str(run)), own


def _ends(judged: pd.Series) -> dict[str, str]:
    """How the networks of a trained run end."""
    known = judged["accuracy"] == judged["accuracy"]
    loss = judged["held_out_loss"]
    return {
        "accuracy [95 %]": accuracy_words(judged) if known else NOTHING,
        "held-out loss": f"{loss:.3g}" if loss == loss else NOTHING,
        "diverged": f"{judged['diverged']:.0f} of {judged['seeds']}",
    }
