"""Normalizations: y = gain · x̂ + bias with x̂ = (x - μ)/σ and σ² = mean (x - μ)² + eps.

They differ in what μ and σ are means over: of each channel, the examples and positions (batch norm,
Ioffe and Szegedy 2015); of each example and position, the features (layer norm, Ba et al. 2016; RMS
norm, Zhang and Sennrich 2019, which takes μ = 0); of each example, a group of channels with their
positions (group norm, Wu and He 2018; with μ = 0 where it is not centred). With g the cotangent of
x̂ and the same means,

    dx = (g - mean g - x̂ mean(g x̂)) / σ,    dgain = Σ dy x̂,    dbias = Σ dy,

without the term mean g where μ = 0 (Ioffe and Szegedy 2015, section 3, with the terms gathered).

Conventions are PyTorch's: σ² divides by the number of values and eps is 1e-5; PyTorch's RMS norm
alone defaults to the rounding unit of its type. Sums are float64 whatever the arrays' type.
The statistics of m values are means of differences from the first and of their squares (Chan et al.
1983, "Algorithms for computing the sample variance": shifted data), so that a large μ costs no
digits. No value is farther from μ than σ √(m - 1) (Samuelson 1968, "How deviant can you be?"):
whichever is first, σ² loses at most a factor m of float64's accuracy.
"""

import math
from dataclasses import replace

import numpy as np

from flowlab.errors import InputError
from flowlab.kernel import ShapeError, jit, kernel
from flowlab.layer import Declaration, Parameter, Primitive
from flowlab.numerics.scale import exponent, log2_norm

EPS = 1e-5
# Between these, sums of squares are neither too small nor too large for float64.
_SMALLEST, _LARGEST = 1e-280, 1e280


@jit
def _minus(x, origin):
    """x - origin as a whole: a sum that may be reordered must not take it apart."""
    return x - origin


@jit
def _statistics(x, origin, total, square, eps, centred):
    """(μ, what rounding μ lost, 1/σ) in x's type, from Σ (x - origin) and Σ (x - origin)².

    ``x`` (rows, columns) are the values. Where their squares left float64's range, sums are formed
    anew in units of 2^shift.
    """
    real, shift = x.dtype.type, 0
    if not (_SMALLEST < square < _LARGEST) and (square > 1 or eps < _SMALLEST):
        largest = 0.0
        for i in range(x.shape[0]):
            for j in range(x.shape[1]):
                largest = max(largest, abs(np.float64(x[i, j])))
        shift = min(max(math.frexp(largest)[1], -1000), 1000) if largest < math.inf else 0
        down = math.ldexp(1.0, -shift)
        total = square = 0.0
        for i in range(x.shape[0]):
            for j in range(x.shape[1]):
                v = down * x[i, j] - down * origin
                total += v
                square += v * v
    mean = total / x.size if centred else 0.0
    variance = square / x.size - mean * mean
    if shift > 0 or eps < _SMALLEST:
        variance += math.ldexp(eps, -2 * shift)
        inverse = math.ldexp(1.0 / math.sqrt(variance), -shift)
    else:
        inverse = 1.0 / math.sqrt(math.ldexp(variance, 2 * shift) + eps)
    mean = math.ldexp(mean, shift)
    rounded = real(origin + mean)
    return rounded, real((origin - rounded) + mean), real(inverse)


@jit
def _standardized(x, mean, lost, inverse):
    return ((x - mean) - lost) * inverse


