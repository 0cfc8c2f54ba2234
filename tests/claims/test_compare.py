"""Measured against predicted: tolerances, intervals and the verdicts they allow."""

from math import isfinite, nan, sqrt

import numpy as np
import pytest

from flowlab.claims import compare
from flowlab.claims.claim import FAILS, HOLDS, OPEN


def test_mean_takes_the_larger_standard_error():
    values = np.array([1.0, 2.0, 3.0, 4.0])
    se = values.std(ddof=1) / 2
    assert compare.mean("", values, 2.5).tolerance == pytest.approx(4 * se)
    assert compare.mean("", values, 2.5, sd=10).tolerance == pytest.approx(20)
    assert compare.mean("", values, 2.5, allowance=1).tolerance == pytest.approx(4 * se + 1)
    assert compare.mean("", values, 2.5 + 4.1 * se).verdict == FAILS
    assert compare.mean("", values, 2.5 + 3.9 * se).verdict == HOLDS


def test_rate_of_sums_of_logs():
    logs = np.log(2.0) * 5 + np.array([-0.1, 0.1, -0.1, 0.1])
    got = compare.rate("", logs, 5, np.log(2.0) * 5)
    assert got.measured == pytest.approx(2) and got.predicted == pytest.approx(2)
    assert got.tolerance == pytest.approx(2 * 4 * logs.std(ddof=1) / 2 / 5)
    assert got.low < 2 < got.high


def test_variance_has_the_error_of_a_chi_square():
    values = np.random.default_rng(0).standard_normal(201)
    got = compare.variance("", values, 1.0)
    assert got.measured == pytest.approx(values.var(ddof=1))
    assert got.tolerance == pytest.approx(4 * sqrt(2 / 200))


def test_what_a_tolerance_does_not_part_is_inconclusive():
    assert compare.Comparison("", 1.0, 1.1, 0.5, against=1.4).verdict == OPEN
    assert compare.Comparison("", 1.0, 1.1, 0.5, against=1.6).verdict == HOLDS
    assert compare.Comparison("", 1.0, 1.6, 0.5, against=1.4).verdict == FAILS
    assert compare.Comparison("", 1.0, nan, 0.5).verdict == OPEN
    assert compare.mean("", [1.0], 1.0).verdict == OPEN
    assert compare.identity("", [0.0, nan]).verdict == FAILS
    assert compare.mean("", [1.0, 1.1, np.inf], 1.0).verdict == OPEN


def test_the_worst_speaks():
    good, better = (compare.Comparison("", 0.0, m, 1.0) for m in (0.5, 0.1))
    failed, unsure = (compare.Comparison("", 0.0, m, 1.0) for m in (2.0, nan))
    assert compare.worst((better, good)) is good
    assert compare.worst((good, unsure, better)) is unsure
    assert compare.worst((good, unsure, failed)) is failed
    exact = compare.Comparison("", 0.0, 0.0, 0.0)
    assert compare.worst((exact, good)) is good


def test_two_values_are_enough():
    assert isfinite(compare.mean("", [1.0, 1.1], 1.0).tolerance)
