"""Predicted rows of the measurement table: every layer's norms, without drawing a network.

All norms are over the whole batch. With x_l the deviation of log ||z_l||^2 from its infinite-width
value, one layer maps x linearly (slope Lambda) and adds noise; the backward rate of the layer
above z_l has slope S_l in x_l and its own noise (`finite_width`), correlated with the forward one
because both read z_l. Then T_l = S_l + Lambda_l T_{l+1} is the whole sensitivity of ||delta_l||
to x_l, and

    var log ||delta_l||^2 = T_l^2 var x_l + var top
        + sum_{k >= l} (backward_k + 2 T_{k+1} cross_k + T_{k+1}^2 forward_k).

For homogeneous activations S = 0 and this is the exact random walk of Hanin & Nica (2018).
Everything else is first order in 1/width, with the weights of the backward pass taken independent
of the forward pass, and with all examples of the batch of equal norm and equal correlation. It
fails where var x is not small: GELU near its unstable fixed point is off by half a decade in 30
layers of width 64. ReLU's standard deviation across skips comes out up to a third too low.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import digamma, polygamma, softmax

from flowlab.errors import InputError, unknown
from flowlab.theory.activations import Activation, get_activation
from flowlab.theory.finite_width import BackwardMap, batch_step, chi_square_step, exact_step
from flowlab.theory.moments import ONE_POINT, Sites, log_phi2

SKIPS = ("none", "identity", "scaled", "mix", "rezero", "fixup")
UPSTREAMS = ("loss", "gaussian", "ones")
QUANTITIES = ("activation", "delta", "dX", "dW", "db")


@dataclass(frozen=True)
class _Map:
    """One linear map after an activation, with the site (row of `Sites`) it reads from."""

    site: int
    log_sigma_w2: float
    log_sigma_b2: float
    width_in: int
    orthogonal: float


@dataclass(frozen=True)
class _Block:
    """z_l = scale (identity z_{l-1} + branch f): the maps of f, first one first."""

    maps: list[_Map]
    identity: bool
    log_scale2: float
    log_branch2: float


def predict(
    *,
    fan_in: Sequence[int],
    fan_out: Sequence[int],
    sigma_w2: Sequence[float],
    sigma_b2: Sequence[float],
    activation: str | Activation,
    skip: str = "none",
    branch_scale: float = 1.0,
    branch_maps: int = 1,
    output_scale: float | None = None,
    readout: bool = False,
    orthogonal: bool = False,
    batch_size: int,
    upstream: str,
    n_classes: int | None = None,
    reduction: str = "mean",
    input_q: float,
    input_c: float,
) -> pd.DataFrame:
    """Mean over seeds and one-seed standard deviation of every layer's log10 norms.

    The net: z_1 = x W_1 + b_1, then z_l = phi(z_{l-1}) W_l + b_l, or with a skip
    z_l = s (z_{l-1} + a f(z_{l-1})), f a branch of ``branch_maps`` (1 or 2) maps phi(.) W + b;
    with ``readout`` the last layer of a skip net is plain. delta_l = dLoss/dz_l.

    fan_in, fan_out, sigma_w2, sigma_b2: (layers,), sigma_w2 = fan_in Var(W); both maps of a branch
    share them.
    skip: ``none``; ``identity`` (s = a = 1); ``scaled`` (a = ``branch_scale``); ``mix``
    (s = 1/sqrt 2); ``rezero`` (a = 0); ``fixup`` (two maps: sigma_w2 of the first is divided by the
    number of blocks, the last map is zero). ``output_scale`` overrides s.
    batch_size: B. upstream: ``gaussian`` and ``ones`` are cotangents of unit entries at z_L;
    ``loss`` is softmax cross-entropy over ``n_classes`` (default fan_out[-1]) with labels uniform
    and independent of the Gaussian logits. reduction: ``mean`` divides the cotangent by B.
    input_q: mean over examples of ||x||^2/fan_in; input_c: mean cosine of two examples.

    Returns one row per layer: ``layer`` and ``activation_log10_norm`` (of phi(z_l), of z_l in a
    skip net and in the last layer), ``delta_log10_norm``, ``dX_log10_norm`` (at the input of the
    layer's last linear map), ``dW_log10_norm``, ``db_log10_norm`` (of that map), each also with
    suffix ``_sd``; ``q`` = E z_l^2; ``chi``, the infinite-width ratio of ||delta_l||^2 to
    ||delta_{l+1}||^2 (nan in the last row); ``delta_log10_norm_infinite``. Exact zeros are -inf;
    dW and db are nan for ``upstream=loss``, whose deltas correlate with the inputs.
    Raises `InputError` for bad arguments.
    """
    act = get_activation(activation)
    columns = (fan_in, fan_out, sigma_w2, sigma_b2)
    _check(columns, skip, branch_maps, readout, batch_size, upstream, reduction, input_q)
    fan_in, fan_out, sigma_w2, sigma_b2 = (np.asarray(column) for column in columns)
    if skip == "fixup":
        branch_maps = 2
    depth, top = len(fan_in), int(fan_out[-1])
    with np.errstate(divide="ignore", over="ignore"):
        log_w2, log_b2 = (np.log(np.asarray(s, dtype=float)) for s in (sigma_w2, sigma_b2))
        suppressed = np.minimum(1.0, fan_in / fan_out) if orthogonal else np.zeros(depth)
        blocks = _blocks(
            log_w2,
            log_b2,
            fan_in,
            suppressed,
            skip,
            branch_scale,
            branch_maps,
            output_scale,
            readout,
        )
        log_input = float(np.log(input_q))
        flow = _Flow(act, blocks, fan_out, batch_size, orthogonal)
        flow.forward(log_w2[0], log_b2[0], log_input, input_c, suppressed[0])
        start = cotangent(
            upstream, batch_size, top, n_classes or top, flow.log_q[-1], flow.c[-1], reduction
        )
        flow.backward(*start)
        frame = flow.table(log_w2, fan_in, suppressed, log_input, input_c, upstream, skip)
    return frame


def _check(columns, skip, branch_maps, readout, batch_size, upstream, reduction, input_q):
    for what, received, known in (
        ("skip", skip, SKIPS),
        ("upstream", upstream, UPSTREAMS),
        ("reduction", reduction, ("mean", "sum")),
    ):
        if received not in known:
            raise unknown(what, received, known)
    lengths = [len(column) for column in columns]
    if len(set(lengths)) != 1 or lengths[0] < 1 + readout:
        raise InputError(
            f"fan_in, fan_out, sigma_w2 and sigma_b2 must have one entry per layer; got {lengths}"
        )
    for name, values in (("sigma_w2", columns[2]), ("sigma_b2", columns[3])):
        if not np.all(np.asarray(values) >= 0):
            raise InputError(f"{name} must be at least 0; got {min(values)}")
    if branch_maps not in (1, 2):
        raise InputError(f"branch_maps must be 1 or 2; got {branch_maps}")
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1; got {batch_size}")
    if not input_q > 0:
        raise InputError(f"input_q must be above 0; got {input_q}")


def _blocks(
    log_w2, log_b2, fan_in, suppressed, skip, branch_scale, branch_maps, output_scale, readout
):
    """The blocks that make z_2 .. z_L; sites are numbered in the order in which they are read."""
    depth = len(fan_in)
    branch = {"scaled": branch_scale, "rezero": 0.0}.get(skip, 1.0)
    scale = output_scale or (np.sqrt(0.5) if skip == "mix" else 1.0)
    residual_layers = 0 if skip == "none" else depth - 1 - readout
    blocks, site = [], 0
    for layer in range(1, depth):
        residual = layer <= residual_layers
        maps = []
        for index in range(branch_maps if residual else 1):
            w2, b2 = log_w2[layer], log_b2[layer]
            if residual and skip == "fixup":
                w2 = w2 - np.log(residual_layers) if index == 0 else -np.inf
                b2 = b2 if index == 0 else -np.inf
            maps.append(_Map(site, float(w2), float(b2), int(fan_in[layer]), suppressed[layer]))
            site += 1
        scales = (2 * np.log(scale), 2 * np.log(branch)) if residual else (0.0, 0.0)
        blocks.append(_Block(maps, residual, *(float(s) for s in scales)))
    return blocks


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


def _rms(c, extra):
    return math.copysign(min(math.sqrt(c * c + extra), 1.0), c)


@dataclass(frozen=True, slots=True)
class _State:
    """Mean, variance and covariance over seeds of x and u (see `_Flow._fluctuations`)."""

    mean: float
    u_mean: float
    variance: float
    covariance: float
    u_variance: float

    def spread(self, x, u):
        """Variance of the combination of slopes x and u."""
        return x * x * self.variance + 2 * x * u * self.covariance + u * u * self.u_variance


@dataclass(frozen=True, slots=True)
class _Step:
    """One block forward: x' = x x + u u + noise, u' = keep u + u_noise."""

    x: float
    u: float
    keep: float
    noise: float
    u_noise: float

    def apply(self, state, mean, u_mean):
        return _State(
            mean,
            u_mean,
            state.spread(self.x, self.u) + self.noise,
            self.keep * (self.x * state.covariance + self.u * state.u_variance),
            self.keep**2 * state.u_variance + self.u_noise,
        )


class _Back(NamedTuple):
    """One block backward: rate, its log's mean and variance given (x, u), and slopes in those."""

    log_rate: float
    mean: float
    variance: float
    x: float
    u: float
    cross: float
    alpha: float
    r: float


def _log_sum(a, b):
    """log(e^a + e^b) of two numbers, either of which may be -inf."""
    high, low = (a, b) if a > b else (b, a)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))