@kernel("(...),(c),(c)->(...),(...),(c)", reassociate=True)
def batch_norm_forward(x, gain, bias, y, normalized, inverse, eps, p):
    c = gain.size
    n = x.size // (c * p)
    x, y, normalized = x.reshape(n, c, p), y.reshape(n, c, p), normalized.reshape(n, c, p)
    for k in range(c):
        origin = np.float64(x[0, k, 0])
        total = square = 0.0
        for i in range(n):
            for j in range(p):
                v = _minus(x[i, k, j], origin)
                total += v
                square += v * v
        mean, lost, scale = _statistics(x[:, k], origin, total, square, eps, True)
        inverse[k] = scale
        g, b = gain[k], bias[k]  # read once: the arrays written may overlap them
        for i in range(n):
            for j in range(p):
                value = _standardized(x[i, k, j], mean, lost, scale)
                normalized[i, k, j] = value
                y[i, k, j] = g * value + b


@kernel("(c),(...),(c),(...)->(...),(c),(c)", reassociate=True)
def batch_norm_pullback(gain, normalized, inverse, dy, dx, dgain, dbias, eps, p):
    real, c = dy.dtype.type, gain.size
    n = dy.size // (c * p)
    normalized, dy, dx = normalized.reshape(n, c, p), dy.reshape(n, c, p), dx.reshape(n, c, p)
    for k in range(c):
        total = along = 0.0
        for i in range(n):
            for j in range(p):
                total += dy[i, k, j]
                along += np.float64(dy[i, k, j]) * normalized[i, k, j]
        dgain[k], dbias[k] = along, total
        mean, mean_along = real(total / (n * p)), real(along / (n * p))
        scale = gain[k] * inverse[k]
        for i in range(n):
            for j in range(p):
                dx[i, k, j] = scale * (dy[i, k, j] - mean - normalized[i, k, j] * mean_along)


@kernel("(...),(...),(c)->(c),(c)")
def batch_statistics(x, normalized, inverse, mean, variance, eps, p):
    """μ and σ² without bias, read off one value of each channel, its x̂ and 1/σ."""
    c = inverse.size
    n = x.size // (c * p)
    x, normalized = x.reshape(n, c, p), normalized.reshape(n, c, p)
    for k in range(c):
        sigma = 1.0 / np.float64(inverse[k])
        mean[k] = x[0, k, 0] - normalized[0, k, 0] * sigma
        variance[k] = max(sigma * sigma - eps, 0.0) * (n * p / (n * p - 1))


@kernel("(...),(c),(c),(c),(c)->(...),(...),(c)")
def fixed_norm_forward(x, gain, bias, mean, variance, y, normalized, inverse, eps, p):
    c = gain.size
    n = x.size // (c * p)
    x, y, normalized = x.reshape(n, c, p), y.reshape(n, c, p), normalized.reshape(n, c, p)
    for k in range(c):
        scale = 1.0 / math.sqrt(np.float64(variance[k]) + eps)
        inverse[k] = scale
        for i in range(n):
            for j in range(p):
                value = (np.float64(x[i, k, j]) - mean[k]) * scale
                normalized[i, k, j] = value
                y[i, k, j] = gain[k] * value + bias[k]


@kernel("(c),(...),(c),(...)->(...),(c),(c)")
def fixed_norm_pullback(gain, normalized, inverse, dy, dx, dgain, dbias, eps, p):
    c = gain.size
    n = dy.size // (c * p)
    normalized, dy, dx = normalized.reshape(n, c, p), dy.reshape(n, c, p), dx.reshape(n, c, p)
    for k in range(c):
        total = along = 0.0
        scale = np.float64(gain[k]) * inverse[k]
        for i in range(n):
            for j in range(p):
                total += dy[i, k, j]
                along += np.float64(dy[i, k, j]) * normalized[i, k, j]
                dx[i, k, j] = scale * dy[i, k, j]
        dgain[k], dbias[k] = along, total


