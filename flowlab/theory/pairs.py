"""E f(u_i) f(u_j) over a set of sites, u Gaussian of variances that differ from site to site.

Homogeneous activations have closed forms (`moments`); others are expanded in orthonormal Hermite
polynomials, f(sqrt(q) z) = sum_n a_n(q) He_n(z), so that E f(u_i) f(u_j) = sum_n a_n(q_i) a_n(q_j)
c_ij^n (Mehler). What lies beyond the last term kept goes to that term.
"""

import numpy as np

from flowlab.theory.activations import Activation
from flowlab.theory.moments import homogeneous_correlation, homogeneous_pairs
from flowlab.theory.one_point import one_point


class Pairs:
    """Two-point functions over sites of log variance ``log_q`` (n,).

    Each takes correlations c (..., n, n) and returns the same shape, over the one-point means'
    geometric mean: c = 1 at sites of equal variance gives 1. ``log_phi2``, ``log_mu1`` (n,): the
    logs of E phi^2 and E phi'^2; ``m1`` (n,): E phi'^4/(E phi'^2)^2.
    """

    def __init__(self, activation: Activation, log_q: np.ndarray):
        self._slope = activation.negative_slope
        moments = one_point(activation)
        self.log_phi2, self.log_mu1 = moments(log_q)
        if self._slope is None:
            self._values, self._slopes, self._squares = np.moveaxis(moments.series(log_q), 1, 0)
        self.m1 = moments.m1(log_q)

    def values(self, c: np.ndarray) -> np.ndarray:
        """E phi phi."""
        if self._slope is not None:
            return homogeneous_correlation(self._slope, c)
        return _mehler(self._values, c)

    def slopes(self, c: np.ndarray) -> np.ndarray:
        """E phi' phi'."""
        if self._slope is not None:
            return homogeneous_pairs(self._slope, c)[0]
        return _mehler(self._slopes, c)

    def overlaps(self, c: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """E phi' phi' and E phi'^2 phi'^2 over the means, and (n,) E phi'^4/(E phi'^2)^2."""
        if self._slope is not None:
            h, m, _, _ = homogeneous_pairs(self._slope, c)
            return h, m, self.m1
        return self.slopes(c), _mehler(self._squares, c, self.m1), self.m1

    def tilts(self, c: np.ndarray) -> np.ndarray:
        """E z phi' z phi' with z = u/sqrt(q), over E phi'^2: not 1 at c = 1."""
        if self._slope is not None:
            return homogeneous_correlation(self._slope, c)
        d = self._slopes
        n = np.arange(d.shape[1])
        up = np.zeros_like(d)
        up[:, :-1] += np.sqrt(n[1:]) * d[:, 1:]
        up[:, 1:] += np.sqrt(n[1:]) * d[:, :-1]
        return _mehler(up, c, None)


def _mehler(a, c, total=1.0):
    """sum_n a_n a_n' c^n, by Horner's rule from the last term on; total: what sum_n a_n^2 is.

    Terms that stay below 1e-4 at all sites are left out, their squares below 1e-8.
    """
    known = np.square(a).sum(1)
    rest = np.sqrt(np.maximum((known if total is None else total) - known, 0.0))
    last = np.flatnonzero(np.abs(a).max(0) > 1e-4)
    a = a[:, : last[-1] + 1] if len(last) else a[:, :1]
    total = rest[:, None] * rest * np.ones_like(c)
    for column in a.T[::-1]:
        total = total * c + column[:, None] * column
    return total
