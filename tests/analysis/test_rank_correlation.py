"""Ranks and their correlation against SciPy; the interval against samples of a known law."""

from math import asin, inf, nan, pi

import numpy as np
import pytest
from scipy.stats import rankdata, spearmanr

from flowlab.analysis.rank_correlation import rank_correlation, ranks, spearman
from flowlab.errors import InputError


def test_ranks_share_the_mean_of_equal_values():
    values = np.random.default_rng(0).integers(0, 5, (7, 3, 20)).astype(float)
    values[0, 0, :2] = inf, -inf
    assert ranks(values) == pytest.approx(rankdata(values, axis=-1) - 1)


def test_the_correlation_is_that_of_scipy():
    random = np.random.default_rng(1)
    x = random.integers(0, 6, (9, 30)).astype(float)
    y = x + random.normal(0, 3, x.shape)
    expected = [spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)]
    assert spearman(x, y) == pytest.approx(expected, abs=1e-14)
    found = rank_correlation(x[0], y[0])
    assert found.mean == pytest.approx(expected[0]) and found.n == 30
    assert found.low < found.mean < found.high


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    """Spearman's correlation of a normal pair is 6/π asin(ρ/2); 300 intervals, 3 SE of a share."""
    random, truth, inside = np.random.default_rng(2), 6 / pi * asin(0.6 / 2), 0
    for draw in range(300):
        x, y = random.multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], size=50).T
        found = rank_correlation(x, y, draws=300, seed=draw)
        inside += found.low <= truth <= found.high
    assert abs(inside / 300 - 0.95) < 3 * np.sqrt(0.95 * 0.05 / 300)


def test_only_the_order_counts():
    x = np.array([1.0, 2, 5, 9, inf])
    assert rank_correlation(x, -np.exp(np.arange(5.0))).mean == -1
    assert rank_correlation(x, x**2).mean == pytest.approx(1)


def test_a_pair_that_is_not_known_is_left_out_and_counted():
    x, y = np.arange(8.0), np.arange(8.0)
    x[2], y[5] = nan, nan
    found = rank_correlation(x, y)
    assert (found.mean, found.n, found.excluded) == (1, 6, 2)


@pytest.mark.parametrize(
    "x, y", [([1, 2, 3], [1, 2, 3]), ([1] * 9, range(9)), ([nan] * 9, range(9))]
)
def test_too_few_conditions_and_equal_ones_have_no_estimate(x, y):
    found = rank_correlation(x, y)
    assert found.n == 0 and found.excluded == len(x) and not found.known
    assert "four" not in str(found) and "ranks need 4 conditions that differ" in str(found)


def test_lengths_must_agree():
    with pytest.raises(InputError, match=r"one length; got shapes \(3,\) and \(4,\)"):
        rank_correlation([1, 2, 3], [1, 2, 3, 4])
