"""How the log-norms of fully-connected nets run over the layers, as laws over nets.

All norms are over the whole batch, and so means over its examples, whose norms differ. The law of
one example is found at a few starting variances (*nodes*, `flowlab.theory.batch_average`) that
stand for all of them; so is the covariance of two examples, at one node. With x_l the deviation of
log ||z_l||^2 from its mean over nets, one layer maps x linearly (slope Lambda) and adds noise; the
backward rate of the layer above z_l has slope S_l in x_l and its own noise (`finite_width`),
correlated with the forward one because both read z_l. Then T_l = S_l + Lambda_l T_{l+1} is the
whole sensitivity of ||delta_l|| to x_l, and

    var log ||delta_l||^2 = T_l^2 var x_l + var top
        + sum_{k >= l} (backward_k + 2 T_{k+1} cross_k + T_{k+1}^2 forward_k).

For homogeneous activations S = 0 and this is the exact random walk of Hanin & Nica (2018). For the
others the mean over nets of log ||z_l||^2 obeys a recursion of its own: moments of the activation
are averaged over the Gaussian law of x_l (statistical linearisation; to first order in var x the
corrections of Roberts, Yaida & Hanin 2022, ch. 5), not taken at the infinite-width q_l.

*Alignment.* The backward pass reads the weights of the forward one: W^T delta has the component
<z - b, delta>/||h|| along h, not a fresh one. With a_l = n E cos^2(z_l, delta_l), w the share of
the weights in q_{l+1}, zeta = E z^2 phi'^2/(q mu_1), eta = (E z phi phi')^2/(q mu_1 E phi^2) and
x_1 = E phi^2 phi'^2/(E phi^2 mu_1), a step is multiplied by g = 1 + x_1 w (a_{l+1} - 1)/n, and

    a_l = [eta w (a_{l+1} - 1) + zeta]/g.

a = 1 for homogeneous activations; tanh has less, GELU more. Where eta w > 1 (softplus) the part
along z outlives the rest, and with it a grows until a/n is of order 1; <z, delta> is Gaussian, so
that a whole gain G = prod g > 1 adds E log(1 + (G - 1) xi^2) to the mean log. Across skips it is
left out. In plain nets the law of one example is that of `flowlab.theory.variance_chain`.

Everything else is first order in 1/width. ReLU's standard deviation across skips comes out up to a
third too low.
"""

import math
from dataclasses import dataclass

import numpy as np

from flowlab.theory.batch_average import Nodes
from flowlab.theory.finite_width import BackwardMap, batch_step, chi_square_step, exact_step
from flowlab.theory.moment_curves import Moments, curves
from flowlab.theory.moments import NO_SIGNAL, NODES, WEIGHTS
from flowlab.theory.upstream import Top
from flowlab.theory.variance_chain import HIGHEST, LOWEST, backward_law


@dataclass(frozen=True)
class LinearMap:
    """One linear map after an activation."""

    log_sigma_w2: float
    log_sigma_b2: float
    width_in: int
    orthogonal: float


@dataclass(frozen=True)
class NetBlock:
    """z_l = scale (identity z_{l-1} + branch f): the maps of f, first one first."""

    maps: list[LinearMap]
    identity: bool
    log_scale2: float
    log_branch2: float


def _rms(c, extra):
    return math.copysign(min(math.sqrt(c * c + extra), 1.0), c)


@dataclass(frozen=True, slots=True)
class _State:
    """Variance and covariance over nets of x and u (see `LogNorms`), and the mean of u."""

    variance: np.ndarray
    covariance: np.ndarray
    u_variance: np.ndarray
    u_mean: np.ndarray

    def spread(self, x, u):
        """Variance of the combination of slopes x and u."""
        return x * x * self.variance + 2 * x * u * self.covariance + u * u * self.u_variance


@dataclass(frozen=True, slots=True)
class _Step:
    """One block forward: x' = x x + u u + noise, u' = keep u + u_noise; share of its branch."""

    x: np.ndarray
    u: np.ndarray
    keep: np.ndarray
    noise: np.ndarray
    u_noise: np.ndarray
    share: np.ndarray

    def apply(self, state, u_mean):
        return _State(
            state.spread(self.x, self.u) + self.noise,
            self.keep * (self.x * state.covariance + self.u * state.u_variance),
            self.keep**2 * state.u_variance + self.u_noise,
            u_mean,
        )


