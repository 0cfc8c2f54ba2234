"""Batch norm of a batch as it is: the Gram matrix of its examples, layer by layer.

At infinite width a unit's preactivations over the batch are z ~ N(0, K), whatever the inputs' Gram
matrix; u = BN(z), h = phi(u), and the next K is sigma_w^2 E h h', or across a skip
s^2 (K + a^2 (...)); biases drop out. Backward the cotangents of a unit are N(0, D), with weights
independent of the forward pass, and D follows from the pullback of batch norm. Both means over a
unit are taken over a fixed sample of ``UNITS`` of them. Where examples are exchangeable this is
`batch_norm_rate`; inputs of few directions (their Gram matrix of low rank) come near that behind
some layers only, and with identity never.

``directions`` counts them: (tr C)^2 / tr C^2 of a centred Gram matrix C, at most B - 1.
"""

from dataclasses import dataclass

import numpy as np

from flowlab.numerics.blas import kept
from flowlab.theory.activations import ActivationFunction

UNITS = 512
MOST_LAYERS = 10
_ISOTROPIC = 0.8
# The share of a Gram matrix below which examples of float32 are all alike.
_ROUNDING = 1e-10


@dataclass(frozen=True)
class Branch:
    """x -> s (x + a f(x)), f a chain of maps of these sigma_w2 behind batch norm and activation;
    without a skip x is dropped and s = a = 1."""

    sigma_w2: tuple[float, ...]
    skip: bool = False
    scale: float = 1.0
    output: float = 1.0


def directions(gram: np.ndarray) -> float:
    """How many directions the centred examples of that Gram matrix (B, B) spread over; 0 of none.

    The participation ratio of the eigenvalues.
    """
    centred = _centred(gram)
    total = np.trace(centred)
    if not total > _ROUNDING * np.trace(gram):
        return 0.0
    return float(1 / np.square(centred / total).sum())


def variance(gram: np.ndarray) -> float:
    """Mean over B - 1 directions of the variance about the batch's mean."""
    return float(np.trace(_centred(gram)) / (len(gram) - 1))


def isotropic(gram: np.ndarray, width: int) -> bool:
    """Do the examples spread over all directions, as far as ``width`` features can show?

    Of B independent Gaussian examples these are 1/(1/(B - 1) + 1/width).
    """
    most = 1 / (1 / (len(gram) - 1) + 1 / min(width, UNITS))
    return directions(gram) > _ISOTROPIC * most


@dataclass(frozen=True)
class GramPass:
    """Of each norm passed u, phi'(u) (B, units), scale/sigma (units,) and scale^2; the Gram
    matrices that the branches read, and the one behind them."""

    passed: list[list[tuple[np.ndarray, np.ndarray, np.ndarray, float]]]
    grams: list[np.ndarray]
    last: np.ndarray


def forward(
    act: ActivationFunction, gram: np.ndarray, branches: list[Branch], width: int, eps: float
) -> GramPass:
    """The Gram matrix of preactivations (B, B) through the branches, up to ``MOST_LAYERS``.

    It ends where examples have come to be `isotropic`.
    """
    passed, grams = [], []
    for branch in branches[:MOST_LAYERS]:
        if isotropic(gram, width) and variance(gram) > 100 * eps:
            break
        grams.append(gram)
        inner, saved = gram, []
        for index, w2 in enumerate(branch.sigma_w2):
            centred = _centred(inner)
            scale2 = np.trace(centred) / len(centred) + eps
            z = _sample(centred / scale2, len(passed) % 4, index, 0)
            z -= z.mean(axis=0)
            inverse = 1 / np.sqrt(np.square(z).mean(axis=0) + np.float32(eps / scale2))
            u = z * inverse
            h = act.phi(u).astype(np.float32)
            saved.append((u, act.derivative(u).astype(np.float32), inverse, scale2))
            inner = w2 * _mean_product(h)
        passed.append(saved)
        if branch.skip:
            inner = branch.output**2 * (gram + branch.scale**2 * inner)
        gram = inner
    return GramPass(passed, grams, gram)


def backward(through: GramPass, branches: list[Branch], cotangent: np.ndarray, width: int):
    """log rates of the squared norm, and what ``width`` units lack of them, both (layers passed,).

    cotangent: D (B, B) above the last branch passed. A mean over few units is typically below the
    mean over all where their laws have long tails, as 1/sigma^2 has in batches of few directions:
    the second is E log of a mean over ``width`` units less the log of the mean; of plain layers.
    """
    rates, lacks = [], []
    for layer in reversed(range(len(through.passed))):
        branch, inner = branches[layer], cotangent
        for index, (u, slope, inverse, scale2) in reversed(list(enumerate(through.passed[layer]))):
            level = np.trace(inner)
            dy = _sample(inner / level, layer % 4, index, 1) * slope
            dz = dy - dy.mean(axis=0) - u * (dy * u).mean(axis=0)
            dz *= inverse
            inner = branch.sigma_w2[index] / scale2 * level * _mean_product(dz)
        if branch.skip:
            inner = branch.output**2 * (cotangent + branch.scale**2 * inner)
        rates.append(np.log(np.trace(inner) / np.trace(cotangent)))
        lacks.append(0.0 if branch.skip else _lack(np.square(dz).sum(axis=0), width))
        cotangent = inner / np.trace(inner)
    return np.array(rates[::-1]), np.array(lacks[::-1])


def _lack(units, width):
    groups = len(units) // width
    if groups < 2 or not units.sum() > 0:
        return 0.0
    means = units[: groups * width].reshape(groups, width).mean(axis=1, dtype=float)
    return float(np.log(means / means.mean()).mean()) if means.min() > 0 else 0.0


def _centred(gram):
    means = gram.mean(axis=0)
    return gram - means - means[:, None] + means.mean()


def _mean_product(h):
    return (h @ h.T).astype(float) / h.shape[1]


def _sample(covariance, *stream):
    """(B, UNITS) draws of N(0, covariance), which may be singular."""
    batch = len(covariance)
    # Enough to make it regular, and too little to see: norms are of float32 nets.
    ridge = 3e-6 * np.trace(covariance) / batch
    if ridge == 0:
        return np.zeros((batch, UNITS), np.float32)
    root = np.linalg.cholesky(covariance + ridge * np.eye(batch))
    return root.astype(np.float32) @ _normals(batch, *stream)


@kept(maxsize=16)
def _normals(batch, layer, index, way):
    rng = np.random.default_rng((batch, layer, index, way))
    return rng.standard_normal((batch, UNITS), np.float32)
