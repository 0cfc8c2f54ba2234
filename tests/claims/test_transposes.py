"""S1 and the identities A1, A2 and A5, with errors that turn the verdicts."""

from flowlab.kernel import Kernel
from tests.support.plants import corrupt, scheme
from tests.support.verdicts import CLAIMS, Verdicts


def mute_kernels(patch):
    """Kernels refuse no shape."""
    patch.setattr(Kernel, "__call__", lambda self, *arrays: None)


PLANTS = {
    "S1": [corrupt("W"), corrupt("dx"), corrupt("b"), mute_kernels],
    "A1": [corrupt("dx"), corrupt("W"), corrupt("b")],
    "A2": [*(corrupt(name, 1.2) for name in ("dx", "W", "b")), scheme("he", numerator=3.0)],
    "A5": [corrupt("W"), corrupt("b")],
}


class TestTransposes(Verdicts):
    MODULE = "transposes"
    PLANTS = PLANTS

    def turned(self, id, verdict, plant):
        return verdict not in CLAIMS[id].expected
