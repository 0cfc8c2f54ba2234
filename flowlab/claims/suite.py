"""Load every claim, choose among them, measure them."""

import re
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pandas as pd

from flowlab.claims.claim import CLAIMS, Claim
from flowlab.claims.trial import Trial
from flowlab.errors import InputError, unknown

COLUMNS = (
    *("id", "statement", "source", "quantity", "predicted", "measured", "low", "high"),
    *("tolerance", "verdict", "expected", "as_expected", "sentence"),
)
Begin = Callable[[str, int, int], None]
Report = Callable[[dict, int, int], None]


def load() -> dict[str, Claim]:
    """Every claim by id: S first, then the laws of theory; families in numerical order.

    Those of this folder, and the findings of studies where ``flowlab.studies`` has been loaded.
    """
    for module in iter_modules([str(Path(__file__).parent)]):
        import_module(f"flowlab.claims.{module.name}")
    return dict(sorted(CLAIMS.items(), key=lambda item: _order(item[0])))


def select(only: str | None) -> dict[str, Claim]:
    """The claims that ``only`` names, by commas: ids, families (``M1``) or letters (``S``).

    Raises InputError for an unknown name, suggesting the nearest.
    """
    claims = load()
    if only is None:
        return claims
    chosen = set()
    for name in only.split(","):
        matching = {id for id in claims if name in (id, id.split("-")[0], id[0])}
        if not matching:
            raise unknown("claim", name, claims)
        chosen |= matching
    return {id: claim for id, claim in claims.items() if id in chosen}


def run(
    seed: int = 0,
    seeds: int = 64,
    only: str | None = None,
    report: Report | None = None,
    begin: Begin | None = None,
) -> pd.DataFrame:
    """Measure the claims that ``only`` names (all by default): one row each, with ``COLUMNS``.

    Networks have the seeds ``seed``, ``seed + 1``, ...; ``begin(id, done, total)`` is called before
    each claim and ``report(row, index, total)`` after it. Raises InputError for an unknown claim, a
    negative seed, or fewer than two seeds.
    """
    if seed < 0:
        raise InputError(f"seed must be at least 0; got {seed}")
    if seeds < 2:
        raise InputError(f"seeds must be at least 2, for an interval; got {seeds}")
    chosen = select(only)
    rows = []
    for index, claim in enumerate(chosen.values(), 1):
        if begin is not None:
            begin(claim.id, index - 1, len(chosen))
        finding = claim.check(Trial(seed, seeds))
        row = {"id": claim.id, "statement": claim.statement, "source": claim.source}
        row |= asdict(finding)
        row["expected"] = " or ".join(claim.expected)
        row["as_expected"] = finding.verdict in claim.expected
        rows.append({name: row[name] for name in COLUMNS})
        if report is not None:
            report(rows[-1], index, len(chosen))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _order(id: str):
    parts = re.split(r"(\d+(?:\.\d+)?)", id)
    return (parts[0] != "S", [float(p) if k % 2 else p for k, p in enumerate(parts)])
