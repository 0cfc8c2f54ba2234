"""The claims S14 read as expected, and read otherwise once an error is planted."""

import numpy as np
import pytest

from flowlab import claims, layer
from flowlab.claims import architectures, chains
from flowlab.claims.claim import FAILS, HOLDS
from flowlab.claims.trial import Trial, square
from flowlab.kernel import ShapeError
from flowlab.layers import recurrent
from flowlab.schema import DELTA
from flowlab.settings import NETWORKS

CLAIMS = {id: claim for id, claim in claims.load().items() if id.startswith("S14-")}


def check(id):
    return CLAIMS[id].check(Trial(0, 16))


def unnamed(module):
    """A wrong shape is refused, but not by name."""

    def refuse(name, what, received, expected):
        if received != expected:
            raise ShapeError("shapes do not fit")

    return lambda patch: patch.setattr(module, "expect_shape", refuse)


def without_gradient(name):
    """One seed of one architecture has a gradient that is not a number."""

    def plant(patch):
        measure = Trial.measure

        def wrong(self, *args, **axes):
            table = measure(self, *args, **axes)
            if axes["network"] == name:
                at = (table["seed"] == self.seed) & table[DELTA].notna()
                table.loc[at, "status"] = "nonfinite"
            return table

        patch.setattr(Trial, "measure", wrong)

    return plant


def one_seed(patch):
    """A slope without an interval."""
    measure = Trial.measure

    def wrong(self, *args, **axes):
        table = measure(self, *args, **axes)
        return table[table["seed"] == self.seed]

    patch.setattr(Trial, "measure", wrong)


def by_layer(patch):
    """Each array is clipped by its own norm."""

    def wrong(gradients, most):
        return {k: (g.T * np.minimum(1, 0.1 / np.sqrt(square(g)))).T for k, g in gradients.items()}

    patch.setattr(chains, "clip_by_norm", wrong)


def by_value(patch):
    patch.setattr(
        chains,
        "clip_by_norm",
        lambda gradients, most: {k: np.clip(g, -0.1, 0.1) for k, g in gradients.items()},
    )


PLANTS = {
    "S14-shapes": [unnamed(layer), unnamed(recurrent)],
    "S14-initialization": [without_gradient("mlp"), without_gradient("lstm"), one_seed],
    "S14-clipping": [by_layer, by_value],
}


def test_every_claim_has_a_plant():
    assert set(CLAIMS) == set(PLANTS)


@pytest.mark.parametrize("id", PLANTS)
def test_verdict(id):
    finding = check(id)
    assert finding.verdict == HOLDS and CLAIMS[id].expected == (HOLDS,)
    assert all(name in finding.sentence for name in NETWORKS)
    assert finding.sentence.endswith(".") and "\n" not in finding.sentence


@pytest.mark.parametrize("id, plant", [(id, p) for id, plants in PLANTS.items() for p in plants])
def test_planted_error_turns_the_verdict(id, plant, monkeypatch):
    plant(monkeypatch)
    assert check(id).verdict == FAILS


@pytest.mark.parametrize("name", NETWORKS)
def test_every_axis_is_tried(name):
    chain, shape = architectures.network(name)
    parameters = [p for _, p in layer.leaves(chain.declare(shape).parameters)]
    axes = sum(len(p.shape) for p in parameters) + len(chain.declare(shape).output)
    assert architectures.refusals(Trial(0, 2), name) == [True] * axes
