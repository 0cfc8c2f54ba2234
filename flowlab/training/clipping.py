"""Clipping: what bounds a gradient before anything else is made of it.

By norm, by layer and adaptively it is a factor for each network and layer, or for each of the
layer's units. A factor contains the power of two beside which the gradient is held, so that a
gradient far beyond the float range is clipped to what it should be.

- norm: g min(1, c/(‖g‖ + 1e-6)), the norm over all parameters (Pascanu et al. 2013; the 1e-6 is
  that of ``torch.nn.utils.clip_grad_norm_``).
- layer: the same with the norm over one layer's parameters.
- value: every element is brought within ±c.
- adaptive: G_i min(1, c max(‖W_i‖, 1e-3)/‖G_i‖) for each unit i (Brock et al. 2021, eq. 3). Units
  are columns of a matrix (i, o), output channels of a convolution's (o, ...), and single elements
  of biases and gains.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from flowlab.kernel import jit, kernel
from flowlab.layer import Shape
from flowlab.numerics.scale import exponent, log2_norm

TINY = 1e-6  # added to norms that gradients are divided by, as PyTorch does
SMALLEST = 1e-3  # what norms of weights are at least, for adaptive clipping
_FAR = 1000  # powers of two beyond saturate, and zero times them is zero


@dataclass(frozen=True)
class Gradient:
    """A parameter W of a stretch of layers from ``start`` (from 0), and its gradient.

    Both are seen as matrices (S, count, rows, columns), each column a unit or each row. ``held`` is
    the gradient over 2^exponent (S, count), its last layer first if ``backward``.
    """

    start: int
    W: np.ndarray
    by_column: bool
    held: np.ndarray
    backward: bool
    exponent: np.ndarray

    def log2_norms(self) -> np.ndarray:
        """log2 Frobenius norms of the true gradient, (S, count)."""
        seeds, count = self.exponent.shape
        norms = log2_norm(self.held.reshape(seeds * count, -1)).reshape(seeds, count)
        return (norms[:, ::-1] if self.backward else norms) + self.exponent


class Clipped(NamedTuple):
    """``factors`` (S, count, units) multiply what is held of each gradient.

    ``norm`` (S,) is log2 of the whole true gradient's norm, None where it was not needed;
    ``clipped`` (S,) whether anything was; ``cosine`` (S,) that of the angle between the gradient
    before and after.
    """

    factors: list[np.ndarray]
    norm: np.ndarray | None
    clipped: np.ndarray
    cosine: np.ndarray


def units(shape: Shape) -> tuple[int, int, bool]:
    """(rows, columns, whether columns are units) of a parameter of this shape, of one layer."""
    if len(shape) > 2:
        return shape[0], math.prod(shape[1:]), False
    return (*((1,) * (2 - len(shape))), *shape, True)


def clip(kind: str, at: float, gradients: list[Gradient], norm: bool) -> Clipped:
    """What clipping of a kind (``optimizers.CLIPPINGS``) at ``at`` does to the whole gradient.

    Clipping by value is left to the loop over elements: it is measured here. ``gradients`` are
    those of layers in order; without ``norm`` the whole norm is left out where it is not needed.
    """
    seeds = len(gradients[0].W)
    factors = [_powers(gradient.exponent)[..., None] for gradient in gradients]
    if kind == "none":
        whole = _whole(_layers(gradients, [g.log2_norms() for g in gradients])) if norm else None
        return Clipped(factors, whole, np.zeros(seeds, bool), np.ones(seeds))
    norms = _layers(gradients, [g.log2_norms() for g in gradients])
    whole = _whole(norms)
    with np.errstate(all="ignore"):
        if kind == "norm":
            factor, power, clipped = _limited(whole[:, None], at)
            factors = [_scaled(factor, g.exponent + power) for g in gradients]
            return Clipped(factors, whole, clipped[:, 0], np.where(np.isfinite(whole), 1.0, np.nan))
        if kind == "layer":
            limits = {start: _limited(own, at) for start, own in norms.items()}
            factors = [
                _scaled(limits[g.start][0], g.exponent + limits[g.start][1]) for g in gradients
            ]
            clipped = np.concatenate([own[2] for own in limits.values()], axis=1).any(axis=1)
            logs = {start: np.log2(own[0]) + own[1] for start, own in limits.items()}
            after = {start: own + logs[start] for start, own in norms.items()}
            mixed = {start: own + 0.5 * logs[start] for start, own in norms.items()}
        else:
            found = [_by_unit(g, at) if kind == "adaptive" else _by_value(g, at) for g in gradients]
            if kind == "adaptive":
                factors = [own[0] for own in found]
            clipped = np.concatenate([own[1] for own in found], axis=1).any(axis=1)
            after, mixed = (_layers(gradients, [own[k] for own in found]) for k in (2, 3))
        cosine = np.minimum(np.exp2(2 * _whole(mixed) - whole - _whole(after)), 1.0)
    return Clipped(factors, whole, clipped, np.where(clipped, cosine, 1.0))


def _powers(exponents: np.ndarray) -> np.ndarray:
    return np.ldexp(1.0, np.minimum(np.maximum(exponents, -_FAR), _FAR))


def _scaled(factor: np.ndarray, exponents: np.ndarray) -> np.ndarray:
    return (factor * _powers(exponents))[..., None]


def _limited(log2_norms: np.ndarray, at: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(f, k, whether f 2^k < 1) of the factor f 2^k that brings norms within ``at``."""
    whole = np.where(np.isfinite(log2_norms), np.floor(log2_norms), 0.0).astype(np.int64)
    factor = at / (np.exp2(log2_norms - whole) + TINY * _powers(-whole))
    left = factor * _powers(-whole) >= 1
    return np.where(left, 1.0, factor), np.where(left, 0, -whole), factor * _powers(-whole) < 1


