"""A6, A7 and S12 read as expected, and read otherwise once an error is planted."""

import pytest

from flowlab import claims
from flowlab.claims.claim import FAILS, HOLDS
from flowlab.claims.trial import Trial
from flowlab.layers import BatchNorm, LayerNorm, RMSNorm, normalization

PLANTED = ("A6", "A7", "S12", "S12-removed")
CLAIMS = {id: claim for id, claim in claims.load().items() if id in PLANTED}


def check(id, seeds=64):
    return CLAIMS[id].check(Trial(0, seeds))


def frozen_statistics(patch):
    """Batch norm's pullback takes mean and variance for constants."""
    patch.setattr(normalization, "batch_norm_pullback", normalization.fixed_norm_pullback)


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


def slightly_off(patch):
    """Batch norm's dX is a millionth off."""
    pullback = BatchNorm.pullback

    def wrong(self, *args):
        dx, gradients = pullback(self, *args)
        dx *= 1 + 1e-6
        return dx, gradients

    patch.setattr(BatchNorm, "pullback", wrong)


def twice_the_batch(patch):
    """Networks are measured with twice as many examples."""
    measure = Trial.measure

    def wrong(self, *args, **axes):
        return measure(self, *args, **axes | {"batch_size": 2 * axes["batch_size"]})

    patch.setattr(Trial, "measure", wrong)


PLANTS = {
    "A6": [frozen_statistics, off(BatchNorm, "dx"), eps_in_batch_norm],
    "A7": [frozen_statistics, mean_is_kept],
    "S12": [frozen_statistics, slightly_off],
    "S12-removed": [frozen_statistics, twice_the_batch],
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


@pytest.mark.parametrize("seed", range(4))
def test_share_holds_for_other_seeds(seed):
    assert CLAIMS["A7"].check(Trial(1000 * seed, 64)).verdict == HOLDS
