"""The claims on batch norm S12 and on padding in depth S9, with errors that turn their verdicts."""

from math import log10

import numpy as np
import pytest

from flowlab import claims
from flowlab.claims.claim import FAILS, HOLDS
from flowlab.claims.trial import Trial
from flowlab.layers import BatchNorm, normalization
from flowlab.schema import DELTA
from flowlab.theory import convolution
from flowlab.theory import normalization as theory

IDS = ("S12", "S12-depth", "S12-removed", "S9-depth")
CLAIMS = {id: claim for id, claim in claims.load().items() if id in IDS}


def check(id):
    return CLAIMS[id].check(Trial(0, 32))


def tilted(factor, **where):
    """‖δ‖² is measured ``factor`` times too large for each layer travelled backward."""

    def plant(patch):
        measure = Trial.measure

        def wrong(self, *args, **axes):
            table = measure(self, *args, **axes)
            if any(axes.get(name) != value for name, value in where.items()):
                return table
            travelled = table["layer"].max() - table["layer"]
            return table.assign(**{DELTA: table[DELTA] + travelled * log10(factor) / 2})

        patch.setattr(Trial, "measure", wrong)

    return plant


def told(change):
    """Networks are measured with other settings than they are told."""

    def plant(patch):
        measure = Trial.measure

        def wrong(self, *args, **axes):
            return measure(self, *args, **axes | change(axes))

        patch.setattr(Trial, "measure", wrong)

    return plant


def frozen_statistics(patch):
    """Batch norm's pullback takes mean and variance for constants."""
    patch.setattr(normalization, "batch_norm_pullback", normalization.fixed_norm_pullback)


def off(patch):
    pullback = BatchNorm.pullback

    def wrong(self, *args):
        dx, gradients = pullback(self, *args)
        dx *= 1 + 1e-6
        return dx, gradients

    patch.setattr(BatchNorm, "pullback", wrong)


def law(module, name, value):
    return lambda patch: patch.setattr(module, name, lambda *args: value)


PLANTS = {
    "S12": [frozen_statistics, off],
    "S12-depth": [
        tilted(1.1, activation="relu"),
        tilted(1.05, activation="identity", batch_size=64),
        told(lambda axes: {"norm": "layer"}),
        law(theory, "batch_norm_rate", np.pi / (np.pi - 1)),
    ],
    "S12-removed": [frozen_statistics, told(lambda axes: {"batch_size": 2 * axes["batch_size"]})],
    "S9-depth": [
        tilted(1.1),
        law(convolution, "border_rate", 1.0),
        told(lambda axes: {"network": axes["network"] | {"padding": "zeros"}}),
        told(lambda axes: {"network": axes["network"] | {"padding": "circular"}}),
    ],
}


@pytest.mark.parametrize("id", PLANTS)
def test_verdict(id):
    finding = check(id)
    assert finding.verdict == HOLDS and CLAIMS[id].expected == (HOLDS,)
    assert abs(finding.measured - finding.predicted) <= finding.tolerance
    assert finding.sentence.endswith(".") and "\n" not in finding.sentence


@pytest.mark.parametrize("id, plant", [(id, p) for id, plants in PLANTS.items() for p in plants])
def test_planted_error_turns_the_verdict(id, plant, monkeypatch):
    plant(monkeypatch)
    assert check(id).verdict == FAILS
