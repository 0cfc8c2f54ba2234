"""What a results folder holds, as a document: verdicts first, then studies and tables."""

import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Protocol

import pandas as pd

from flowlab.analysis.verdicts import AGREEMENTS, KEPT_WITHIN, TRENDS, Verdict, judge, tally
from flowlab.errors import InputError
from flowlab.report.document import Block, Code, Document, Items, Picture, Section, Table, Text
from flowlab.schema import DELTA
from flowlab.settings import flat
from flowlab.storage import tables
from flowlab.storage.experiment import Experiment, find
from flowlab.storage.files import listed, reading

MOST = 40  # rows of a table, lines of a list
FEW = 8  # runs whose verdicts all stand in full

QUESTION = (
    "How do gradients travel backward through deep networks at initialization? For each "
    "configuration an ensemble of networks (one per seed) is drawn, a batch is sent forward and a "
    "cotangent backward, and the norm of δ = ∂L/∂(preactivation) is taken in every layer. The "
    "change of log10‖δ‖ going backward over the body (all layers but the read-out of a loss), in "
    "decades (powers of ten) with its 95 % interval over seeds, says whether gradients vanish, "
    "explode or are kept; theory predicts it without drawing anything, and the verdict says "
    "whether the two agree."
)
TIME = (
    "A recurrent net is asked how gradients travel back through time: the change is that of "
    "log10‖∂L/∂h_t‖ over the steps of its last recurrent layer, h_t the state at step t."
)
STRICT = (
    "Theory takes the upstream gradient as independent of the forward pass; that of a loss is not "
    "quite: runs with upstream=gaussian are the strict test."
)

# What the ratios of a benchmark's suite mean.
RATIOS = {
    "probe": "A ratio is the peer's time over flowlab's in the same round: above 1 flowlab leads.",
    "layers": "A ratio is the peer's time over flowlab's in the same round, for one layer forward "
    "and backward in the peer's fastest form: above 1 flowlab leads.",
    "batch_law": "A ratio is processor time over that of a plain measurement in the same round: "
    "the law's is what it costs, above 1.",
}

# Verdicts on claims in the order in which they stand.
CLAIMS = ("does not hold", "holds with a condition", "inconclusive", "holds")
CLAIM_COLUMNS = (
    *("id", "statement", "source", "predicted", "measured", "low", "high"),
    *("verdict", "expected", "as_expected", "sentence"),
)
FINDING_COLUMNS = (
    *("Claim", "Verdict", "Statement", "Quantity", "Predicted", "Measured [95 %]", "Tolerance"),
    *("Finding", "Source"),
)


@dataclass(frozen=True)
class JudgedRun:
    """One run: its name, settings (dotted keys) and verdict."""

    name: str
    settings: dict
    verdict: Verdict


@dataclass
class Chapter:
    """What one experiment's folder holds; a command with the number of tables it wrote."""

    name: str
    runs: list[JudgedRun] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    findings: list[Block] = field(default_factory=list)
    commands: Counter = field(default_factory=Counter)
    ledgers: int = 0


class Watch(Protocol):
    """Follows what is read: ``at`` names an experiment, a call says how many of its runs."""

    def at(self, what: str) -> None: ...

    def __call__(self, done: int, total: int) -> None: ...


