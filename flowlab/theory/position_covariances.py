"""Covariances over the positions of images, through convolutions, activations and norms.

With many channels the preactivations at two positions are Gaussian with a covariance of their own,
K(p, p') within an example and C(p, p') between two examples, which are exchangeable. A convolution
averages over windows that move along with both positions,

    K'(p, p') = sigma_w2 / k^d sum_o F(p + o, p' + o) + sigma_b2,    F = E phi(u_p) phi(u_p')

(Garriga-Alonso et al. 2019, "Deep convolutional networks as shallow Gaussian processes"; Novak et
al. 2019); cotangents go back by the same average, times E phi'(u_p) phi'(u_p').

**Batch norm.** A channel's statistics are those of its N = B P values, B examples of P positions.
It takes off their mean, K - (row mean) - (column mean) + (mean), and divides by sigma^2, whose mean
v is the mean of the diagonal. sigma^2 is a weighted sum of squares: taken as chi^2 with
nu = (tr)^2/tr(.)^2 of the centred covariance as degrees of freedom, E 1/sigma^2 = nu/((nu - 2) v),
which is exact for exchangeable members, nu = N - 1 (`normalization`). Of z_1 the degrees of freedom
are those of the inputs' own windows, of smooth images but a few (`windows_freedom`); across skips
they persist with z_1's share of the variance. That the normalized u is Gaussian is right to
O(1/nu). Its pullback takes off the cotangent's mean alike, and of its square E (u' dy)^2/N, the
part along u.

With zero padding K differs from place to place, but a channel has one divisor for all: places near
the border are normalized to less than 1. Circular padding keeps it constant.
"""

from dataclasses import dataclass

import numpy as np

from flowlab.errors import InputError
from flowlab.theory.activations import ActivationFunction, get_activation
from flowlab.theory.field_moments import Pairs

NORMS = ("none", "example", "batch")


