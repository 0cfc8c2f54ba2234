"""Convolution in one and two dimensions, and its adjoint.

y[o, p] = b[o] + Σ_{c,k} W[o, c, k] x[c, s p + d k − padding] with stride s and dilation d: what
PyTorch and JAX call a convolution, a correlation in mathematics. One example at a time, the patches
that the kernel sees are the columns of a matrix X (c k, positions), so that Y = WX, dW = dY Xᵀ and
dX = Wᵀ dY, whose columns are added back where they came from (Chellapilla et al. 2006). The columns
are formed again in the pullback: keeping them would take k² times the memory of the input.
"""

import math

import numpy as np

from flowlab.errors import InputError, unknown
from flowlab.kernel import Kernel, ShapeError, jit, kernel
from flowlab.layer import Declaration, Parameter, Primitive
from flowlab.scale import exponent

PADDING_MODES = ("zeros", "circular")


@jit
def _source(i, padding, length, circular):
    """Where element i of a padded axis comes from; -1 is a zero."""
    i -= padding
    if circular:
        return i % length
    return i if 0 <= i < length else -1


@jit
def _pad(x, padded, geometry):
    """(c, h, w) -> (c, h + 2 up, w + 2 side)."""
    _, _, up, side, _, _, circular = geometry
    h, w = x.shape[1:]
    for c in range(padded.shape[0]):
        for i in range(padded.shape[1]):
            row, target = _source(i, up, h, circular), padded[c, i]
            if row < 0:
                target.fill(0)
                continue
            for j in range(w):
                target[side + j] = x[c, row, j]
            for k in range(2 * side):
                j = k if k < side else w + k
                column = _source(j, side, w, circular)
                target[j] = x[c, row, column] if column >= 0 else 0


@jit
def _unpad(padded, dx, geometry):
    """The adjoint of ``_pad``."""
    _, _, up, side, _, _, circular = geometry
    h, w = dx.shape[1:]
    dx.fill(0)
    for c in range(padded.shape[0]):
        for i in range(padded.shape[1]):
            row = _source(i, up, h, circular)
            if row < 0:
                continue
            target, source = dx[c, row], padded[c, i]
            for j in range(w):
                target[j] += source[side + j]
            if circular:
                for k in range(2 * side):
                    j = k if k < side else w + k
                    target[_source(j, side, w, circular)] += source[j]


@jit
def _unfold(padded, columns, geometry):
    """The patches of a padded example, (c kh kw, oh, ow)."""
    kh, kw, _, _, stride, dilation, _ = geometry
    for r in range(columns.shape[0]):
        c, k = divmod(r, kh * kw)
        a, b = divmod(k, kw)
        for i in range(columns.shape[1]):
            source, target = padded[c, i * stride + a * dilation, b * dilation :], columns[r, i]
            if stride == 1:
                for j in range(target.size):
                    target[j] = source[j]
            else:
                for j in range(target.size):
                    target[j] = source[j * stride]


@jit
def _fold(columns, padded, geometry):
    """The adjoint of ``_unfold``: patches are added where they came from."""
    kh, kw, _, _, stride, dilation, _ = geometry
    padded.fill(0)
    for r in range(columns.shape[0]):
        c, k = divmod(r, kh * kw)
        a, b = divmod(k, kw)
        for i in range(columns.shape[1]):
            target, source = padded[c, i * stride + a * dilation, b * dilation :], columns[r, i]
            if stride == 1:
                for j in range(source.size):
                    target[j] += source[j]
            else:
                for j in range(source.size):
                    target[j * stride] += source[j]


@jit
def _weight_gradient(dy, columns, product):
    """One example's dW (o, c kh kw of a group) from dY (o, positions) and its columns."""
    rows = product.shape[1]
    groups = columns.shape[0] // rows
    o = product.shape[0] // groups
    for g in range(groups):
        own = slice(g * o, (g + 1) * o)
        np.dot(dy[own], columns[g * rows : (g + 1) * rows].T, product[own])


@kernel("(n,c,h,w),(o,g,k,l),(o)->(n,o,p,q),(c,u,v),(r,p,q),(o,s)")
def conv2d_forward(x, W, b, y, padded, columns, product, geometry):
    rows = product.shape[1]
    groups = columns.shape[0] // rows
    o = b.size // groups
    taps = W.reshape(product.shape)
    flat = columns.reshape(columns.shape[0], columns[0].size)
    for n in range(x.shape[0]):
        _pad(x[n], padded, geometry)
        _unfold(padded, columns, geometry)
        z = y[n].reshape(b.size, flat.shape[1])
        for g in range(groups):
            own = slice(g * o, (g + 1) * o)
            np.dot(taps[own], flat[g * rows : (g + 1) * rows], z[own])
        for k in range(b.size):
            for p in range(z.shape[1]):
                z[k, p] += b[k]


