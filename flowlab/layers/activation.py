"""Element-wise activations y = φ(z) and their adjoints dz = φ'(z) dy.

Conventions are PyTorch's: φ'(0) = 0 for ReLU, leaky slope 0.01, SELU's constants, exact GELU.
Transcendental functions are computed in float64 and rounded once to the array's type.
"""

import math

from flowlab.elementary import (
    erfcx,
    exp,
    expm1,
    log1p,
    sech2,
    sigmoid,
    sigmoid_slope,
    tanh,
)
from flowlab.errors import unknown
from flowlab.kernel import Kernel, kernel
from flowlab.layer import Declaration, Primitive

LEAKY_SLOPE = 0.01
# Klambauer et al. 2017, eq. 14: the fixed point (0, 1) of the mean and variance map.
SELU_ALPHA = 1.6732632423543772848170429916717
SELU_SCALE = 1.0507009873554804934193349852946
_SQRT_HALF = math.sqrt(0.5)
_INV_SQRT_2PI = 1.0 / math.sqrt(2.0 * math.pi)
_TWO_OVER_SQRT_PI = 2.0 / math.sqrt(math.pi)


@kernel("...->...")
def identity_forward(z):
    return z


@kernel("...,...->...")
def identity_pullback(z, dy):
    return dy


@kernel("...->...")
def relu_forward(z):
    return z if not z <= 0 else 0.0


@kernel("...,...->...")
def relu_pullback(z, dy):
    return dy if z > 0 else 0.0


@kernel("...->...")
def leaky_relu_forward(z):
    return z if z > 0 else LEAKY_SLOPE * z


@kernel("...,...->...")
def leaky_relu_pullback(z, dy):
    return dy if z > 0 else LEAKY_SLOPE * dy


@kernel("...->...")
def tanh_forward(z):
    return tanh(z)


@kernel("...,...->...")
def tanh_pullback(z, dy):
    return sech2(z) * dy


@kernel("...->...")
def sigmoid_forward(z):
    return sigmoid(z)


@kernel("...,...->...")
def sigmoid_pullback(z, dy):
    return sigmoid_slope(z) * dy


@kernel("...->...")
def erf_forward(z):
    return math.erf(z)


@kernel("...,...->...")
def erf_pullback(z, dy):
    return _TWO_OVER_SQRT_PI * exp(-1.0 * z * z) * dy  # the square too in float64


# From here on some kernels have loops of their own: LLVM does not inline a function of several
# elementary ones into the loop of a map, which then would not become SIMD.


@kernel("(...)->(...)")
def gelu_forward(z, y):
    z, y = z.reshape(z.size), y.reshape(y.size)
    for k in range(y.size):
        v = float(z[k])
        tail = 0.5 * exp(-0.5 * v * v) * erfcx(_SQRT_HALF * abs(v))
        y[k] = v * (1.0 - tail if v > 0 else tail)


@kernel("(...),(...)->(...)")
def gelu_pullback(z, dy, dz):
    z, dy, dz = z.reshape(z.size), dy.reshape(dy.size), dz.reshape(dz.size)
    for k in range(dz.size):
        v = float(z[k])
        e = exp(-0.5 * v * v)
        tail = 0.5 * e * erfcx(_SQRT_HALF * abs(v))
        dz[k] = ((1.0 - tail if v > 0 else tail) + v * _INV_SQRT_2PI * e) * dy[k]


@kernel("...->...")
def silu_forward(z):
    return z * sigmoid(z)


@kernel("(...),(...)->(...)")
def silu_pullback(z, dy, dz):
    z, dy, dz = z.reshape(z.size), dy.reshape(dy.size), dz.reshape(dz.size)
    for k in range(dz.size):
        dz[k] = (sigmoid(z[k]) + z[k] * sigmoid_slope(z[k])) * dy[k]


@kernel("...->...")
def selu_forward(z):
    return SELU_SCALE * (z if z > 0 else SELU_ALPHA * expm1(z))


@kernel("...,...->...")
def selu_pullback(z, dy):
    return SELU_SCALE * (1.0 if z > 0 else SELU_ALPHA * exp(z)) * dy


@kernel("...->...")
def elu_forward(z):
    return z if z > 0 else expm1(z)


@kernel("...,...->...")
def elu_pullback(z, dy):
    return (1.0 if z > 0 else exp(z)) * dy


@kernel("(...)->(...)")
def softplus_forward(z, y):
    z, y = z.reshape(z.size), y.reshape(y.size)
    for k in range(y.size):
        y[k] = max(z[k], 0.0) + log1p(exp(-abs(z[k])))


@kernel("...,...->...")
def softplus_pullback(z, dy):
    return sigmoid(z) * dy


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
_HOMOGENEOUS = {"identity", "relu", "leaky_relu"}


class Activation(Primitive):
    """y = φ(z) for a named φ, any shape; raises InputError for an unknown name."""

    def __init__(self, name: str):
        if name not in ACTIVATIONS:
            raise unknown("activation", name, ACTIVATIONS)
        self.name = name
        self.homogeneous = name in _HOMOGENEOUS
        self.forward_kernel, self.pullback_kernel = ACTIVATIONS[name]

    def shapes(self, shape):
        return Declaration(output=shape)
