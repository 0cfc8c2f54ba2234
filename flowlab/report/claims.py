"""Claims and findings as compact tables: what does not simply hold first, families in one row."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from math import inf, isfinite

from flowlab.analysis.verdicts import tally
from flowlab.claims.suite import COLUMNS as STORED
from flowlab.errors import InputError
from flowlab.report.document import Block, Fold, Group, Items, Section, Table, Text
from flowlab.report.reading import Reader
from flowlab.report.words import count, listing, measured, number

TITLE = "Claims"
# Verdicts in the order in which they stand.
ORDER = ("does not hold", "inconclusive", "holds with a condition", "holds")
COLUMNS = ("Claim", "Verdict", "Statement (source)", "Finding", "Measured [95 %], predicted")
LEAST = 3  # claims of a family that become one row


def read(reader: Reader) -> tuple[list[dict], Counter]:
    """The claims as stored, and the command that measured them."""
    path = reader.root / "claims" / "claims.parquet"
    there = reader.files(path.parent, ".parquet")
    if there is None or path not in there:
        if there is not None:
            reader.lack("no claims yet: make claims")
        return [], Counter()
    with reader.lacking():
        table, command = reader.table(path)
        absent = [name for name in STORED if name not in table]
        if absent:
            raise InputError(f"{path} is not a table of claims: no column {absent[0]}")
        return table.to_dict("records"), Counter([command])
    return [], Counter()


def verdicts(claims: Iterable[dict]) -> dict[str, int]:
    """How many claims have each verdict, in the order in which they stand."""
    found = [str(claim["verdict"]) for claim in claims]
    return tally(found, (*ORDER, *sorted(set(found) - set(ORDER))))


def counted(verdicts: dict[str, int]) -> str:
    """How many have each verdict: "2 do not hold, 84 hold"."""
    plural = {verdict: verdict.replace("does", "do").replace("holds", "hold") for verdict in ORDER}
    words = {plural.get(v, v) if n > 1 else v: n for v, n in verdicts.items()}
    return listing(words)


def section(claims: list[dict]) -> list[Section]:
    """The claims in one table; nothing where there are none."""
    if not claims:
        return []
    wrong = sum(not claim["as_expected"] for claim in claims)
    expected = f"{wrong} not as expected" if wrong else "every verdict is as expected"
    summary = f"{count(len(claims), 'claim')}: {counted(verdicts(claims))}; {expected}."
    return [Section(TITLE, (Text(summary), table("Claims of the field and exact laws", claims)))]


def findings(found: list[tuple], lacking: list[str]) -> list[Block]:
    """Pairs of a ``TableClaim`` and its ``Finding``: what does not simply hold, all in a fold.

    ``lacking`` has a line for each claim that cannot be read from the table.
    """
    claims = [
        {"id": claim.id, "statement": claim.statement, "source": claim.source}
        | asdict(finding)
        | {"as_expected": finding.verdict in claim.expected, "expected": claim.expected[0]}
        for claim, finding in found
    ]
    inner: list[Block] = [table("What the table says of claims", claims)] if claims else []
    if lacking:
        inner.append(Items(tuple(lacking)))
    if not inner:
        return []
    noted = [c for c in _sorted(claims) if c["verdict"] != "holds" or not c["as_expected"]]
    blocks: list[Block] = []
    if noted:
        blocks.append(Items(tuple(f"{c['id']} {_verdict(c)}: {c['sentence']}" for c in noted)))
    parts = [counted(verdicts(claims))] if claims else []
    parts += [f"{len(lacking)} not in this table"] if lacking else []
    return [*blocks, Fold(f"Findings: {', '.join(parts)}", tuple(inner))]


def table(caption: str, claims: list[dict]) -> Table:
    """The claims, each family of like statements with one verdict as one row."""
    families: dict[tuple, list[dict]] = {}
    for claim in _sorted(claims):
        words = claim["statement"].split()
        family = claim["id"].split("-")[0], claim["verdict"], bool(claim["as_expected"]), len(words)
        families.setdefault(family, []).append(claim)
    rows = []
    for members in families.values():
        statement = _template([claim["statement"] for claim in members])
        if len(members) >= LEAST and statement:
            rows.append(_family(members, statement))
        else:
            rows += [_row(claim) for claim in members]
    return Table(caption, COLUMNS, tuple(rows))


def _sorted(claims: list[dict]) -> list[dict]:
    """Unexpected verdicts first, then by verdict; otherwise as they stand."""
    ranks = {verdict: place for place, verdict in enumerate(ORDER)}
    return sorted(claims, key=lambda c: (bool(c["as_expected"]), ranks.get(c["verdict"], -1)))


def _row(claim: dict) -> tuple[str, ...]:
    statement = f"{claim['statement']} ({claim['source']})"
    return str(claim["id"]), _verdict(claim), statement, str(claim["sentence"]), _numbers(claim)


def _family(members: list[dict], statement: str) -> tuple[str | Group, ...]:
    """One row for all: how many, and the one that is furthest from its prediction."""
    worst = max(members, key=_share)
    family, share = worst["id"].split("-")[0], _share(worst)
    closest = f"; furthest from it: {worst['id']}"
    if isfinite(share):
        closest = f"; furthest from its prediction: {worst['id']}, by {share:.0%} of the tolerance"
    said = Group(
        f"{len(members)} of {len(members)}: {worst['verdict']}{closest}.",
        tuple(f"{claim['id']}: {claim['sentence']}" for claim in members),
    )
    sources = ", ".join(dict.fromkeys(str(claim["source"]) for claim in members))
    name = f"{family} ({len(members)})"
    return name, _verdict(worst), f"{statement} ({sources})", said, _numbers(worst)


def _share(claim: dict) -> float:
    """How far a measured value is from its prediction, in tolerances."""
    off, tolerance = abs(claim["measured"] - claim["predicted"]), claim["tolerance"]
    share = off / tolerance if tolerance > 0 else 0.0 if off == 0 else inf
    return share if share == share else inf


def _numbers(claim: dict) -> str:
    """The measured value with its interval, and the predicted one."""
    value = measured(claim["measured"], claim["low"], claim["high"])
    return f"{value}, predicted {number(claim['predicted'])}"


def _verdict(claim: dict) -> str:
    expected = "" if claim["as_expected"] else f" (expected: {claim['expected']})"
    return f"{claim['verdict']}{expected}"


def _template(statements: list[str]) -> str:
    """What statements of as many words share, … for the rest; "" where they share too little."""
    columns = list(zip(*(statement.split() for statement in statements), strict=True))
    words = [column[0] if len(set(column)) == 1 else "…" for column in columns]
    return " ".join(words) if words.count("…") <= len(words) / 2 else ""