@kernel("(...),(d),(d)->(...),(...),(r)", reassociate=True)
def layer_norm_forward(x, gain, bias, y, normalized, inverse, eps):
    r, d = inverse.size, gain.size
    x, y, normalized = x.reshape(r, d), y.reshape(r, d), normalized.reshape(r, d)
    for i in range(r):
        origin = np.float64(x[i, 0])
        total = square = 0.0
        for j in range(d):
            v = _minus(x[i, j], origin)
            total += v
            square += v * v
        mean, lost, scale = _statistics(x[i : i + 1], origin, total, square, eps, True)
        inverse[i] = scale
        for j in range(d):
            value = _standardized(x[i, j], mean, lost, scale)
            normalized[i, j] = value
            y[i, j] = gain[j] * value + bias[j]


@kernel("(d),(...),(r),(...)->(...),(d),(d)", reassociate=True)
def layer_norm_pullback(gain, normalized, inverse, dy, dx, dgain, dbias, eps):
    real, r, d = dy.dtype.type, inverse.size, gain.size
    normalized, dy, dx = normalized.reshape(r, d), dy.reshape(r, d), dx.reshape(r, d)
    for j in range(d):
        dgain[j] = dbias[j] = 0
    for i in range(r):
        total = along = 0.0
        for j in range(d):
            g = gain[j] * dy[i, j]
            total += g
            along += np.float64(g) * normalized[i, j]
        mean, mean_along, scale = real(total / d), real(along / d), inverse[i]
        for j in range(d):
            dgain[j] += dy[i, j] * normalized[i, j]
            dbias[j] += dy[i, j]
            dx[i, j] = scale * (gain[j] * dy[i, j] - mean - normalized[i, j] * mean_along)


@kernel("(...),(d)->(...),(...),(r)", reassociate=True)
def rms_norm_forward(x, gain, y, normalized, inverse, eps):
    r, d = inverse.size, gain.size
    x, y, normalized = x.reshape(r, d), y.reshape(r, d), normalized.reshape(r, d)
    for i in range(r):
        square = 0.0
        for j in range(d):
            square += np.float64(x[i, j]) ** 2
        _, _, scale = _statistics(x[i : i + 1], 0.0, 0.0, square, eps, False)
        inverse[i] = scale
        for j in range(d):
            normalized[i, j] = x[i, j] * scale
            y[i, j] = gain[j] * normalized[i, j]


@kernel("(d),(...),(r),(...)->(...),(d)", reassociate=True)
def rms_norm_pullback(gain, normalized, inverse, dy, dx, dgain, eps):
    r, d = inverse.size, gain.size
    normalized, dy, dx = normalized.reshape(r, d), dy.reshape(r, d), dx.reshape(r, d)
    for j in range(d):
        dgain[j] = 0
    for i in range(r):
        along = 0.0
        for j in range(d):
            along += np.float64(gain[j]) * dy[i, j] * normalized[i, j]
            dgain[j] += dy[i, j] * normalized[i, j]
        along /= d
        for j in range(d):
            dx[i, j] = inverse[i] * (np.float64(gain[j]) * dy[i, j] - normalized[i, j] * along)


@kernel("(...),(c),(c)->(...),(...),(s)", reassociate=True)
def _any_group_forward(x, gain, bias, y, normalized, inverse, eps, centred):
    n, c, groups = x.shape[0], gain.size, inverse.size // x.shape[0]
    p, members = x.size // (n * c), c // groups
    grouped = x.reshape(n, groups, members * p)
    x, y, normalized = x.reshape(n, c, p), y.reshape(n, c, p), normalized.reshape(n, c, p)
    for i in range(n):
        for g in range(groups):
            origin = np.float64(grouped[i, g, 0]) if centred else 0.0
            total = square = 0.0
            for j in range(members * p):
                v = _minus(grouped[i, g, j], origin)
                total += v
                square += v * v
            values = grouped[i, g : g + 1]
            mean, lost, scale = _statistics(values, origin, total, square, eps, centred)
            inverse[i * groups + g] = scale
            for k in range(g * members, (g + 1) * members):
                a, b = gain[k], bias[k]
                for j in range(p):
                    value = _standardized(x[i, k, j], mean, lost, scale)
                    normalized[i, k, j] = value
                    y[i, k, j] = a * value + b


