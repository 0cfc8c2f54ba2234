"""The claims S14 read as expected, and read otherwise once an error is planted."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from flowlab import layer
from flowlab.claims import architectures
from flowlab.claims.trial import Trial
from flowlab.kernel import ShapeError
from flowlab.layers import recurrent
from flowlab.schema import DELTA
from flowlab.settings import NETWORKS
from flowlab.training import clipping
from tests.support.plants import clips, measured
from tests.support.verdicts import CLAIMS, Verdicts


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


def by(kind):
    """Training clips in another way than it is asked to."""
    return clips(lambda asked, *rest: clipping.clip(kind, *rest))


def trained(change):
    """Curves of training go through ``change(curve, axes)``; no network is trained."""

    def plant(patch):
        def made(trial, times=1, **axes):
            return SimpleNamespace(curve=change(curve_of(trial, axes), axes))

        patch.setattr(Trial, "train", made)

    return plant


def curve_of(trial, axes):
    """A loss that falls; without clipping every network of mlp and cnn diverges."""
    lost = axes["training"]["clip"] == "none" and axes["network"] in ("mlp", "cnn")
    steps = [1, axes["training"]["steps"]]
    status = ["ok", "diverged" if lost else "ok"]
    losses = {"training_loss": [2.3, 1.0], "held_out_loss": [2.3, np.nan if lost else 1.0]}
    rows = {"step": steps, "training_status": status, **losses}
    return pd.concat([pd.DataFrame({**rows, "seed": s}) for s in range(trial.seeds)])


def all_diverge(curve, axes):
    return curve.assign(training_status="diverged")


def none_diverges(curve, axes):
    return curve.assign(training_status="ok")


def nothing_learned(curve, axes):
    return curve.assign(held_out_loss=2.4)


PLANTS = {
    "S14-shapes": [unnamed(layer), unnamed(recurrent)],
    "S14-initialization": [without_gradient("mlp"), without_gradient("lstm"), one_seed],
    "S14-clipping": [by("layer"), by("value")],
    "S14-training": [trained(change) for change in (all_diverge, none_diverges, nothing_learned)],
}


class TestArchitectures(Verdicts):
    MODULE = "architectures"
    PLANTS = PLANTS

    def seeds(self, id):
        return 16

    def turned(self, id, verdict, plant):
        return verdict not in CLAIMS[id].expected

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
