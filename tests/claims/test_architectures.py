"""The claims S14 read as expected, and read otherwise once an error is planted."""

import numpy as np
import pytest

from flowlab import layer
from flowlab.claims import architectures, chains
from flowlab.claims.trial import Trial, square
from flowlab.kernel import ShapeError
from flowlab.layers import recurrent
from flowlab.schema import DELTA
from flowlab.settings import NETWORKS
from tests.support.plants import measured
from tests.support.verdicts import Verdicts


def unnamed(module):
    """A wrong shape is refused, but not by name."""

    def refuse(name, what, received, expected):
        if received != expected:
            raise ShapeError("shapes do not fit")

    return lambda patch: patch.setattr(module, "expect_shape", refuse)


def without_gradient(name):
    """One seed of one architecture has a gradient that is not a number."""

    def lose(trial, table, axes):
        if axes["network"] == name:
            at = (table["seed"] == trial.seed) & table[DELTA].notna()
            table.loc[at, "status"] = "nonfinite"
        return table

    return measured(lose)


def of_one_seed(trial, table, axes):
    """A slope without an interval."""
    return table[table["seed"] == trial.seed]


one_seed = measured(of_one_seed)


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


class TestArchitectures(Verdicts):
    MODULE = "architectures"
    PLANTS = PLANTS

    def seeds(self, id):
        return 16

    def check(self, id):
        finding = super().check(id)
        assert all(name in finding.sentence for name in NETWORKS)
        return finding


@pytest.mark.parametrize("name", NETWORKS)
def test_every_axis_is_tried(name):
    chain, shape = architectures.network(name)
    parameters = [p for _, p in layer.leaves(chain.declare(shape).parameters)]
    axes = sum(len(p.shape) for p in parameters) + len(chain.declare(shape).output)
    assert architectures.refusals(Trial(0, 2), name) == [True] * axes
