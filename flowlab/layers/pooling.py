"""Pooling over positions, and flattening: layers without parameters between convolution and linear.

Windows that would leave the input are dropped, as PyTorch does by default.
"""

import math
from dataclasses import replace

import numpy as np

from flowlab.errors import InputError
from flowlab.kernel import ShapeError, kernel
from flowlab.layer import WHOLE, Declaration, Primitive

# Loops run along rows of windows, one place of all windows after another: within a window the
# processor would guess a branch for each value, and guess wrong.


@kernel("(n,c,h,w)->(n,c,p,q),(n,c,p,q)")
def max_pool_forward(x, y, offset, size, stride):
    n, c, h, w = x.shape
    p, q = y.shape[2:]
    x, y, offset = x.reshape(n * c, h, w), y.reshape(n * c, p, q), offset.reshape(n * c, p, q)
    for k in range(n * c):
        for i in range(p):
            for j in range(q):
                y[k, i, j], offset[k, i, j] = x[k, i * stride, j * stride], 0
            for u in range(size):
                for v in range(size):
                    here = offset.dtype.type(u * w + v)
                    for j in range(q):
                        value, top = x[k, i * stride + u, j * stride + v], y[k, i, j]
                        before = offset[k, i, j]
                        offset[k, i, j] = here if value > top or np.isnan(value) else before
                    for j in range(q):
                        value, top = x[k, i * stride + u, j * stride + v], y[k, i, j]
                        y[k, i, j] = value if value > top or np.isnan(value) else top


@kernel("(n,c,p,q),(n,c,p,q)->(n,c,h,w)")
def max_pool_pullback(offset, dy, dx, size, stride):
    n, c, h, w = dx.shape
    p, q = dy.shape[2:]
    dx, dy, offset = dx.reshape(n * c, h * w), dy.reshape(n * c, p, q), offset.reshape(n * c, p, q)
    for k in range(n * c):
        dx[k] = 0
        for i in range(p):
            for j in range(q):
                dx[k, (i * w + j) * stride + int(offset[k, i, j])] += dy[k, i, j]


@kernel("(n,c,h,w)->(n,c,p,q)")
def average_pool_forward(x, y, size, stride):
    n, c, h, w = x.shape
    p, q = y.shape[2:]
    x, y = x.reshape(n * c, h, w), y.reshape(n * c, p, q)
    for k in range(n * c):
        for i in range(p):
            y[k, i] = 0
            for u in range(i * stride, i * stride + size):
                for v in range(size):
                    for j in range(q):
                        y[k, i, j] += x[k, u, j * stride + v]
            for j in range(q):
                y[k, i, j] /= size * size


@kernel("(n,c,p,q)->(n,c,h,w)")
def average_pool_pullback(dy, dx, size, stride):
    n, c, h, w = dx.shape
    p, q = dy.shape[2:]
    dx, dy = dx.reshape(n * c, h, w), dy.reshape(n * c, p, q)
    share = dy.dtype.type(1 / (size * size))
    for k in range(n * c):
        dx[k] = 0
        for i in range(p):
            for u in range(i * stride, i * stride + size):
                for v in range(size):
                    for j in range(q):
                        dx[k, u, j * stride + v] += share * dy[k, i, j]


