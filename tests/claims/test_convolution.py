"""The claims on convolution read as expected, and otherwise once an error is planted."""

from math import nan

import numpy as np

from flowlab import initializers
from flowlab.claims import convolution
from flowlab.claims.trial import Trial
from flowlab.layers import Conv2d
from flowlab.theory import convolution as theory
from tests.support.plants import pullback_off, scheme, with_settings
from tests.support.verdicts import Verdicts


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
    """Every layer pads in one way, whatever it is given."""

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


def only_delta(patch):
    """The kernels beside are delta-orthogonal too, so that nothing parts the two."""
    other = initializers.SCHEMES["delta_orthogonal"]
    patch.setitem(initializers.SCHEMES, "orthogonal", other)


def no_border(patch):
    patch.setattr(theory, "border_rate", lambda *args: 1.0)


def padding(kind):
    return with_settings(lambda axes: {"network": axes["network"] | {"padding": kind}})


PLANTS = {
    "S9": [pullback_off(Conv2d), pullback_off(Conv2d, factor=nan), unflipped, symmetric],
    "S9-padding": [
        *(pullback_off(Conv2d, factor=1.1), scheme("lecun", numerator=1.2)),
        *(padded_with("zeros"), padded_with("circular")),
    ],
    "A11-convolution": [
        *(pullback_off(Conv2d, factor=1 + 1e-9), pullback_off(Conv2d, factor=nan)),
        *(spread_kernels, only_delta),
    ],
}


class TestConvolution(Verdicts):
    MODULE = "convolution"
    PLANTS = PLANTS

    def seeds(self, id):
        return 16


def test_every_variant_occurs():
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
