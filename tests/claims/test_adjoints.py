"""S2, with errors planted in a pullback."""

from math import nan

from flowlab.layers import Linear
from tests.support.plants import pullback_off
from tests.support.verdicts import Verdicts

PLANTS = {"S2": [pullback_off(Linear), pullback_off(Linear, factor=nan)]}


class TestAdjoints(Verdicts):
    MODULE = "adjoints"
    PLANTS = PLANTS