@kernel(
    "(n,c,h,w),(o,g,k,l),(n,o,p,q)->(n,c,h,w),(o,g,k,l),(o),(c,u,v),(r,p,q),(o,s)",
    reassociate=True,
)
def conv2d_pullback(x, W, dy, dx, dW, db, padded, columns, product, geometry):
    rows = product.shape[1]
    groups = columns.shape[0] // rows
    o = db.size // groups
    taps, total = W.reshape(product.shape), dW.reshape(product.shape)
    flat = columns.reshape(columns.shape[0], columns[0].size)
    total.fill(0)
    for n in range(x.shape[0]):
        d = dy[n].reshape(db.size, flat.shape[1])
        _pad(x[n], padded, geometry)
        _unfold(padded, columns, geometry)
        _weight_gradient(d, flat, product)
        for k in range(product.shape[0]):
            for r in range(rows):
                total[k, r] += product[k, r]
        for g in range(groups):
            own = slice(g * o, (g + 1) * o)
            np.dot(taps[own].T, d[own], flat[g * rows : (g + 1) * rows])
        _fold(columns, padded, geometry)
        _unpad(padded, dx[n], geometry)
    for k in range(db.size):
        bias = 0.0
        for n in range(dy.shape[0]):
            d = dy[n].reshape(db.size, flat.shape[1])
            for p in range(d.shape[1]):
                bias += d[k, p]
        db[k] = bias


@kernel("(n,c,h,w),(n,o,p,q)->(two),(c,u,v),(r,p,q),(o,p,q),(o,s)", reassociate=True)
def conv2d_example_norms(x, dy, out, padded, columns, scaled, product, geometry):
    # Powers of two keep squares within the float range, and cost no accuracy.
    e_x, e_dy = exponent(x), exponent(dy)
    down_x, down_dy = math.ldexp(1.0, -e_x), math.ldexp(1.0, -e_dy)
    flat = columns.reshape(columns.shape[0], columns[0].size)
    d = scaled.reshape(scaled.shape[0], flat.shape[1])
    weight = bias = 0.0
    for n in range(x.shape[0]):
        _pad(x[n], padded, geometry)
        elements = padded.reshape(padded.size)
        for i in range(elements.size):
            elements[i] = down_x * elements[i]
        _unfold(padded, columns, geometry)
        given = dy[n].reshape(d.shape)
        for k in range(d.shape[0]):
            total = 0.0
            for p in range(d.shape[1]):
                d[k, p] = down_dy * given[k, p]
                total += d[k, p]
            bias += total * total
        _weight_gradient(d, flat, product)
        for k in range(product.shape[0]):
            for r in range(product.shape[1]):
                weight += float(product[k, r]) * float(product[k, r])
    out[0] = 0.5 * np.log2(weight) + e_x + e_dy
    out[1] = 0.5 * np.log2(bias) + e_dy


# In one dimension the height is 1; buffers have that axis already.
_forward, _pullback = conv2d_forward.single, conv2d_pullback.single
_example_norms = conv2d_example_norms.single


@jit
def _high(a):
    """(n, c, t) as (n, c, 1, t)."""
    return a.reshape(a.shape[0], a.shape[1], 1, a.shape[2])


@kernel("(n,c,t),(o,g,k),(o)->(n,o,p),(c,u,v),(r,one,p),(o,s)")
def conv1d_forward(x, W, b, y, padded, columns, product, geometry):
    _forward(_high(x), _high(W), b, _high(y), padded, columns, product, geometry)


@kernel("(n,c,t),(o,g,k),(n,o,p)->(n,c,t),(o,g,k),(o),(c,u,v),(r,one,p),(o,s)")
def conv1d_pullback(x, W, dy, dx, dW, db, padded, columns, product, geometry):
    x, W, dy, dx, dW = _high(x), _high(W), _high(dy), _high(dx), _high(dW)
    _pullback(x, W, dy, dx, dW, db, padded, columns, product, geometry)


@kernel("(n,c,t),(n,o,p)->(two),(c,u,v),(r,one,p),(o,one,p),(o,s)")
def conv1d_example_norms(x, dy, out, padded, columns, scaled, product, geometry):
    _example_norms(_high(x), _high(dy), out, padded, columns, scaled, product, geometry)


