"""What a results folder holds, told as a document: verdicts first, then figures and tables."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path

import pandas as pd

from flowlab import tables
from flowlab.errors import InputError
from flowlab.report.document import Block, Code, Document, Items, Picture, Section, Table, Text
from flowlab.settings import flat
from flowlab.statistics import DELTA
from flowlab.store import Experiment as Store
from flowlab.verdicts import AGREEMENTS, KEPT_WITHIN, TRENDS, Verdict, judge, tally

MOST = 40  # rows of a table, lines of a list
FEW = 8  # runs whose verdicts are all told in full

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

# Verdicts on claims in the order in which they are told.
CLAIMS = ("does not hold", "holds with a condition", "inconclusive", "holds")
CLAIM_COLUMNS = (
    *("id", "statement", "source", "predicted", "measured", "low", "high"),
    *("verdict", "expected", "as_expected", "sentence"),
)


@dataclass(frozen=True)
class Run:
    """One run: its name, settings (dotted keys) and verdict."""

    name: str
    settings: dict
    verdict: Verdict


@dataclass
class Experiment:
    """What one experiment's folder holds; a command with the number of tables it wrote."""

    name: str
    runs: list[Run] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    commands: Counter = field(default_factory=Counter)
    ledgers: int = 0


class _Reader:
    """Reads files under ``root`` and keeps account of versions and of what could not be read."""

    def __init__(self, root: Path, kept_within: float):
        self.root, self.kept_within = root, kept_within
        self.missing: list[str] = []
        self.versions: Counter = Counter()

    def lack(self, line: object) -> None:
        """Note a part that could not be had; paths are told from the results folder on."""
        self.missing.append(str(line).replace(f"{self.root}/", ""))

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

    def run(self, kept: Store, name: str, predicted: set[str]) -> tuple[Run, str]:
        """One run and its command; raises InputError for a table that cannot be judged."""
        path = kept.folder / "runs" / f"{name}.parquet"
        stored, table = self.checked(path, kept.metadata(name)), kept.read(name)
        try:
            prediction = self.prediction(kept, name, name in predicted)
            verdict = judge(table, prediction, self.kept_within)
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise InputError(f"{path} cannot be judged: {error}") from None
        return Run(name, flat(stored.get("settings", {})), verdict), stored["command"]

    def prediction(self, kept: Store, name: str, there: bool) -> pd.DataFrame:
        """The prediction beside a run; an empty one, and a note, where there is none."""
        told = kept.folder / "theory" / f"{name}.parquet"
        try:
            if there or told.is_file():
                curve = kept.prediction(name)
                needed = ("layer", DELTA, f"{DELTA}_sd", f"{DELTA}_infinite")
                if all(column in curve for column in needed):
                    return curve
                self.lack(f"{told} is not a prediction of this laboratory")
            else:
                self.lack(f"{told} is missing: no theory for this run")
        except InputError as error:
            self.lack(error)
        return pd.DataFrame({"layer": [], DELTA: []})