class _Reader:
    """Reads files under ``root`` and keeps account of versions and of what could not be read."""

    def __init__(self, root: Path, kept_within: float, watch: Watch | None):
        self.root, self.kept_within, self.watch = root, kept_within, watch
        self.missing: list[str] = []
        self._noted: set[str] = set()
        self.versions: Counter = Counter()

    def lack(self, line: object) -> None:
        """Note, once, a part that could not be had; paths begin in the results folder."""
        line = str(line).replace(f"{self.root}/", "")
        if line not in self._noted:
            self._noted.add(line)
            self.missing.append(line)

    def metadata(self, path: Path) -> dict:
        """A table's metadata; raises InputError where it is of another making."""
        return self.checked(path, tables.metadata(path))

    def checked(self, path: Path, stored: dict) -> dict:
        """A table's metadata as read; raises InputError where it is of another making."""
        try:
            settings, versions = stored.get("settings", {}), stored.get("versions", {})
            settings.items(), versions.items()
        except AttributeError:
            raise InputError(f"{path} is not a table of this laboratory: its metadata") from None
        tables.readable(path, stored)
        self.versions.update((str(name), str(number)) for name, number in versions.items())
        return {**stored, "command": str(stored.get("command", ""))}

    def run(
        self, kept: Experiment, name: str, metadata: dict, predicted: set[str] | None
    ) -> tuple[JudgedRun, str]:
        """One run and its command; raises InputError for a table that cannot be judged."""
        path = kept.folder / "runs" / f"{name}.parquet"
        stored, table = self.checked(path, metadata), kept.read(name)
        try:
            prediction = self.prediction(kept, name, predicted)
            verdict = judge(table, prediction, self.kept_within)
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise InputError(f"{path} cannot be judged: {error}") from None
        return JudgedRun(name, flat(stored.get("settings", {})), verdict), stored["command"]

    def prediction(self, kept: Experiment, name: str, predicted: set[str] | None) -> pd.DataFrame:
        """The prediction beside a run; an empty one, and a note, where there is none.

        ``predicted`` names the readable ones; None: the folder cannot be read, which was noted.
        """
        place = kept.folder / "theory" / f"{name}.parquet"
        try:
            if predicted is None:
                pass
            elif name in predicted or os.path.lexists(place):
                curve = kept.prediction(name)
                needed = ("layer", DELTA, f"{DELTA}_sd", f"{DELTA}_infinite")
                if all(column in curve for column in needed):
                    return curve
                self.lack(f"{place} is not a prediction of this laboratory")
            else:
                self.lack(f"{place} is missing: no theory for this run")
        except InputError as error:
            self.lack(error)
        return pd.DataFrame({"layer": [], DELTA: []})


def gather(
    root: str | Path,
    title: str = "Gradient flow",
    kept_within: float = KEPT_WITHIN,
    watch: Watch | None = None,
) -> Document:
    """The document of a results folder, verdicts by the threshold ``kept_within`` (decades).

    ``watch`` follows the reading.

    What is missing, damaged or foreign is named in the document and left out. Raises InputError
    where there is no such folder or nothing in it.
    """
    root = Path(root)
    reader = _Reader(root, kept_within, watch)
    experiments = [_experiment(reader, folder) for folder in _experiments(reader)]
    claims, claims_command = _claims(reader, root / "claims" / "claims.parquet")
    benchmark, benchmark_commands = _benchmark(reader, root / "benchmark")
    unreadable = os.path.lexists(root / "claims" / "claims.parquet")
    if not (experiments or claims or benchmark or unreadable):
        raise InputError(f"results_dir must hold results; got none in {root} (make run, first)")

    runs = [run for experiment in experiments for run in experiment.runs]
    verdicts = [Section("Claims", tuple(claims))] if claims else []
    verdicts += _architectures(runs)
    verdicts += [_verdicts(e) for e in experiments if e.runs]
    strict = [Text(STRICT)] if any(r.settings.get("upstream") == "loss" for r in runs) else []
    answers = [_answers(e) for e in experiments if e.pictures or e.findings]
    commands = {f"Commands: {e.name}": e.commands for e in experiments}
    commands |= {"Commands: claims": claims_command, "Commands: benchmark": benchmark_commands}
    sections = [
        Section("What was asked", _asked(experiments, reader.missing)),
        Section("Verdicts", tuple(strict), tuple(verdicts)),
        Section("Studies", (), tuple(answers)),
        Section("Tables", (), tuple(_table(e) for e in experiments if e.runs)),
        Section("Benchmark", tuple(benchmark)),
        Section("Commands", (), tuple(_commands(*item) for item in commands.items() if item[1])),
        Section("Versions", _versions(reader.versions)),
        Section("Missing or unreadable", (_items(reader.missing),) if reader.missing else ()),
    ]
    kept = tuple(section for section in sections if section.blocks or section.sections)
    return Document(title, kept, tuple(reader.missing))


