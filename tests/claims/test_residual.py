"""S8 and R1 to R5, with errors that turn the verdicts."""

from flowlab.claims import residual
from tests.support.plants import corrupt, frozen, tilted, with_settings
from tests.support.verdicts import CLAIMS, Verdicts

# x + f(x) is measured as (x + f(x))/√2.
unskipped = with_settings(lambda axes: {"skip": "mix"} if axes.get("skip") == "identity" else {})


def unscaled_fixup(patch):
    right = residual.one_step
    patch.setattr(residual, "one_step", lambda trial, blocks, factor: right(trial, blocks, 1.0))


PLANTS = {
    "S8": [unskipped, tilted(1.5)],
    **{id: [tilted(1.1)] for id in CLAIMS if id.startswith("R1-")},
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