@dataclass(frozen=True)
class Windows:
    """A convolution's window over positions of that ``shape``, of a size for each dimension."""

    shape: tuple[int, ...]
    kernel: tuple[int, ...]
    circular: bool

    def __call__(self, pairs: np.ndarray) -> np.ndarray:
        """The average over windows that move along with both positions; pairs (..., P, P)."""
        lead, dims = pairs.shape[:-2], len(self.shape)
        field = pairs.reshape(*lead, *self.shape, *self.shape)
        for axis, (n, size) in enumerate(zip(self.shape, self.kernel, strict=True), len(lead)):
            both = (axis, axis + dims)
            total = np.zeros_like(field)
            for o in range(-(size // 2), size // 2 + 1):
                if self.circular:
                    total += np.roll(field, (-o, -o), both)
                elif abs(o) < n:
                    to, of = slice(max(-o, 0), n - max(o, 0)), slice(max(o, 0), n - max(-o, 0))
                    total[_at(to, both, total.ndim)] += field[_at(of, both, total.ndim)]
            field = total / size
        return field.reshape(pairs.shape)


def _at(part, axes, dims):
    return tuple(part if axis in axes else slice(None) for axis in range(dims))


@dataclass(frozen=True)
class _Scaled:
    """exp(log_scale) times matrices (2, P, P), within and between examples."""

    log_scale: float
    of: np.ndarray

    @classmethod
    def at(cls, log_scale, of):
        """With a largest entry of 1."""
        top = np.abs(of).max()
        return cls(log_scale + np.log(top), of / top) if top > 0 else cls(-np.inf, of)

    def plus(self, other):
        top = max(self.log_scale, other.log_scale)
        if top == -np.inf:
            return self
        parts = (np.exp(x.log_scale - top) * x.of for x in (self, other))
        return _Scaled.at(top, sum(parts))

    def times(self, log_factor):
        return _Scaled(self.log_scale + log_factor, self.of)

    @property
    def log_mean(self):
        """log of the mean over positions of the diagonal."""
        return self.log_scale + _log(np.trace(self.of[0]) / self.of.shape[1])


@dataclass(frozen=True)
class _Read:
    """How a map reads its input: a norm, then phi."""

    pairs: Pairs
    c: np.ndarray  # (2, P, P) correlations
    normalized: np.ndarray  # (2, P, P) covariances over their mean square
    log_divisor: float
    log_variance: float
    freedom: float


@dataclass(frozen=True)
class CovarianceFlow:
    """A batch's squared cotangents on their way back.

    log_rate: (L - 1,) from z_{l+1} to z_l, -inf where a norm takes off all there is; share:
    (L - 1,), what part of a rate branches carry (1 in a plain net); log_top: what a norm and phi
    leave of a pooled cotangent of 1 at every position (0 unless pooled).
    """

    log_rate: np.ndarray
    share: np.ndarray
    log_top: float


class PositionCovariances:
    """The covariances of z_1 = conv(x), then conv(phi(norm(z))), plain or across skips.

    layers, residual and the scales: as in `convolution.field_flow`; inputs: (2, P, P), mean over
    channels of x_p x_p' within and between examples; norm: before every phi, ``none``, ``example``
    (divides by an example's mean square) or ``batch``; eps is added to what it divides by;
    input_freedom: nu of the batch itself (`windows_freedom`), by default of exchangeable examples.
    Raises `InputError` for an unknown norm.

    log_pooled: log E (mean over positions of phi(norm(z_L)))^2; freedoms: nu of every batch norm in
    forward order, of which a mean rate needs more than 2.
    """

    def __init__(
        self,
        activation: str | ActivationFunction,
        layers: list[list[tuple[float, float]]],
        *,
        inputs: np.ndarray,
        batch: int,
        windows: Windows,
        norm: str = "batch",
        eps: float = 0.0,
        residual: bool = False,
        branch_scale: float = 1.0,
        output_scale: float = 1.0,
        input_freedom: float = np.inf,
    ):
        if norm not in NORMS:
            raise InputError(f"norm must be one of {', '.join(NORMS)}; got {norm}")
        self.act, self.batch, self.norm, self.eps = get_activation(activation), batch, norm, eps
        self.windows, self.residual, self.positions = windows, residual, inputs.shape[1]
        self.log_a2, self.log_s2 = _log(branch_scale**2), _log(output_scale**2)
        ((w2, b2),) = layers[0]
        state = _biased(_Scaled.at(_log(w2), windows(inputs)), b2)
        # 1/nu of the batch itself beyond that of exchangeable examples, for the inputs' share.
        first = self._read(state)
        excess, log_own = max(1 / input_freedom - 1 / first.freedom, 0.0), first.log_variance
        self.reads = []
        for maps in layers[1:]:
            f, mine, own = state, [], log_own
            for w2, b2 in maps:
                read = self._read(f, excess, own)
                mine.append((read, _log(w2)))
                phi = _values(read)
                f = _biased(_Scaled.at(phi.log_scale + _log(w2), windows(phi.of)), b2)
                own = -np.inf
            self.reads.append(mine)
            log_own = log_own + self.log_s2 if residual else -np.inf
            state = state.plus(f.times(self.log_a2)).times(self.log_s2) if residual else f
        self.last = self._read(state, excess, log_own)
        pooled = _values(self.last)
        self.log_pooled = pooled.log_scale + _log(pooled.of[0].mean())
        self.freedoms = np.array([read.freedom for mine in self.reads for read, _ in mine])

    def back(
        self, *, white: bool = True, pooled: bool = False, common: float = 0.0
    ) -> CovarianceFlow:
        """Rates from a cotangent of z_L that is ``white`` or the same at all positions.

        If ``pooled`` it is the same at all positions of phi(norm(z_L)). common: the cosine of two
        examples' cotangents on top, the same for all pairs of positions.
        """
        ones = np.ones((self.positions, self.positions))
        own = np.eye(self.positions) if white and not pooled else ones
        delta, log_top = _Scaled(0.0, np.stack([own, common * ones])), 0.0
        if pooled:
            delta = self._pulled(self.last, delta)
            log_top = delta.log_mean
        log_rate, shares = [], []
        for mine in reversed(self.reads):
            g = delta
            for read, log_w2 in reversed(mine):
                g = self._pulled(read, _Scaled(g.log_scale + log_w2, self.windows(g.of)))
            branch, share = g.times(self.log_a2), 1.0
            if self.residual:
                g = delta.plus(branch).times(self.log_s2)
            if not np.isfinite(delta.log_mean + g.log_mean):  # nothing is left to go back
                log_rate.append(-np.inf)
                shares.append(share)
                continue
            if self.residual:
                share = np.exp(branch.log_mean - g.log_mean + self.log_s2)
            log_rate.append(g.log_mean - delta.log_mean)
            shares.append(share)
            delta = _Scaled.at(0.0, g.of)
        return CovarianceFlow(np.array(log_rate[::-1]), np.array(shares[::-1]), log_top)

    def _read(self, state, excess=0.0, log_own=-np.inf):
        k, log_divisor, inverse_freedom = state.of, 0.0, 0.0
        if self.norm == "batch":
            k = _centred(k, self.batch)
        mean = np.trace(k[0]) / self.positions
        log_variance = state.log_scale + _log(mean)
        if self.norm != "none":
            log_divisor = np.logaddexp(log_variance, _log(self.eps))
        if self.norm == "batch" and mean > 0:
            square = np.square(k).sum((1, 2)) @ np.array([1, self.batch - 1])
            inverse_freedom = square / (self.batch * np.trace(k[0]) ** 2)
            inverse_freedom += excess * np.exp(2 * min(log_own - log_variance, 0.0))
        diagonal = np.maximum(np.diagonal(k[0]), 0.0)
        with np.errstate(divide="ignore"):
            log_q = state.log_scale + np.log(diagonal) - log_divisor
            inverse = np.where(diagonal > 0, 1 / np.sqrt(diagonal), 0.0)
            freedom = np.divide(1.0, inverse_freedom)
        c = np.clip(k * inverse * inverse[:, None], -1.0, 1.0)
        normalized = k / mean if mean > 0 else np.zeros_like(k)
        return _Read(Pairs(self.act, log_q), c, normalized, log_divisor, log_variance, freedom)

    def _pulled(self, read, g):
        """The pullback of phi and of the norm before it."""
        slope = np.exp(read.pairs.log_mu1 / 2)
        weights = slope * slope[:, None]
        m = g.of * read.pairs.slopes(read.c) * weights
        if self.norm != "batch":
            return _Scaled.at(g.log_scale - read.log_divisor, m)
        scale = np.sqrt(np.maximum(np.diagonal(read.normalized[0]), 0.0))
        tilts = g.of * read.pairs.tilts(read.c) * weights * scale * scale[:, None]
        along = tilts.sum((1, 2)) @ np.array([1, self.batch - 1])
        along /= self.batch * self.positions**2
        m = _centred(m, self.batch) - along * read.normalized
        inverse = -_log(1 - 2 / read.freedom) if read.freedom > 2 else 0.0
        return _Scaled.at(g.log_scale - read.log_divisor + inverse, m)


def windows_freedom(x: np.ndarray, windows: Windows) -> float:
    """nu of conv(x)'s centred values over a batch x (batch, channels, positions).

    What a convolution reads are windows: n = channels k^d features of N = batch positions members.
    Of the centred features' covariance S, nu = (tr S)^2/tr S^2; 0 where nothing varies.
    """
    batch, channels = x.shape[:2]
    field = x.reshape(batch, channels, *windows.shape)
    around = [(0, 0), (0, 0), *((size // 2, size // 2) for size in windows.kernel)]
    field = np.pad(field, around, mode="wrap" if windows.circular else "constant")
    axes = tuple(range(2, field.ndim))
    taken = np.lib.stride_tricks.sliding_window_view(field, windows.kernel, axis=axes)
    # (batch, channels, *positions, *kernel) to members by features
    taken = np.moveaxis(taken, 1, 1 + len(windows.shape))
    features = taken.reshape(batch * int(np.prod(windows.shape)), -1)
    features = features - features.mean(0)
    members, size = features.shape
    gram = features.T @ features if size < members else features @ features.T
    square = np.square(gram).sum()
    return float(np.trace(gram) ** 2 / square) if square > 0 else 0.0


def _log(x: float) -> float:
    return float(np.log(x)) if x > 0 else -np.inf


def _biased(state, b2):
    return state.plus(_Scaled(_log(b2), np.ones_like(state.of)))


def _values(read):
    """Covariances of phi."""
    half = read.pairs.log_phi2 / 2
    top = half.max() if np.isfinite(half.max()) else 0.0
    weights = np.exp(half + half[:, None] - 2 * top)
    return _Scaled.at(2 * top, read.pairs.values(read.c) * weights)


def _centred(k, batch):
    """Covariances (2, P, P) of what is left when the mean over examples and positions is off."""
    rows = (k[0].mean(1) + (batch - 1) * k[1].mean(1)) / batch
    return k - rows - rows[:, None] + rows.mean()