def _layers(gradients: list[Gradient], logs: list[np.ndarray]) -> dict[int, np.ndarray]:
    """log2 root sums of squares over each layer's parameters, (S, count) by stretch."""
    own: dict[int, list[np.ndarray]] = {}
    for gradient, log in zip(gradients, logs, strict=True):
        own.setdefault(gradient.start, []).append(log)
    return {start: _root_sums(np.stack(of, axis=-1)) for start, of in own.items()}


def _whole(layers: dict[int, np.ndarray]) -> np.ndarray:
    return _root_sums(np.concatenate(list(layers.values()), axis=1))


def _root_sums(logs: np.ndarray) -> np.ndarray:
    """log2 √Σ 4^logs over the last axis."""
    out = np.empty(logs.shape[:-1])
    _root_sum.run(logs.reshape(-1, logs.shape[-1]), out.reshape(-1))
    return out


@jit
def _root_sum_of(logs):
    top = -np.inf
    for log in logs:
        if np.isnan(log):
            return np.nan
        top = max(top, log)
    if np.isinf(top):
        return top
    total = 0.0
    for log in logs:
        total += np.exp2(2 * (log - top))
    return top + 0.5 * np.log2(total)


@kernel("(n)->()")
def _root_sum(logs, out):
    out[0] = _root_sum_of(logs)


@jit
def _power(k):
    return math.ldexp(1.0, min(max(k, -_FAR), _FAR))


@jit
def _unit_norms(a, by_column, out):
    """Norms of units over 2^(what is returned)."""
    e = exponent(a)
    down = math.ldexp(1.0, -e)
    out[:] = 0
    for r in range(a.shape[0]):
        for j in range(a.shape[1]):
            v = down * np.float64(a[r, j])
            out[j if by_column else r] += v * v
    for u in range(out.size):
        out[u] = math.sqrt(out[u])
    return e


@kernel("(l,r,c),(l,r,c),(l)->(l,u),(l),(l),(l)")
def _adaptive(held, W, exponents, factor, clipped, after, mixed, at, by_column, backward):
    count, units = factor.shape
    of_W, logs, mixed_logs = np.empty(units), np.empty(units), np.empty(units)
    norms = np.empty(units)
    for layer in range(count):
        g = held[count - 1 - layer if backward else layer]
        e = _unit_norms(g, by_column, norms)
        w = math.ldexp(1.0, _unit_norms(W[layer], by_column, of_W))
        met = False
        for u in range(units):
            most = at * max(w * of_W[u], SMALLEST)
            change = math.log2(most) - math.log2(norms[u]) - (e + exponents[layer])
            within = not change < 0
            met = met or not within
            factor[layer, u] = _power(exponents[layer]) if within else most / norms[u] * _power(-e)
            log = math.log2(norms[u]) + (e + exponents[layer])
            logs[u] = log if within else math.log2(most)
            mixed_logs[u] = 0.5 * (log + logs[u])
        clipped[layer] = met
        after[layer], mixed[layer] = _root_sum_of(logs), _root_sum_of(mixed_logs)


def _by_unit(gradient: Gradient, at: float) -> tuple[np.ndarray, ...]:
    """(factors, whether any is below 1, log2 norms after it, half log2 of the inner products)."""
    seeds, count, rows, columns = gradient.W.shape
    factor = np.empty((seeds, count, columns if gradient.by_column else rows))
    clipped = np.empty((seeds, count), bool)
    after, mixed = np.empty((seeds, count)), np.empty((seeds, count))
    reads = gradient.held, gradient.W, gradient.exponent
    given = float(at), gradient.by_column, gradient.backward
    _adaptive.run(*reads, factor, clipped, after, mixed, *given)
    return factor, clipped, after, mixed


@kernel("(l,r,c),(l)->(l),(l),(l)", reassociate=True)
def _value(held, exponents, clipped, after, mixed, at, backward):
    for layer in range(len(exponents)):
        g = held[len(exponents) - 1 - layer if backward else layer]
        g = g.reshape(g.size)
        e = exponent(g)
        down, up = math.ldexp(1.0, -e), min(_power(exponents[layer]) / at, 1e300)
        squares, products, met = 0.0, 0.0, 0
        for i in range(g.size):
            v = np.float64(g[i])
            y = up * v
            met |= abs(y) > 1
            y = 1.0 if y > 1 else (-1.0 if y < -1 else y)
            squares += y * y
            products += y * (down * v)
        clipped[layer] = met != 0
        after[layer] = 0.5 * np.log2(squares) + np.log2(at)
        mixed[layer] = 0.5 * (np.log2(products) + e + exponents[layer] + np.log2(at))


def _by_value(gradient: Gradient, at: float) -> tuple[np.ndarray, ...]:
    """(None, whether any element is beyond, log2 norms after, half log2 of inner products)."""
    shape = gradient.exponent.shape
    clipped, after, mixed = np.empty(shape, bool), np.empty(shape), np.empty(shape)
    given = float(at), gradient.backward
    _value.run(gradient.held, gradient.exponent, clipped, after, mixed, *given)
    return None, clipped, after, mixed
