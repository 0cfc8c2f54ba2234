"""Normalizations: y = gain · x̂ + bias with x̂ = (x - μ)/σ and σ² = mean (x - μ)² + eps.

They differ in what μ and σ are means over: of each channel, the examples and positions (batch norm,
Ioffe and Szegedy 2015); of each example and position, the features (layer norm, Ba et al. 2016; RMS
norm, Zhang and Sennrich 2019, which takes μ = 0); of each example, a group of channels with their
positions (group norm, Wu and He 2018). With g the cotangent of x̂ and the same means,

    dx = (g - mean g - x̂ mean(g x̂)) / σ,    dgain = Σ dy x̂,    dbias = Σ dy,

without the term mean g where μ = 0 (Ioffe and Szegedy 2015, section 3, with the terms gathered).

Conventions are PyTorch's: σ² divides by the number of values and eps is 1e-5; PyTorch's RMS norm
alone defaults to the rounding unit of its type. Statistics are float64 whatever the arrays' type.
They are means of differences from one of the values and, after that, of squared deviations (Chan et
al. 1983, "Algorithms for computing the sample variance"), so that a large μ costs no digits.
"""

import math
from dataclasses import replace

from flowlab.errors import InputError
from flowlab.kernel import ShapeError, jit, kernel
from flowlab.layer import Declaration, Parameter, Primitive

EPS = 1e-5


@kernel("(...),(c),(c)->(...),(...),(c)")
def batch_norm_forward(x, gain, bias, y, normalized, inverse, eps):
    n, c = x.shape[0], x.shape[1]
    p = x.size // (n * c)
    x, y, normalized = x.reshape(n, c, p), y.reshape(n, c, p), normalized.reshape(n, c, p)
    for k in range(c):
        origin = float(x[0, k, 0])
        mean = 0.0
        for i in range(n):
            for j in range(p):
                mean += x[i, k, j] - origin
        mean /= n * p
        square = 0.0
        for i in range(n):
            for j in range(p):
                deviation = (x[i, k, j] - origin) - mean
                square += deviation * deviation
        scale = 1.0 / math.sqrt(square / (n * p) + eps)
        inverse[k] = scale
        for i in range(n):
            for j in range(p):
                value = ((x[i, k, j] - origin) - mean) * scale
                normalized[i, k, j] = value
                y[i, k, j] = gain[k] * value + bias[k]


@kernel("(c),(...),(c),(...)->(...),(c),(c)")
def batch_norm_pullback(gain, normalized, inverse, dy, dx, dgain, dbias, eps):
    n, c = dy.shape[0], dy.shape[1]
    p = dy.size // (n * c)
    normalized, dy, dx = normalized.reshape(n, c, p), dy.reshape(n, c, p), dx.reshape(n, c, p)
    for k in range(c):
        total = along = 0.0
        for i in range(n):
            for j in range(p):
                total += dy[i, k, j]
                along += dy[i, k, j] * normalized[i, k, j]
        dgain[k], dbias[k] = along, total
        total /= n * p
        along /= n * p
        scale = float(gain[k]) * inverse[k]
        for i in range(n):
            for j in range(p):
                dx[i, k, j] = scale * (dy[i, k, j] - total - normalized[i, k, j] * along)


@kernel("(...),(c),(c),(c),(c)->(...),(...),(c)")
def fixed_norm_forward(x, gain, bias, mean, variance, y, normalized, inverse, eps):
    n, c = x.shape[0], x.shape[1]
    p = x.size // (n * c)
    x, y, normalized = x.reshape(n, c, p), y.reshape(n, c, p), normalized.reshape(n, c, p)
    for k in range(c):
        scale = 1.0 / math.sqrt(variance[k] + eps)
        inverse[k] = scale
        for i in range(n):
            for j in range(p):
                value = (float(x[i, k, j]) - mean[k]) * scale
                normalized[i, k, j] = value
                y[i, k, j] = gain[k] * value + bias[k]


@kernel("(c),(...),(c),(...)->(...),(c),(c)")
def fixed_norm_pullback(gain, normalized, inverse, dy, dx, dgain, dbias, eps):
    n, c = dy.shape[0], dy.shape[1]
    p = dy.size // (n * c)
    normalized, dy, dx = normalized.reshape(n, c, p), dy.reshape(n, c, p), dx.reshape(n, c, p)
    for k in range(c):
        total = along = 0.0
        scale = float(gain[k]) * inverse[k]
        for i in range(n):
            for j in range(p):
                total += dy[i, k, j]
                along += dy[i, k, j] * normalized[i, k, j]
                dx[i, k, j] = scale * dy[i, k, j]
        dgain[k], dbias[k] = along, total