class Convolution(Primitive):
    """What convolutions over one or two axes share; ``axes`` names them.

    ``padding`` elements are added at both ends of each axis: zeros, or with ``circular`` the
    opposite end's. W is (features, channels / groups, kernel_size, ...), b (features,), and a
    group's features see its own channels only. Defaults are PyTorch's. ``factor`` scales the
    initial weights.

    Raises InputError for numbers out of range and groups that do not divide the features,
    ShapeError for an input with other axes, groups that do not divide the channels, or a kernel
    larger than the padded input.
    """

    axes: tuple[str, ...]
    norms_kernel: Kernel
    homogeneous = True
    trainable = True
    pullback_reads = ("x", "W")

    def __init__(
        self,
        features: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        factor: float = 1.0,
    ):
        self.features, self.kernel_size, self.stride = features, kernel_size, stride
        self.padding, self.dilation, self.groups = padding, dilation, groups
        self.padding_mode, self.factor = padding_mode, factor
        for name in ("features", "kernel_size", "stride", "dilation", "groups"):
            if getattr(self, name) < 1:
                raise InputError(f"{self.name}: {name} must be at least 1; got {vars(self)[name]}")
        if padding < 0:
            raise InputError(f"{self.name}: padding must be at least 0; got {padding}")
        if padding_mode not in PADDING_MODES:
            raise unknown(f"{self.name}: padding_mode", padding_mode, PADDING_MODES)
        if features % groups:
            raise InputError(
                f"{self.name}: groups must divide features; got {groups} groups of {features}"
            )

    def shapes(self, shape):
        wanted = ("batch", "channels", *self.axes)
        if len(shape) != len(wanted):
            raise ShapeError(
                f"{self.name}: input must have axes ({', '.join(wanted)}); got shape {shape}"
            )
        n, c, *lengths = shape
        if c % self.groups:
            raise ShapeError(
                f"{self.name}: groups must divide the input's channels; "
                f"got {self.groups} groups of {c}"
            )
        span = self.dilation * (self.kernel_size - 1) + 1
        for axis, length in zip(self.axes, lengths, strict=True):
            if span > length + 2 * self.padding:
                raise ShapeError(
                    f"{self.name}: the kernel's extent must be at most the padded {axis}, "
                    f"{length + 2 * self.padding}; got {span}"
                )
        o, k, p = self.features, self.kernel_size, self.padding
        positions = [(length + 2 * p - span) // self.stride + 1 for length in lengths]
        W = (o, c // self.groups, *[k] * len(self.axes))
        taps = math.prod(W[2:])
        fans = {"fan_in": W[1] * taps, "fan_out": o // self.groups * taps, "factor": self.factor}
        # The first axis of buffers and numbers is the height, of which one dimension has 1.
        flat = [1] * (2 - len(self.axes))
        both = [*flat, *positions]
        circular = self.padding_mode == "circular"
        geometry = (*flat, *W[2:], *[0] * len(flat), *[p] * len(self.axes))
        return Declaration(
            output=(n, o, *positions),
            parameters={"W": Parameter(W, **fans), "b": Parameter((o,), role="bias", **fans)},
            scratch={
                "padded": (c, *flat, *[length + 2 * p for length in lengths]),
                "columns": (c * taps, *both),
                "product": (o, W[1] * taps),
            },
            constants=((*geometry, self.stride, self.dilation, int(circular)),),
        )

    @property
    def example_norms(self):
        """Of each example's dW and db, summed over positions."""
        return ExampleNorms(self)


class ExampleNorms:
    """A convolution's kernel for norms of examples, with the buffers that it needs."""

    def __init__(self, layer: Convolution):
        self.layer = layer

    def run(self, x: np.ndarray, dy: np.ndarray, out: np.ndarray) -> None:
        """log2 √Σ_n ‖g_n‖² of dW and db into ``out`` (seeds, 2)."""
        declaration = self.layer.declare(x.shape[1:])
        padded, columns, product = declaration.scratch.values()
        shapes = (padded, columns, (dy.shape[2], *columns[1:]), product)
        buffers = [np.empty((len(x), *shape), x.dtype) for shape in shapes]
        self.layer.norms_kernel.run(x, dy, out, *buffers, *declaration.constants)


class Conv1d(Convolution):
    """Convolution of X (n, c, t); see :class:`Convolution`."""

    name = "conv1d"
    axes = ("length",)
    forward_kernel, pullback_kernel = conv1d_forward, conv1d_pullback
    norms_kernel = conv1d_example_norms


class Conv2d(Convolution):
    """Convolution of X (n, c, h, w); see :class:`Convolution`."""

    name = "conv2d"
    axes = ("height", "width")
    forward_kernel, pullback_kernel = conv2d_forward, conv2d_pullback
    norms_kernel = conv2d_example_norms
