"""S15, with errors planted in a pullback and in a pass."""

from math import isnan, nan

from flowlab.claims import parity
from flowlab.claims.claim import OPEN
from flowlab.layers import Linear
from tests.support.plants import corrupt, pullback_off
from tests.support.verdicts import Verdicts

PLANTS = {"S15": [pullback_off(Linear), pullback_off(Linear, factor=nan), corrupt("W")]}


class TestParity(Verdicts):
    MODULE = "parity"
    PLANTS = PLANTS

    def test_no_framework_is_inconclusive(self, monkeypatch):
        monkeypatch.setattr(parity, "find_spec", lambda name: None)
        finding = self.check("S15")
        assert finding.verdict == OPEN and isnan(finding.measured)
