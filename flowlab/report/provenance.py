"""Where the numbers come from: commands, versions, the benchmark, and what is missing."""

from collections import Counter

from flowlab.report.document import Block, Code, Fold, Items, Section, Table, Text
from flowlab.report.reading import Chapter, Reader
from flowlab.report.words import count, number

# What the ratios of a benchmark's suite mean.
RATIOS = {
    "probe": "A ratio is the peer's time over flowlab's in the same round: above 1 flowlab leads.",
    "layers": "A ratio is the peer's time over flowlab's in the same round, for one layer forward "
    "and backward in the peer's fastest form: above 1 flowlab leads.",
    "training": "A ratio is the peer's time over flowlab's in the same round, for a step: above 1 "
    "flowlab leads.",
    "depths": "A ratio is the peer's time over flowlab's for the whole sweep, compilation "
    "included; depths that were not timed are estimated.",
    "batch_law": "A ratio is processor time over that of a plain measurement in the same round: "
    "the law's is what it costs, above 1.",
}


def benchmark(reader: Reader) -> tuple[list[Section], Counter]:
    """The benchmark's suites, a fold each, and the commands that timed them."""
    blocks, commands = [], Counter()
    there = reader.files(reader.root / "benchmark", ".parquet")
    for path in there or ():
        with reader.lacking():
            table, command = reader.table(path)
            commands[f"python -m experiments.benchmark {command}".rstrip()] += 1
            records = table.to_dict("records")
            rows = tuple(tuple(number(cell, 3) for cell in record.values()) for record in records)
            inner: list[Block] = [Text(RATIOS[path.stem])] if path.stem in RATIOS else []
            inner.append(Table(path.stem, tuple(map(str, table.columns)), rows))
            blocks.append(Fold(f"{path.stem}: {count(len(rows), 'row')}", tuple(inner)))
    if there == []:
        reader.lack("no benchmark yet: make bench")
    return [Section("Benchmark", tuple(blocks))] if blocks else [], commands


def section(
    chapters: list[Chapter], others: dict[str, Counter], reader: Reader, meaning: tuple[Text, ...]
) -> Section:
    """How the numbers are to be read and made anew; ``others`` are commands beside experiments'."""
    commands = {chapter.name: chapter.commands for chapter in chapters} | others
    lines = {name: sorted(filter(None, found)) for name, found in commands.items()}
    blocks: list[Block] = [Fold("What the numbers mean", meaning)] if meaning else []
    made: list[Block] = []
    for name, known in lines.items():
        made += [Text(f"{name}:"), Code(tuple(known))] if known else []
    if made:
        total = sum(map(len, lines.values()))
        blocks.append(Fold(f"{count(total, 'command')} that made the tables", tuple(made)))
    if reader.versions:
        found = sorted(reader.versions.items())
        rows = tuple((name, version, str(many)) for (name, version), many in found)
        table = Table("What wrote the tables", ("Package", "Version", "Tables"), rows)
        flowlab = [version for (name, version), _ in found if name == "flowlab"]
        blocks.append(Fold(f"Versions: flowlab {', '.join(flowlab) or 'unknown'}", (table,)))
    if reader.missing:
        lines = tuple(reader.missing)
        parts = "part is" if len(lines) == 1 else "parts are"
        blocks.append(Fold(f"{len(lines)} {parts} missing, unreadable or older", (Items(lines),)))
    return Section("Provenance", tuple(blocks))