@dataclass(frozen=True, slots=True)
class _Site:
    """What a map reads: its input's moments, slopes in (x, u), variance, and the pair's moments.

    weight: the share of the weights, not of the bias, in the map's output.
    """

    moments: Moments
    x: np.ndarray
    u: np.ndarray
    weight: np.ndarray
    c: float
    phi_c: float
    pairs: tuple[float, ...]


_LOG_GAINS = np.arange(0.0, 60.0, 0.1)
_TYPICAL = (np.log1p(np.expm1(_LOG_GAINS)[:, None] * NODES**2) * WEIGHTS).sum(axis=1)


def _typical(log_gain):
    """E log(1 + (G - 1) xi^2), xi ~ N(0, 1): of a gain G > 1 that is due to one component."""
    return np.where(log_gain > 0, np.interp(log_gain, _LOG_GAINS, _TYPICAL), log_gain)


def _share(part, total):
    """exp(part - total); 1 where both are zero."""
    return np.where(total > -np.inf, np.exp(np.minimum(part - total, 0.0)), 1.0)


class LogNorms:
    """The forward and backward recursions over the layers; index 0 is layer 1.

    Two deviations of z_l are followed: x, of log ||z_l||^2, and u, the mean over units of
    z_l/sqrt(q_l). A block maps (x, u) linearly and adds noise to both. Across a skip u persists,
    and with it the share of units on either side of a kink, which is why u is followed at all.

    Arrays are (nodes,), each a single example, and where the batch has several examples one entry
    more, last: the covariance of two of them at node ``rep``, of correlation c. A variance is the
    covariance of an example with itself, c = 1, so that one formula serves both.
    ``log_q`` are the infinite-width variances, ``log_z`` the means over nets of log ||z_l||^2/n.
    """

    def __init__(self, act, blocks, fan_out, examples: Nodes, plain: bool):
        self.act, self.blocks, self.examples, self.plain = act, blocks, examples, plain
        self.curves = curves(act)
        self.fan_out = [int(n) for n in fan_out]
        self.count = len(examples.log_q)
        self.paired = examples.batch > 1
        self.members = self.count + self.paired

    def joined(self, own):
        """(members,): values of the nodes, the pair's those of its node."""
        return np.append(own, own[self.rep]) if self.paired else own

    def overlap(self, value):
        """1 for single examples and ``value`` for the pair."""
        ones = np.ones(self.members)
        if self.paired:
            ones[-1] = value
        return ones

    def infinite(self, log_w2, log_b2):
        """Variances and log rates (blocks, nodes) at infinite width, and the node of the pair.

        The pair stands where half of ||delta_1||^2 lies below.
        """
        log_q = np.maximum(np.logaddexp(log_w2 + self.examples.log_q, log_b2), NO_SIGNAL)
        self.log_q, self.log_rate = [log_q], []
        for block in self.blocks:
            log_f, log_rate = log_q, block.log_branch2
            for map_ in block.maps:
                square, slope = self.curves.logs(log_f)[0]
                log_f = np.logaddexp(map_.log_sigma_w2 + square, map_.log_sigma_b2)
                log_rate = log_rate + map_.log_sigma_w2 + slope
            log_f = block.log_branch2 + log_f
            if block.identity:
                log_f, log_rate = np.logaddexp(log_q, log_f), np.logaddexp(0.0, log_rate)
            log_q = block.log_scale2 + log_f
            self.log_q.append(log_q)
            self.log_rate.append(block.log_scale2 + log_rate)
        self.rep = self.examples.median(np.sum(self.log_rate, axis=0) if self.blocks else log_q * 0)

    def forward(self, log_w2, log_b2, input_c, input_c2, suppressed):
        self.infinite(log_w2, log_b2)
        log_q = self.log_q[0]
        first = float(_share(log_w2 + self.examples.log_q[self.rep], log_q[self.rep]))
        c = first * input_c + 1 - first
        extra = first**2 * max(input_c2 - input_c**2, 0.0)
        extra = min(extra + self._fresh(c, 0, suppressed), 1 - c * c)
        mean, variance = chi_square_step(self.fan_out[0])
        log_z = log_q + mean * (1 - suppressed)
        state = _State(
            variance * self.overlap(_rms(c, extra) ** 2) * (1 - suppressed),
            np.zeros(self.members),
            self.overlap(max(c, 0.0)) / self.fan_out[0],
            np.zeros(self.members),
        )
        self.log_z, self.c, self.rms = [log_z], [c], [_rms(c, extra)]
        self.states, self.steps, self.sites = [state], [], []
        self.y_mean, self.y_variance = [], []
        for index, block in enumerate(self.blocks):
            log_z, state, c, extra = self._block(index, block, log_z, state, c, extra)
            self.log_z.append(log_z)
            self.c.append(c)
            self.rms.append(_rms(c, extra))
            self.states.append(state)

    def _fresh(self, c, layer, suppressed):
        """Mean square over nets that one Gaussian map adds to a correlation."""
        return (1 - suppressed) * (1 - c * c) * (1 + 2 * c * c) / self.fan_out[layer]

    def _block(self, index, block, log_z, state, c, extra):
        width_out = self.fan_out[index + 1]
        step_mean, step_variance = chi_square_step(width_out)
        zero = np.zeros(self.members)
        f_x, f_u, f_noise = zero + 1, zero, zero
        mean_f = log_z
        c_f, extra_f, slope_c, sites = c, extra, 1.0, []
        for position, map_ in enumerate(block.maps):
            spread = state.spread(f_x, f_u) + f_noise
            own = spread[: self.count]
            m = self._moments(mean_f, own)
            site_c = _rms(c_f, extra_f)
            phi_c, steepness, pairs = self._pair_moments(mean_f, own, c_f, site_c)
            rest_mean, rest_noise = self._rest(m, map_.width_in, site_c, pairs)
            y_mean = m.log_phi2[: self.count] + rest_mean
            y_x, y_u = m.phi2_slope * f_x, m.phi2_slope * f_u
            if position == 0:
                free = self.overlap(max(c, 0.0)) / map_.width_in
                y_u = y_u + m.phi2_tilt
                y_mean = y_mean + (m.phi2_tilt * state.u_mean)[: self.count]
                rest_noise = rest_noise - m.phi2_tilt**2 * free
            y_noise = m.phi2_slope**2 * f_noise + np.maximum(rest_noise, 0.0)
            y_variance = state.spread(y_x, y_u) + y_noise
            log_w = map_.log_sigma_w2 + y_mean
            mean_f = np.logaddexp(log_w, map_.log_sigma_b2)
            w = self.joined(_share(log_w, mean_f))
            slope_c *= w[self.rep] * steepness
            c_f = w[self.rep] * phi_c + 1 - w[self.rep]
            fresh_c = self._fresh(c_f, index + 1, map_.orthogonal)
            extra_f = slope_c**2 * extra + fresh_c
            fresh = self.overlap(_rms(c_f, extra_f) ** 2) * (1 - map_.orthogonal)
            mean_f = mean_f + (w * (1 - w) * y_variance / 2)[: self.count]
            mean_f = mean_f + step_mean * (1 - map_.orthogonal)
            sites.append(_Site(m, f_x, f_u, w, site_c, phi_c, pairs))
            f_x, f_u = w * y_x, w * y_u
            f_noise = w * w * y_noise + step_variance * fresh
        self.sites.append(sites)
        self.y_mean.append(y_mean)
        self.y_variance.append(y_variance)

        shift = block.log_scale2
        if not block.identity:
            shift += block.log_branch2
            self.steps.append(_Step(f_x, f_u, zero, f_noise, self._unit(c_f, width_out), zero + 1))
            state = self.steps[-1].apply(state, zero)
            return mean_f + shift, state, c_f, min(extra_f, 1 - c_f * c_f)
        branch = block.log_branch2 + mean_f
        total = np.logaddexp(log_z, branch)
        share = self.joined(_share(branch, total))
        mixed = share * (1 - share)
        # <z, f> has mean zero: its square's mean is q q_f / n, and f's noise is independent.
        product = 4 * mixed * self.overlap(self.rms[-1] * _rms(c_f, extra_f)) / width_out
        gap = state.spread(f_x - 1, f_u) + f_noise
        keep = np.sqrt(np.maximum(1 - share, 0.0))
        step = _Step(
            (1 - share) + share * f_x,
            share * f_u,
            keep,
            share**2 * f_noise + product,
            share * self._unit(c_f, width_out),
            share,
        )
        # The branch grows with u and so dilutes it: a drift of second order.
        drift = share * ((f_x - 1) * state.covariance + f_u * state.u_variance) / 2
        following = step.apply(state, keep * (state.u_mean - drift))
        self.steps.append(step)
        log_z = total + ((mixed * gap - product) / 2)[: self.count] + shift
        rep = share[self.rep]
        fresh_c = extra_f - slope_c**2 * extra
        extra = ((1 - rep) + rep * slope_c) ** 2 * extra + rep * fresh_c
        c = min(max((1 - rep) * c + rep * c_f, -1.0), 1.0)
        return log_z, following, c, min(extra, 1 - c * c)

    def _unit(self, c, n):
        """Variance of the unit mean of z_l/sqrt(q_l): of two examples, its covariance."""
        return self.overlap(max(c, 0.0)) / n

    def _moments(self, mean, variance) -> Moments:
        m = self.curves.at(mean, variance)
        return Moments(*map(self.joined, m.parts()))

    def _pair_moments(self, mean, variance, c, site_c):
        """E phi phi / E phi^2 at c and its slope there; `Curves.pairs` at the r.m.s. of c."""
        if not self.paired:
            return 1.0, 1.0, (1.0, 1.0, 1.0, 1.0)
        log_q = float(mean[self.rep])
        gap = 1e-3 if c < 0 else -1e-3
        phi_c = self.curves.phi_correlation(log_q, c)
        steepness = (self.curves.phi_correlation(log_q, c + gap) - phi_c) / gap
        return phi_c, steepness, self.curves.pairs(log_q, site_c)

    def _rest(self, m, n, c, pairs):
        """Mean and variance of log of phi^2 averaged over n units, given the norm they read."""
        single = m.f1 - 1
        mean, variance = exact_step(self.act, n, single, False)
        ratio = np.ones(self.members)
        if self.paired:
            ratio[-1] = (pairs[2] - 1) / single[-1] if single[-1] > 1e-12 else 0.0
        averaged = self.overlap(c * c)
        norm_mean, norm_variance = chi_square_step(n)
        taken = m.phi2_slope * norm_mean + m.phi2_curvature * norm_variance / 2
        noise = variance * ratio - m.phi2_slope**2 * norm_variance * averaged
        return (mean - taken)[: self.count], noise

    def backward(self, top: Top):
        """log E ||delta_l||^2 at infinite width, mean and covariance of the log, alpha and r."""
        total = self.overlap(0.0) * top.own
        if self.paired:
            total[-1] = top.pair
        infinite, mean = top.level, top.level + top.mean
        gained = np.zeros(self.count)
        t_x, t_u = np.zeros(self.members), np.zeros(self.members)
        alpha, r, excess = top.alpha, top.r, np.zeros(self.count)
        direct, own = total[: self.count], slice(self.count)
        rows = [(infinite, mean, total, alpha, r, t_x, gained)]
        for index in reversed(range(len(self.blocks))):
            back = self._backward_step(index, alpha, r, excess)
            drift, variance, s_x, s_u, cross, alpha, r, gain, excess = back
            step, state = self.steps[index], self.states[index]
            direct = direct + variance[own]
            total = total + variance + 2 * t_x * cross
            total = total + t_x**2 * step.noise + t_u**2 * step.u_noise
            t_x, t_u = s_x + step.x * t_x, s_u + step.u * t_x + step.keep * t_u
            infinite = infinite + self.log_rate[index]
            mean, gained = mean + drift, gained + gain
            spread = np.maximum(total, 0.0) + state.spread(t_x, t_u)
            gain = _typical(gained)
            rows.append((infinite, mean + gain, spread, alpha, r, t_x, gain))
        columns = list(zip(*rows[::-1], strict=True))
        self.delta_infinite, self.delta_mean, self.delta_variance = map(np.array, columns[:3])
        if self.plain and not self.act.homogeneous and self.blocks:
            self._by_chain(top, np.array(columns[6]))
        self.error = self._error(direct, gained) if self.blocks else 0.0
        self.alpha, self.r, self.sensitivity = map(np.array, columns[3:6])

    def _error(self, direct, gained):
        """How far the mean of log ||delta_1||^2 may be off.

        Three things are left out, each estimated by what theory finds of the next lower order:
        terms of second order in 1/n, by each step's first-order ones times kappa/n (plain identity
        and ReLU with Gaussian weights are exact); where variances part company, how much of the
        sensitivity to x examples share, by half of what the rest of the variance adds to the
        batch's mean; and half the distance between a gain of the radial part and its typical value.
        """
        own, mean, variance = slice(self.count), self.delta_mean[0], self.delta_variance[0]
        exact = self.plain and self.act.negative_slope in (0.0, 1.0)
        error = np.zeros(self.count)
        if not exact or any(map_.orthogonal for block in self.blocks for map_ in block.maps):
            drift = np.nan_to_num(self.delta_mean - self.delta_infinite)
            for layer, (block, sites) in enumerate(zip(self.blocks, self.sites, strict=True)):
                kappa = 3 * sites[0].moments.m1[own] - 1
                order = np.minimum(kappa / block.maps[0].width_in, 1.0)
                error = error + np.abs(drift[layer] - drift[layer + 1]) * order
        alone = variance[self.rep]
        rho = np.clip(variance[-1] / alone, 0.0, 1.0) if self.paired and alone > 0 else 1.0
        if not self.act.homogeneous:
            error = error + (1 - rho) * np.maximum(variance[own] - direct, 0.0) / 2
        error = error + np.abs(gained - _typical(gained)) / 2
        return self.examples.average(mean + (1 - rho) * variance[own] / 2, error)

    def _by_chain(self, top, gains):
        """Take single examples' laws from the chain of their variances, which may part company."""
        inside = (self.log_q[0] > LOWEST) & (self.log_q[0] < HIGHEST)
        dead = any(block.maps[0].log_sigma_w2 == -np.inf for block in self.blocks)
        if dead or not inside.any():
            return
        own = np.flatnonzero(inside)
        log_z = np.array(self.log_z)[:, own]
        reach = 4 * np.sqrt(np.array([state.variance[own] for state in self.states])) + 0.1
        low, high = float((log_z - reach).min()), float((log_z + reach).max())
        low, high = max(low, LOWEST), min(high, HIGHEST)
        maps = [block.maps[0] for block in self.blocks]
        maps = [(m.log_sigma_w2, m.log_sigma_b2, m.width_in, m.orthogonal) for m in maps]
        law = backward_law(self.curves, maps, self.log_q[0][own], low, high)
        self.delta_mean[:, own] = (top.level + top.mean + gains)[:, own] + law.mean
        self.delta_variance[:, own] = top.own + 2 * (law.log_mean - law.mean)

    def _backward_step(self, index, alpha, r, excess):
        """Across a block: the mean of its log rate, its variance, its slopes, and the rest."""
        block, sites, own = self.blocks[index], self.sites[index], slice(self.count)
        norm_mean, norm_variance = chi_square_step(block.maps[0].width_in)
        width, state = block.maps[0].width_in, self.states[index]
        log_branch = block.log_branch2
        s_x, s_u, cross = (np.zeros(self.members) for _ in range(3))
        taken = np.zeros(self.members)
        for position, (site, map_) in enumerate(zip(sites, block.maps, strict=True)):
            m, averaged = site.moments, self.overlap(site.c**2)
            # Given the norm of the sample the units are not free: what it took is in log_mu1.
            log_branch = log_branch + map_.log_sigma_w2 + m.log_mu1[own]
            free = m.mu1_slope * norm_mean + m.mu1_curvature * norm_variance / 2
            log_branch = log_branch - free[own]
            taken = taken + m.mu1_slope**2 * norm_variance * averaged
            x1 = m.x1.copy()
            x1 -= 1
            if self.paired:
                x1[-1] = site.pairs[3] - 1
            common = x1 / width - m.mu1_slope * m.phi2_slope * norm_variance * averaged
            s_x = s_x + m.mu1_slope * site.x
            s_u = s_u + m.mu1_slope * site.u
            if position == 0:
                unit = self._unit(self.c[index], width)
                s_u = s_u + m.mu1_tilt
                log_branch = log_branch + (m.mu1_tilt * state.u_mean)[own]
                taken = taken + m.mu1_tilt**2 * unit
                common = common - m.mu1_tilt * m.phi2_tilt * unit
            cross = cross + self.steps[index].share * site.weight * common
        if block.identity:
            total = np.logaddexp(0.0, log_branch)
            share = self.joined(_share(log_branch, total))
        else:
            total, share = log_branch, np.ones(self.members)
        variance, drift, alpha_below = self._noise(index, share, alpha)
        mean, gain = total + drift, np.zeros(self.count)
        if self.plain:
            gain, excess = self._aligned(index, excess)
        h = math.prod(site.pairs[0] for site in sites)
        rep = share[self.rep]
        return (
            block.log_scale2 + mean,
            variance - share**2 * taken,
            share * s_x,
            share * s_u,
            share * cross,
            alpha_below,
            r * ((1 - rep) + rep * h),
            gain,
            excess,
        )

    def _noise(self, index, share, alpha):
        """Variance of the log rate given the forward pass, its mean, and alpha below the block."""
        block, sites = self.blocks[index], self.sites[index]
        width, rep = block.maps[0].width_in, share[self.rep]
        alone = sum(
            3 * site.moments.m1 - 1 - 2 * map_.orthogonal
            for site, map_ in zip(sites, block.maps, strict=True)
        )
        variance = (4 * share * (1 - share) + share**2 * alone) / width
        if self.paired:
            maps = [
                BackwardMap(
                    site.pairs[0], site.pairs[1], site.moments.m1[self.rep], map_.orthogonal
                )
                for site, map_ in zip(reversed(sites), reversed(block.maps), strict=True)
            ]
            variance[-1], alpha = batch_step(maps, rep, width, math.inf, alpha)
        mean = -variance[: self.count] / 2
        single = float(alone[0])
        if not block.identity and self.act.homogeneous and single > 1e-12:
            exact = exact_step(self.act, width, single, block.maps[0].orthogonal > 0)
            scale = variance * width / single
            mean, variance = exact[0] * scale[: self.count], exact[1] * scale
        return variance, mean, alpha

    def _aligned(self, index, excess):
        """What a - 1 = ``excess`` of the layer above adds to a step's mean, and a - 1 below it."""
        map_, site, own = self.blocks[index].maps[0], self.sites[index][0], slice(self.count)
        m, above = site.moments, site.weight[own] * excess
        gain = 1 + (m.x1[own] - map_.orthogonal) * above / map_.width_in
        eta = m.phi2_slope[own] ** 2
        eta = eta * np.exp(np.minimum(m.log_phi2 - m.log_mu1, 700.0)[own] - self.log_z[index])
        eta = np.where(np.isfinite(eta), eta, 1.0)
        below = (eta * above + 1 + 2 * m.mu1_slope[own]) / gain
        return np.log(gain), below - 1

    def batched(self, mean, variance):
        """`Nodes.batched` of logs of this mean (layers, nodes) and covariance (layers, members)."""
        own, rho = variance[:, : self.count], np.ones(len(mean))
        if self.paired:
            alone = own[:, self.rep]
            rho = np.divide(variance[:, -1], alone, out=np.zeros_like(alone), where=alone > 0)
            rho = np.clip(rho, 0.0, 1.0)
        return self.examples.batched(mean, own, rho)