class _Flow:
    """The forward and backward recursions over the layers; index 0 is layer 1."""

    def __init__(self, act, blocks, fan_out, batch, orthogonal):
        self.act, self.blocks, self.batch, self.orthogonal = act, blocks, batch, orthogonal
        self.fan_out = [int(n) for n in fan_out]

    def averaged(self, c):
        """Relative variance of a batch's summed square over an example's, at r.m.s. overlap c."""
        return (1 + (self.batch - 1) * c * c) / self.batch

    def forward(self, log_w2, log_b2, log_input, input_c, suppressed):
        self._variances(log_w2 + log_input, log_b2)
        first = np.exp(log_w2 + log_input - self.log_q[0])
        self._correlations(float(first * input_c + 1 - first), suppressed)
        self._fluctuations(suppressed)

    def _variances(self, log_w, log_b2):
        log_q = float(np.logaddexp(log_w, log_b2))
        self.log_q, sites, weights, self.share = [log_q], [], [], []
        memo: dict[int, tuple[float, float]] = {}
        for block in self.blocks:
            log_f = log_q
            for index, map_ in enumerate(block.maps):
                # A converged trajectory stays on one value, so that its moments are found once.
                known, value = memo.get(index, (np.nan, np.nan))
                if log_f == known or abs(log_f - known) < 1e-13:
                    log_f = known
                else:
                    value = log_phi2(self.act, log_f)
                    memo[index] = (log_f, value)
                sites.append(log_f)
                log_w, log_b = map_.log_sigma_w2 + value, map_.log_sigma_b2
                log_f = _log_sum(log_w, log_b)
                weights.append(math.exp(log_w - log_f) if log_f > -math.inf else 1.0)
            log_branch = block.log_branch2 + log_f
            total = _log_sum(log_q, log_branch) if block.identity else log_branch
            self.share.append(math.exp(log_branch - total) if total > -np.inf else 1.0)
            log_q = block.log_scale2 + total
            self.log_q.append(log_q)
        self.sites = Sites(self.act, np.array(sites))
        self.weight = weights

    def _correlations(self, c, suppressed):
        """Correlations c_l, and their r.m.s. over seeds, which finite width keeps above zero.

        One Gaussian map adds (1 - c^2)(1 + 2 c^2)/n to the mean square; the layers contract what
        is there by the squared slope of the correlation map.
        """

        def spread(c, n, suppressed):
            return (1 - suppressed) * (1 - c * c) * (1 + 2 * c * c) / n

        sites = self.sites
        extra = spread(c, self.fan_out[0], suppressed)
        self.c, self.c_f, self.rms, self.rms_f = [c], [], [_rms(c, extra)], []
        at_sites, self.phi_c = [], []
        for index, (block, share) in enumerate(zip(self.blocks, self.share, strict=True)):
            c_f, extra_f, slope = c, extra, 1.0
            for map_ in block.maps:
                site = map_.site
                at_sites.append(_rms(c_f, extra_f))
                overlap = sites.phi_correlation(site, c_f)
                gap = 1e-3 if c_f < 0 else -1e-3
                steepness = (sites.phi_correlation(site, c_f + gap) - overlap) / gap
                self.phi_c.append(overlap)
                w = self.weight[site]
                c_f = w * overlap + 1 - w
                slope *= w * steepness
                extra_f = slope**2 * extra + spread(c_f, self.fan_out[index + 1], map_.orthogonal)
            self.c_f.append(c_f)
            self.rms_f.append(_rms(c_f, extra_f))
            c = min(max((1 - share) * c + share * c_f, -1.0), 1.0)
            fresh = extra_f - slope**2 * extra
            extra = ((1 - share) + share * slope) ** 2 * extra + share * fresh
            extra = min(extra, 1 - c * c)
            self.c.append(c)
            self.rms.append(_rms(c, extra))
        batch = self.batch
        h, m, p2, cross = sites.pairs(np.array(at_sites))
        self.c_sites, self.h, self.m = at_sites, h.tolist(), m.tolist()
        self.f = ((sites.f1 + (batch - 1) * p2) / batch - 1).tolist()
        self.x = ((sites.x1 + (batch - 1) * cross) / batch - 1).tolist()
        self.log_mu1 = np.log(sites.mu1).tolist()
        # Single numbers are read below, one layer after another: lists are faster than arrays.
        for name in ONE_POINT:
            setattr(sites, name, getattr(sites, name).tolist())

    def _linear(self, c, n):
        """Variance of the unit mean of z_l/sqrt(q_l), averaged over a batch of correlation c."""
        return (1 + (self.batch - 1) * max(c, 0.0)) / (self.batch * n)

    def _fluctuations(self, suppressed):
        """Two deviations of z_l: x = log ||z_l||^2 - log(B n q_l) and u, the mean of z_l/sqrt(q_l).

        A block maps (x, u) linearly and adds noise to both. Across a skip u persists, and with it
        the share of units on either side of a kink, which is why u is followed at all.
        """
        sites = self.sites
        mean, variance = chi_square_step(self.fan_out[0])
        averaged = self.averaged(self.rms[0]) * (1 - suppressed)
        state = _State(
            mean * averaged, 0.0, variance * averaged, 0.0, self._linear(self.c[0], self.fan_out[0])
        )
        self.states, self.steps, self.chain = [state], [], []
        self.y_mean, self.y_variance, self.y_log = [], [], []
        for index, block in enumerate(self.blocks):
            width_out, share = self.fan_out[index + 1], self.share[index]
            step_mean, step_variance = chi_square_step(width_out)
            f_mean, f_x, f_u, f_noise, chain = state.mean, 1.0, 0.0, 0.0, []
            for position, map_ in enumerate(block.maps):
                i, n = map_.site, map_.width_in
                slope, curvature = sites.phi2_slope[i], sites.phi2_curvature[i]
                rest_mean, rest_noise = self._rest(i, n)
                spread = state.spread(f_x, f_u) + f_noise
                chain.append((f_x, f_u, f_mean, spread))
                y_mean = slope * f_mean + curvature * spread / 2 + rest_mean
                y_x, y_u = slope * f_x, slope * f_u
                if position == 0:
                    tilt = sites.phi2_tilt[i]
                    y_u += tilt
                    y_mean += tilt * state.u_mean
                    rest_noise -= tilt**2 * self._linear(self.c[index], n)
                y_noise = slope**2 * f_noise + max(rest_noise, 0.0)
                y_variance = state.spread(y_x, y_u) + y_noise
                w = self.weight[i]
                last = position == len(block.maps) - 1
                c_next = self.rms_f[index] if last else self.c_sites[i + 1]
                fresh = self.averaged(c_next) * (1 - map_.orthogonal)
                f_mean = w * y_mean + w * (1 - w) * y_variance / 2 + step_mean * fresh
                f_x, f_u = w * y_x, w * y_u
                f_noise = w * w * y_noise + step_variance * fresh
            self.y_mean.append(y_mean)
            self.y_variance.append(y_variance)
            self.y_log.append(sites.log_phi2[i])
            self.chain.append(chain)

            mixed = share * (1 - share)
            # <z, f> has mean zero: its square's mean is q q_f / n, and f's noise is independent.
            overlap = (1 + (self.batch - 1) * self.rms[index] * self.rms_f[index]) / self.batch
            product = 4 * mixed * overlap / width_out
            gap = state.spread(f_x - 1, f_u) + f_noise
            step = _Step(
                (1 - share) + share * f_x,
                share * f_u,
                math.sqrt(max(1 - share, 0.0)),
                share**2 * f_noise + product,
                share * self._linear(self.c_f[index], width_out),
            )
            # The branch grows with u and so dilutes it: a drift of second order.
            drift = share * ((f_x - 1) * state.covariance + f_u * state.u_variance) / 2
            mean = (1 - share) * state.mean + share * f_mean + (mixed * gap - product) / 2
            state = step.apply(state, mean, step.keep * (state.u_mean - drift))
            self.steps.append(step)
            self.states.append(state)

    def _rest(self, site, n):
        """Mean and variance of log of phi^2 averaged over n units, given the norm they read."""
        single = self.sites.f1[site] - 1
        if single <= 0:
            return 0.0, 0.0
        mean, variance = exact_step(self.act, n, single, False)
        ratio = self.f[site] / single
        averaged = self.averaged(self.c_sites[site])
        norm_mean, norm_variance = chi_square_step(n)
        slope, curvature = self.sites.phi2_slope[site], self.sites.phi2_curvature[site]
        taken = (slope * norm_mean + curvature * norm_variance / 2) * averaged
        return mean * ratio - taken, variance * ratio - slope**2 * norm_variance * averaged

    def backward(self, log_level, mean, variance, alpha, r):
        """log E ||delta_l||^2, mean and variance of its log about that, alpha_l, r_l, from z_L."""
        total, t_x, t_u = variance, 0.0, 0.0
        rows = [(np.nan, log_level, mean, variance, alpha, r, t_x)]
        for index in reversed(range(len(self.blocks))):
            back = self._backward_step(index, alpha, r)
            step, state = self.steps[index], self.states[index]
            total += back.variance + 2 * t_x * back.cross
            total += t_x**2 * step.noise + t_u**2 * step.u_noise
            t_x, t_u = back.x + step.x * t_x, back.u + step.u * t_x + step.keep * t_u
            mean += back.mean
            log_level += back.log_rate
            alpha, r = back.alpha, back.r
            spread = max(total, 0.0) + state.spread(t_x, t_u)
            rows.append((back.log_rate, log_level, mean, spread, alpha, r, t_x))
        (
            self.log_chi,
            self.log_delta,
            self.delta_mean,
            self.delta_variance,
            self.alpha,
            self.r,
            self.sensitivity,
        ) = np.array(rows[::-1]).T

    def _backward_step(self, index, alpha, r):
        block, sites = self.blocks[index], self.sites
        log_branch = block.log_branch2 + sum(
            m.log_sigma_w2 + self.log_mu1[m.site] for m in block.maps
        )
        total = _log_sum(0.0, log_branch) if block.identity else log_branch
        share = math.exp(log_branch - total) if total > -np.inf else 1.0
        maps = [
            BackwardMap(self.h[m.site], self.m[m.site], sites.m1[m.site], m.orthogonal)
            for m in reversed(block.maps)
        ]
        width = block.maps[0].width_in
        relative, alpha = batch_step(maps, share, width, self.batch, alpha)
        mean, variance = -relative / 2, relative
        single = 3 * maps[0].m1 - 1 - 2 * maps[0].orthogonal
        if not block.identity and single > 1e-12:
            exact = exact_step(self.act, width, single, maps[0].orthogonal > 0)
            mean, variance = (step * relative * width / single for step in exact)

        norm_mean, norm_variance = chi_square_step(width)
        s_x, s_u, cross = 0.0, 0.0, 0.0
        chain = zip(self.chain[index], block.maps, strict=True)
        for position, ((f_x, f_u, f_mean, spread), map_) in enumerate(chain):
            i = map_.site
            averaged = self.averaged(self.c_sites[i])
            slope, curvature = sites.mu1_slope[i], sites.mu1_curvature[i]
            taken = slope**2 * norm_variance * averaged
            common = self.x[i] / width - slope * sites.phi2_slope[i] * norm_variance * averaged
            mean += share * slope * (f_mean - norm_mean * averaged)
            mean += share * curvature * (spread - norm_variance * averaged) / 2
            s_x += share * slope * f_x
            s_u += share * slope * f_u
            if position == 0:
                tilt, free = sites.mu1_tilt[i], self._linear(self.c[index], width)
                s_u += share * tilt
                mean += share * tilt * self.states[index].u_mean
                taken += tilt**2 * free
                common -= tilt * sites.phi2_tilt[i] * free
            variance -= share**2 * taken
            cross += share * self.share[index] * self.weight[i] * common
        r *= (1 - share) + share * math.prod(map_.h for map_ in maps)
        return _Back(block.log_scale2 + total, mean, variance, s_x, s_u, cross, alpha, r)

    def table(self, log_w2, fan_in, suppressed, log_input, input_c, upstream, skip):
        depth, batch = len(self.log_q), self.batch
        log_q = np.array(self.log_q)
        alpha, r = self.alpha, self.r
        log, var = {}, {}
        log["activation"] = (
            log_q
            + np.log(batch * np.array(self.fan_out))
            + np.array([state.mean for state in self.states])
        )
        var["activation"] = np.array([state.variance for state in self.states])

        # The input of the last linear map of each layer: its log norm squared, law and overlap.
        x_log = np.r_[log_input, self.y_log] + np.log(batch * np.asarray(fan_in))
        x_log += np.r_[0.0, self.y_mean]
        x_variance = np.r_[0.0, self.y_variance]
        last = [block.maps[-1] for block in self.blocks]
        x_c = np.r_[input_c, [self.phi_c[m.site] for m in last]]
        if skip == "none" and depth > 1:
            log["activation"][:-1], var["activation"][:-1] = x_log[1:], x_variance[1:]

        infinite = self.log_delta
        log["delta"] = infinite + self.delta_mean
        var["delta"] = self.delta_variance

        # Cotangent at the output of that linear map: s a delta.
        output = np.r_[0.0, [b.log_scale2 + b.log_branch2 for b in self.blocks]] + log["delta"]
        step = np.array([chi_square_step(int(n)) for n in fan_in])
        averaged = (1 + (batch - 1) * alpha) / batch * (1 - suppressed)
        last_w2 = np.r_[log_w2[0], [m.log_sigma_w2 for m in last]]
        log["dX"] = output + last_w2 + step[:, 0] * averaged
        var["dX"] = var["delta"] + step[:, 1] * averaged

        pull = (
            self.sensitivity
            * np.r_[0.0, [s * self.weight[m.site] for s, m in zip(self.share, last, strict=True)]]
        )
        for name, base, law, overlap in (
            ("dW", x_log - np.log(batch), x_variance * (1 + 2 * pull), x_c),
            ("db", 0.0, 0.0, np.ones(depth)),
        ):
            gain, mean, variance = _summed(batch, alpha, r, overlap)
            log[name] = output + base + np.log(gain) + mean
            var[name] = np.maximum(var["delta"] + law + variance, 0.0)
            if upstream == "loss":
                log[name], var[name] = np.full(depth, np.nan), np.full(depth, np.nan)

        to_log10 = 0.5 / np.log(10)
        columns = {"layer": np.arange(1, depth + 1)}
        for name in QUANTITIES:
            columns[f"{name}_log10_norm"] = log[name] * to_log10
            # Linearisation can push a variance below zero where it fails (see above).
            columns[f"{name}_log10_norm_sd"] = np.sqrt(np.maximum(var[name], 0.0)) * to_log10
        columns["q"] = np.exp(log_q)
        columns["chi"] = np.exp(self.log_chi)
        columns["delta_log10_norm_infinite"] = infinite * to_log10
        return pd.DataFrame(columns)


