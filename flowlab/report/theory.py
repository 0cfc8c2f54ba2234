"""Where theory does not simply agree: by how much, and why where that is known.

The reasons are those of docs/theory.md ("Where it is known to fail"), each with the settings of the
runs that it explains.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from flowlab.analysis.comparison import differing, settings_words
from flowlab.analysis.verdicts import AGREEMENTS, Verdict, tally
from flowlab.report.document import Group, Section, Table, Text
from flowlab.report.reading import Chapter
from flowlab.report.words import count, decades

TITLE = "Theory"
COLUMNS = ("Theory", "Runs", "Why", "Measured − predicted, decades", "Which")
Settings = Mapping[str, Any]
# The first that applies is named: what a network is known for before what every loss does.
KNOWN: tuple[tuple[str, Callable[[Settings], bool]], ...] = (
    (
        "GELU and SiLU under He have an unstable point: nets that start alike part company by "
        "decades",
        lambda s: s.get("activation") in ("gelu", "silu") and str(s.get("init")).startswith("he"),
    ),
    (
        "tanh near its critical line: variance and gradient fluctuate together, and finite width "
        "moves the gradient by more than the first order in 1/width",
        lambda s: s.get("network") == "mlp" and s.get("activation") == "tanh",
    ),
    (
        "one recurrent matrix is used at every step: its powers are not those of independent ones",
        lambda s: s.get("network") in ("rnn", "lstm", "gru"),
    ),
    (
        "zero padding: what finite channels add at a border lies between two cases, and theory "
        "takes the middle",
        lambda s: s.get("padding") == "zeros",
    ),
    (
        "as tokens become alike, attention is beyond leading order in 1/tokens",
        lambda s: s.get("network") == "transformer",
    ),
    (
        "more layers than units in one: the mean over seeds is carried by few nets",
        lambda s: s.get("depth", 0) > s.get("width", 1),
    ),
    (
        "the gradient of a loss depends on the forward pass, which theory leaves out; "
        "upstream=gaussian is the strict test",
        lambda s: s.get("upstream") == "loss",
    ),
)
# How the agreements of verdicts are said of theory.
WORDS = {
    "agrees": "agrees with",
    "differs": "differs from",
    "undecided": "is not decided on",
    "no theory": "says nothing about",
}
UNKNOWN = "no reason is known"
BLUNT = "theory's own error is larger than what would have to be decided"
FEW = "more seeds would decide"


def section(chapters: list[Chapter]) -> list[Section]:
    """How often theory agrees, and a row for each reason why it does not."""
    verdicts = [verdict for chapter in chapters for verdict in chapter.verdicts.values()]
    if not verdicts:
        return []
    found: dict[tuple[str, str], list[tuple[str, Verdict]]] = {}
    for agreement, why, name, verdict in _others(chapters):
        found.setdefault((agreement, why), []).append((name, verdict))
    counts = tally((verdict.agreement for verdict in verdicts), AGREEMENTS)
    words = [f"{WORDS[agreement]} {many:,}" for agreement, many in counts.items()]
    blocks = [Text(f"Of {count(len(verdicts), 'run')} theory {', '.join(words)}.")]
    rows = [_row(*key, runs) for key, runs in sorted(found.items(), key=_order)]
    if rows:
        blocks.append(Table("Where theory does not simply agree", COLUMNS, tuple(rows)))
    return [Section(TITLE, tuple(blocks))]


def why(settings: Settings, verdict: Verdict) -> str:
    """Why theory does not agree with a run, so far as it is known."""
    if verdict.agreement == "no theory":
        return verdict.because or "no prediction is kept"
    if verdict.agreement == "undecided":
        difference = verdict.difference
        if not difference.known:
            return difference.note or "one seed has no interval"
        size = abs(difference.mean)
        blunt = verdict.margin <= size <= verdict.margin + verdict.theory_error
        return BLUNT if blunt else FEW
    return next((reason for reason, applies in KNOWN if applies(settings)), UNKNOWN)


def _others(chapters: list[Chapter]) -> Iterator[tuple[str, str, str, Verdict]]:
    """Agreement, reason, name and verdict of each run with which theory does not agree."""
    for chapter in chapters:
        axes = differing(chapter.settings.drop(columns="seeds", errors="ignore"))
        for run, verdict in chapter.verdicts.items():
            if verdict.agreement == "agrees":
                continue
            own = chapter.settings.loc[run]
            words = settings_words(own, axes)
            name = f"{chapter.name}: {words}" if words else chapter.name
            yield verdict.agreement, why(own.dropna().to_dict(), verdict), name, verdict


def _row(agreement: str, reason: str, runs: list[tuple[str, Verdict]]) -> tuple[str | Group, ...]:
    """One row: how many runs, their range, and each run's sentence folded."""
    runs = sorted(runs, key=lambda pair: -_size(pair[1]))
    off = [v.difference.mean for _, v in runs if v.difference is not None and v.difference.n]
    low, high = (decades(end(off)) if off else "–" for end in (min, max))
    between = low if low == high else f"{low} to {high}"
    first, _ = runs[0]
    head = f"furthest: {first}" if off and len(runs) > 1 else first
    members = tuple(f"{name}: {_sentence(verdict)}" for name, verdict in runs)
    return agreement, f"{len(runs):,}", reason, between, Group(head, members)


def _sentence(verdict: Verdict) -> str:
    words = verdict.theory_words()
    return f"{words[:1].upper()}{words[1:]}.".replace("-", "−")


def _size(verdict: Verdict) -> float:
    """By how many decades theory is off."""
    known = verdict.difference is not None and verdict.difference.n > 0
    return abs(verdict.difference.mean) if known else 0.0


def _order(item) -> tuple[int, int]:
    """Differences first, then the rest; the reason of most runs first."""
    (agreement, _), runs = item
    return ("differs", "no theory", "undecided").index(agreement), -len(runs)
