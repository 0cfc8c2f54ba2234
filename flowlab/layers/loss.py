"""Losses: softmax cross-entropy and squared error, as layers onto one number.

The logits may arrive as a mantissa z and a power of two, true logits = z 2^e, because a net of any
depth has finite logits in that form; ``exponent`` is 0 in ordinary use. Reductions are PyTorch's:
``mean`` divides cross-entropy by the batch and squared error by batch times outputs.
"""

import math

from flowlab.elementary import exp
from flowlab.errors import unknown
from flowlab.kernel import ShapeError, kernel
from flowlab.layer import Declaration, Parameter, Primitive

REDUCTIONS = ("mean", "sum")


@kernel("(n,k),(n),()->()")
def softmax_cross_entropy_forward(z, label, exponent, loss, weight):
    total = 0.0
    for n in range(z.shape[0]):
        top = z[n].max()
        partition = 0.0
        for k in range(z.shape[1]):
            partition += exp(math.ldexp(float(z[n, k] - top), exponent))
        total += math.log(partition) - math.ldexp(float(z[n, int(label[n])] - top), exponent)
    loss[0] = weight * total


@kernel("(n,k),(n),(),()->(n,k)")
def softmax_cross_entropy_pullback(z, label, exponent, dloss, dz, weight):
    for n in range(z.shape[0]):
        top = z[n].max()
        partition = 0.0
        for k in range(z.shape[1]):
            partition += exp(math.ldexp(float(z[n, k] - top), exponent))
        scale = weight * dloss / partition
        others = 0.0
        for k in range(z.shape[1]):
            if k != int(label[n]):
                p = exp(math.ldexp(float(z[n, k] - top), exponent))
                others += p
                dz[n, k] = scale * p
        # p - 1 as minus the other probabilities: no cancellation when the label is nearly sure.
        dz[n, int(label[n])] = -scale * others


@kernel("(n,k),(n,k),()->()")
def squared_error_forward(z, target, exponent, loss, weight):
    total = 0.0
    for n in range(z.shape[0]):
        for k in range(z.shape[1]):
            total += (math.ldexp(float(z[n, k]), exponent) - target[n, k]) ** 2
    loss[0] = weight * total


@kernel("(n,k),(n,k),(),()->(n,k)")
def squared_error_pullback(z, target, exponent, dloss, dz, weight):
    # Written as a mantissa beside 2^max(exponent, 0): see SquaredError.exponent_of_cotangent.
    up, down = min(exponent, 0), -max(exponent, 0)
    for n in range(z.shape[0]):
        for k in range(z.shape[1]):
            residual = math.ldexp(float(z[n, k]), up) - math.ldexp(float(target[n, k]), down)
            dz[n, k] = 2.0 * weight * dloss * residual


class Loss(Primitive):
    """A map from outputs (batch, classes) and targets to one number for each network."""

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


class SoftmaxCrossEntropy(Loss):
    """Cross-entropy of softmax(z) and integer labels (batch,); dz = (p - onehot(label)) weight."""

    name = "softmax_cross_entropy"
    forward_kernel = softmax_cross_entropy_forward
    pullback_kernel = softmax_cross_entropy_pullback
    pullback_reads = ("x", "label", "exponent")
    exponent_of_cotangent = staticmethod(lambda exponent: 0 * exponent)

    def targets(self, shape):
        return {"label": shape[:1], "exponent": ()}

    def weight(self, shape) -> float:
        return 1.0 / shape[0] if self.reduction == "mean" else 1.0


class SquaredError(Loss):
    """Squared error Σ(z - target)² against targets (batch, outputs)."""

    name = "squared_error"
    forward_kernel, pullback_kernel = squared_error_forward, squared_error_pullback
    pullback_reads = ("x", "target", "exponent")
    exponent_of_cotangent = staticmethod(lambda exponent: exponent.clip(min=0))

    def targets(self, shape):
        return {"target": shape, "exponent": ()}

    def weight(self, shape) -> float:
        return 1.0 / (shape[0] * shape[1]) if self.reduction == "mean" else 1.0


LOSSES = {"cross_entropy": SoftmaxCrossEntropy, "squared_error": SquaredError}
