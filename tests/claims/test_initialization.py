"""S7 and the variances I1 to I3, with errors that turn the verdicts."""

from flowlab import initializers
from tests.support.plants import corrupt, scheme, stretched_orthogonal, tilted
from tests.support.verdicts import CLAIMS, Verdicts

DRAWN = {
    id: [scheme(name, numerator=1.1 * initializers.SCHEMES[name].numerator)]
    for id in CLAIMS
    if id.startswith("I1-") and (name := id.removeprefix("I1-")) != "orthogonal"
}


PLANTS = {
    "S7": [scheme("literal", power=1.0, numerator=2.0), tilted(1.3)],
    **DRAWN,
    "I1-orthogonal": [stretched_orthogonal(1.01)],
    "I2": [corrupt("dx", 1.5), scheme("he", numerator=3.0)],
    "I3": [tilted(1.1), tilted(1.1, "dW_log10_norm")],
}


class TestInitialization(Verdicts):
    MODULE = "initialization"
    PLANTS = PLANTS

    def turned(self, id, verdict, plant):
        return verdict not in CLAIMS[id].expected
