"""A10 reads as expected, and otherwise once training's own clipping is wrong."""

import numpy as np

from flowlab.claims import clipping
from flowlab.training import updates
from tests.support.plants import clips
from tests.support.verdicts import Verdicts


def a_millionth_more_in_one_layer(kind, at, gradients, norm):
    found = updates_clip(kind, at, gradients, norm)
    found.factors[-1][:] *= 1 + 1e-6
    return found


def angle_of_none(kind, at, gradients, norm):
    return updates_clip(kind, at, gradients, norm)._replace(cosine=np.ones(len(gradients[0].W)))


updates_clip = updates.clip


class TestClipping(Verdicts):
    MODULE = "clipping"
    PLANTS = {  # noqa: RUF012
        "A10": [
            clips(lambda kind, *rest: updates_clip("layer", *rest)),
            clips(lambda kind, *rest: updates_clip("none", *rest)),
            clips(a_millionth_more_in_one_layer),
            clips(angle_of_none),
        ]
    }


def test_what_is_left_is_what_the_formulas_say():
    random = np.random.default_rng(0)
    gradients = {"0.W": random.normal(size=(3, 4, 5)), "0.b": random.normal(size=(3, 5))}
    gradients["1.W"] = 5 * random.normal(size=(3, 2))
    norm = np.sqrt(sum((g.reshape(3, -1) ** 2).sum(axis=1) for g in gradients.values()))
    short, reported = clipping.clipped(gradients, "norm", 2.0)
    cut, _ = clipping.clipped(gradients, "value", 0.3)
    for path, g in gradients.items():
        factor = (2 / (norm + 1e-6)).reshape(-1, *[1] * (g.ndim - 1))
        np.testing.assert_allclose(short[path], factor * g, rtol=1e-12)
        np.testing.assert_allclose(cut[path], np.clip(g, -0.3, 0.3), rtol=1e-12)
    assert (reported == 1).all()
