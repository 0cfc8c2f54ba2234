"""A section for each experiment: question, answer, figures, findings, and how to make it anew."""

from flowlab.analysis.comparison import accuracy_words, axes_of, named
from flowlab.report import claims, lookup
from flowlab.report.answers import sentences
from flowlab.report.document import Block, Code, Fold, Reference, Section, Table, Text
from flowlab.report.reading import Chapter, Reader
from flowlab.report.words import count, decades, number

TITLE = "Studies"
MOST = 2  # commands that stand here; all of them stand at the end
RANKED = ("Run", "Decades [95 %]", "Rate", "Theory", "Agreement")


def section(chapters: list[Chapter], reader: Reader) -> list[Section]:
    """The sections of all experiments, in the order of their answers."""
    sections = tuple(_experiment(chapter, reader) for chapter in chapters)
    return [Section(TITLE, (), sections)] if sections else []


def _experiment(chapter: Chapter, reader: Reader) -> Section:
    blocks: list[Block] = []
    if not chapter.own:
        studies = sorted(chapter.studies, key=lambda study: study.rank)
        blocks += [Text(f"{study.question} ({study.source})") for study in studies]
    blocks += [Text(text, strong=True) for _, text in sentences(chapter, reader.kept_within)]
    blocks += chapter.pictures.values()
    blocks += _findings(chapter, reader)
    if chapter.own and len(chapter.verdicts) > 1:
        blocks.append(_ranking(chapter))
    if chapter.verdicts:
        many = count(len(chapter.verdicts), "run")
        blocks.append(Reference(f"{many}, one by one:", lookup.TITLE, {"experiment": chapter.name}))
    known = sorted(command for command in chapter.commands if command)
    blocks += [Code(tuple(known[:MOST]))] if known else []
    return Section(chapter.name, tuple(blocks))


def _findings(chapter: Chapter, reader: Reader) -> list[Block]:
    """What the studies find in the tables of these runs."""
    if chapter.reading is None:
        return []
    reader.at(f"findings of {chapter.name}")
    found, lacking = [], []
    for study in chapter.studies:
        own, absent = study.read(chapter.reading)
        found += own
        lacking += absent
    return claims.findings(found, lacking)


def _ranking(chapter: Chapter) -> Fold:
    """The comparison of runs that no study is about: the least change first, of trained runs the
    best trained.
    """
    comparison = chapter.comparison
    axes, trained = axes_of(comparison), "accuracy" in comparison
    first = "the best trained" if trained else "the least change"
    rows = []
    for _, run in comparison.iterrows():
        interval = ""
        if run["low"] == run["low"]:
            interval = f" [{decades(run['low'])}, {decades(run['high'])}]"
        words = run["rate"].replace("-", "−") or "–", decades(run["theory"]), run["agreement"]
        ended = (accuracy_words(run), f"{run['held_out_loss']:.3g}") if trained else ()
        rows.append((named(run, axes), *ended, decades(run["decades"]) + interval, *words))
    columns = (RANKED[0], *(("accuracy [95 %]", "held-out loss") if trained else ()), *RANKED[1:])
    table = Table(f"{first[0].upper()}{first[1:]} first", columns, tuple(rows))
    return Fold(f"Ranking of {number(len(rows))} runs, {first} first", (table,))
