"""What every claim's test asks: it reads as expected, and otherwise once an error is planted."""

from collections.abc import Mapping
from math import isnan
from types import MappingProxyType

from flowlab import claims
from flowlab.claims.claim import CONDITIONAL, FAILS, HOLDS, OPEN
from flowlab.claims.trial import Trial
from tests.support.plants import remembered

CLAIMS = claims.load()
# What is expected of claims that do not simply hold.
EXPECTED = {
    **dict.fromkeys(("S5", "S7"), (FAILS,)),
    **dict.fromkeys(("S4", "S8", "S13", "B4"), (CONDITIONAL,)),
    "S15": (HOLDS, OPEN),
}


def claims_of(*modules: str) -> set[str]:
    """The ids of the claims that these modules of ``flowlab/claims`` make."""
    checks = {id: getattr(claim.check, "func", claim.check) for id, claim in CLAIMS.items()}
    return {id for id, check in checks.items() if check.__module__.split(".")[-1] in modules}


class Verdicts:
    """The tests of the claims in ``PLANTS``, which maps their ids to errors to be planted.

    A plant is a function of a ``MonkeyPatch``; every claim of ``MODULE`` in ``flowlab/claims`` must
    have one.
    """

    PLANTS: Mapping[str, list] = MappingProxyType({})
    MODULE = ""

    def seeds(self, id: str) -> int:
        """How many networks a claim is tried on."""
        return 32

    def check(self, id: str):
        return CLAIMS[id].check(Trial(0, self.seeds(id)))

    def turned(self, id: str, verdict: str, plant) -> bool:
        """Whether a verdict shows that the error was seen."""
        return verdict == FAILS

    def test_every_claim_has_a_plant(self):
        assert claims_of(self.MODULE) == set(self.PLANTS)

    def test_verdict(self, id, monkeypatch):
        monkeypatch.setattr(Trial, "measure", remembered)
        finding, expected = self.check(id), EXPECTED.get(id, (HOLDS,))
        assert CLAIMS[id].expected == expected and finding.verdict == expected[0]
        if finding.verdict == HOLDS:
            assert abs(finding.measured - finding.predicted) <= finding.tolerance
        assert isnan(finding.low) or finding.low <= finding.measured <= finding.high
        assert finding.sentence.endswith(".") and "\n" not in finding.sentence

    def test_planted_error_turns_the_verdict(self, id, plant, monkeypatch):
        plant(monkeypatch)
        assert self.turned(id, self.check(id).verdict, plant)