# Reading


def _experiments(reader: _Reader) -> list[Path]:
    """The folders of experiments, by name; empty ones are passed over."""
    problems: list[str] = []
    found = find(reader.root, ("runs", ".old-runs", "ledger", "figures"), problems)
    for problem in problems:
        reader.lack(problem)
    return [folder for folder in found.values() if _holds_something(folder)]


def _holds_something(folder: Path) -> bool:
    try:
        return any(listed(folder / part) for part in ("runs", ".old-runs", "ledger", "figures"))
    except InputError:  # which reading it says
        return True


def _experiment(reader: _Reader, folder: Path) -> Chapter:
    found = Chapter(folder.name)
    kept, names = Experiment(folder), {}
    if reader.watch:
        reader.watch.at(f"reading {folder.name}")
    for part in ("runs", "theory"):
        try:
            names[part] = kept.all_metadata(part)
        except InputError as error:
            reader.lack(error)
        for problem in kept.problems if part == "runs" else ():  # a prediction's go with its run's
            reader.lack(problem)
    predicted = set(names["theory"]) if "theory" in names else None
    own = names.get("runs", {})
    for number, (name, metadata) in enumerate(own.items()):
        if reader.watch:
            reader.watch(number, len(own))
        try:
            run, command = reader.run(kept, name, metadata, predicted)
        except InputError as error:
            reader.lack(error)
            continue
        found.runs.append(run)
        found.commands[command] += 1
    for path in _files(reader, folder / "ledger", ".parquet") or ():
        try:
            found.commands[reader.metadata(path)["command"]] += 1
            found.ledgers += 1
        except InputError as error:
            reader.lack(error)
    axes = _differing(found.runs)
    found.runs.sort(key=lambda run: [*(_rank(run.settings.get(a)) for a in axes), run.name])
    drawn = _files(reader, folder / "figures", ".png", ".json")
    there = set(names["runs"]) if "runs" in names else None
    for stem in dict.fromkeys(path.with_suffix("") for path in drawn or ()):
        try:
            found.pictures.append(_picture(reader, stem, there))
        except InputError as error:
            reader.lack(error)
    if drawn == []:
        reader.lack(f"{folder.name} has no figures yet: make plots")
    if found.runs:
        found.findings += _findings(reader, kept, found.runs)
    return found


def _findings(reader: _Reader, kept: Experiment, runs: list[JudgedRun]) -> list[Block]:
    """What the experiment's studies find in the tables of these runs; nothing without findings."""
    from flowlab import studies  # with matplotlib

    asked = [study for study in studies.of(kept.folder.name) if study.findings]
    if not asked:
        return []
    if reader.watch:
        reader.watch.at(f"findings of {kept.folder.name}")
    try:
        table, prediction = kept.load(), kept.load(part="theory")
    except InputError as error:
        reader.lack(error)
        return []
    image = runs[0].settings.get("network.image")
    whole = studies.Reading(
        table, prediction if len(prediction) else None, reader.kept_within, image
    )
    names = [run.name for run in runs]
    reading = whole.narrowed(lambda table: table[table["run"].isin(names)])
    rows, lacking = [], []
    for study in asked:
        found, absent = study.read(reading)
        rows += [_finding_row(claim, finding) for claim, finding in found]
        lacking += absent
    blocks: list[Block] = [Table("Findings", FINDING_COLUMNS, tuple(rows))] if rows else []
    return blocks + ([_items(lacking)] if lacking else [])


