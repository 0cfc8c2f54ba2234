"""S10 on attention, with errors that turn the verdicts."""

import numpy as np
import pytest

from flowlab.claims import attention
from flowlab.claims.twins.attention import HIDDEN
from tests.support.plants import corrupt, scheme
from tests.support.verdicts import Verdicts


def floor(name, value):
    """‖dW‖² does not fall below this."""

    def plant(patch):
        right = attention.attend

        def wrong(*args):
            got = right(*args)
            return got | {name: got[name] + value}

        patch.setattr(attention, "attend", wrong)

    return plant


def collapsed_faster(patch):
    right = attention.tokens
    patch.setattr(attention, "tokens", lambda r, n, c: right(r, n, 1 - (1 - c) ** 2))


PLANTS = {
    "S10": [corrupt(name) for name in ("0.0.W", "0.1.W", "0.2.W", "2.W", "dx")],
    "S10-division": [
        *(corrupt("0.0.W", 1.5), corrupt("0.1.W", 0.5), corrupt("2.W", 1.3)),
        scheme("lecun", numerator=2.0),
    ],
    "S10-collapse": [floor("Q", 1e-6), floor("K", 1e-6), collapsed_faster],
}


class TestAttention(Verdicts):
    MODULE = "attention"
    PLANTS = PLANTS


@pytest.mark.parametrize("cosine", [0.0, 0.5, 0.99])
def test_tokens_have_their_cosine(cosine):
    x = attention.tokens(np.random.default_rng(0), 400, cosine)[:, 0]
    np.testing.assert_allclose(np.mean(x**2, axis=-1), 1)
    measured = np.mean(x[:, 0] * x[:, 1], axis=-1)
    assert abs(measured.mean() - cosine) < 4 * measured.std() / 20 + 2 / attention.WIDTH


def test_masks_of_examples_leave_every_query_a_key():
    assert not HIDDEN[..., 0].any() and HIDDEN.any(axis=(1, 2)).all()
