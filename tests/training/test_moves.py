"""Norms of weights and updates, and the angle by which weights turn."""

import numpy as np
import pytest
from mpmath import mp, mpf

from flowlab.training.moves import turn


@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-8, 0.0])
@pytest.mark.parametrize("unit", [1.0, 1e-200, 1e200])
@mp.workdps(50)
def test_angles_and_norms_are_right_at_every_size(size, unit):
    random = np.random.default_rng(0)
    w = random.standard_normal((2, 3, 4, 5))
    v = w + size * random.standard_normal(w.shape)
    found = turn(unit * w, unit * v)
    for s in range(2):
        for k in range(3):
            a = [mpf(float(x)) for x in (unit * w)[s, k].ravel()]
            b = [mpf(float(x)) for x in (unit * v)[s, k].ravel()]
            norm = mp.sqrt(sum(x * x for x in a))
            step = mp.sqrt(sum((y - x) ** 2 for x, y in zip(a, b, strict=True)))
            cosine = sum(x * y for x, y in zip(a, b, strict=True))
            cosine /= norm * mp.sqrt(sum(y * y for y in b))
            angle = mp.acos(min(cosine, mpf(1)))
            assert found[s, k, 0] == pytest.approx(float(mp.log(norm, 2)), rel=1e-12, abs=1e-12)
            if step:
                assert found[s, k, 1] == pytest.approx(float(mp.log(step, 2)), rel=1e-9)
                assert found[s, k, 2] == pytest.approx(float(angle), rel=1e-6)
            else:
                assert np.isneginf(found[s, k, 1]) and found[s, k, 2] == 0


def test_what_has_no_direction_has_no_angle():
    zero = np.zeros((1, 1, 3))
    norm, step, angle = turn(zero, zero + 1.0)[0, 0]
    assert np.isneginf(norm) and step == pytest.approx(0.5 * np.log2(3)) and np.isnan(angle)
