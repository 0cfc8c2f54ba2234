"""What chains keep exactly, A3, A11 and A13, with errors that turn the verdicts."""

import numpy as np

from flowlab.numerics import scale
from tests.support.plants import corrupt, stretched_orthogonal, tilted
from tests.support.verdicts import CLAIMS, Verdicts


def miscounted(patch):
    right = scale.renormalise
    patch.setattr(scale, "renormalise", lambda x, norms: right(x, norms) + 1)


def never_renormalised(patch):
    patch.setattr(scale, "renormalise", lambda x, norms: np.zeros(len(x), np.int64))


PLANTS = {
    "A3": [corrupt("2.W")],
    "A11": [tilted(1 + 1e-9), stretched_orthogonal(1.01)],
    "A13": [miscounted, never_renormalised],
}


class TestChains(Verdicts):
    MODULE = "chains"
    PLANTS = PLANTS

    def turned(self, id, verdict, plant):
        return verdict not in CLAIMS[id].expected