def gather(
    root: str | Path, title: str = "Gradient flow", kept_within: float = KEPT_WITHIN
) -> Document:
    """The document of a results folder, verdicts by the threshold ``kept_within`` (decades).

    What is missing, damaged or foreign is named in the document and left out. Raises InputError
    where there is no such folder or nothing in it.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"results_dir must be a folder; got {root}, which is not there")
    reader = _Reader(root, kept_within)
    experiments = [_experiment(reader, folder) for folder in _experiments(root)]
    claims, claims_command = _claims(reader, root / "claims" / "claims.parquet")
    benchmark, benchmark_commands = _benchmark(reader, root / "benchmark")
    if not (experiments or claims or benchmark or _parquet(root / "claims")):
        raise InputError(f"results_dir must hold results; got none in {root} (make run, first)")

    runs = [run for experiment in experiments for run in experiment.runs]
    verdicts = [Section("Claims", tuple(claims))] if claims else []
    verdicts += _architectures(runs)
    verdicts += [_verdicts(e) for e in experiments if e.runs]
    strict = [Text(STRICT)] if any(r.settings.get("upstream") == "loss" for r in runs) else []
    figures = [Section(f"Figures: {e.name}", tuple(e.pictures)) for e in experiments if e.pictures]
    commands = {f"Commands: {e.name}": e.commands for e in experiments}
    commands |= {"Commands: claims": claims_command, "Commands: benchmark": benchmark_commands}
    sections = [
        Section("What was asked", _asked(experiments, reader.missing)),
        Section("Verdicts", tuple(strict), tuple(verdicts)),
        Section("Figures", (), tuple(figures)),
        Section("Tables", (), tuple(_table(e) for e in experiments if e.runs)),
        Section("Benchmark", tuple(benchmark)),
        Section("Commands", (), tuple(_commands(*item) for item in commands.items() if item[1])),
        Section("Versions", _versions(reader.versions)),
        Section("Missing or unreadable", (_items(reader.missing),) if reader.missing else ()),
    ]
    kept = tuple(section for section in sections if section.blocks or section.sections)
    return Document(title, kept, tuple(reader.missing))


# Reading


def _experiments(root: Path) -> list[Path]:
    """The folders of experiments, by name."""
    return sorted(
        folder
        for folder in root.iterdir()
        if not folder.name.startswith(".")
        and (
            _parquet(folder / "runs") or _parquet(folder / "ledger") or _figures(folder / "figures")
        )
    )


def _experiment(reader: _Reader, folder: Path) -> Experiment:
    found = Experiment(folder.name)
    kept, names = Store(folder), {}
    for part in ("runs", "theory"):
        try:
            names[part] = kept.names(part)
        except InputError as error:
            reader.lack(error)
        for problem in (
            kept.problems if part == "runs" else ()
        ):  # a run's prediction is told with it
            reader.lack(problem)
    predicted = set(names.get("theory", ()))
    for name in names.get("runs", ()):
        try:
            run, command = reader.run(kept, name, predicted)
        except InputError as error:
            reader.lack(error)
            continue
        found.runs.append(run)
        found.commands[command] += 1
    for path in _parquet(folder / "ledger"):
        try:
            found.commands[reader.metadata(path)["command"]] += 1
            found.ledgers += 1
        except InputError as error:
            reader.lack(error)
    axes = _differing(found.runs)
    found.runs.sort(key=lambda run: [*(_rank(run.settings.get(a)) for a in axes), run.name])
    for stem in _figures(folder / "figures"):
        try:
            found.pictures.append(_picture(reader, stem, set(names.get("runs", ()))))
        except InputError as error:
            reader.lack(error)
    if not found.pictures:
        reader.lack(f"{folder.name} has no figures yet: make plots")
    return found


def _picture(reader: _Reader, stem: Path, kept: set[str]) -> Picture:
    """A figure with its description; raises InputError for one that no reader could see.

    Descriptions name runs as ``runs/<run>.parquet``, compacted ones too; ``kept`` is those there.
    """
    path, described = (stem.with_name(stem.name + suffix) for suffix in (".png", ".json"))
    try:
        content = path.read_bytes()
    except OSError:
        raise InputError(f"{path} is missing: make plots") from None
    if not (content.startswith(b"\x89PNG\r\n\x1a\n") and content[-8:-4] == b"IEND"):
        raise InputError(f"{path} is damaged: make plots")
    place = path.relative_to(reader.root).as_posix()
    if stem.name.startswith("ledger-"):
        table = f"ledger/{stem.name.removeprefix('ledger-')}.parquet"
        caption = f"Where the gradient is gained and lost, from {table}."
        return Picture(place, content, "Waterfall of gains, operation by operation", caption)
    try:
        told = json.loads(described.read_text(encoding="utf-8"))
        title, caption, runs = str(told["title"]), str(told["caption"]), list(told["runs"])
        gone = sum(Path(str(run)).stem not in kept for run in runs)
    except (OSError, LookupError, TypeError, ValueError):
        reader.lack(f"{described} is missing or damaged: make plots")
        return Picture(place, content, stem.name, "Its description is missing.")
    if gone:
        reader.lack(f"{path} shows {gone} runs that are no longer there: make plots")
    source = f"Source: {_count(len(runs), 'run')}, named in {described.relative_to(reader.root)}."
    return Picture(place, content, title, f"{caption} {source}")


def _claims(reader: _Reader, path: Path) -> tuple[list[Block], Counter]:
    """The claims in groups, contradictions first, and the command."""
    if not path.is_file():
        reader.lack("no claims yet: make claims")
        return [], Counter()
    try:
        command = reader.metadata(path)["command"]
        table = pd.read_parquet(path)
        absent = [name for name in CLAIM_COLUMNS if name not in table]
        if absent:
            raise InputError(f"{path} is not a table of claims: no column {absent[0]}")
    except InputError as error:
        reader.lack(error)
        return [], Counter()
    except (OSError, ValueError) as error:
        reader.lack(f"{path} is damaged: {_first_line(error)}")
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


def _claims_table(caption: str, table: pd.DataFrame, expected: bool = False) -> Table:
    rows = []
    for row in table.to_dict("records"):
        measured = _number(row["measured"])
        if pd.notna(row["low"]):
            measured += f" [{_number(row['low'])}, {_number(row['high'])}]"
        verdict = f"{row['verdict']} (expected: {row['expected']})" if expected else row["verdict"]
        cells = (row["id"], verdict, row["statement"], _number(row["predicted"]), measured)
        rows.append(tuple(map(str, (*cells, row["sentence"], row["source"]))))
    columns = ("Claim", "Verdict", "Statement", "Predicted", "Measured [95 %]", "Finding", "Source")
    return Table(f"{caption} ({len(rows)})", columns, tuple(rows))


def _benchmark(reader: _Reader, folder: Path) -> tuple[list[Block], Counter]:
    blocks, commands = [], Counter()
    for path in _parquet(folder):
        try:
            command = reader.metadata(path)["command"]
            table = pd.read_parquet(path)
        except InputError as error:
            reader.lack(error)
            continue
        except (OSError, ValueError) as error:
            reader.lack(f"{path} is damaged: {_first_line(error)}")
            continue
        commands[f"python -m experiments.benchmark {command}".rstrip()] += 1
        shown = table.head(MOST).to_dict("records")
        rows = tuple(tuple(_number(cell, 3) for cell in row.values()) for row in shown)
        if path.stem in RATIOS:
            blocks.append(Text(RATIOS[path.stem]))
        blocks.append(Table(path.stem, tuple(map(str, table.columns)), rows))
        blocks += _rest(len(table) - len(rows), "rows", f"benchmark/{path.name}")
    if not blocks:
        reader.lack("no benchmark yet: make bench")
    return blocks, commands


def _parquet(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.parquet") if not path.name.startswith("."))


def _figures(folder: Path) -> list[Path]:
    """Figures by path without suffix, whether drawn, described or both."""
    paths = [*folder.glob("*.png"), *folder.glob("*.json")]
    return sorted({path.with_suffix("") for path in paths if not path.name.startswith(".")})


# Telling


def _asked(experiments: list[Experiment], missing: list[str]) -> tuple[Block, ...]:
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
        told = "part is" if len(missing) == 1 else "parts are"
        blocks.append(Text(f"{len(missing)} {told} missing or unreadable: the last section says."))
    return tuple(blocks)


def _architectures(runs: list[Run]) -> list[Section]:
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


def _verdicts(experiment: Experiment) -> Section:
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


def _table(experiment: Experiment) -> Section:
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


def _differing(runs: list[Run]) -> list[str]:
    """The settings in which runs differ, in order of first appearance."""
    axes: Iterable[str] = dict.fromkeys(axis for run in runs for axis in run.settings)
    return [a for a in axes if len({_value(run.settings.get(a)) for run in runs}) > 1]


def _settings(run: Run, axes: list[str]) -> str:
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


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
