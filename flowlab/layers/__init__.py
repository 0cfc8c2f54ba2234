"""The layers: one concept per file, forward and adjoint kernels side by side."""

from flowlab.layers.activation import ACTIVATIONS, Activation
from flowlab.layers.linear import Linear
from flowlab.layers.loss import SoftmaxCrossEntropy, SquaredError
from flowlab.layers.normalization import BatchNorm, GroupNorm, LayerNorm, RMSNorm
from flowlab.layers.residual import Residual, Scale

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "BatchNorm",
    "GroupNorm",
    "LayerNorm",
    "Linear",
    "RMSNorm",
    "Residual",
    "Scale",
    "SoftmaxCrossEntropy",
    "SquaredError",
]
