"""S6 and M1, with errors that turn the verdicts."""

from tests.support.plants import scheme, tilted
from tests.support.verdicts import CLAIMS, Verdicts

PLANTS = {
    "S6": [tilted(1.1), scheme("normal", numerator=1.3)],
    **{id: [tilted(1.1)] for id in CLAIMS if id.startswith("M1-")},
}


class TestRates(Verdicts):
    MODULE = "rates"
    PLANTS = PLANTS

    def turned(self, id, verdict, plant):
        return verdict not in CLAIMS[id].expected
