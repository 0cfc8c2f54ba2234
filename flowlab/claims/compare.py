"""Measured against predicted: tolerances from standard errors, and the verdict they allow.

Two-sided, |measured − predicted| ≤ 4 SE + allowance, where SE is the larger of the measured
standard error and theory's, and the allowance is theory's own error (0 for an exact law).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import exp, inf, isfinite, isnan, nan, sqrt

import numpy as np

from flowlab.analysis.statistics import mean_interval, variance_interval
from flowlab.claims.claim import FAILS, HOLDS, OPEN, Finding

# Float64 sums of some hundred terms, relative to the norms of what is multiplied.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Comparison:
    """One quantity, predicted and measured.

    ``against`` is the value of a rival statement: a tolerance that would admit it decides nothing.
    """

    quantity: str
    predicted: float
    measured: float
    tolerance: float
    low: float = nan
    high: float = nan
    against: float = nan

    @property
    def error(self) -> float:
        """Distance from the prediction in units of the tolerance."""
        gap = abs(self.measured - self.predicted)
        return gap / self.tolerance if self.tolerance else (inf if gap else 0.0)

    @property
    def verdict(self) -> str:
        """Whether the two agree; inconclusive without a tolerance that could decide."""
        if isnan(self.measured) or not isfinite(self.tolerance):
            return OPEN
        if abs(self.measured - self.predicted) > self.tolerance:
            return FAILS
        return OPEN if abs(self.against - self.predicted) <= self.tolerance else HOLDS

    def finding(self, sentence: str, verdict: str | None = None) -> Finding:
        """The comparison with its sentence, and another verdict where one is given."""
        return Finding(
            self.quantity,
            self.predicted,
            self.measured,
            self.tolerance,
            verdict or self.verdict,
            sentence,
            self.low,
            self.high,
        )


def mean(quantity, values, predicted, sd=nan, allowance=0.0, against=nan) -> Comparison:
    """The mean of ``values`` (n,), one per seed; ``sd`` is theory's for one of them."""
    interval = mean_interval(values)
    tolerance = 4 * _larger(interval.se, sd, interval.n) + allowance
    if interval.excluded:  # a seed left out would bias the mean
        tolerance = nan
    return Comparison(
        quantity, predicted, interval.mean, tolerance, interval.low, interval.high, against
    )


def rate(quantity, logs, steps, log_predicted, log_variance=nan, log_allowance=0.0, against=nan):
    """The rate per step exp(mean log / steps) of ``logs`` (n,), each the sum of ``steps`` steps.

    ``log_predicted``, ``log_variance`` and ``log_allowance`` belong to the whole sum; first order
    carries them to the rate, whose relative error is small.
    """
    log = mean_interval(logs / steps)
    predicted = exp(log_predicted / steps)
    se = _larger(log.se, sqrt(log_variance) / steps, log.n)
    tolerance = nan if log.excluded else predicted * (4 * se + log_allowance / steps)
    measured, low, high = (float(np.exp(v)) for v in (log.mean, log.low, log.high))
    return Comparison(quantity, predicted, measured, tolerance, low, high, against)


def variance(quantity, values, predicted, allowance=0.0, against=nan) -> Comparison:
    """The variance of ``values`` (n,), one per seed, nearly normal: its SE is σ²√(2/(n − 1))."""
    interval = variance_interval(values)
    tolerance = nan
    if interval.n > 1 and not interval.excluded:
        tolerance = 4 * predicted * sqrt(2 / (interval.n - 1)) + allowance
    return Comparison(
        quantity, predicted, interval.mean, tolerance, interval.low, interval.high, against
    )


def identity(quantity, errors, tolerance=ROUNDING) -> Comparison:
    """The worst of relative ``errors`` (any shape), which an exact identity keeps at rounding.

    NaN among them breaks the identity as infinity does.
    """
    error = np.nan_to_num(np.abs(errors), nan=inf, posinf=inf).max()
    return Comparison(quantity, 0.0, float(error), tolerance)


def relative(left, right, size=None) -> np.ndarray:
    """|left − right| over ``size``, by default |right|."""
    return np.abs(left - right) / (np.abs(right) if size is None else size)


def sizes(norms: np.ndarray, rounding: float) -> np.ndarray:
    """``norms`` (arrays, seeds) to divide errors by: the largest where one is but rounding to it.

    So an array that is exactly 0 in theory must be so to the rounding of the others: the gradient
    of the keys' bias in attention, say.
    """
    largest = norms.max(axis=0)
    return np.where(norms > rounding * largest, norms, largest)


def worst(comparisons: Iterable[Comparison]) -> Comparison:
    """The comparison that speaks loudest against the claim: failed, then open, then furthest."""
    rank = {FAILS: 2, OPEN: 1, HOLDS: 0}
    return max(comparisons, key=lambda c: (rank[c.verdict], 0 if isnan(c.error) else c.error))


def _larger(se: float, sd: float, n: int) -> float:
    return float(np.fmax(se, sd / sqrt(n))) if n else nan
