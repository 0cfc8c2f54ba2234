"""What finitely many channels add to the log-norm of an image's cotangents.

The B P members of a batch, P positions of B examples, share their weights. One layer's step of
log ||delta||^2 has the relative variance v of `finite_width`'s batch and the mean -v/2, with alpha
the mean squared cosine of two members' cotangents, taken after each adjoint's average over its
window. Where windows mix positions alpha is a field over lags: a map multiplies the amplitude of
its Fourier mode f by h a(f), a the window's transform, and adds white noise; with a skip of share
1 - x the amplitude is (1 - x) + x h a(f). Only the mode that windows leave keeps a memory: a net on
many positions fluctuates far less than a fully-connected one of c units, by up to 1/P.

Two members' overlaps h and m follow the fully-connected correlation map, which is that of circular
padding (`mapped_overlaps`). With zeros at the border two places stay different for ever, as their
windows see different parts of the profile: there they are those of the covariances between all
positions, weighed by their shares of the cotangent (`covariance_overlaps`). Of zero-padded nets 200
and 400 layers deep, of 8 and 16 channels, the mean lies half-way between both within its standard
error: cotangents' fluctuations make positions more alike than the mean field has them.

Weights that read one position alone (delta-orthogonal) have no modes. Members then come in pairs of
any correlation c, each with an alpha of its own: what is alike stays alike. One example's cotangent
keeps <delta, z>, and with it its share 1/c along z, which passes phi whole. In a batch norms
fluctuate apart and that share may be lost: up to 1/c of a log rate is not derived.
"""

from dataclasses import dataclass

import numpy as np

from flowlab.errors import InputError
from flowlab.theory.activations import ActivationFunction, get_activation
from flowlab.theory.field_moments import one_point
from flowlab.theory.finite_width import exact_step
from flowlab.theory.moments import homogeneous_correlation, homogeneous_pairs
from flowlab.theory.position_covariances import PositionCovariances


@dataclass(frozen=True)
class ActivatedMap:
    """A map after an activation whose input has log variance ``log_q``.

    weight: the share of phi(u) W in the map's output, the rest being its bias.
    """

    log_q: float
    weight: float = 1.0


@dataclass(frozen=True)
class PairOverlaps:
    """h, m and m_1 of `finite_width` before a map; h and m (pairs,), of kinds of pairs."""

    h: np.ndarray
    m: np.ndarray
    m1: float


@dataclass(frozen=True)
class ChannelSteps:
    """Mean and variance (L - 1,) of each step of log ||delta||^2 beyond its rate.

    next_order: (L - 1,), by how much one example's exact step differs from its first order.
    """

    mean: np.ndarray
    variance: np.ndarray
    next_order: np.ndarray


def mapped_overlaps(
    activation: ActivationFunction,
    layers: list[list[ActivatedMap]],
    correlations: np.ndarray,
    forward_share: np.ndarray,
) -> list[list[PairOverlaps]]:
    """From the correlations (pairs,) of members of z_1, all alike likely, by the correlation map.

    layers: the maps of each of z_2 .. z_L in forward order; forward_share: (L - 1,), what the
    branches carry of z_{l+1}'s variance, in a plain net 1.
    """
    moments = one_point(activation)
    log_q = np.array([m.log_q for maps in layers for m in maps])
    m1, site = moments.m1(log_q), 0
    series = [None] * len(log_q) if activation.homogeneous else moments.series(log_q)
    c, found = np.asarray(correlations, dtype=float), []
    for maps, part in zip(layers, forward_share, strict=True):
        inner, mine = c, []
        for m in maps:
            overlap, h, second = _overlaps(activation, series[site], inner, m1[site])
            mine.append(PairOverlaps(h, second, float(m1[site])))
            inner = np.clip(m.weight * overlap + 1 - m.weight, -1.0, 1.0)
            site += 1
        found.append(mine)
        c = np.clip((1 - part) * c + part * inner, -1.0, 1.0)
    return found


def covariance_overlaps(
    kernels: PositionCovariances, activation: ActivationFunction, profile: np.ndarray, batch: int
) -> list[list[PairOverlaps]]:
    """Means over pairs of members, each weighed by its position's share of ``profile`` (P,)."""
    share = profile.ravel() / profile.sum()
    weights = np.stack([share[:, None] * share] * 2)
    weights[1] *= batch - 1
    weights[0][np.diag_indices(len(share))] = 0.0
    weights /= max(weights.sum(), 1e-300)
    found = []
    for reads in kernels.reads:
        mine = []
        for read, _ in reads:
            h, m, m1 = read.pairs.overlaps(read.c)
            mine.append(
                PairOverlaps(*(np.array([(weights * x).sum()]) for x in (h, m)), float(share @ m1))
            )
        found.append(mine)
    return found


