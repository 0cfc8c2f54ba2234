"""A batch of examples of unlike norm: their law at a few nodes, and the batch's from it.

Let y_b be the log of one example's squared norm in one net, of mean m_b and variance V_b over nets,
of which the share rho is common to all examples and the rest each example's own:

    y_b = m_b + sqrt(rho V_b) xi + sqrt((1 - rho) V_b) xi_b,    xi, xi_b ~ N(0, 1).

Given xi the sum over many examples is its mean, and to second order in the own parts

    log sum_b exp(y_b) = log S - C/2,    S = sum_b exp(m_b + (1 - rho) V_b/2 + sqrt(rho V_b) xi),
    C = (1 - rho) sum_b w_b^2 V_b,       w_b the shares of S,

C being its variance given xi. Means and variances over xi are by Gauss-Hermite quadrature. It is
exact for one example, for examples that fluctuate as one, and for many that fluctuate each alone.
"""

from dataclasses import dataclass

import numpy as np

MOST_NODES = 48
_POINTS, _WEIGHTS = np.polynomial.hermite_e.hermegauss(7)
_GAUSS = _POINTS, _WEIGHTS / _WEIGHTS.sum()
_ONCE = np.zeros(1), np.ones(1)


@dataclass(frozen=True)
class Nodes:
    """log_q: (nodes,) input variances, rising, -inf for an example that is zero; share: (batches,
    nodes), rows of sum 1, how much of each batch stands at each node; batch: its size."""

    log_q: np.ndarray
    share: np.ndarray
    batch: int

    def median(self, level: np.ndarray) -> int:
        """The node that half of all exp(level) lies below, level (nodes,)."""
        below = np.cumsum(self.share.mean(axis=0) * _scaled(level[None])[1][0])
        return min(int(np.searchsorted(below, 0.5 * below[-1])), len(below) - 1)

    def log_mean(self, level: np.ndarray) -> np.ndarray:
        """log of each batch's mean of exp(level), (layers, batches), from (layers, nodes)."""
        peak, values = _scaled(level)
        return peak + _log(values @ self.share.T)

    def batched(self, mean, variance, rho) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance over seeds of the log of the batch's mean square, (layers,).

        mean: m_b, and variance: V_b, both (layers, nodes); rho: (layers,). Batches differ from seed
        to seed, which adds to the variance.
        """
        variance, rho = np.maximum(variance, 0.0), rho[:, None]
        own, common = (1 - rho) * variance, np.sqrt(rho * variance)
        varies = common.max() > 0
        logs, alone = [], 0.0
        for xi, weight in zip(*(_GAUSS if varies else _ONCE), strict=True):
            peak, values = _scaled(mean + own / 2 + xi * common)
            total = values @ self.share.T
            inverse = np.divide(1.0, total, out=np.zeros_like(total), where=total > 0)
            fresh = (values**2 * own) @ self.share.T * inverse * inverse / self.batch
            logs.append(peak + _log(total) - fresh / 2)
            alone = alone + weight * fresh.mean(axis=1)
        logs = np.array(logs)  # (xi, layers, batches)
        weights = (_GAUSS if varies else _ONCE)[1]
        expected = np.einsum("k,klb->l", weights, logs) / logs.shape[2]
        finite = np.isfinite(expected)
        spread = np.zeros(len(expected))
        spread[finite] = (
            np.einsum("k,klb->l", weights, (logs[:, finite] - expected[finite, None]) ** 2)
            / logs.shape[2]
        )
        return expected, alone + spread

    def average(self, level: np.ndarray, values: np.ndarray) -> float:
        """Mean over batches of the mean of values (nodes,) weighted by exp(level)."""
        weights = _scaled(level[None])[1][0]
        total = self.share @ weights
        sums = self.share @ (weights * values)
        return float(np.divide(sums, total, out=np.zeros_like(total), where=total > 0).mean())

    def effective(self, level: np.ndarray) -> np.ndarray:
        """1 / sum_b w_b^2, the number of examples that count in the batch, (layers,)."""
        _, values = _scaled(level)
        squares = (values**2) @ self.share.T
        total = (values @ self.share.T) ** 2
        ones = np.ones_like(total)
        return self.batch * np.divide(total, squares, out=ones, where=squares > 0).mean(axis=1)


def _log(x):
    with np.errstate(divide="ignore"):
        return np.log(x)


def _scaled(level):
    peak = level.max(axis=1, keepdims=True)
    peak = np.where(np.isfinite(peak), peak, 0.0)
    return peak, np.exp(level - peak)


def nodes(log_q: np.ndarray, batch: int, few: bool = False) -> Nodes:
    """Nodes for input variances of log ``log_q`` (batches, examples), of batches of that size.

    All distinct variances where they are at most 48, else as many quantiles and steps of the log;
    an example in between is shared by its neighbours such that q itself is kept.
    few: a handful suffices, as everything is linear in q.
    """
    most = 8 if few else MOST_NODES
    distinct = np.unique(log_q)
    if len(distinct) > most:
        signal = np.sort(log_q[log_q > -np.inf])
        quantiles = np.quantile(signal, np.linspace(0, 1, most // 2))
        steps = np.linspace(signal[0], signal[-1], most // 2)
        zero = [-np.inf] if distinct[0] == -np.inf else []
        distinct = np.unique(np.concatenate([zero, quantiles, steps]))
    place = np.clip(np.searchsorted(distinct, log_q), 0, len(distinct) - 1).ravel()
    below = np.maximum(place - 1, 0)
    high, low, here = distinct[place], distinct[below], log_q.ravel()
    with np.errstate(invalid="ignore", divide="ignore"):
        part = np.exp(here - high) * np.expm1(low - here) / np.expm1(low - high)
    part = np.where((place == below) | (here == high), 1.0, part)
    share = np.zeros((len(log_q), len(distinct)))
    rows = np.repeat(np.arange(len(log_q)), log_q.shape[1])
    np.add.at(share, (rows, place), part)
    np.add.at(share, (rows, below), 1 - part)
    return Nodes(distinct, share / log_q.shape[1], batch)