_group_forward = _any_group_forward.single


@kernel("(c),(...),(s),(...)->(...),(c),(c)", reassociate=True)
def _any_group_pullback(gain, normalized, inverse, dy, dx, dgain, dbias, centred):
    real, n, c = dy.dtype.type, dy.shape[0], gain.size
    groups = inverse.size // n
    p, members = dy.size // (n * c), c // groups
    normalized, dy, dx = normalized.reshape(n, c, p), dy.reshape(n, c, p), dx.reshape(n, c, p)
    for k in range(c):
        dgain[k] = dbias[k] = 0
    for i in range(n):
        for g in range(groups):
            channels = range(g * members, (g + 1) * members)
            total = along = 0.0
            for k in channels:
                own = own_along = 0.0
                for j in range(p):
                    own += dy[i, k, j]
                    own_along += np.float64(dy[i, k, j]) * normalized[i, k, j]
                dgain[k] += own_along
                dbias[k] += own
                total += gain[k] * own
                along += gain[k] * own_along
            mean = real(total / (members * p) if centred else 0.0)
            mean_along, scale = real(along / (members * p)), inverse[i * groups + g]
            for k in channels:
                own_gain = gain[k]
                for j in range(p):
                    v = own_gain * dy[i, k, j]
                    dx[i, k, j] = scale * (v - mean - normalized[i, k, j] * mean_along)


_group_pullback = _any_group_pullback.single


@kernel("(...),(c),(c)->(...),(...),(s)")
def group_norm_forward(x, gain, bias, y, normalized, inverse, eps):
    _group_forward(x, gain, bias, y, normalized, inverse, eps, True)


@kernel("(c),(...),(s),(...)->(...),(c),(c)")
def group_norm_pullback(gain, normalized, inverse, dy, dx, dgain, dbias, eps):
    _group_pullback(gain, normalized, inverse, dy, dx, dgain, dbias, True)


@kernel("(...),(c)->(...),(...),(s)")
def group_rms_forward(x, gain, y, normalized, inverse, eps):
    _group_forward(x, gain, np.zeros_like(gain), y, normalized, inverse, eps, False)


@kernel("(c),(...),(s),(...)->(...),(c)")
def group_rms_pullback(gain, normalized, inverse, dy, dx, dgain, eps):
    _group_pullback(gain, normalized, inverse, dy, dx, dgain, np.empty_like(dgain), False)


