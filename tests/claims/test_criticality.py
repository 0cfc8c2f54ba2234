"""M2 to M4, with an error that turns the verdicts."""

from tests.support.plants import tilted
from tests.support.verdicts import CLAIMS, Verdicts, claims_of

PLANTS = {id: [tilted(1.1)] for id in sorted(claims_of("criticality"))}


class TestCriticality(Verdicts):
    MODULE = "criticality"
    PLANTS = PLANTS

    def turned(self, id, verdict, plant):
        return verdict not in CLAIMS[id].expected
