"""Obvious NumPy oracles, one network at a time; imports nothing of flowlab."""

import math

import numpy as np

SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772
_erf, _erfc = np.vectorize(math.erf, [float]), np.vectorize(math.erfc, [float])


def _sigmoid(z):
    # e^-|z| never overflows, and neither branch subtracts.
    e = np.exp(-np.abs(z))
    return np.where(z >= 0, 1, e) / (1 + e)


def _sigmoid_slope(z):
    e = np.exp(-np.abs(z))
    return e / (1 + e) ** 2


def _sech2(z):
    return 4 * _sigmoid_slope(2 * z)


def _normal_density(z):
    return np.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def _normal_distribution(z):
    return _erfc(-z / math.sqrt(2)) / 2


# φ and φ' in closed forms that keep their relative accuracy in the tails.
ACTIVATIONS = {
    "identity": (lambda z: z, lambda z: np.ones_like(z)),
    "relu": (lambda z: np.where(z > 0, z, 0), lambda z: np.where(z > 0, 1.0, 0.0)),
    "leaky_relu": (lambda z: np.where(z > 0, z, 0.01 * z), lambda z: np.where(z > 0, 1.0, 0.01)),
    "tanh": (np.tanh, _sech2),
    "sigmoid": (_sigmoid, _sigmoid_slope),
    "erf": (_erf, lambda z: 2 / math.sqrt(math.pi) * np.exp(-z * z)),
    "gelu": (
        lambda z: z * _normal_distribution(z),
        lambda z: _normal_distribution(z) + z * _normal_density(z),
    ),
    "silu": (lambda z: z * _sigmoid(z), lambda z: _sigmoid(z) * (1 + z * _sigmoid(-z))),
    "selu": (
        lambda z: SELU_SCALE * np.where(z > 0, z, SELU_ALPHA * np.expm1(np.minimum(z, 0))),
        lambda z: SELU_SCALE * np.where(z > 0, 1, SELU_ALPHA * np.exp(np.minimum(z, 0))),
    ),
    "elu": (
        lambda z: np.where(z > 0, z, np.expm1(np.minimum(z, 0))),
        lambda z: np.where(z > 0, 1, np.exp(np.minimum(z, 0))),
    ),
    "softplus": (lambda z: np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z))), _sigmoid),
}


def linear(x, W, b):
    """Y = XW + b, element by element."""
    n, i = x.shape
    y = np.empty((n, W.shape[1]))
    for row in range(n):
        for column in range(W.shape[1]):
            y[row, column] = b[column] + sum(x[row, k] * W[k, column] for k in range(i))
    return y


def linear_pullback(x, W, dy):
    """(dX, dW, db) from the sums that define them."""
    n, i = x.shape
    dx, dW, db = np.zeros((n, i)), np.zeros(W.shape), np.zeros(W.shape[1])
    for row in range(n):
        for k in range(i):
            for column in range(W.shape[1]):
                dx[row, k] += W[k, column] * dy[row, column]
                dW[k, column] += x[row, k] * dy[row, column]
        db += dy[row]
    return dx, dW, db


def softmax(z):
    """Rows of probabilities."""
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def cross_entropy(z, label, mean):
    """(loss, dz) of softmax cross-entropy: dz = p - onehot(label)."""
    p, rows = softmax(z), np.arange(len(z))
    loss, dz = -np.log(p[rows, label]).sum(), p.copy()
    dz[rows, label] -= 1
    weight = 1 / len(z) if mean else 1.0
    return weight * loss, weight * dz


def squared_error(z, target, mean):
    """(loss, dz) of the squared error."""
    weight = 1 / z.size if mean else 1.0
    return weight * np.sum((z - target) ** 2), weight * 2 * (z - target)