@kernel("(...)->(n,c)", reassociate=True)
def global_average_forward(x, y):
    positions = x.reshape(y.size, x.size // y.size)
    means = y.reshape(y.size)
    for k in range(means.size):
        total = 0.0
        for p in range(positions.shape[1]):
            total += positions[k, p]
        means[k] = total / positions.shape[1]


@kernel("(n,c)->(...)")
def global_average_pullback(dy, dx):
    positions = dx.reshape(dy.size, dx.size // dy.size)
    given = dy.reshape(dy.size)
    for k in range(given.size):
        for p in range(positions.shape[1]):
            positions[k, p] = given[k] / positions.shape[1]


@kernel("(n,t,d)->(n,d)")
def token_mean_forward(x, y):
    for n in range(y.shape[0]):
        for i in range(y.shape[1]):
            y[n, i] = 0
        for t in range(x.shape[1]):
            for i in range(y.shape[1]):
                y[n, i] += x[n, t, i]
        for i in range(y.shape[1]):
            y[n, i] /= x.shape[1]


@kernel("(n,d)->(n,t,d)")
def token_mean_pullback(dy, dx):
    for n in range(dy.shape[0]):
        for t in range(dx.shape[1]):
            for i in range(dy.shape[1]):
                dx[n, t, i] = dy[n, i] / dx.shape[1]


@kernel("(...)->(n,features)")
def flatten_forward(x, y):
    x, y = x.reshape(x.size), y.reshape(y.size)
    for i in range(x.size):
        y[i] = x[i]


@kernel("(n,features)->(...)")
def flatten_pullback(dy, dx):
    dy, dx = dy.reshape(dy.size), dx.reshape(dx.size)
    for i in range(dy.size):
        dx[i] = dy[i]


class Pool2d(Primitive):
    """What pooling of X (n, c, h, w) by square windows shares; the stride is the window's size,
    unless given.

    Raises InputError for a size or stride below 1, ShapeError for an input with other axes or
    smaller than a window.
    """

    homogeneous = True

    def __init__(self, kernel_size: int, stride: int | None = None):
        self.kernel_size, self.stride = kernel_size, kernel_size if stride is None else stride
        for name in ("kernel_size", "stride"):
            if vars(self)[name] < 1:
                raise InputError(f"{self.name}: {name} must be at least 1; got {vars(self)[name]}")

    def shapes(self, shape):
        if len(shape) != 4:
            raise ShapeError(
                f"{self.name}: input must have axes (batch, channels, height, width); "
                f"got shape {shape}"
            )
        size, stride = self.kernel_size, self.stride
        for axis, length in zip(("height", "width"), shape[2:], strict=True):
            if size > length:
                raise ShapeError(
                    f"{self.name}: kernel_size must be at most the input's {axis}, {length}; "
                    f"got {size}"
                )
        positions = [(length - size) // stride + 1 for length in shape[2:]]
        return Declaration(output=(*shape[:2], *positions), constants=(size, stride))


class MaxPool2d(Pool2d):
    """The maximum of each window; all its gradient goes to the first maximum in scan order.

    A window with NaN gives NaN, and its gradient goes to the last of them. What is saved is each
    maximum's ``offset`` from its window's first value, in the order of the image's values.
    """

    name = "max_pool2d"
    forward_kernel, pullback_kernel = max_pool_forward, max_pool_pullback
    pullback_reads = ("offset",)

    def shapes(self, shape):
        declared = super().shapes(shape)
        cells = (self.kernel_size - 1) * shape[3] + self.kernel_size
        if cells > WHOLE:
            raise ShapeError(
                f"{self.name}: a window must lie within {WHOLE} successive values of its image, "
                f"whose numbers float32 can hold; got {cells}"
            )
        return replace(declared, saved={"offset": declared.output})


class AvgPool2d(Pool2d):
    """The mean of each window; its gradient is shared out evenly."""

    name = "avg_pool2d"
    forward_kernel, pullback_kernel = average_pool_forward, average_pool_pullback
    pullback_reads = ()


class GlobalAveragePool(Primitive):
    """The mean over positions, (n, c, ...) -> (n, c); ShapeError for an input without positions."""

    name = "global_average_pool"
    homogeneous = True
    forward_kernel, pullback_kernel = global_average_forward, global_average_pullback
    pullback_reads = ()

    def shapes(self, shape):
        if len(shape) < 3:
            raise ShapeError(
                f"{self.name}: input must have axes (batch, channels, positions, ...); "
                f"got shape {shape}"
            )
        return Declaration(output=shape[:2])


class TokenMean(Primitive):
    """The mean over tokens, (n, t, d) -> (n, d); ShapeError for an input without tokens."""

    name = "token_mean"
    homogeneous = True
    forward_kernel, pullback_kernel = token_mean_forward, token_mean_pullback
    pullback_reads = ()

    def shapes(self, shape):
        if len(shape) != 3:
            raise ShapeError(
                f"{self.name}: input must have axes (batch, tokens, features); got shape {shape}"
            )
        return Declaration(output=(shape[0], shape[2]))


class Flatten(Primitive):
    """(n, ...) -> (n, features), a copy; ShapeError for an input without a batch."""

    name = "flatten"
    homogeneous = True
    forward_kernel, pullback_kernel = flatten_forward, flatten_pullback
    pullback_reads = ()

    def shapes(self, shape):
        if len(shape) < 1:
            raise ShapeError(f"{self.name}: input must have axes (batch, ...); got shape {shape}")
        return Declaration(output=(shape[0], math.prod(shape[1:])))
