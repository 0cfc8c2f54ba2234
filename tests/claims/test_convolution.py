"""The claims on convolution read as expected, and otherwise once an error is planted."""

from dataclasses import replace
from math import nan

import numpy as np
import pytest

from flowlab import claims, initializers
from flowlab.claims import convolution
from flowlab.claims.claim import FAILS, HOLDS
from flowlab.claims.trial import Trial
from flowlab.layers import Conv2d

IDS = ("S9", "S9-padding", "A11-convolution")
CLAIMS = {id: claim for id, claim in claims.load().items() if id in IDS}


def check(id):
    return CLAIMS[id].check(Trial(0, 16))


def pullback_off(factor):
    """The input gradient is off by a factor in every layer."""

    def plant(patch):
        pullback = Conv2d.pullback

        def wrong(self, *args):
            dx, gradients = pullback(self, *args)
            return dx * factor, gradients

        patch.setattr(Conv2d, "pullback", wrong)

    return plant


def unflipped(patch):
    right = convolution.flipped
    patch.setattr(convolution, "flipped", lambda *args: right(*args)[..., ::-1, ::-1].copy())


def symmetric(patch):
    """Kernels that are their own flip show nothing."""
    draw = Trial.parameters

    def wrong(self, *args):
        p = draw(self, *args)
        return p | {"W": p["W"] + p["W"][..., ::-1, ::-1]}

    patch.setattr(Trial, "parameters", wrong)


def padded_with(mode):
    """Every layer pads in one way, whatever it is asked."""

    def plant(patch):
        right = Conv2d.__init__

        def wrong(self, *args, padding_mode="zeros", **options):
            right(self, *args[:6], padding_mode=mode, **options)

        patch.setattr(Conv2d, "__init__", wrong)

    return plant


def spread_kernels(patch):
    """Kernels are orthogonal as matrices, not at their centre."""
    other = initializers.SCHEMES["orthogonal"]
    patch.setitem(initializers.SCHEMES, "delta_orthogonal", other)


def larger_weights(patch):
    scheme = initializers.SCHEMES["lecun"]
    patch.setitem(initializers.SCHEMES, "lecun", replace(scheme, numerator=1.2))


def only_delta(patch):
    """The kernels beside are delta-orthogonal too, so that nothing sets the two apart."""
    other = initializers.SCHEMES["delta_orthogonal"]
    patch.setitem(initializers.SCHEMES, "orthogonal", other)


PLANTS = {
    "S9": [pullback_off(1 + 1e-6), pullback_off(nan), unflipped, symmetric],
    "S9-padding": [
        *(pullback_off(1.1), larger_weights, padded_with("zeros"), padded_with("circular"))
    ],
    "A11-convolution": [pullback_off(1 + 1e-9), pullback_off(nan), spread_kernels, only_delta],
}


@pytest.mark.parametrize("id", IDS)
def test_verdict(id):
    finding = check(id)
    assert finding.verdict == HOLDS and CLAIMS[id].expected == (HOLDS,)
    assert abs(finding.measured - finding.predicted) <= finding.tolerance
    assert finding.sentence.endswith(".") and "\n" not in finding.sentence


@pytest.mark.parametrize("id, plant", [(id, p) for id, plants in PLANTS.items() for p in plants])
def test_planted_error_turns_the_verdict(id, plant, monkeypatch):
    plant(monkeypatch)
    assert check(id).verdict == FAILS


def test_every_variant_is_there():
    """Sizes, strides, dilations, groups and both paddings occur, with a row left uncovered."""
    sizes, strides, _, dilations, groups, modes = map(set, zip(*convolution.VARIANTS, strict=True))
    assert min(len(s) for s in (sizes, strides, dilations, groups, modes)) > 1
    remainders = {
        (length + 2 * p - d * (k - 1) - 1) % s
        for k, s, p, d, _, _ in convolution.VARIANTS
        for length in (convolution.HEIGHT, convolution.WIDTH)
    }
    assert remainders > {0}


def test_flipped_exchanges_channels_within_groups():
    W = np.arange(2 * 4 * 3 * 2 * 2.0).reshape(2, 4, 3, 2, 2)
    back = convolution.flipped(W, 2)
    assert back.shape == (2, 6, 2, 2, 2)
    assert back[1, 4, 1, 0, 1] == W[1, 3, 1, 1, 0]
