"""P1 to P3, with errors that turn the verdicts."""

from tests.support.plants import frozen, tilted
from tests.support.verdicts import CLAIMS, Verdicts

PLANTS = {id: [tilted(1.1), frozen] for id in ("P1", "P2", "P3")}


class TestFiniteWidth(Verdicts):
    MODULE = "finite_width"
    PLANTS = PLANTS

    def turned(self, id, verdict, plant):
        return verdict not in CLAIMS[id].expected
