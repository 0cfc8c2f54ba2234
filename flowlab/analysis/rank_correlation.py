"""Spearman's rank correlation over conditions, with a bootstrap interval.

A condition's value is a mean over its seeds, so drawing conditions anew carries the spread of
seeds along.
"""

from math import isnan, nan

import numpy as np
from numpy.typing import ArrayLike

from flowlab.analysis.statistics import Interval
from flowlab.errors import InputError

DRAWS = 2000
LEAST = 4  # conditions


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0 along the last axis of ``values`` (..., n); equal values share their mean."""
    order = np.argsort(values, axis=-1, kind="stable")
    ordered = np.take_along_axis(values, order, axis=-1)
    apart = ordered[..., 1:] != ordered[..., :-1]
    end = np.ones((*values.shape[:-1], 1), bool)
    place = np.arange(values.shape[-1])
    first = np.where(np.concatenate([end, apart], -1), place, 0)
    last = np.where(np.concatenate([apart, end], -1), place, place.size)
    first = np.maximum.accumulate(first, -1)
    last = np.minimum.accumulate(last[..., ::-1], -1)[..., ::-1]
    found = np.empty(values.shape)
    np.put_along_axis(found, order, (first + last) / 2, axis=-1)
    return found


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The correlation of the ranks of ``x`` and ``y`` (..., n); NaN where one has no spread."""
    x, y = (ranks(values) - (values.shape[-1] - 1) / 2 for values in (x, y))
    size = np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    return np.where(size > 0, (x * y).sum(-1) / np.where(size > 0, size, 1), nan)


def rank_correlation(
    x: ArrayLike, y: ArrayLike, level: float = 0.95, draws: int = DRAWS, seed: int = 0
) -> Interval:
    """Spearman's correlation of ``x`` and ``y`` (n,), one pair for each condition.

    The interval holds the middle ``level`` of ``draws`` bootstrap samples of conditions; ``se`` is
    their standard deviation. Pairs with a NaN are left out and counted in ``excluded``; infinite
    values have a rank like others. There is no estimate from fewer than four pairs, nor where one
    quantity has a single value. Raises InputError unless both have one length.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    if x.ndim != 1 or x.shape != y.shape:
        raise InputError(f"x and y must have one length; got shapes {x.shape} and {y.shape}")
    known = ~(np.isnan(x) | np.isnan(y))
    x, y, n, excluded = x[known], y[known], int(known.sum()), int((~known).sum())
    found = float(spearman(x, y)) if n >= LEAST else nan
    if isnan(found):
        note = f"ranks need {LEAST} conditions that differ"
        return Interval(nan, nan, nan, nan, 0, level, excluded + n, note)
    drawn = np.random.default_rng(seed).integers(n, size=(draws, n))
    samples = spearman(x[drawn], y[drawn])
    samples = samples[~np.isnan(samples)]
    tail = 50 * (1 - level)
    low, high = np.percentile(samples, [tail, 100 - tail])
    return Interval(
        found,
        min(float(low), found),
        max(float(high), found),
        float(samples.std()),
        n,
        level,
        excluded,
    )
