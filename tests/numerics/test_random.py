"""The counter-based generator: known answers, distributions, and what the numbers depend on."""

import numpy as np
import pytest
from numba import njit, uint32
from scipy import stats

from flowlab.initializers import Initializer, InitSettings
from flowlab.layer import Parameter
from flowlab.numerics import random

# Each statistical test rejects with this probability if the generator is perfect; the seeds are
# fixed, so each either always passes or always fails.
P = 1e-4


def filled(fill, stream, n, dtype, scale):
    """n numbers of the stream (seed or seeds, layer, role)."""
    seeds, layer, role = stream
    seeds = np.atleast_1d(np.asarray(seeds, np.int64))
    out = np.full((len(seeds), n), np.nan, dtype)
    fill(seeds, np.full(len(seeds), layer), out, scale, role)
    return out


def normal(stream, n, dtype=np.float64, scale=1.0):
    return filled(random.fill_normal, stream, n, dtype, scale)


def uniform(stream, n, dtype=np.float64, scale=1.0):
    return filled(random.fill_uniform, stream, n, dtype, scale)


@njit
def threefry(k0, k1, c0, c1):
    return random.threefry(uint32(k0), uint32(k1), uint32(c0), uint32(c1))


@pytest.mark.parametrize(
    "key, counter, expected",
    [  # Random123's published known answers for Threefry-2x32-20
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_known_answers(key, counter, expected):
    assert threefry(*key, *counter) == expected


def test_a_stream_is_threefry_under_the_key_of_seed_layer_and_role():
    """The key is threefry(seed; layer, role); element i of the first half is counter i."""
    seed, layer, role, n = 0x1234567890ABCDEF, 7, 3, 10
    key = threefry(0x90ABCDEF, 0x12345678, layer, role)
    words = np.array([threefry(*key, i, 0) for i in range(n // 2)], np.uint32).view(np.int32)
    expected = (words.T.ravel() + 0.5) * 2.0**-31
    np.testing.assert_array_equal(uniform((seed, layer, role), n)[0], expected)


def test_normals_are_box_muller_of_the_words():
    key, n = threefry(5, 0, 1, 0), 2000
    a, b = np.array([threefry(*key, i, 0) for i in range(n // 2)], np.float64).T
    radius = np.sqrt(-2 * np.log((np.floor(a / 2) + 0.5) * 2.0**-31))
    angle = 2 * np.pi * b / 2**32
    expected = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    np.testing.assert_allclose(normal((5, 1, 0), n)[0], expected, rtol=2e-5, atol=2e-6)


def test_all_streams_differ():
    first = [uniform((range(50), l, r), 2) for l in range(40) for r in range(3)]
    assert len(np.unique(np.concatenate(first), axis=0)) == 50 * 40 * 3


def test_normal_is_normal():
    x = normal((0, 1, 0), 200_000)[0]
    assert stats.kstest(x, "norm").pvalue > P
    n = len(x)
    # Standard errors of the first four moments of a standard normal.
    for power, mean, deviation in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(np.mean(x**power) - mean) < 4 * np.sqrt(deviation / n)
    # The tails that a coarse generator loses.
    beyond = np.sum(np.abs(x) > 4)
    assert stats.binomtest(int(beyond), n, 2 * stats.norm.sf(4)).pvalue > P


def test_uniform_is_uniform():
    x = uniform((0, 1, 0), 200_000, scale=3.0)[0]
    assert stats.kstest(x, "uniform", args=(-3, 6)).pvalue > P
    assert np.all(np.abs(x) < 3)


def uncorrelated(a, b):
    n = a.size
    for f in (lambda v: v, lambda v: v**2 - 1):
        assert abs(np.mean(f(a) * f(b)) / (np.std(f(a)) * np.std(f(b)))) < 4 / np.sqrt(n)


@pytest.mark.parametrize("other", [(1, 1, 0), (0, 2, 0), (0, 1, 1)], ids=["seed", "layer", "role"])
def test_streams_are_independent(other):
    n = 100_000
    a = normal((0, 1, 0), n)[0]
    uncorrelated(a, normal(other, n)[0])


def test_elements_of_one_stream_are_independent():
    """Both halves come from one Box-Muller pair; neighbours from neighbouring counters."""
    x = normal((3, 1, 0), 200_000)[0]
    half = len(x) // 2
    uncorrelated(x[:half], x[half:])
    uncorrelated(x[:-1], x[1:])
    radius = x[:half] ** 2 + x[half:] ** 2
    assert stats.kstest(radius, "expon", args=(0, 2)).pvalue > P
    angle = np.arctan2(x[half:], x[:half])
    assert stats.kstest(angle, "uniform", args=(-np.pi, 2 * np.pi)).pvalue > P


@pytest.mark.parametrize("n", [1, 2, 7, 1000])
@pytest.mark.parametrize("draw", [normal, uniform])
def test_float32_and_float64_draw_the_same_numbers(draw, n):
    stream = ([0, 9], 4, 1)
    single, double = draw(stream, n, np.float32, 0.1), draw(stream, n, np.float64, 0.1)
    np.testing.assert_allclose(single, double, rtol=3e-7, atol=1e-10)
    assert np.all(np.isfinite(double)) and np.all(double != 0)


def test_numbers_depend_on_seed_layer_and_role_alone():
    """Other seeds, their order, other layers and roles change nothing."""
    initializer = Initializer(InitSettings("he", sigma_b=0.1))
    weight, bias = Parameter((5, 7), 5, 7), Parameter((7,), 5, 7, role="bias")

    def draw(parameter, seeds, layer, role):
        out = np.empty((len(seeds), *parameter.shape))
        initializer.draw(parameter, np.array(seeds, np.int64), layer, role, out)
        return dict(zip(seeds, out, strict=True))

    expected = draw(weight, [5], 2, 0)[5]
    draw(bias, [1, 2], 9, 1)
    for seeds in ([5, 6, 7], [7, 5], [0, 2**62, 5]):
        np.testing.assert_array_equal(draw(weight, seeds, 2, 0)[5], expected)
    for seed, layer, role in ((6, 2, 0), (5, 3, 0), (5, 2, 1)):
        assert not np.any(draw(weight, [seed], layer, role)[seed] == expected)


def test_large_seeds_do_not_collide():
    seeds = [0, 1, 2**32, 2**32 + 1, 2**62, 2**63 - 1]
    assert len(np.unique(uniform((seeds, 1, 0), 4)[:, 0])) == len(seeds)
