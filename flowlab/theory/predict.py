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
of the forward pass, and with all examples of the batch of equal norm and equal correlation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import softmax

from flowlab.errors import InputError, unknown
from flowlab.theory.activations import Activation, get_activation
from flowlab.theory.finite_width import BackwardMap, batch_step, chi_square_step, exact_step
from flowlab.theory.moments import Sites, log_phi2

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
        start = _cotangent(
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


def _cotangent(upstream, batch, width, classes, log_q, c, reduction):
    """At z_L: log E ||delta||^2, mean and variance of the log about it, alpha and r.

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
    return float(np.copysign(min(np.sqrt(c * c + extra), 1.0), c))


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
        self.log_q, sites, self.log_f, self.share = [log_q], [], [], []
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
                log_f = float(np.logaddexp(map_.log_sigma_w2 + value, map_.log_sigma_b2))
            log_branch = block.log_branch2 + log_f
            total = float(np.logaddexp(log_q, log_branch)) if block.identity else log_branch
            self.log_f.append(log_f)
            self.share.append(float(np.exp(log_branch - total)) if total > -np.inf else 1.0)
            log_q = block.log_scale2 + total
            self.log_q.append(log_q)
        self.sites = Sites(self.act, np.array(sites))

    def _correlations(self, c, suppressed):
        """Correlations c_l, and their r.m.s. over seeds, which finite width keeps above zero.

        One Gaussian map adds (1 - c^2)(1 + 2 c^2)/n to the mean square; the layers contract what
        is there by the squared slope of the correlation map.
        """

        def spread(c, n, suppressed):
            return (1 - suppressed) * (1 - c * c) * (1 + 2 * c * c) / n

        sites, extra = self.sites, spread(c, self.fan_out[0], suppressed)
        self.c, self.rms, self.rms_f = [c], [_rms(c, extra)], []
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
                w = self._weight(map_)
                c_f = w * overlap + 1 - w
                slope *= w * steepness
                extra_f = slope**2 * extra + spread(c_f, self.fan_out[index + 1], map_.orthogonal)
            self.rms_f.append(_rms(c_f, extra_f))
            c = min(max((1 - share) * c + share * c_f, -1.0), 1.0)
            fresh = extra_f - slope**2 * extra
            extra = ((1 - share) + share * slope) ** 2 * extra + share * fresh
            extra = min(extra, 1 - c * c)
            self.c.append(c)
            self.rms.append(_rms(c, extra))
        batch = self.batch
        self.c_sites = np.array(at_sites)
        self.h, self.m, p2, cross = sites.pairs(self.c_sites)
        self.f = (sites.f1 + (batch - 1) * p2) / batch - 1
        self.x = (sites.x1 + (batch - 1) * cross) / batch - 1

    def _weight(self, map_):
        """Share of the weights in sigma_w2 E phi^2 + sigma_b2."""
        log_ratio = map_.log_sigma_b2 - map_.log_sigma_w2 - self.sites.log_phi2[map_.site]
        return float(1 / (1 + np.exp(log_ratio))) if not np.isnan(log_ratio) else 1.0

    def _fluctuations(self, suppressed):
        """Mean and variance of x_l = log ||z_l||^2 - log(B n q_l), and of y = the same of phi(z).

        Per block: Lambda (slope of x), the noise added, and the branch's slopes at its sites.
        """
        sites = self.sites
        mean, variance = chi_square_step(self.fan_out[0])
        averaged = self.averaged(self.rms[0]) * (1 - suppressed)
        self.mean, self.variance = [mean * averaged], [variance * averaged]
        self.slope, self.noise, self.chain = [], [], []
        self.y_mean, self.y_variance, self.y_log = [], [], []
        for index, block in enumerate(self.blocks):
            x_mean, x_variance = self.mean[-1], self.variance[-1]
            width_out = self.fan_out[index + 1]
            f_mean, f_slope, f_noise, chain = x_mean, 1.0, 0.0, []
            for position, map_ in enumerate(block.maps):
                i, n = map_.site, map_.width_in
                slope, curvature = sites.phi2_slope[i], sites.phi2_curvature[i]
                rest_mean, rest_noise = self._rest(
                    self.f[i], sites.f1[i] - 1, n, self.c_sites[i], slope, curvature
                )
                chain.append((i, f_slope, f_mean, f_slope**2 * x_variance + f_noise))
                spread = f_slope**2 * x_variance + f_noise
                y_mean = slope * f_mean + curvature * spread / 2 + rest_mean
                y_slope, y_noise = slope * f_slope, slope**2 * f_noise + rest_noise
                w = self._weight(map_)
                y_variance = y_slope**2 * x_variance + y_noise
                last = position == len(block.maps) - 1
                c_next = self.rms_f[index] if last else self.c_sites[i + 1]
                step_mean, step_variance = chi_square_step(width_out)
                fresh = self.averaged(c_next) * (1 - map_.orthogonal)
                f_mean = w * y_mean + w * (1 - w) * y_variance / 2 + step_mean * fresh
                f_slope, f_noise = w * y_slope, w * w * y_noise + step_variance * fresh
            self.y_mean.append(y_mean)
            self.y_variance.append(y_variance)
            self.y_log.append(float(sites.log_phi2[i]))
            self.chain.append(chain)

            share = self.share[index]
            mixed = share * (1 - share)
            # <z, f> has mean zero: its square's mean is q q_f / n, and f's noise is independent.
            cross = (1 + (self.batch - 1) * self.rms[index] * self.rms_f[index]) / self.batch
            product = 4 * mixed * cross / width_out if mixed else 0.0
            difference = (1 - f_slope) ** 2 * x_variance + f_noise
            slope = (1 - share) + share * f_slope
            noise = share**2 * f_noise + product
            self.slope.append(slope)
            self.noise.append(noise)
            self.mean.append(
                (1 - share) * x_mean + share * f_mean + mixed * difference / 2 - product / 2
            )
            self.variance.append(slope**2 * x_variance + noise)

    def _rest(self, batch_relative, relative, n, c, slope, curvature):
        """Mean and variance of a log average over n units, given the norm of what they read.

        relative: an example's relative variance per unit; batch_relative: the batch's.
        """
        if relative <= 0:
            return 0.0, 0.0
        mean, variance = exact_step(self.act, n, relative, False)
        ratio = batch_relative / relative
        norm_mean, norm_variance = (step * self.averaged(c) for step in chi_square_step(n))
        rest_mean = mean * ratio - slope * norm_mean - curvature * norm_variance / 2
        return rest_mean, max(variance * ratio - slope**2 * norm_variance, 0.0)

    def backward(self, log_level, mean, variance, alpha, r):
        """log E ||delta_l||^2, mean and variance of its log about that, alpha_l, r_l, from z_L."""
        top_variance, total, sensitivity = variance, 0.0, 0.0
        self.log_delta, self.delta_mean, self.delta_variance = [log_level], [mean], [variance]
        self.alpha, self.r, self.log_chi, self.sensitivity = [alpha], [r], [np.nan], [0.0]
        for index in reversed(range(len(self.blocks))):
            log_rate, step_mean, step_variance, slope, cross, alpha, r = self._step(index, alpha, r)
            total += step_variance + 2 * sensitivity * cross + sensitivity**2 * self.noise[index]
            mean += step_mean
            sensitivity = slope + self.slope[index] * sensitivity
            log_level += log_rate
            self.log_chi.append(log_rate)
            self.log_delta.append(log_level)
            self.delta_mean.append(mean)
            self.delta_variance.append(
                max(top_variance + total, 0.0) + sensitivity**2 * self.variance[index]
            )
            self.alpha.append(alpha)
            self.r.append(r)
            self.sensitivity.append(sensitivity)
        for column in (
            self.log_chi,
            self.log_delta,
            self.delta_mean,
            self.delta_variance,
            self.alpha,
            self.r,
            self.sensitivity,
        ):
            column.reverse()

    def _step(self, index, alpha, r):
        block, sites = self.blocks[index], self.sites
        log_branch = block.log_branch2 + sum(
            m.log_sigma_w2 + float(np.log(sites.mu1[m.site])) for m in block.maps
        )
        total = float(np.logaddexp(0.0, log_branch)) if block.identity else log_branch
        share = float(np.exp(log_branch - total)) if total > -np.inf else 1.0
        maps = [
            BackwardMap(
                float(self.h[m.site]), float(self.m[m.site]), float(sites.m1[m.site]), m.orthogonal
            )
            for m in reversed(block.maps)
        ]
        width = block.maps[0].width_in
        relative, new_alpha = batch_step(maps, share, width, self.batch, alpha)
        if block.identity or len(maps) > 1:
            mean, variance = -relative / 2, relative
        else:
            single = 3 * maps[0].m1 - 1 - 2 * maps[0].orthogonal
            mean, variance = (
                exact_step(self.act, width, single, maps[0].orthogonal > 0)
                if single > 1e-12
                else (0.0, 0.0)
            )
            ratio = relative * width / single if single > 1e-12 else 0.0
            mean, variance = mean * ratio, variance * ratio

        slope, cross = 0.0, 0.0
        for (i, site_slope, site_mean, site_variance), map_ in zip(
            self.chain[index], block.maps, strict=True
        ):
            s, curvature = sites.mu1_slope[i], sites.mu1_curvature[i]
            norm_mean, norm_variance = (
                step * self.averaged(self.c_sites[i]) for step in chi_square_step(map_.width_in)
            )
            mean += share * (
                s * (site_mean - norm_mean) + curvature * (site_variance - norm_variance) / 2
            )
            variance -= share**2 * s**2 * norm_variance
            slope += share * s * site_slope
            if s:
                phi_slope = sites.phi2_slope[i]
                shared = self.x[i] / map_.width_in - s * phi_slope * norm_variance
                cross += share * self.share[index] * self._weight(map_) * shared
        h = np.prod([m.h for m in maps])
        r = r * ((1 - share) + share * h)
        return block.log_scale2 + total, mean, variance, slope, cross, new_alpha, r

    def table(self, log_w2, fan_in, suppressed, log_input, input_c, upstream, skip):
        depth, batch = len(self.log_q), self.batch
        log_q = np.array(self.log_q)
        alpha, r = np.array(self.alpha), np.array(self.r)
        log, var = {}, {}
        log["activation"] = log_q + np.log(batch * np.array(self.fan_out)) + np.array(self.mean)
        var["activation"] = np.array(self.variance)

        # The input of the last linear map of each layer: its log norm squared, law and overlap.
        x_log = np.r_[log_input, self.y_log] + np.log(batch * np.asarray(fan_in))
        x_log += np.r_[0.0, self.y_mean]
        x_variance = np.r_[0.0, self.y_variance]
        last = [block.maps[-1] for block in self.blocks]
        x_c = np.r_[input_c, [self.phi_c[m.site] for m in last]]
        if skip == "none" and depth > 1:
            log["activation"][:-1], var["activation"][:-1] = x_log[1:], x_variance[1:]

        infinite = np.array(self.log_delta)
        log["delta"] = infinite + np.array(self.delta_mean)
        var["delta"] = np.array(self.delta_variance)

        # Cotangent at the output of that linear map: s a delta.
        output = np.r_[0.0, [b.log_scale2 + b.log_branch2 for b in self.blocks]] + log["delta"]
        step = np.array([chi_square_step(int(n)) for n in fan_in])
        averaged = (1 + (batch - 1) * alpha) / batch * (1 - suppressed)
        last_w2 = np.r_[log_w2[0], [m.log_sigma_w2 for m in last]]
        log["dX"] = output + last_w2 + step[:, 0] * averaged
        var["dX"] = var["delta"] + step[:, 1] * averaged

        pull = (
            np.array(self.sensitivity)
            * np.r_[0.0, [s * self._weight(m) for s, m in zip(self.share, last, strict=True)]]
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
            columns[f"{name}_log10_norm_sd"] = np.sqrt(var[name]) * to_log10
        columns["q"] = np.exp(log_q)
        columns["chi"] = np.exp(np.array(self.log_chi))
        columns["delta_log10_norm_infinite"] = infinite * to_log10
        return pd.DataFrame(columns)


def _summed(batch, alpha, r, overlap):
    """From sum_b ||g_b||^2 to ||sum_b g_b||^2, g_b = x_b delta_b^T: gain, log mean, log variance.

    The expectation is (1 + (B-1) r c_X). Off-diagonal products fluctuate with variance
    alpha - r^2 about r; the sum is matched to a chi-square of that relative variance.
    """
    gain = np.maximum(1 + (batch - 1) * r * overlap, 1e-12)
    relative = 2 * (1 - 1 / batch) * np.maximum(alpha - r * r, 0.0) * overlap**2 / gain**2
    freedom = 2 / np.maximum(relative, 1e-9)
    mean, variance = np.array([chi_square_step(float(n)) for n in freedom]).T
    return gain, mean, variance