@jit
def _standardize(x, normalized, eps):
    """Write x̂ of contiguous values x (m,) and return 1/σ."""
    origin = float(x[0])
    mean = 0.0
    for j in range(x.size):
        mean += x[j] - origin
    mean /= x.size
    square = 0.0
    for j in range(x.size):
        deviation = (x[j] - origin) - mean
        square += deviation * deviation
    scale = 1.0 / math.sqrt(square / x.size + eps)
    for j in range(x.size):
        normalized[j] = ((x[j] - origin) - mean) * scale
    return scale


@kernel("(...),(d),(d)->(...),(...),(r)")
def layer_norm_forward(x, gain, bias, y, normalized, inverse, eps):
    r, d = inverse.size, gain.size
    x, y, normalized = x.reshape(r, d), y.reshape(r, d), normalized.reshape(r, d)
    for i in range(r):
        inverse[i] = _standardize(x[i], normalized[i], eps)
        for j in range(d):
            y[i, j] = gain[j] * normalized[i, j] + bias[j]


@kernel("(d),(...),(r),(...)->(...),(d),(d)", reassociate=True)
def layer_norm_pullback(gain, normalized, inverse, dy, dx, dgain, dbias, eps):
    r, d = inverse.size, gain.size
    normalized, dy, dx = normalized.reshape(r, d), dy.reshape(r, d), dx.reshape(r, d)
    for j in range(d):
        dgain[j] = dbias[j] = 0
    for i in range(r):
        total = along = 0.0
        for j in range(d):
            g = float(gain[j]) * dy[i, j]
            total += g
            along += g * normalized[i, j]
            dgain[j] += dy[i, j] * normalized[i, j]
            dbias[j] += dy[i, j]
        total /= d
        along /= d
        for j in range(d):
            g = float(gain[j]) * dy[i, j]
            dx[i, j] = inverse[i] * (g - total - normalized[i, j] * along)


@kernel("(...),(d)->(...),(...),(r)", reassociate=True)
def rms_norm_forward(x, gain, y, normalized, inverse, eps):
    r, d = inverse.size, gain.size
    x, y, normalized = x.reshape(r, d), y.reshape(r, d), normalized.reshape(r, d)
    for i in range(r):
        square = 0.0
        for j in range(d):
            square += float(x[i, j]) * x[i, j]
        scale = 1.0 / math.sqrt(square / d + eps)
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
            along += float(gain[j]) * dy[i, j] * normalized[i, j]
            dgain[j] += dy[i, j] * normalized[i, j]
        along /= d
        for j in range(d):
            dx[i, j] = inverse[i] * (float(gain[j]) * dy[i, j] - normalized[i, j] * along)


@kernel("(...),(c),(c)->(...),(...),(n,g)")
def group_norm_forward(x, gain, bias, y, normalized, inverse, eps):
    (n, groups), c = inverse.shape, gain.size
    m, p = x.size // (n * groups), x.size // (n * c)
    x, grouped = x.reshape(n, groups, m), normalized.reshape(n, groups, m)
    for i in range(n):
        for g in range(groups):
            inverse[i, g] = _standardize(x[i, g], grouped[i, g], eps)
    normalized, y = normalized.reshape(n, c, p), y.reshape(n, c, p)
    for i in range(n):
        for k in range(c):
            for j in range(p):
                y[i, k, j] = gain[k] * normalized[i, k, j] + bias[k]


@kernel("(c),(...),(n,g),(...)->(...),(c),(c)")
def group_norm_pullback(gain, normalized, inverse, dy, dx, dgain, dbias, eps):
    (n, groups), c = inverse.shape, gain.size
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
                    own_along += dy[i, k, j] * normalized[i, k, j]
                dgain[k] += own_along
                dbias[k] += own
                total += gain[k] * own
                along += gain[k] * own_along
            total /= members * p
            along /= members * p
            for k in channels:
                for j in range(p):
                    v = float(gain[k]) * dy[i, k, j]
                    dx[i, k, j] = inverse[i, g] * (v - total - normalized[i, k, j] * along)