def _picture(reader: _Reader, stem: Path, kept: set[str] | None) -> Picture:
    """A figure with its description; raises InputError for one that no reader could see.

    Descriptions name runs as ``runs/<run>.parquet``, compacted ones too; ``kept`` is those there,
    None where they cannot be read.
    """
    path, described = (stem.with_name(stem.name + suffix) for suffix in (".png", ".json"))
    if not os.path.lexists(path):
        raise InputError(f"{path} is missing: make plots")
    with reading(path):
        content = path.read_bytes()
    if not (content.startswith(b"\x89PNG\r\n\x1a\n") and content[-8:-4] == b"IEND"):
        raise InputError(f"{path} is damaged: make plots")
    place = path.relative_to(reader.root).as_posix()
    if stem.name.startswith("ledger-"):
        table = f"ledger/{stem.name.removeprefix('ledger-')}.parquet"
        caption = f"Where the gradient is gained and lost, from {table}."
        return Picture(place, content, "Waterfall of gains, operation by operation", caption)
    try:
        with reading(described):
            read = json.loads(described.read_text(encoding="utf-8"))
        title, caption, runs = str(read["finding"]), str(read["caption"]), list(read["runs"])
        gone = 0 if kept is None else sum(Path(str(run)).stem not in kept for run in runs)
    except (LookupError, TypeError, ValueError):
        reader.lack(f"{described} is missing or damaged: make plots")
        return Picture(place, content, stem.name, "Its description is missing.")
    if gone:
        reader.lack(f"{path} shows {gone} runs that are no longer there: make plots")
    source = f"Source: {_count(len(runs), 'run')}, named in {described.relative_to(reader.root)}."
    return Picture(place, content, title, f"{caption} {source}")


def _claims(reader: _Reader, path: Path) -> tuple[list[Block], Counter]:
    """The claims in groups, contradictions first, and the command."""
    there = _files(reader, path.parent, ".parquet")
    if there is None or path not in there:
        if there is not None:
            reader.lack("no claims yet: make claims")
        return [], Counter()
    try:
        command = reader.metadata(path)["command"]
        with reading(path):
            table = pd.read_parquet(path)
        absent = [name for name in CLAIM_COLUMNS if name not in table]
        if absent:
            raise InputError(f"{path} is not a table of claims: no column {absent[0]}")
    except InputError as error:
        reader.lack(error)
        return [], Counter()
    verdicts = table["verdict"].astype(str)
    order = [v for v in CLAIMS if (verdicts == v).any()] + sorted({*verdicts} - {*CLAIMS})
    counts = ", ".join(f"{verdict}: {(verdicts == verdict).sum()}" for verdict in order)
    wrong = ~table["as_expected"].astype(bool)
    unexpected = "every verdict is as expected"
    if wrong.any():
        unexpected = f"{wrong.sum()} not as expected"
    blocks: list[Block] = [Text(f"{_count(len(table), 'claim')}; {counts}; {unexpected}.")]
    if wrong.any():
        blocks.append(_claims_table("Not as expected", table[wrong], expected=True))
    for verdict in order:
        chosen = table[(verdicts == verdict) & ~wrong]
        if len(chosen):
            blocks.append(_claims_table(verdict[:1].upper() + verdict[1:], chosen))
    return blocks, Counter([command])


def _finding_row(claim, finding) -> tuple[str, ...]:
    """The cells of FINDING_COLUMNS of a ``TableClaim`` and its ``Finding``."""
    measured = _measured(finding.measured, finding.low, finding.high)
    numbers = (_number(finding.predicted), measured, _number(finding.tolerance))
    cells = (claim.id, finding.verdict, claim.statement, finding.quantity, *numbers)
    return (*cells, finding.sentence, claim.source)


def _measured(value: float, low: float, high: float) -> str:
    """A measured value with its interval, where it has one."""
    interval = "" if pd.isna(low) else f" [{_number(low)}, {_number(high)}]"
    return _number(value) + interval


def _claims_table(caption: str, table: pd.DataFrame, expected: bool = False) -> Table:
    rows = []
    for row in table.to_dict("records"):
        measured = _measured(row["measured"], row["low"], row["high"])
        verdict = f"{row['verdict']} (expected: {row['expected']})" if expected else row["verdict"]
        cells = (row["id"], verdict, row["statement"], _number(row["predicted"]), measured)
        rows.append(tuple(map(str, (*cells, row["sentence"], row["source"]))))
    columns = ("Claim", "Verdict", "Statement", "Predicted", "Measured [95 %]", "Finding", "Source")
    return Table(f"{caption} ({len(rows)})", columns, tuple(rows))


