"""Losses: softmax cross-entropy and squared error, as layers onto one number.

The logits may arrive as a mantissa z and a power of two, true logits = z 2^e, because a net of any
depth has finite logits in that form; ``exponent`` is 0 in ordinary use. Reductions are PyTorch's:
``mean`` divides cross-entropy by the batch and squared error by batch times outputs.
"""

import math

import numpy as np

from flowlab.errors import InputError, unknown
from flowlab.kernel import Kernel, ShapeError, jit, kernel
from flowlab.layer import Declaration, Parameter, Primitive
from flowlab.numerics.elementary import exp

REDUCTIONS = ("mean", "sum")
_LN2 = math.log(2.0)
# Residuals p - y below 2^-_SURE have a power of two beside them, down to 2^-_FARTHEST.
_SURE, _FARTHEST = 16.0, 2.0**50


@jit
def _below(z, top, exponent):
    """(z - top) 2^exponent in float64, whatever z's type."""
    return math.ldexp(np.float64(z) - np.float64(top), exponent)


@jit
def _partition(z, top, exponent):
    total = 0.0
    for k in range(z.size):
        total += exp(_below(z[k], top, exponent))
    return total


@kernel("(n,k),(n),()->()")
def softmax_cross_entropy_forward(z, label, exponent, loss, weight):
    total = 0.0
    for n in range(z.shape[0]):
        top = z[n].max()
        rest = _below(z[n, int(label[n])], top, exponent)
        total += math.log(_partition(z[n], top, exponent)) - rest
    loss[0] = weight * total


@jit
def _power_of_residuals(z, label, exponent):
    """The power of two of the largest |p - y|; 0 unless all are below 2^-_SURE, or unknown."""
    largest = -np.inf
    for n in range(z.shape[0]):
        top = z[n].max()
        partition = math.log(_partition(z[n], top, exponent))
        for k in range(z.shape[1]):
            if k != int(label[n]):
                largest = max(largest, _below(z[n, k], top, exponent) - partition)
    power = largest / _LN2
    return np.int64(math.floor(power)) if -_FARTHEST < power < -_SURE else np.int64(0)


@jit
def _residuals(z, label, exponent, factor, power, dz):
    """dz = (p - y) factor 2^-power."""
    for n in range(z.shape[0]):
        top = z[n].max()
        partition, others = _partition(z[n], top, exponent), 0.0
        less = 0.0 if power == 0 else math.log(partition) + power * _LN2
        scale = factor / partition if power == 0 else factor
        for k in range(z.shape[1]):
            if k != int(label[n]):
                p = exp(_below(z[n, k], top, exponent) - less)
                others += p
                dz[n, k] = scale * p
        # p - 1 as minus the other probabilities: no cancellation when the label is nearly sure.
        dz[n, int(label[n])] = -scale * others


@kernel("(n,k),(n),(),()->(n,k)")
def softmax_cross_entropy_pullback(z, label, exponent, dloss, dz, weight):
    _residuals(z, label, exponent, weight * np.float64(dloss), 0, dz)


@kernel("(n,k),(n),()->(n,k),()")
def softmax_cross_entropy_cotangent(z, label, exponent, dz, power, weight):
    power[0] = _power_of_residuals(z, label, exponent)
    _residuals(z, label, exponent, weight, power[0], dz)


@kernel("(n,k),(n,k),()->()")
def squared_error_forward(z, target, exponent, loss, weight):
    total = 0.0
    for n in range(z.shape[0]):
        for k in range(z.shape[1]):
            total += (math.ldexp(np.float64(z[n, k]), exponent) - target[n, k]) ** 2
    loss[0] = weight * total


@kernel("(n,k),(n,k),(),()->(n,k)")
def squared_error_pullback(z, target, exponent, dloss, dz, weight):
    for n in range(z.shape[0]):
        for k in range(z.shape[1]):
            residual = math.ldexp(np.float64(z[n, k]), exponent) - target[n, k]
            dz[n, k] = 2.0 * weight * dloss * residual


@kernel("(n,k),(n,k),()->(n,k),()")
def squared_error_cotangent(z, target, exponent, dz, power, weight):
    up, down = min(exponent, 0), -max(exponent, 0)
    power[0] = -down
    for n in range(z.shape[0]):
        for k in range(z.shape[1]):
            t = math.ldexp(np.float64(target[n, k]), down)
            dz[n, k] = 2.0 * weight * (math.ldexp(np.float64(z[n, k]), up) - t)


