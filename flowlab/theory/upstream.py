"""The cotangent at a net's output: of a loss, or drawn. Its square, fluctuation, and alignment."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from flowlab.errors import InputError
from flowlab.theory.finite_width import chi_square_step

UPSTREAMS = ("loss", "gaussian", "ones")
LOSSES = ("cross_entropy", "squared_error")


def cotangent(upstream, batch, width, classes, log_q, c, reduction):
    """At z_L (width,): log E ||delta||^2, mean and variance of the log about it, alpha and r.

    alpha is the mean squared and r the mean signed cosine between two examples' deltas.
    """
    shift = -2 * np.log(batch) if reduction == "mean" else 0.0
    if upstream == "gaussian":
        mean, variance = chi_square_step(width * batch)
        return np.log(batch * width) + shift, mean, variance, 1 / width, 0.0
    if upstream == "ones":
        return np.log(batch * width) + shift, 0.0, 0.0, 1.0, 1.0
    if classes < 2:
        raise InputError(f"n_classes must be at least 2; got {classes}")
    # Exact over uniform labels, Monte Carlo over pairs of logits; uniform softmax gives 1 - 1/K.
    shared, own, other = np.random.default_rng(0).standard_normal((3, 4096, classes))
    scale = np.exp(min(log_q, 600.0) / 2)
    correlation = np.clip(c, 0.0, 1.0)
    p, p_other = (
        softmax(scale * (np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * x), axis=1)
        for x in (own, other)
    )
    s, s_other, overlap = (p * p).sum(1), (p_other * p_other).sum(1), (p * p_other).sum(1)
    k = 1 / classes
    squares = s - 2 * k + 1
    mean_square = squares.mean()
    pair = overlap**2 - 2 * k * overlap + k * (s + s_other + 1) - 2 * k * k
    # Over the labels too: ||p - y||^2 = s - 2 p_y + 1.
    single = (squares.var() + 4 * (s * k - k * k).mean()) / mean_square**2
    common = np.cov(s, s_other)[0, 1] / mean_square**2
    variance = single / batch + (1 - 1 / batch) * max(common, 0.0)
    alpha = min(pair.mean() / mean_square**2, 1.0)
    return np.log(batch * mean_square) + shift, -variance / 2, variance, alpha, 0.0


@dataclass(frozen=True)
class Top:
    """The cotangent at z_L: log E ||delta_b||^2 at each node; its log's variance; alpha and r.

    ``mean`` is that of one example's log about its level, ``own`` its variance, ``pair`` the
    covariance of two examples.
    """

    level: np.ndarray
    mean: float
    own: float
    pair: float
    alpha: float
    r: float

    @classmethod
    def of(cls, flow, upstream, loss, target_square, width, classes, reduction):
        shape, batch = flow.log_q[-1], flow.examples.batch
        shift = -2 * np.log(batch) if reduction == "mean" else 0.0
        if upstream != "loss":
            level, mean, own, alpha, r = cotangent(upstream, 1, width, classes, 0, 0, reduction)
            return cls(np.full(len(shape), level + shift), mean, own, 0.0, alpha, r)
        rep = flow.rep
        c = flow.c[-1] if flow.c else 0.0
        several = max(classes, 2)  # one output, of a regression, has no softmax
        _, _, own, alpha, r = cotangent("loss", 1, width, several, shape[rep], c, "sum")
        both = cotangent("loss", 2, width, several, shape[rep], c, "sum")[2]
        pair = max(2 * both - own, 0.0)
        if loss == "squared_error":
            level = np.log(4.0) + np.logaddexp(np.log(classes) + shape, _log(target_square))
            shift -= 2 * np.log(classes) if reduction == "mean" else 0.0
        else:
            level = _cross_entropy_level(shape, classes)
        return cls(level + shift, -own / 2, own, pair, alpha, r)


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


def _cross_entropy_level(log_q, classes):
    """log E ||p - y||^2 at each logit variance, uniform labels: Monte Carlo on a grid of them."""
    low, high = np.clip((log_q.min(), log_q.max()), -20.0, 20.0)
    grid = np.linspace(low, high, 1 + int(np.ceil(high - low)))
    z = np.random.default_rng(0).standard_normal((1024, classes))
    chances = (softmax(np.exp(g / 2) * z, axis=1) for g in grid)
    level = [np.log((p * p).sum(axis=1).mean() + 1 - 2 / classes) for p in chances]
    return np.interp(log_q, grid, level)
