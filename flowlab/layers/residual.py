"""Residual blocks y = s (x + a f(x)) and the learned scale y = αx."""

import math

import numpy as np

from flowlab.kernel import ShapeError, kernel
from flowlab.layer import Declaration, Layer, Parameter, Primitive, expect_shape, held


@kernel("...,...->...")
def weighted_sum(u, v, a, b):
    return a * u + b * v


@kernel("...->...")
def multiple(u, a):
    return a * u


class Residual(Layer):
    """y = s (x + a f(x)); dx = s dy + Jᵀ(s a dy), with J the branch's Jacobian.

    ``branch`` is any layer that keeps its input's shape (ShapeError otherwise); ``a`` scales the
    branch, ``s`` the sum.
    """

    name = "residual"

    def __init__(self, branch: Layer, a: float = 1.0, s: float = 1.0):
        self.branch, self.a, self.s = branch, a, s
        self.children = (branch,)
        self.couples_examples = branch.couples_examples
        self.homogeneous, self.recorded = branch.homogeneous, branch.recorded

    def rebuilt(self, children) -> "Residual":
        """The same sum over another branch, the only one of ``children``."""
        (branch,) = children
        return Residual(branch, self.a, self.s)

    def passed(self, dy, through):
        """As `Chain.passed`, of a ``dy`` with ``times(factor)`` and ``plus(other)``."""
        return dy.times(self.s).plus(through(self.branch, dy.times(self.s * self.a)))

    def declare(self, shape):
        branch = self.branch.declare(shape)
        expect_shape("residual", "the branch's output", branch.output, shape)
        elements = branch.elements + self.branch.keeps_y * math.prod(shape)
        return Declaration(shape, branch.parameters, elements=elements)

    def forward(self, x, parameters, workspace):
        f, tape = self.branch.forward(x, parameters, workspace)
        expect_shape("residual", "the branch's output", f.shape, x.shape)
        y = workspace.take(x.shape, x.dtype)
        s, sa = x.dtype.type(self.s), x.dtype.type(self.s * self.a)
        weighted_sum.run(x, f, y, s, sa)
        if not held(f, (x, tape)):
            workspace.give(f)
        return y, tape

    def pullback(self, dy, tape, workspace, watch=None):
        s, sa = dy.dtype.type(self.s), dy.dtype.type(self.s * self.a)
        df = workspace.take(dy.shape, dy.dtype)
        multiple.run(dy, df, sa)
        through, gradients = self.branch.pullback(df, tape, workspace, watch)
        dx = workspace.take(dy.shape, dy.dtype)
        weighted_sum.run(dy, through, dx, s, dy.dtype.type(1))
        workspace.give(df)
        if through is not df:  # an empty chain hands its cotangent on
            workspace.give(through)
        if watch is not None:
            watch(self, tape, dy, dx, {})  # the branch has reported its parameters
        return dx, gradients


@kernel("(...),()->(...)")
def scale_forward(x, alpha, y):
    x, y = x.reshape(x.size), y.reshape(y.size)
    for i in range(x.size):
        y[i] = alpha * x[i]


@kernel("(...),(),(...)->(...),()", reassociate=True)
def scale_pullback(x, alpha, dy, dx, dalpha):
    x, dy, dx = x.reshape(x.size), dy.reshape(dy.size), dx.reshape(dx.size)
    total = 0.0
    for i in range(x.size):
        dx[i] = alpha * dy[i]
        total += np.float64(x[i]) * dy[i]
    dalpha[0] = total


class Scale(Primitive):
    """y = αx with one learned α, which starts at 0 (ReZero, Bachlechner et al. 2020)."""

    name = "scale"
    homogeneous = True
    trainable = True
    forward_kernel, pullback_kernel = scale_forward, scale_pullback
    pullback_reads = ("x", "alpha")

    def shapes(self, shape):
        if len(shape) < 1:
            raise ShapeError(f"scale: input must have axes (batch, ...); got shape {shape}")
        return Declaration(output=shape, parameters={"alpha": Parameter((), role="scale")})