def circular_steps(
    activation: str | ActivationFunction,
    depth: int,
    *,
    shape: tuple[int, ...],
    kernel: int | tuple[int, ...],
    channels: int,
    input_c: float = 0.0,
    common: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of each step of log ||delta_l||^2 - log chi, both (depth - 1,).

    `channel_steps` to first order in a plain net of Gaussian weights without biases; input_c: the
    correlation of two positions of z_1; kernel: one size or one for each dimension, so that a
    dimension of size 1 kernels is a batch of examples. Raises `InputError` for an activation that
    is not homogeneous, where q fluctuates too.
    """
    act = get_activation(activation)
    if not act.homogeneous:
        raise InputError(f"activation must be homogeneous (identity, relu, leaky); got {act.name}")
    kernels = (kernel,) * len(shape) if isinstance(kernel, int) else kernel
    if min(*shape, *kernels, channels) < 1:
        raise InputError(
            "shape, kernel and channels must be at least 1;"
            f" got {tuple(shape)}, {kernel} and {channels}"
        )
    layers = [[ActivatedMap(0.0)]] * (depth - 1)
    overlaps = mapped_overlaps(act, layers, np.array([input_c]), np.ones(depth - 1))
    found = channel_steps(
        act, overlaps, shape=shape, kernel=kernels, channels=channels, common=common, exact=False
    )
    return found.mean, found.variance


def channel_steps(
    activation: ActivationFunction,
    overlaps: list[list[PairOverlaps]],
    *,
    shape: tuple[int, ...],
    kernel: tuple[int, ...],
    channels: int,
    share: np.ndarray | None = None,
    orthogonal: bool = False,
    common: float | None = None,
    exact: bool = True,
) -> ChannelSteps:
    """First order in depth/channels; without windows one example's ``exact`` step where known.

    overlaps: of the maps of each of z_2 .. z_L in forward order; shape: examples and positions, of
    window ``kernel`` each; share: (L - 1,), what the branches carry of a rate, in a plain net 1.
    common: mean squared cosine of two members' cotangents on top where those are constant over the
    dimensions with windows; by default they are iid.
    """
    share = np.ones(len(overlaps)) if share is None else share
    members, o = int(np.prod(shape)), float(orthogonal)
    amplitude = np.ones(())
    for n, size in zip(shape, kernel, strict=True):
        window = np.bincount((np.arange(size) - size // 2) % n, minlength=n) / size
        amplitude = np.multiply.outer(amplitude, np.fft.fft(window).real)
    amplitude = amplitude.ravel()
    mixing = bool((amplitude < 1 - 1e-12).any())
    if not mixing:
        amplitude = np.ones(1)
    pairs = 1 if mixing or not overlaps else len(overlaps[0][0].h)
    spectrum = np.full((pairs, amplitude.size), 1 / channels)
    if common is not None:
        kept = amplitude > 1 - 1e-12
        spectrum[:] = np.where(kept, common / kept.mean(), 0.0)
    steps = []
    for mine, x in zip(reversed(overlaps), share[::-1], strict=True):
        inner, noise, own, cross = spectrum, np.zeros_like(spectrum), 0.0, 0.0
        along = np.ones_like(spectrum)
        for of in reversed(mine):
            h, m = (f.mean(keepdims=True)[:, None] if mixing else f[:, None] for f in (of.h, of.m))
            inner, noise = inner * amplitude**2, noise * amplitude**2
            alpha = inner.mean(axis=1, keepdims=True)
            own += 3 * of.m1 - 1 - 2 * o
            cross = cross + m * (1 + 2 * alpha) - 1 - 2 * o * alpha
            fresh = m * (1 + 2 * alpha) - h**2 * (alpha + o * (1 + alpha))
            inner, noise = h**2 * inner, h**2 * noise + fresh
            along = along * h * amplitude
        mixed, square = x * (1 - x), x * x
        straight = (along * spectrum).mean(axis=1, keepdims=True)
        relative = 4 * mixed * (1 + (members - 1) * straight.mean())
        relative += square * (own + (members - 1) * np.mean(cross))
        relative = max(float(relative), 0.0) / (members * channels)
        mean, variance, beyond = -relative / 2, relative, 0.0
        single = 3 * mine[0].m1 - 1 - 2 * o
        if len(mine) == 1 and single > 1e-12:
            law, spread = exact_step(activation, channels, single, orthogonal)
            scale = relative * channels / single
            beyond = abs(law * scale - mean)
            if exact and not mixing and x == 1.0:
                mean, variance, beyond = law * scale, spread * scale, 0.0
        steps.append((mean, variance, beyond))
        top = ((1 - x) + x * along) ** 2 * spectrum
        top = top + (mixed * (2 + 2 * straight) + square * noise) / channels
        bottom = 1 + (4 * mixed * straight + square * cross) / channels
        spectrum = top / np.maximum(bottom, 1e-12)
        spectrum /= np.maximum(spectrum.mean(axis=1, keepdims=True), 1.0)
    return ChannelSteps(*np.array(steps[::-1]).reshape(-1, 3).T)


def _overlaps(activation, series, c, m1):
    """E phi phi/E phi^2, h = E phi' phi'/mu_1 and m = E phi'^2 phi'^2/mu_1^2."""
    if activation.homogeneous:
        h, m, _, _ = homogeneous_pairs(activation.negative_slope, c)
        return homogeneous_correlation(activation.negative_slope, c), h, m
    totals = (1.0, 1.0, m1)
    return tuple(_sum(a, c, total) for a, total in zip(series, totals, strict=True))


def _sum(a, c, total):
    squares = np.square(a)
    return np.polynomial.polynomial.polyval(c, np.append(squares, total - squares.sum()))