class Loss(Primitive):
    """A map from outputs (batch, outputs) and targets to one number for each network.

    ``of_values`` says whether targets are any numbers rather than labels of classes.
    """

    cotangent_kernel: Kernel
    of_values = False

    def __init__(self, reduction: str = "mean"):
        if reduction not in REDUCTIONS:
            raise unknown("reduction", reduction, REDUCTIONS)
        self.reduction = reduction

    def shapes(self, shape):
        if len(shape) != 2:
            raise ShapeError(
                f"{self.name}: input must have axes (batch, outputs); got shape {shape}"
            )
        targets = {
            name: Parameter(target, role="target") for name, target in self.targets(shape).items()
        }
        return Declaration(output=(), parameters=targets, constants=(self.weight(shape),))

    def targets(self, shape):
        """Shapes of the data that the loss compares with."""
        raise NotImplementedError

    def weight(self, shape) -> float:
        """The factor of each term under the reduction."""
        raise NotImplementedError

    def given(self, labels: np.ndarray, outputs: int, dtype) -> dict[str, np.ndarray]:
        """The targets of a batch of data: classes (seeds, batch), or values (seeds, batch, K)."""
        raise NotImplementedError

    def never_zero(self, outputs: int) -> bool:
        """Is no exact cotangent zero, so that one which is has lost its digits?"""
        return False

    def cotangent(self, z, targets, workspace) -> tuple[np.ndarray, np.ndarray]:
        """(dz, exponents (seeds,) int64): the true cotangent of the true logits is dz 2^exponent.

        Right where its numbers are below or above any float.
        """
        self.expect(targets, z.shape[-1])
        dz, exponents = workspace.take(z.shape, z.dtype), np.empty(len(z), np.int64)
        given = [targets[name] for name in self.declare(z.shape[1:]).parameters]
        self.cotangent_kernel.run(z, *given, dz, exponents, self.weight(z.shape[1:]))
        return dz, exponents

    def forward(self, x, parameters, workspace):
        self.expect(parameters, x.shape[-1])
        return super().forward(x, parameters, workspace)

    def expect(self, targets, outputs: int) -> None:
        """Raise InputError for targets that the loss cannot compare with."""


class SoftmaxCrossEntropy(Loss):
    """Cross-entropy of softmax(z) and labels (batch,); dz = (p - onehot(label)) weight.

    InputError for labels that are not whole numbers from 0 to classes - 1.
    """

    name = "softmax_cross_entropy"
    forward_kernel = softmax_cross_entropy_forward
    pullback_kernel = softmax_cross_entropy_pullback
    cotangent_kernel = softmax_cross_entropy_cotangent
    pullback_reads = ("x", "label", "exponent")

    def expect(self, targets, outputs):
        label = targets.get("label", np.zeros(0))
        wrong = ~((label >= 0) & (label < outputs) & (label == np.floor(label)))
        if wrong.any():
            raise InputError(
                f"{self.name}: labels must be whole numbers from 0 to {outputs - 1}; "
                f"got {label[wrong][0]:g}"
            )

    def targets(self, shape):
        return {"label": shape[:1], "exponent": ()}

    def given(self, labels, outputs, dtype):
        return {"label": labels}

    def never_zero(self, outputs):
        return outputs > 1

    def weight(self, shape) -> float:
        return 1.0 / shape[0] if self.reduction == "mean" else 1.0


class SquaredError(Loss):
    """Squared error Σ(z - target)² against targets (batch, outputs)."""

    name = "squared_error"
    of_values = True
    forward_kernel, pullback_kernel = squared_error_forward, squared_error_pullback
    cotangent_kernel = squared_error_cotangent
    pullback_reads = ("x", "target", "exponent")

    def targets(self, shape):
        return {"target": shape, "exponent": ()}

    def given(self, labels, outputs, dtype):
        values = labels if labels.ndim == 3 else np.eye(outputs)[labels]
        return {"target": values.astype(dtype)}

    def weight(self, shape) -> float:
        return 1.0 / (shape[0] * shape[1]) if self.reduction == "mean" else 1.0


LOSSES = {"cross_entropy": SoftmaxCrossEntropy, "squared_error": SquaredError}
