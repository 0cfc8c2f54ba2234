"""The layers: one concept per file, forward and adjoint kernels side by side."""

from flowlab.layers.activation import ACTIVATIONS, Activation
from flowlab.layers.attention import MultiHeadAttention, ScaledDotProductAttention
from flowlab.layers.convolution import Conv1d, Conv2d
from flowlab.layers.embedding import PositionalEncoding, TokenEmbedding
from flowlab.layers.fork import Fork
from flowlab.layers.gru import GRU
from flowlab.layers.linear import Linear
from flowlab.layers.loss import SoftmaxCrossEntropy, SquaredError
from flowlab.layers.lstm import LSTM
from flowlab.layers.normalization import BatchNorm, GroupNorm, LayerNorm, RMSNorm
from flowlab.layers.pooling import AvgPool2d, Flatten, GlobalAveragePool, MaxPool2d, TokenMean
from flowlab.layers.recurrent import LastStep, Recurrent
from flowlab.layers.residual import Residual, Scale

__all__ = [
    "ACTIVATIONS",
    "GRU",
    "LSTM",
    "Activation",
    "AvgPool2d",
    "BatchNorm",
    "Conv1d",
    "Conv2d",
    "Flatten",
    "Fork",
    "GlobalAveragePool",
    "GroupNorm",
    "LastStep",
    "LayerNorm",
    "Linear",
    "MaxPool2d",
    "MultiHeadAttention",
    "PositionalEncoding",
    "RMSNorm",
    "Recurrent",
    "Residual",
    "Scale",
    "ScaledDotProductAttention",
    "SoftmaxCrossEntropy",
    "SquaredError",
    "TokenEmbedding",
    "TokenMean",
]
