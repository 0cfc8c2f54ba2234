"""Sharpness: the largest eigenvalue of the loss's Hessian, from gradients alone.

A Hessian times a vector is a central difference of two gradients (Nocedal & Wright 2006, section
8.1); the Lanczos iteration finds the top of the spectrum from some ten to thirty such products
(Golub & Van Loan 2013, section 10.1). All is done in float64, whatever the type of a run.
"""

import math
from collections.abc import Callable

import numpy as np

from flowlab.numerics import random

# (parameters (S, P) float64) -> gradients (S, P), one row for each network.
Gradient = Callable[[np.ndarray], np.ndarray]

TOLERANCE = 1e-3  # of an eigenvalue, relative to the largest one in size
MOST = 200  # products for each network
_START = 2**32 - 2  # the stream of the first vector, beyond every layer


def hessian_product(gradient: Gradient, parameters: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """H v of each network, (S, P), for ``parameters`` and ``vectors`` (S, P).

    (g(θ + h u) - g(θ - h u))/2h along the unit vector u, with h = ε^(1/3) (1 + ‖θ‖): the step at
    which the truncation, of order h², and the rounding, of order ε/h, are equally large up to the
    scales of the function (Nocedal & Wright 2006, section 8.1), θ being what it must be small
    against. Both are then near ε^(2/3) = 4e-11 of the product. 0 for v = 0.
    """
    with np.errstate(invalid="ignore", over="ignore"):  # of networks that have diverged
        size = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit = np.divide(vectors, size, out=np.zeros_like(vectors), where=size > 0)
        step = np.cbrt(np.finfo(np.float64).eps)
        step = step * (1 + np.linalg.norm(parameters, axis=1, keepdims=True))
        ahead, behind = parameters + step * unit, parameters - step * unit
        return (gradient(ahead) - gradient(behind)) * (size / (2 * step))


def sharpness(
    gradient: Gradient,
    parameters: np.ndarray,
    seeds: np.ndarray,
    preconditioner: np.ndarray | None = None,
    tolerance: float = TOLERANCE,
    most: int = MOST,
) -> np.ndarray:
    """The largest eigenvalue of each network's Hessian, (S,), at ``parameters`` (S, P).

    With a diagonal ``preconditioner`` P (S, P), positive, it is that of P^(-1/2) H P^(-1/2), whose
    eigenvalues are those of P^(-1) H. A network's iteration starts from the stream of its own seed
    and ends by itself, so that its bits do not depend on the others. It ends where the residual of
    the largest Ritz pair is at most ``tolerance`` times the largest Ritz value in size: so near to
    it there is an eigenvalue (Golub & Van Loan 2013, section 8.1), and much nearer as a rule, since
    the error is of the order of the residual's square. Every vector is orthogonalised against all
    before, twice. NaN where that is not reached within ``most`` products or where gradients are not
    finite.
    """
    scale = 1.0 if preconditioner is None else np.sqrt(preconditioner)
    iterations = [_Lanczos(start, most) for start in _starts(seeds, parameters.shape[1])]
    while any(one.found is None for one in iterations):
        vectors = np.stack([one.vector for one in iterations])
        products = hessian_product(gradient, parameters, vectors / scale) / scale
        for one, product in zip(iterations, products, strict=True):
            if one.found is None:
                one.extend(product, tolerance)
    return np.array([one.found for one in iterations])


def adam_preconditioner(
    second_moments: np.ndarray, step: int, beta1: float, beta2: float, eps: float
) -> np.ndarray:
    """The diagonal P of Adam at a step, counted from 1, given its running mean squares.

    Adam is momentum descent by P^(-1) m_t with P = (1 - β1^t) (√(v_t/(1 - β2^t)) + ε), the bias
    corrections included (Cohen et al. 2022, section 2).
    """
    corrected = second_moments / (1 - beta2**step)
    return (1 - beta1**step) * (np.sqrt(corrected) + eps)


def stability_limit(lr: float, beta1: float = 0.0) -> float:
    """The sharpness above which momentum descent diverges on a quadratic, (2 + 2β1)/((1 - β1) η).

    With m_t = β1 m_(t-1) + (1 - β1) λ θ_t and θ_(t+1) = θ_t - η m_t the roots of z² - (1 + β1 -
    η (1 - β1) λ) z + β1 leave the unit circle at z = -1. It is 2/η for plain gradient descent
    (Cohen et al. 2021), and 38/η, of the preconditioned Hessian, for Adam with β1 = 0.9 (Cohen et
    al. 2022).
    """
    return (2 + 2 * beta1) / ((1 - beta1) * lr)


class _Lanczos:
    """The Lanczos iteration of one network; ``found`` is its eigenvalue once there is one."""

    def __init__(self, start: np.ndarray, most: int):
        self.most, self.found = min(most, len(start)), None
        self.vector = start / np.linalg.norm(start)
        self.basis = np.empty((0, len(start)))
        self.diagonal, self.beside = [], []

    def extend(self, product: np.ndarray, tolerance: float) -> None:
        """Take in the operator's ``product`` with ``vector``, and find the next vector or end."""
        if not np.isfinite(product).all():
            self._end(math.nan)
            return
        count = len(self.diagonal) + 1
        basis = self.basis = np.concatenate([self.basis, self.vector[None]])
        overlaps = basis @ product
        self.diagonal.append(overlaps[-1])
        rest = product - overlaps @ basis
        rest -= (basis @ rest) @ basis
        beside = np.linalg.norm(rest)
        values, pairs = np.linalg.eigh(_tridiagonal(self.diagonal, self.beside))
        residual = beside * abs(pairs[-1, -1])
        whole = count == len(rest)  # nothing is left to be orthogonal to
        if whole or residual <= tolerance * np.abs(values).max():
            self._end(float(values[-1]))
        elif count == self.most:
            self._end(math.nan)
        else:
            self.beside.append(beside)
            self.vector = rest / beside

    def _end(self, found: float) -> None:
        self.found, self.vector = found, np.zeros_like(self.vector)
        del self.basis


def _tridiagonal(diagonal: list[float], beside: list[float]) -> np.ndarray:
    return np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)


def _starts(seeds: np.ndarray, count: int) -> np.ndarray:
    """Standard normals (S, count), each row from the stream of its own seed."""
    out = np.empty((len(seeds), count))
    random.fill_normal.run(np.asarray(seeds, np.int64), np.full(len(seeds), _START), out, 1.0, 0)
    return out
