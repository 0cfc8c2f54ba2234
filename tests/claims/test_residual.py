"""R2 to R5, with errors that turn the verdicts."""

from flowlab.claims import residual
from tests.support.plants import corrupt, frozen
from tests.support.verdicts import CLAIMS, Verdicts


def unscaled_fixup(patch):
    right = residual.one_step
    patch.setattr(residual, "one_step", lambda trial, blocks, factor: right(trial, blocks, 1.0))


PLANTS = {
    "R2": [frozen],
    "R3": [corrupt("dx"), corrupt("alpha")],
    "R4": [corrupt("W", 1.3), unscaled_fixup],
    "R5": [corrupt("dx", 3.0)],
}


class TestResidual(Verdicts):
    MODULE = "residual"
    PLANTS = PLANTS

    def turned(self, id, verdict, plant):
        return verdict not in CLAIMS[id].expected
