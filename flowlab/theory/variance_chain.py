"""One example in a plain net of finite width: its preactivations' variance is a Markov chain.

Given the layers below, z_{l+1} is N(0, Q') with Q' = sigma_w^2 |phi(z_l)|^2/n + sigma_b^2, whose
law depends on Q_l alone: to first order in 1/n, with the moments of `flowlab.theory.moments`,

    log Q' = log q'(Q) - w^2 (f_1 - 1)/(2n),  variance w^2 (f_1 - 1)/n,  w = sigma_w^2 E phi^2/q',
    log of the backward step = log chi(Q) - kappa/(2n),  covariance with log Q': w (x_1 - 1)/n.

The chain runs on a grid of log Q. Where the variance map has an unstable point (GELU, SiLU at He),
nets of one start part company by decades and no expansion about a mean path holds; the chain does.
"""

from dataclasses import dataclass

import numpy as np

from flowlab.theory.moment_curves import Curves

MOST_POINTS = 200
# Beyond this log Q activations are powers: nothing that leaves comes back, and no step depends on
# where it is, but for those that saturate.
LOWEST, HIGHEST = -40.0, 36.0


@dataclass(frozen=True)
class ChainLaw:
    """Of log ||delta_l||^2 - log ||delta_L||^2: the mean over nets and the log of the mean square,
    (layers, starts)."""

    mean: np.ndarray
    log_mean: np.ndarray


def backward_law(curves: Curves, maps, start: np.ndarray, low: float, high: float) -> ChainLaw:
    """The law below every layer, from starts log Q_1 (n,), with log Q kept within low .. high.

    maps: (log sigma_w^2, log sigma_b^2, width, share of orthogonality) from each layer to the next.
    """
    finest = (high - low) / (MOST_POINTS - 1)
    fluctuation = max(3.0 / max(width for _, _, width, _ in maps), 1e-12)
    step = max(finest, np.sqrt(fluctuation))
    grid = low + step * np.arange(int(np.ceil((high - low) / step)) + 3)
    tables = {map_: _Transitions(curves, grid, *map_) for map_ in set(maps)}

    at = np.zeros((len(start), len(grid)))
    columns, weights = _spread(grid, np.clip(start, grid[0], grid[-1]), np.zeros(len(start)))
    rows = np.arange(len(start))[:, None]
    np.add.at(at, (rows, columns), weights)
    laws, steps = [at], []
    for map_ in maps:
        steps.append(at @ tables[map_].mean)
        at = at @ tables[map_].matrix
        laws.append(at)

    mean, log_mean = [np.zeros(len(start))], [np.zeros(len(start))]
    value, scale = np.ones(len(grid)), 0.0
    for layer in reversed(range(len(maps))):
        value = tables[maps[layer]].pull(value)
        peak = value.max()
        value, scale = value / peak, scale + np.log(peak) + tables[maps[layer]].largest
        mean.append(mean[-1] + steps[layer])
        log_mean.append(np.log(laws[layer] @ value) + scale)
    return ChainLaw(np.array(mean[::-1]), np.maximum(log_mean, mean)[::-1])


class _Transitions:
    """One layer on the grid: transitions, log steps' means, and the annealed step backward."""

    def __init__(self, curves, grid, log_w2, log_b2, width, orthogonal):
        m = curves.at(grid, np.zeros(len(grid)))
        log_w = log_w2 + m.log_phi2
        following = np.logaddexp(log_w, log_b2)
        weight = np.exp(np.minimum(log_w - following, 0.0))
        variance = weight**2 * (m.f1 - 1) / width
        self.rate = log_w2 + m.log_mu1
        self.mean = self.rate - (3 * m.m1 - 1 - 2 * orthogonal) / (2 * width)
        drift = following - variance / 2
        columns, weights = _spread(grid, drift, variance)
        self.matrix = np.zeros((len(grid), len(grid)))
        np.add.at(self.matrix, (np.arange(len(grid))[:, None], columns), weights)
        # Under the weight of the step itself log Q' is displaced by its covariance with it.
        tilted = drift + weight * (m.x1 - 1) / width
        self.columns, self.weights = _spread(grid, tilted, variance)
        self.largest = float(self.rate.max())
        self.factor = np.exp(self.rate - self.largest)

    def pull(self, value):
        """E of a step's factor times ``value`` above it, in units of exp(largest)."""
        return self.factor * (self.weights * value[self.columns]).sum(axis=1)


def _spread(grid, mean, variance):
    """Three neighbouring grid points and their weights, of that mean and variance.

    Weights stay positive: the variance is raised to what the grid can hold, or capped there.
    """
    step = grid[1] - grid[0]
    place = np.clip((mean - grid[0]) / step, 0.0, len(grid) - 1.0)
    centre = np.clip(np.rint(place), 1, len(grid) - 2).astype(np.intp)
    offset = place - centre
    square = np.maximum(variance / step**2 + offset**2, np.abs(offset))
    square = np.minimum(square, 1.0)
    weights = np.stack([(square - offset) / 2, 1 - square, (square + offset) / 2], axis=1)
    return centre[:, None] + np.arange(-1, 2), np.maximum(weights, 0.0)