def _benchmark(reader: _Reader, folder: Path) -> tuple[list[Block], Counter]:
    blocks, commands = [], Counter()
    there = _files(reader, folder, ".parquet")
    for path in there or ():
        try:
            command = reader.metadata(path)["command"]
            with reading(path):
                table = pd.read_parquet(path)
        except InputError as error:
            reader.lack(error)
            continue
        commands[f"python -m experiments.benchmark {command}".rstrip()] += 1
        shown = table.head(MOST).to_dict("records")
        rows = tuple(tuple(_number(cell, 3) for cell in row.values()) for row in shown)
        if path.stem in RATIOS:
            blocks.append(Text(RATIOS[path.stem]))
        blocks.append(Table(path.stem, tuple(map(str, table.columns)), rows))
        blocks += _rest(len(table) - len(rows), "rows", f"benchmark/{path.name}")
    if there == []:
        reader.lack("no benchmark yet: make bench")
    return blocks, commands


def _files(reader: _Reader, folder: Path, *suffixes: str) -> list[Path] | None:
    """What a folder holds with these suffixes, by name; None, and a note, if it is unreadable."""
    try:
        names = listed(folder)
    except InputError as error:
        reader.lack(error)
        return None
    return [folder / n for n in names if n.endswith(suffixes) and not n.startswith(".")]


# Writing


def _asked(experiments: list[Chapter], missing: list[str]) -> tuple[Block, ...]:
    blocks: list[Block] = [Text(QUESTION)]
    if any(run.verdict.along == "step" for e in experiments for run in e.runs):
        blocks.append(Text(TIME))
    rows = []
    for e in experiments:
        command = next(iter(e.commands), "none that could be read")
        if len(e.commands) > 1:
            command = f"{len(e.commands)} commands, listed at the end"
        rows.append((e.name, str(len(e.runs)), str(e.ledgers), str(len(e.pictures)), command))
    if rows:
        columns = ("Experiment", "Runs", "Ledgers", "Figures", "Command")
        blocks.append(Table("Experiments in this folder", columns, tuple(rows)))
    if missing:
        parts = "part is" if len(missing) == 1 else "parts are"
        blocks.append(Text(f"{len(missing)} {parts} missing or unreadable: the last section says."))
    return tuple(blocks)


def _answers(experiment: Chapter) -> Section:
    """The questions of an experiment's studies, its figures, and what its table says of claims."""
    from flowlab import studies

    asked = [study for study in studies.of(experiment.name) if study is not studies.ANY]
    words = [Text(f"{study.question} ({study.source})") for study in asked]
    title = f"Study: {experiment.name}" if asked else f"Figures: {experiment.name}"
    return Section(title, (*words, *experiment.pictures, *experiment.findings))


def _architectures(runs: list[JudgedRun]) -> list[Section]:
    """Counts of verdicts by network, where there are several networks."""
    networks: dict[str, list[Verdict]] = {}
    for run in runs:
        networks.setdefault(_value(run.settings.get("network")), []).append(run.verdict)
    if len(networks) < 2:
        return []
    kinds = {"trend": TRENDS, "agreement": AGREEMENTS}
    rows = []
    for network, verdicts in networks.items():
        found = {kind: Counter(getattr(v, kind) for v in verdicts) for kind in kinds}
        counts = [found[kind][word] for kind, words in kinds.items() for word in words]
        rows.append((network, f"{verdicts[0].along}s", *map(str, (len(verdicts), *counts))))
    columns = ("Network", "Judged over", "Runs", *(word.capitalize() for word in TRENDS))
    columns += ("Theory agrees", "Theory differs", "Theory undecided", "No theory")
    return [Section("Architectures", (Table("Verdicts by network", columns, tuple(rows)),))]


