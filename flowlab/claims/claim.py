"""A claim, what its check finds, and the register of all claims."""

from collections.abc import Callable
from dataclasses import dataclass
from math import nan

from flowlab.claims.trial import Trial

HOLDS = "holds"
CONDITIONAL = "holds with a condition"
FAILS = "does not hold"
OPEN = "inconclusive"


@dataclass(frozen=True)
class Finding:
    """What one check found: a ``quantity``'s predicted and measured value, and the verdict.

    ``low`` and ``high`` bound the measured value at 95 % confidence (NaN where nothing is random);
    ``tolerance`` is the largest distance from ``predicted`` that still agrees; ``sentence`` says
    what was found.
    """

    quantity: str
    predicted: float
    measured: float
    tolerance: float
    verdict: str
    sentence: str
    low: float = nan
    high: float = nan


Check = Callable[[Trial], Finding]


@dataclass(frozen=True)
class Claim:
    """A statement with its source, the check that measures it, and the verdicts expected of it."""

    id: str
    statement: str
    source: str
    check: Check
    expected: tuple[str, ...]


CLAIMS: dict[str, Claim] = {}


def register(claim: Claim) -> None:
    """Add a claim to the register; its id must be new."""
    if claim.id in CLAIMS:
        raise ValueError(f"claim {claim.id} is registered twice")
    CLAIMS[claim.id] = claim


def claim(id: str, statement: str, source: str, *expected: str) -> Callable[[Check], Check]:
    """Register the decorated check under ``id``; it is expected to find that the claim holds."""

    def decorate(check: Check) -> Check:
        register(Claim(id, statement, source, check, expected or (HOLDS,)))
        return check

    return decorate