def _summed(batch, alpha, r, overlap):
    """From sum_b ||g_b||^2 to ||sum_b g_b||^2, g_b = x_b delta_b^T: gain, log mean, log variance.

    The expectation is (1 + (B-1) r c_X). Off-diagonal products fluctuate with variance
    alpha - r^2 about r; the sum is matched to a chi-square of that relative variance. Alpha, a
    ratio of means, weighs the seeds of large norm: in a linear net it obeys, per layer 1/n,
    alpha' = (1 - alpha)(1 + 2 alpha), and the plain mean squared cosine (1 - a)(1 - 2 a) (drop
    its spread over seeds). Eliminating the depth from the two gives the latter.
    """
    gain = np.maximum(1 + (batch - 1) * r * overlap, 1e-12)
    free = np.maximum(1 - r * r, 1e-12)
    excess = np.clip((alpha - r * r) / free, 0.0, 1 - 1e-9)
    growth = np.cbrt((1 + 2 * excess) / (1 - excess))
    cosine2 = (growth - 1) / (2 * growth - 1) * free
    relative = 2 * (1 - 1 / batch) * cosine2 * overlap**2 / gain**2
    freedom = 2 / np.maximum(relative, 1e-9)
    return gain, digamma(freedom / 2) + np.log(2 / freedom), polygamma(1, freedom / 2)
