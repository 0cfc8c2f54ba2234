"""A6, A7 and S12 on normalization, with errors that turn the verdicts."""

import pytest

from flowlab.claims.claim import HOLDS
from flowlab.claims.trial import Trial
from flowlab.layers import BatchNorm, LayerNorm, RMSNorm
from tests.support.plants import frozen_statistics, pullback_off, with_settings
from tests.support.verdicts import CLAIMS, Verdicts


def off(layer, array):
    """What a layer's pullback gives is 1e-6 off in every element of one example."""

    def plant(patch):
        pullback = layer.pullback

        def wrong(self, *args):
            dx, gradients = pullback(self, *args)
            {"dx": dx, **gradients}[array][:, 0] += 1e-6
            return dx, gradients

        patch.setattr(layer, "pullback", wrong)

    return plant


def eps_in_batch_norm(patch):
    """ε is added to the variance though the claim asks for none."""
    start = BatchNorm.__init__
    patch.setattr(BatchNorm, "__init__", lambda self, eps: start(self, eps=1e-3))


def mean_is_kept(patch):
    """Layer norm's pullback forgets that the mean moves."""

    def wrong(self, dy, tape, *rest):
        dx, gradients = RMSNorm.pullback(rms, dy, tape, *rest)
        return dx, {**gradients, "bias": dy.sum(1)}

    rms = RMSNorm(eps=0.0)
    patch.setattr(LayerNorm, "pullback", wrong)


PLANTS = {
    "A6": [frozen_statistics, off(BatchNorm, "dx"), eps_in_batch_norm],
    "A7": [frozen_statistics, mean_is_kept],
    "S12": [frozen_statistics, pullback_off(BatchNorm)],
    "S12-removed": [
        frozen_statistics,
        with_settings(lambda axes: {"batch_size": 2 * axes["batch_size"]}),
    ],
}


class TestNormalization(Verdicts):
    MODULE = "normalization"
    PLANTS = PLANTS

    def seeds(self, id):
        return 64 if id in ("A6", "A7") else 32


@pytest.mark.parametrize("seed", range(4))
def test_share_holds_for_other_seeds(seed):
    assert CLAIMS["A7"].check(Trial(1000 * seed, 64)).verdict == HOLDS
