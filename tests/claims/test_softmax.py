"""A8 and A9, with errors that turn the verdicts."""

from tests.support.plants import corrupt
from tests.support.verdicts import CLAIMS, Verdicts

PLANTS = {"A8": [corrupt("dx")], "A9": [corrupt("dx")]}


class TestSoftmax(Verdicts):
    MODULE = "softmax"
    PLANTS = PLANTS

    def turned(self, id, verdict, plant):
        return verdict not in CLAIMS[id].expected
