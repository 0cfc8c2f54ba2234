"""Element-wise activations y = φ(z) and their adjoints dz = φ'(z) dy.

Conventions are PyTorch's: φ'(0) = 0 for ReLU, leaky slope 0.01, SELU's constants, exact GELU.
Transcendental functions are computed in the array's type, to a few units in the last place.
"""

import math
from collections.abc import Callable
from inspect import isfunction
from types import CellType, FunctionType

from flowlab.errors import unknown
from flowlab.kernel import Kernel, jit, kernel
from flowlab.layer import Declaration, Primitive
from flowlab.numerics.elementary import (
    clipped,
    erfcx,
    exp,
    exp_times,
    expm1,
    gaussian_times,
    like,
    log1p,
    sech2_times,
    sigmoid,
    sigmoid_slope_times,
    sigmoid_times,
    tanh,
)

LEAKY_SLOPE = 0.01
# Klambauer et al. 2017, eq. 14: the fixed point (0, 1) of the mean and variance map.
SELU_ALPHA = 1.6732632423543772848170429916717
SELU_SCALE = 1.0507009873554804934193349852946
_SQRT_HALF = math.sqrt(0.5)
_INV_SQRT_2PI = 1.0 / math.sqrt(2.0 * math.pi)
_TWO_OVER_SQRT_PI = 2.0 / math.sqrt(math.pi)


# Where φ(kz) = kφ(z) for k > 0, y has the sign of z, and pullbacks read y: z need not be kept.


@kernel("...->...")
def identity_forward(z):
    return z


@kernel("...,...->...")
def identity_pullback(y, dy):
    return dy


@kernel("...->...")
def relu_forward(z):
    return z if not z <= 0 else 0.0


@kernel("...,...->...")
def relu_pullback(y, dy):
    return dy if y > 0 else 0.0


@kernel("...->...")
def leaky_relu_forward(z):
    return z if z > 0 else LEAKY_SLOPE * z


@kernel("...,...->...")
def leaky_relu_pullback(y, dy):
    return dy if y > 0 else LEAKY_SLOPE * dy


@kernel("...->...")
def tanh_forward(z):
    return tanh(z)


@kernel("...,...->...")
def tanh_pullback(z, dy):
    return sech2_times(z, dy)


@kernel("...->...")
def sigmoid_forward(z):
    return sigmoid(z)


@kernel("...,...->...")
def sigmoid_pullback(z, dy):
    return sigmoid_slope_times(z, dy)


@kernel("...->...")
def erf_forward(z):
    return math.erf(z)


@kernel("...,...->...")
def erf_pullback(z, dy):
    return gaussian_times(z, 1.0, like(z, _TWO_OVER_SQRT_PI) * dy)


# Some kernels have loops of their own: LLVM does not inline a long function into the loop of a map,
# which then would not become SIMD.


@kernel("(...)->(...)")
def gelu_forward(z, y):
    z, y = z.reshape(z.size), y.reshape(y.size)
    for k in range(y.size):
        v = z[k]
        a = clipped(v)
        tail = gaussian_times(a, 0.5, like(v, 0.5) * a * erfcx(like(v, _SQRT_HALF) * a))
        # A product: the value at -inf is NaN, as in PyTorch.
        y[k] = v * like(v, v > 0) - tail


@kernel("(...),(...)->(...)")
def gelu_pullback(z, dy, dz):
    z, dy, dz = z.reshape(z.size), dy.reshape(dy.size), dz.reshape(dz.size)
    for k in range(dz.size):
        v = z[k]
        a = clipped(v)
        factor = like(v, 0.5) * erfcx(like(v, _SQRT_HALF) * a) - like(v, _INV_SQRT_2PI) * a
        tail = gaussian_times(a, 0.5, factor * dy[k])
        dz[k] = dy[k] - tail if v > 0 else tail


@kernel("...->...")
def silu_forward(z):
    return sigmoid_times(z, z)


