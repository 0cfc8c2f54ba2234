"""Convolution in one and two dimensions, and its adjoint.

y[o, p] = b[o] + Σ_{c,k} W[o, c, k] x[c, s p + d k − padding] with stride s and dilation d: what
PyTorch and JAX call a convolution, a correlation in mathematics.

A padded example X is stored with its residues modulo the stride apart, so that each tap r = (c, k)
reads one contiguous stretch for all positions p, numbered along the rows: X[start_r + p]. Then
Y_o[p] = Σ_r W_or X[start_r + p] and dW_or = Σ_p dY_o[p] X[start_r + p] need no matrix of patches,
and dX_c[q] = Σ_{o,k} W_ock dY_o[q − offset_k], over the taps k that meet q's residue, is a sum like
Y's. Positions beyond the end of a row are dropped from Y, and dY is 0 there. Sums are formed in
registers, a tile of rows and stretches at a time (Goto and van de Geijn 2008).
"""

import math
from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from flowlab import vectors
from flowlab.errors import InputError, unknown
from flowlab.kernel import Kernel, ShapeError, jit, kernel
from flowlab.layer import Declaration, Parameter, Primitive
from flowlab.numba_private import cgutils
from flowlab.numerics.scale import exponent

PADDING_MODES = ("zeros", "circular")
# Of a tile: rows, columns in vectors, and a vector's bytes. Its twelve sums and their factors fill
# the sixteen registers of AVX2.
_ROWS, _COLUMNS, _BYTES = 4, 3, vectors.width() // 8
_WIDTH = _COLUMNS * _BYTES // 4  # elements at most


# --- tiles, in LLVM's terms ---------------------------------------------------------------------


def _row(builder, array, k):
    """The address of a matrix's row k, or of its last where k lies beyond."""
    last = builder.sub(cgutils.unpack_tuple(builder, array.shape)[0], k.type(1))
    k = builder.select(builder.icmp_signed("<", k, last), k, last)
    stride = cgutils.unpack_tuple(builder, array.strides)[0]
    return cgutils.pointer_add(builder, array.data, builder.mul(k, stride))


def _element(builder, pointer, k):
    return builder.gep(pointer, [k])


def _vector(builder, pointer, vector):
    """The address as that of a vector."""
    return builder.bitcast(pointer, vector.as_pointer())


def _broadcast(builder, value, vector):
    undefined, index = ir.Constant(vector, ir.Undefined), ir.IntType(32)
    first = builder.insert_element(undefined, value, index(0))
    zeros = ir.Constant(ir.VectorType(index, vector.count), [0] * vector.count)
    return builder.shuffle_vector(first, undefined, zeros)


def _sum(builder, vector):
    """The sum of a vector's elements, halves first."""
    while vector.type.count > 1:
        half = vector.type.count // 2
        kind = ir.VectorType(ir.IntType(32), half)
        low, high = (
            builder.shuffle_vector(vector, vector, ir.Constant(kind, [*range(at, at + half)]))
            for at in (0, half)
        )
        vector = builder.fadd(low, high)
    return builder.extract_element(vector, ir.IntType(32)(0))


def _products(builder, count, step, vector, left, right):
    """Σ_k left(k)[i] right(k)[j] over k = 0, step, ... < count, for each row i and column j."""
    zero = ir.Constant(vector, None)
    sums = [
        [cgutils.alloca_once_value(builder, zero) for _ in range(_COLUMNS)] for _ in range(_ROWS)
    ]
    with cgutils.for_range_slice(builder, count.type(0), count, count.type(step)) as (k, _):
        columns = right(k)
        for own, a in zip(sums, left(k), strict=True):
            for total, b in zip(own, columns, strict=True):
                product = builder.fmul(a, b, flags=("contract",))
                product = builder.fadd(builder.load(total), product, flags=("contract",))
                builder.store(product, total)
    return [[builder.load(total) for total in own] for own in sums]