@kernel("(c),(s),(...)->(...)")
def frozen_pullback(gain, inverse, dy, dx, groups, p):
    """gain dy / σ, with 1/σ of ``groups`` groups of channels, of each row or of all rows."""
    c = gain.size
    n, members = dy.size // (c * p), c // groups
    rows = inverse.size // groups
    dy, dx, inverse = dy.reshape(n, c, p), dx.reshape(n, c, p), inverse.reshape(rows, groups)
    for i in range(n):
        for k in range(c):
            scale = np.float64(gain[k]) * inverse[i % rows, k // members]
            for j in range(p):
                dx[i, k, j] = scale * dy[i, k, j]


@jit
def _example_norms(normalized, dy, out, c, p):
    # Powers of two keep squares within the float range, and cost no accuracy.
    e_x, e_dy = exponent(normalized), exponent(dy)
    down_x, down_dy = math.ldexp(1.0, -e_x), math.ldexp(1.0, -e_dy)
    n = dy.shape[0]
    rows = dy.size // (n * c * p)
    normalized, dy = normalized.reshape(n, rows, c, p), dy.reshape(n, rows, c, p)
    gain = bias = 0.0
    for i in range(n):
        for k in range(c):
            total = along = 0.0
            for r in range(rows):
                for j in range(p):
                    d = down_dy * dy[i, r, k, j]
                    total += d
                    along += d * (down_x * normalized[i, r, k, j])
            gain += along * along
            bias += total * total
    out[0] = 0.5 * np.log2(gain) + e_x + e_dy
    if out.size > 1:
        out[1] = 0.5 * np.log2(bias) + e_dy


@kernel("(...),(...)->(gradients)")
def channels_first_example_norms(normalized, dy, out):
    n, c = dy.shape[0], dy.shape[1]
    _example_norms(normalized, dy, out, c, dy.size // (n * c))


@kernel("(...),(...)->(gradients)")
def channels_last_example_norms(normalized, dy, out):
    _example_norms(normalized, dy, out, dy.shape[-1], 1)


@kernel("(),()->()")
def difference(a, b, out):
    out[0] = a - b


class Normalization(Primitive):
    """What normalizations share: ``eps``, a gain that starts at 1 and a bias that starts at 0.

    Each saves ``normalized`` (x̂, shaped like x) and ``inverse`` (1/σ, one axis). ``eps`` may be 0;
    InputError where it is negative or not finite, ShapeError for an input with too few axes.
    """

    axes: str  # of the input, for messages
    channels_last = False
    groups: int | None = None  # of channels that share statistics; by default each has its own
    trainable = True
    pullback_reads = ("gain", "normalized", "inverse")
    readings = ("statistics_log10_gain",)
    example_norms_reads = ("normalized",)

    def __init__(self, eps: float = EPS):
        if not 0 <= eps < math.inf:
            raise InputError(f"{self.name}: eps must be a finite number, at least 0; got {eps}")
        self.eps = eps

    def declaration(
        self, shape, features: int, cells: int, bias: bool = True, **targets
    ) -> Declaration:
        """The declaration for ``features`` gains and biases and ``cells`` values of 1/σ."""
        parameters = {"gain": Parameter((features,), role="gain")}
        if bias:
            parameters["bias"] = Parameter((features,), role="bias", factor=0.0)
        for name, target in targets.items():
            parameters[name] = Parameter(target, role="target")
        return Declaration(
            output=shape,
            parameters=parameters,
            saved={"normalized": shape, "inverse": (cells,)},
            constants=(self.eps,),
        )

    def expect_axes(self, shape) -> None:
        """Raise ShapeError for fewer than two axes."""
        if len(shape) < 2:
            raise ShapeError(f"{self.name}: input must have axes {self.axes}; got shape {shape}")

    def positions(self, shape) -> int:
        """How many positions follow the channel axis of an input (n, ...)."""
        return 1 if self.channels_last else math.prod(shape[2:])

    def terms(self, tape, dy):
        return self.frozen_log2_norm(dy, tape), None

    def read(self, tape, dx, terms):
        gain = np.empty(len(dx))
        difference.run(log2_norm(dx), terms, gain)
        return (gain,)

    def frozen_log2_norm(self, dy: np.ndarray, tape) -> np.ndarray:
        """log2 ‖gain · dy / σ‖ for ``dy`` (seeds, n, ...) and its tape: (seeds,), float64.

        This is dx as if μ and σ were constants: without the terms in mean g and mean(g x̂). These
        remove two of m dimensions for means over m values, one where μ = 0: for iid dy, unit gains
        and eps = 0, E ‖dx‖² is (m - 2)/m or (m - 1)/m times what E ‖gain · dy / σ‖² is.
        """
        gain = tape["gain"]
        frozen = np.empty(dy.shape)
        groups = self.groups or gain.shape[1]
        frozen_pullback.run(gain, tape["inverse"], dy, frozen, groups, self.positions(dy.shape[1:]))
        return log2_norm(frozen)


class BatchNorm(Normalization):
    """Each channel of (n, c) or (n, c, ...) normalized over the batch and all positions.

    With ``channels_last`` the input is (n, ..., c), as the tokens of a transformer are.

    In training the batch's own statistics couple its examples: the gradient of one example does not
    exist by itself. With ``training=False`` they are the parameters ``mean`` and ``variance`` (c,)
    of role ``target``, and the layer is affine. ShapeError for a batch with one value per channel.
    """

    name = "batch_norm"

    def __init__(self, training: bool = True, eps: float = EPS, channels_last: bool = False):
        super().__init__(eps)
        self.training = self.couples_examples = training
        self.channels_last = channels_last
        self.axes = "(batch, ..., channels)" if channels_last else "(batch, channels, ...)"
        self.forward_kernel = batch_norm_forward if training else fixed_norm_forward
        self.pullback_kernel = batch_norm_pullback if training else fixed_norm_pullback
        if not training:
            self.example_norms = (
                channels_last_example_norms if channels_last else channels_first_example_norms
            )

    def shapes(self, shape):
        self.expect_axes(shape)
        c = shape[-1 if self.channels_last else 1]
        values = math.prod(shape) // c
        if self.training and values < 2:
            raise ShapeError(
                f"batch_norm: a training batch must have at least 2 values per channel; "
                f"got {values} (shape {shape})"
            )
        targets = {} if self.training else {"mean": (c,), "variance": (c,)}
        declared = self.declaration(shape, c, c, **targets)
        return replace(declared, constants=(self.eps, self.positions(shape)))

    def statistics(self, tape) -> tuple[np.ndarray, np.ndarray]:
        """A training batch's means and variances without bias, each (seeds, c) float64."""
        x, inverse = tape["x"], tape["inverse"]
        found = np.empty(inverse.shape), np.empty(inverse.shape)
        constants = self.eps, self.positions(x.shape[1:])
        batch_statistics.run(x, tape["normalized"], inverse, *found, *constants)
        return found


class LayerNorm(Normalization):
    """Every vector along the last axis of (n, ..., d) normalized by itself."""

    name = "layer_norm"
    axes = "(batch, ..., features)"
    channels_last, groups = True, 1
    forward_kernel, pullback_kernel = layer_norm_forward, layer_norm_pullback
    example_norms = channels_last_example_norms

    def shapes(self, shape):
        self.expect_axes(shape)
        return self.declaration(shape, shape[-1], math.prod(shape[:-1]))


class RMSNorm(Normalization):
    """y = gain · x / √(mean x² + eps) along the last axis of (n, ..., d); there is no bias."""

    name = "rms_norm"
    axes = "(batch, ..., features)"
    channels_last, groups = True, 1
    forward_kernel, pullback_kernel = rms_norm_forward, rms_norm_pullback
    example_norms = channels_last_example_norms

    def shapes(self, shape):
        self.expect_axes(shape)
        return self.declaration(shape, shape[-1], math.prod(shape[:-1]), bias=False)


class GroupNorm(Normalization):
    """Each of ``groups`` groups of channels of (n, c, ...) normalized with all its positions.

    Groups are of successive channels. With ``centred=False`` a group is divided by the root of its
    mean square plus eps, as RMS norm does with a vector: μ = 0, and there is no bias. InputError
    for ``groups`` below 1, ShapeError where they do not divide the channels.
    """

    name = "group_norm"
    axes = "(batch, channels, ...)"
    example_norms = channels_first_example_norms

    def __init__(self, groups: int, eps: float = EPS, centred: bool = True):
        super().__init__(eps)
        if groups < 1:
            raise InputError(f"group_norm: groups must be at least 1; got {groups}")
        self.groups, self.centred = groups, centred
        self.forward_kernel = group_norm_forward if centred else group_rms_forward
        self.pullback_kernel = group_norm_pullback if centred else group_rms_pullback

    def shapes(self, shape):
        self.expect_axes(shape)
        n, c = shape[:2]
        if c % self.groups:
            raise ShapeError(f"group_norm: groups must divide the {c} channels; got {self.groups}")
        return self.declaration(shape, c, n * self.groups, bias=self.centred)