@kernel("(...),(...)->(...)")
def silu_pullback(z, dy, dz):
    z, dy, dz = z.reshape(z.size), dy.reshape(dy.size), dz.reshape(dz.size)
    for k in range(dz.size):
        dz[k] = sigmoid_times(z[k], (like(z[k], 1) + sigmoid_times(-z[k], z[k])) * dy[k])


@kernel("...->...")
def selu_forward(z):
    return like(z, SELU_SCALE) * z if z > 0 else like(z, SELU_SCALE * SELU_ALPHA) * expm1(z)


@kernel("...,...->...")
def selu_pullback(z, dy):
    dy = like(z, SELU_SCALE) * dy
    return dy if z > 0 else exp_times(z, like(z, SELU_ALPHA) * dy)


@kernel("...->...")
def elu_forward(z):
    return z if z > 0 else expm1(z)


@kernel("...,...->...")
def elu_pullback(z, dy):
    return dy if z > 0 else exp_times(z, dy)


@kernel("(...)->(...)")
def softplus_forward(z, y):
    z, y = z.reshape(z.size), y.reshape(y.size)
    for k in range(y.size):
        y[k] = max(z[k], like(z[k], 0)) + log1p(exp(-abs(z[k])))


@kernel("...,...->...")
def softplus_pullback(z, dy):
    return sigmoid_times(z, dy)


ACTIVATIONS: dict[str, tuple[Kernel, Kernel]] = {
    "identity": (identity_forward, identity_pullback),
    "relu": (relu_forward, relu_pullback),
    "leaky_relu": (leaky_relu_forward, leaky_relu_pullback),
    "tanh": (tanh_forward, tanh_pullback),
    "sigmoid": (sigmoid_forward, sigmoid_pullback),
    "erf": (erf_forward, erf_pullback),
    "gelu": (gelu_forward, gelu_pullback),
    "silu": (silu_forward, silu_pullback),
    "selu": (selu_forward, selu_pullback),
    "elu": (elu_forward, elu_pullback),
    "softplus": (softplus_forward, softplus_pullback),
}
# Of activations that a user has registered, digests of their values.
REGISTERED_ACTIVATIONS: dict[str, str] = {}
_HOMOGENEOUS = {"identity", "relu", "leaky_relu"}
_KINKED = ("relu", "leaky_relu", "selu")  # slopes jump at 0


def _compiled(function: Callable) -> Callable:
    """A function as kernels call it, together with the plain functions that it calls."""
    if not isfunction(function):
        return function
    code, around = function.__code__, dict(function.__globals__)
    for name in code.co_names:
        if isfunction(around.get(name)) and around[name] is not function:
            around[name] = _compiled(around[name])
    cells = tuple(CellType(_compiled(cell.cell_contents)) for cell in function.__closure__ or ())
    copy = FunctionType(code, around, function.__name__, function.__defaults__, cells)
    return jit(copy)


def kernels(f: Callable, df: Callable) -> tuple[Kernel, Kernel]:
    """The kernels of an activation ``f`` of one number and of its derivative ``df``.

    Both are compiled at their first use, in each process anew.
    """
    f, df = _compiled(f), _compiled(df)

    @kernel("...->...")
    def forward(z):
        return f(z)

    @kernel("...,...->...")
    def pullback(z, dy):
        return df(z) * dy

    return forward, pullback


class Activation(Primitive):
    """y = φ(z) for a named φ, any shape; raises InputError for an unknown name."""

    def __init__(self, name: str):
        if name not in ACTIVATIONS:
            raise unknown("activation", name, ACTIVATIONS)
        self.name = name
        self.homogeneous, self.kinked = name in _HOMOGENEOUS, name in _KINKED
        if self.homogeneous:
            self.pullback_reads = ("y",)
        self.saturates = not (self.homogeneous or self.kinked)
        if name in REGISTERED_ACTIVATIONS:  # of its slopes nothing is known
            self.kinked = self.saturates = True
            self.digest = REGISTERED_ACTIVATIONS[name]
        self.forward_kernel, self.pullback_kernel = ACTIVATIONS[name]

    def shapes(self, shape):
        return Declaration(output=shape)