def _opened(context, builder, signature, arguments):
    """Arguments, arrays as structures; and the vector that their elements are computed in."""
    opened = list(arguments)
    for k, kind in enumerate(signature.args):
        if isinstance(kind, types.Array):
            opened[k] = context.make_array(kind)(context, builder, opened[k])
    scalar = context.get_data_type(signature.args[0].dtype)
    return opened, ir.VectorType(scalar, _BYTES // context.get_abi_sizeof(scalar))


@intrinsic
def _combined_tile(typing, weights, starts, source, sums, o, p):
    """sums[o + i, p + j] = Σ_r weights[o + i, r] source[starts[r] + p + j] for a tile (i, j)."""

    def code(context, builder, signature, arguments):
        opened, vector = _opened(context, builder, signature, arguments)
        weights, starts, source, sums, o, p = opened
        size = context.get_abi_sizeof(vector.element)
        rows = [builder.add(o, o.type(i)) for i in range(_ROWS)]
        given = [_row(builder, weights, k) for k in rows]
        origin = _element(builder, source.data, p)

        def left(r):
            factors = [builder.load(_element(builder, row, r)) for row in given]
            return [_broadcast(builder, factor, vector) for factor in factors]

        def columns(at):
            places = [_element(builder, at, p.type(j * vector.count)) for j in range(_COLUMNS)]
            return [_vector(builder, place, vector) for place in places]

        def right(r):
            at = _element(builder, origin, builder.load(_element(builder, starts.data, r)))
            return [builder.load(place, align=size) for place in columns(at)]

        count = cgutils.unpack_tuple(builder, starts.shape)[0]
        for k, own in zip(rows, _products(builder, count, 1, vector, left, right), strict=True):
            target = columns(_element(builder, _row(builder, sums, k), p))
            for value, place in zip(own, target, strict=True):
                builder.store(value, place, align=size)
        return context.get_dummy_value()

    return types.void(weights, starts, source, sums, o, p), code


@intrinsic
def _correlated_tile(typing, dy, starts, source, product, o, r, length):
    """product[o + i, r + j] = Σ_p dy[o + i, p] source[starts[r + j] + p] for a tile (i, j)."""

    def code(context, builder, signature, arguments):
        opened, vector = _opened(context, builder, signature, arguments)
        dy, starts, source, product, o, r, length = opened
        size = context.get_abi_sizeof(vector.element)
        last = builder.sub(cgutils.unpack_tuple(builder, starts.shape)[0], r.type(1))
        rows, taps = (
            [builder.add(at, at.type(i)) for i in range(n)] for at, n in ((o, _ROWS), (r, _COLUMNS))
        )
        taps = [builder.select(builder.icmp_signed("<", k, last), k, last) for k in taps]
        at = [builder.load(_element(builder, starts.data, k)) for k in taps]
        at = [_element(builder, source.data, start) for start in at]
        given = [_row(builder, dy, k) for k in rows]

        def read(pointers):
            def at_position(p):
                places = [_vector(builder, _element(builder, a, p), vector) for a in pointers]
                return [builder.load(place, align=size) for place in places]

            return at_position

        sums = _products(builder, length, vector.count, vector, read(given), read(at))
        for k, own in zip(rows, sums, strict=True):
            target = _row(builder, product, k)
            for tap, value in zip(taps, own, strict=True):
                builder.store(_sum(builder, value), _element(builder, target, tap))
        return context.get_dummy_value()

    return types.void(dy, starts, source, product, o, r, length), code


@intrinsic
def _copy(typing, source, target, count):
    """target[:count] = source[:count]; loops over rows too short for vectors are slower."""

    def code(context, builder, signature, arguments):
        (source, target, count), vector = _opened(context, builder, signature, arguments)
        size = context.get_abi_sizeof(vector.element)
        cgutils.raw_memcpy(builder, target.data, source.data, count, size)
        return context.get_dummy_value()

    return types.void(source, target, count), code


@jit
def _combine(weights, starts, source, sums, length):
    """sums[o, p] = Σ_r weights[o, r] source[starts[r] + p] for p < length, and some beyond."""
    for o in range(0, len(weights), _ROWS):
        for p in range(0, length, _COLUMNS * _BYTES // source.itemsize):
            _combined_tile(weights, starts, source, sums, o, p)


@jit
def _correlate(dy, starts, source, product, length):
    """product[o, r] = Σ_p dy[o, p] source[starts[r] + p]; dy is 0 from p = length on."""
    for o in range(0, len(dy), _ROWS):
        for r in range(0, len(starts), _COLUMNS):
            _correlated_tile(dy, starts, source, product, o, r, length)


# --- padding ------------------------------------------------------------------------------------


@jit
def _source(i, padding, length, circular):
    """Where element i of a padded axis comes from; -1 is a zero."""
    i -= padding
    if circular:
        return i % length
    return i if 0 <= i < length else -1


@jit
def _inner(residue, padding, length, stride, count):
    """The range of the j < count for which element stride j + residue lies inside the padding."""
    start = -((residue - padding) // stride)
    stop = -((residue - padding - length) // stride)
    return max(0, start), max(0, min(count, stop))


@jit
def _pad(x, padded, g):
    """(c, h, w) -> (c, row residue, column residue, height, width), flat; zeros are there."""
    c, h, w = x.shape
    size = c * g.down * g.along * g.height * g.width
    planes = padded[:size].reshape(c, g.down, g.along, g.height, g.width)
    for b in range(g.along):
        start, stop = _inner(b, g.side, w, g.along, g.width)
        for k in range(c):
            for a in range(g.down):
                for i in range(g.height):
                    row = _source(i * g.down + a, g.up, h, g.circular)
                    if row < 0:
                        continue
                    target, source = planes[k, a, b, i], x[k, row]
                    if g.along == 1:
                        _copy(source, target[start:], w)
                    else:
                        for j in range(start, stop):
                            target[j] = source[j * g.along + b - g.side]
                    if g.circular:
                        for m in range(g.width - stop + start):
                            j = m if m < start else m + stop - start
                            target[j] = source[_source(j * g.along + b, g.side, w, True)]


@jit
def _unpad(sums, dx, a, b, g):
    """Adds the elements of one pair of residues to where ``_pad`` took them from."""
    h, w = dx.shape[1:]
    start, stop = _inner(b, g.side, w, g.along, g.width)
    for k in range(dx.shape[0]):
        for i in range(g.height):
            row = _source(i * g.down + a, g.up, h, g.circular)
            if row < 0:
                continue
            target, source = dx[k, row], sums[k, i * g.width : (i + 1) * g.width]
            if g.along == g.down == 1 and not g.circular:
                _copy(source[start:], target, w)
                continue
            for j in range(start, stop):
                target[j * g.along + b - g.side] += source[j]
            if g.circular:
                for m in range(g.width - stop + start):
                    j = m if m < start else m + stop - start
                    target[_source(j * g.along + b, g.side, w, True)] += source[j]


@jit
def _spread(dy, rows, width):
    """(o, p, q) -> (o, positions), numbered along rows of ``width``."""
    for k in range(dy.shape[0]):
        for i in range(dy.shape[1]):
            _copy(dy[k, i], rows[k, i * width :], dy.shape[2])


@jit
def _weight_gradient(rows, padded, product, g, reads):
    """One example's dW (o, c kh kw of a group) from dY (o, positions) and X."""
    o = len(product) // g.groups
    for group in range(g.groups):
        own = slice(group * o, (group + 1) * o)
        _correlate(rows[own], reads, padded[group * g.share :], product[own], g.positions)


# --- kernels ------------------------------------------------------------------------------------


class Geometry(NamedTuple):
    """Numbers of a convolution that its kernels read."""

    height: int  # of the padded input's rows of one residue
    width: int  # of its columns of one residue
    up: int  # padding above and below
    side: int  # padding at the left and right
    down: int  # stride from row to row
    along: int  # stride along a row
    circular: bool
    groups: int
    share: int  # elements of a group's X
    positions: int  # from the first output to the last, numbered along rows of ``width``


@kernel("(n,c,h,w),(o,g,k,l),(o)->(n,o,p,q),(e),(o,d),(m,z),(c,u),(o,r)")
def conv2d_forward(x, W, b, y, padded, spread, sums, turned, product, geometry, tables):
    g, reads = geometry, tables[0]
    o = len(b) // g.groups
    taps = W.reshape(product.shape)
    padded.fill(0)
    for n in range(len(x)):
        _pad(x[n], padded, g)
        for group in range(g.groups):
            own = slice(group * o, (group + 1) * o)
            _combine(taps[own], reads, padded[group * g.share :], sums[own], g.positions)
        z = y[n].reshape(len(b), y[n, 0].size)
        for k in range(len(b)):
            for i in range(y.shape[2]):
                _copy(sums[k, i * g.width :], y[n, k, i], y.shape[3])
            for p in range(z.shape[1]):
                z[k, p] += b[k]


@kernel(
    "(n,c,h,w),(o,g,k,l),(n,o,p,q)->(n,c,h,w),(o,g,k,l),(o),(e),(o,d),(m,z),(c,u),(o,r)",
    reassociate=True,
)
def conv2d_pullback(x, W, dy, dx, dW, db, padded, spread, sums, turned, product, geometry, tables):
    g, (reads, returns, order, ends) = geometry, tables
    c, o = W.shape[1], len(db) // g.groups
    weights, total = W.reshape(W.size), dW.reshape(product.shape)
    for k in range(len(turned)):
        first = (k // c * o * c + k % c) * W[0, 0].size
        for r in range(len(order)):
            turned[k, r] = weights[first + order[r]]
    padded.fill(0)
    spread.fill(0)
    rows, flat = spread[:, spread.shape[1] - sums.shape[1] :], spread.reshape(spread.size)
    dx.fill(0)
    total.fill(0)
    for n in range(len(x)):
        _spread(dy[n], rows, g.width)
        _pad(x[n], padded, g)
        _weight_gradient(rows, padded, product, g, reads)
        for k in range(len(product)):
            for r in range(product.shape[1]):
                total[k, r] += product[k, r]
        for residue in range(len(ends) - 1):
            a, b = divmod(residue, g.along)
            met = slice(ends[residue], ends[residue + 1])
            top, bottom = 0, g.height
            if not g.circular:
                top, bottom = _inner(a, g.up, x.shape[2], g.down, g.height)
            for group in range(g.groups):
                own = slice(group * c, (group + 1) * c)
                source = flat[group * o * spread.shape[1] + top * g.width :]
                target = sums[own, top * g.width :]
                _combine(turned[own, met], returns[met], source, target, (bottom - top) * g.width)
            _unpad(sums, dx[n], a, b, g)
    for k in range(len(db)):
        bias = 0.0
        for n in range(len(dy)):
            d = dy[n, k].reshape(dy[n, k].size)
            for p in range(len(d)):
                bias += d[p]
        db[k] = bias


@kernel("(n,c,h,w),(n,o,p,q)->(two),(e),(o,z),(o,r)", reassociate=True)
def conv2d_example_norms(x, dy, out, padded, rows, product, geometry, tables):
    # Powers of two keep squares within the float range, and cost no accuracy.
    e_x, e_dy = exponent(x), exponent(dy)
    down_x, down_dy = math.ldexp(1.0, -e_x), math.ldexp(1.0, -e_dy)
    padded.fill(0)
    rows.fill(0)
    weight = bias = 0.0
    for n in range(len(x)):
        _pad(x[n], padded, geometry)
        for i in range(len(padded)):
            padded[i] = down_x * padded[i]
        _spread(dy[n], rows, geometry.width)
        for k in range(len(rows)):
            total = 0.0
            for p in range(rows.shape[1]):
                rows[k, p] = down_dy * rows[k, p]
                total += rows[k, p]
            bias += total * total
        _weight_gradient(rows, padded, product, geometry, tables[0])
        for k in range(product.shape[0]):
            for r in range(product.shape[1]):
                weight += np.float64(product[k, r]) ** 2
    out[0] = 0.5 * np.log2(weight) + e_x + e_dy
    out[1] = 0.5 * np.log2(bias) + e_dy


# In one dimension the height is 1.
_forward, _pullback = conv2d_forward.single, conv2d_pullback.single
_example_norms = conv2d_example_norms.single


@jit
def _high(a):
    """(n, c, t) as (n, c, 1, t)."""
    return a.reshape(a.shape[0], a.shape[1], 1, a.shape[2])


@kernel("(n,c,t),(o,g,k),(o)->(n,o,p),(e),(o,d),(m,z),(c,u),(o,r)")
def conv1d_forward(x, W, b, y, padded, spread, sums, turned, product, geometry, tables):
    x, W, y = _high(x), _high(W), _high(y)
    _forward(x, W, b, y, padded, spread, sums, turned, product, geometry, tables)


@kernel("(n,c,t),(o,g,k),(n,o,p)->(n,c,t),(o,g,k),(o),(e),(o,d),(m,z),(c,u),(o,r)")
def conv1d_pullback(x, W, dy, dx, dW, db, padded, spread, sums, turned, product, geometry, tables):
    x, W, dy, dx, dW = _high(x), _high(W), _high(dy), _high(dx), _high(dW)
    _pullback(x, W, dy, dx, dW, db, padded, spread, sums, turned, product, geometry, tables)


@kernel("(n,c,t),(n,o,p)->(two),(e),(o,z),(o,r)")
def conv1d_example_norms(x, dy, out, padded, rows, product, geometry, tables):
    _example_norms(_high(x), _high(dy), out, padded, rows, product, geometry, tables)


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
        # The first axis is the height, of which one dimension has 1.
        flat = [1] * (2 - len(self.axes))
        padded = [*flat, *[length + 2 * p for length in lengths]]
        kernel, strides = [*flat, *W[2:]], [*flat, *[self.stride] * len(self.axes)]
        ends = [*flat, *positions]
        height, width = (-(-length // s) for length, s in zip(padded, strides, strict=True))
        size = height * width
        # Each tap's first element, as its residue and its place among the elements of that residue.
        first = np.indices(kernel).reshape(2, -1) * self.dilation
        (i, j), (a, b) = np.divmod(first, np.array(strides)[:, None])
        residue, place = a * strides[1] + b, i * width + j
        residues = math.prod(strides)
        reads = (np.arange(W[1])[:, None] * residues + residue) * size + place
        # Where dX's taps (feature, tap) read dY, whose rows follow a margin of zeros; by residue.
        margin, reach = int(place.max()), size + _WIDTH
        features = np.arange(o // self.groups)[:, None]
        order = np.argsort((0 * features + residue).ravel(), kind="stable")
        entries = (features * W[1] * taps + np.arange(taps)).ravel()[order]
        returns = (features * (margin + reach) + margin - place).ravel()[order]
        met = np.bincount(residue, minlength=residues) * len(features)
        geometry = Geometry(
            *(height, width, *[0] * len(flat), *[p] * len(self.axes), *strides),
            circular=self.padding_mode == "circular",
            groups=self.groups,
            share=W[1] * residues * size,
            positions=(ends[0] - 1) * width + ends[1],
        )
        return Declaration(
            output=(n, o, *positions),
            parameters={"W": Parameter(W, **fans), "b": Parameter((o,), role="bias", **fans)},
            scratch={
                "padded": (c * residues * size + _WIDTH,),
                "spread": (o, margin + reach),
                "sums": (max(c, o), reach),
                "turned": (c, len(order)),
                "product": (o, W[1] * taps),
            },
            constants=(geometry, (reads.ravel(), returns, entries, np.append(0, np.cumsum(met)))),
        )

    @property
    def example_norms(self):
        """Of each example's dW and db, summed over positions."""
        return KernelExampleNorms(self)


class KernelExampleNorms:
    """A convolution's kernel for norms of examples, with the buffers that it needs."""

    def __init__(self, layer: Convolution):
        self.layer = layer

    def run(self, x: np.ndarray, dy: np.ndarray, out: np.ndarray) -> None:
        """log2 √Σ_n ‖g_n‖² of dW and db into ``out`` (seeds, 2)."""
        declaration = self.layer.declare(x.shape[1:])
        padded, _, sums, _, product = declaration.scratch.values()
        shapes = (padded, (dy.shape[2], sums[1]), product)
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
