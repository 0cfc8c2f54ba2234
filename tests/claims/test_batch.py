"""S5 and B2 to B4 on the batch, with errors that turn the verdicts."""

from dataclasses import replace

from tests.support.plants import corrupt, measured, passed
from tests.support.verdicts import CLAIMS, Verdicts


def mean_of_biases(got, x):
    """Doubling the batch does not double a bias's gradient: it is a mean."""
    means = {k: g / (x.shape[1] if k.endswith("b") else 1) for k, g in got.gradients.items()}
    return replace(got, gradients=means)


def weights_for_biases(trial, table, axes):
    """W's norms are taken for b's."""
    names = {
        f"d{p}{kind}_log10_norm": f"d{q}{kind}_log10_norm"
        for p, q in ("Wb", "bW")
        for kind in ("", "_examples")
    }
    return table.rename(columns=names)


PLANTS = {
    "B2": [corrupt("W"), corrupt("b")],
    "B3": [corrupt("W", 1.3), corrupt("b", 1.3)],
    "B4": [measured(weights_for_biases)],
    "S5": [passed(mean_of_biases)],
}


class TestBatch(Verdicts):
    MODULE = "batch"
    PLANTS = PLANTS

    def turned(self, id, verdict, plant):
        return verdict not in CLAIMS[id].expected