class Normalization(Primitive):
    """What normalizations share: ``eps``, a gain that starts at 1 and a bias that starts at 0.

    Each saves ``normalized`` (x̂, shaped like x) and ``inverse`` (1/σ). ``eps`` may be 0; InputError
    where it is negative or not finite, ShapeError for an input with too few axes.
    """

    axes: str  # of the input, for messages
    trainable = True
    pullback_reads = ("gain", "normalized", "inverse")

    def __init__(self, eps: float = EPS):
        if not 0 <= eps < math.inf:
            raise InputError(f"{self.name}: eps must be a finite number, at least 0; got {eps}")
        self.eps = eps

    def declaration(self, shape, features: int, inverse, **targets) -> Declaration:
        """The declaration for ``features`` gains and biases and 1/σ of the shape ``inverse``."""
        return Declaration(
            output=shape,
            parameters={
                "gain": Parameter((features,), role="gain"),
                "bias": Parameter((features,), role="bias", factor=0.0),
                **{name: Parameter(target, role="target") for name, target in targets.items()},
            },
            saved={"normalized": shape, "inverse": inverse},
            constants=(self.eps,),
        )

    def expect_axes(self, shape) -> None:
        """Raise ShapeError for fewer than two axes."""
        if len(shape) < 2:
            raise ShapeError(f"{self.name}: input must have axes {self.axes}; got shape {shape}")


class BatchNorm(Normalization):
    """Each channel of (n, c) or (n, c, ...) normalized over the batch and all positions.

    In training the batch's own statistics couple its examples: the gradient of one example does not
    exist by itself. With ``training=False`` they are the parameters ``mean`` and ``variance`` (c,)
    of role ``target``, and the layer is affine. ShapeError for a batch with one value per channel.
    """

    name = "batch_norm"
    axes = "(batch, channels, ...)"

    def __init__(self, training: bool = True, eps: float = EPS):
        super().__init__(eps)
        self.training = self.couples_examples = training
        self.forward_kernel = batch_norm_forward if training else fixed_norm_forward
        self.pullback_kernel = batch_norm_pullback if training else fixed_norm_pullback

    def shapes(self, shape):
        self.expect_axes(shape)
        c = shape[1]
        values = math.prod(shape) // c
        if not self.training:
            return self.declaration(shape, c, (c,), mean=(c,), variance=(c,))
        if values < 2:
            raise ShapeError(
                f"batch_norm: a training batch must have at least 2 values per channel; "
                f"got {values} (shape {shape})"
            )
        return self.declaration(shape, c, (c,))


class LayerNorm(Normalization):
    """Every vector along the last axis of (n, ..., d) normalized by itself."""

    name = "layer_norm"
    axes = "(batch, ..., features)"
    forward_kernel, pullback_kernel = layer_norm_forward, layer_norm_pullback

    def shapes(self, shape):
        self.expect_axes(shape)
        return self.declaration(shape, shape[-1], (math.prod(shape[:-1]),))


class RMSNorm(Normalization):
    """y = gain · x / √(mean x² + eps) along the last axis of (n, ..., d); there is no bias."""

    name = "rms_norm"
    axes = "(batch, ..., features)"
    forward_kernel, pullback_kernel = rms_norm_forward, rms_norm_pullback

    def shapes(self, shape):
        self.expect_axes(shape)
        whole = self.declaration(shape, shape[-1], (math.prod(shape[:-1]),))
        return replace(whole, parameters={"gain": whole.parameters["gain"]})


class GroupNorm(Normalization):
    """Each of ``groups`` groups of channels of (n, c, ...) normalized with all its positions.

    Groups are of successive channels. InputError for ``groups`` below 1, ShapeError where they do
    not divide the channels.
    """

    name = "group_norm"
    axes = "(batch, channels, ...)"
    forward_kernel, pullback_kernel = group_norm_forward, group_norm_pullback

    def __init__(self, groups: int, eps: float = EPS):
        super().__init__(eps)
        if groups < 1:
            raise InputError(f"group_norm: groups must be at least 1; got {groups}")
        self.groups = groups

    def shapes(self, shape):
        self.expect_axes(shape)
        n, c = shape[:2]
        if c % self.groups:
            raise ShapeError(f"group_norm: groups must divide the {c} channels; got {self.groups}")
        return self.declaration(shape, c, (n, self.groups))