def _verdicts(experiment: Chapter) -> Section:
    """Counts, and in full: every run that differs from theory, others where they are few."""
    runs = experiment.runs
    trends = tally((run.verdict.trend for run in runs), TRENDS)
    agreement = tally((run.verdict.agreement for run in runs), AGREEMENTS)
    gradients, theory = (
        ", ".join(f"{word}: {n}" for word, n in found.items()) for found in (trends, agreement)
    )
    blocks: list[Block] = [Text(f"{_count(len(runs), 'run')}; {gradients}; theory {theory}.")]
    axes = _differing(runs)
    ordered = sorted(runs, key=lambda run: run.verdict.agreement != "differs")
    if len(runs) > FEW:
        ordered = ordered[: agreement.get("differs", 0)]
    sentences = [f"{_settings(run, axes) or run.name}: {run.verdict.sentence}" for run in ordered]
    if sentences:
        blocks.append(_items(sentences))
    return Section(f"Runs: {experiment.name}", tuple(blocks))


def _table(experiment: Chapter) -> Section:
    """One row per run with what sets it apart."""
    runs = experiment.runs
    axes = _differing(runs)
    blocks: list[Block] = []
    shared = [axis for axis in runs[0].settings if axis not in axes]
    if shared:
        several = "Shared by all runs" if len(runs) > 1 else "Settings"
        blocks.append(Text(f"{several}: {_settings(runs[0], shared)}."))
    rows = []
    for run in runs[:MOST]:
        v = run.verdict
        cells = (f"{v.change:z.2f}", _number(v.predicted), v.trend, v.agreement, run.name)
        rows.append((*(_value(run.settings.get(axis)) for axis in axes), *cells))
    quantities = " or ".join(dict.fromkeys(run.verdict.quantity for run in runs))
    columns = (*axes, "Decades [95 %]", "Predicted", "Trend", "Theory", "Run")
    caption = f"Change of {quantities} over the body: {experiment.name}"
    blocks.append(Table(caption, columns, tuple(rows)))
    blocks += _rest(len(runs) - len(rows), "runs", f"{experiment.name}/runs")
    return Section(f"Tables: {experiment.name}", tuple(blocks))


def _commands(title: str, commands: Counter) -> Section:
    known = sorted(command for command in commands if command)
    blocks: list[Block] = [Code(tuple(known[:MOST]))] if known else [Text("No command is stored.")]
    blocks += _rest(len(known) - MOST, "commands", "the metadata of the tables")
    return Section(title, tuple(blocks))


def _versions(versions: Counter) -> tuple[Block, ...]:
    if not versions:
        return ()
    rows = [(name, number, str(count)) for (name, number), count in sorted(versions.items())]
    return (Table("What wrote the tables", ("Package", "Version", "Tables"), tuple(rows)),)


def _items(lines: list[str]) -> Items:
    more = [f"… and {len(lines) - MOST} more"] if len(lines) > MOST else []
    return Items((*lines[:MOST], *more))


def _rest(count: int, what: str, place: str) -> list[Block]:
    return [Text(f"{count} more {what} lie in {place}.")] if count > 0 else []


# Settings and numbers


def _differing(runs: list[JudgedRun]) -> list[str]:
    """The settings in which runs differ, in order of first appearance."""
    axes: Iterable[str] = dict.fromkeys(axis for run in runs for axis in run.settings)
    return [a for a in axes if len({_value(run.settings.get(a)) for run in runs}) > 1]


def _settings(run: JudgedRun, axes: list[str]) -> str:
    known = ((axis, run.settings.get(axis)) for axis in axes)
    return ", ".join(f"{axis}={_value(value)}" for axis, value in known if value is not None)


def _value(value: object) -> str:
    return "–" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _rank(value: object) -> tuple:
    """A sort key over numbers, text and nothing."""
    number = isinstance(value, int | float)
    return (number, value if number else 0, _value(value))


def _number(value: object, digits: int = 4) -> str:
    """A number in a few digits, – for none; what is no number as it is."""
    if isinstance(value, bool | int | str):
        return str(value)
    if not isinstance(value, float):
        return "–" if value is None else str(value)
    return f"{value:.{digits}g}" if isfinite(value) else ("–" if value != value else str(value))


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
