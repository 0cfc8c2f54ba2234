"""PyTorch modules for those of the laboratory's layers that PyTorch has no module for."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import nn
from torch.autograd.function import once_differentiable

from flowlab.kernel import Kernel
from flowlab.layers.activation import ACTIVATIONS

# --- composites -----------------------------------------------------------------------------------


class ResidualSum(nn.Module):
    """y = s (x + a branch(x))."""

    def __init__(self, branch: nn.Module, a: float, s: float):
        super().__init__()
        self.branch, self.a, self.s = branch, a, s

    def forward(self, x):
        return self.s * (x + self.a * self.branch(x))

    def extra_repr(self):
        return f"a={self.a}, s={self.s}"


class Branches(nn.Module):
    """Several modules of one input, whose outputs stand side by side on a new axis 1."""

    def forward(self, x):
        return torch.stack([branch(x) for branch in self.children()], dim=1)


# --- element by element ---------------------------------------------------------------------------


class Erf(nn.Module):
    """y = erf(x)."""

    def forward(self, x):
        return torch.erf(x)


class RegisteredActivation(nn.Module):
    """A user's functions of one number, which know no tensors, run by their kernels on the CPU."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def forward(self, x):
        return _Registered.apply(x, self.name)

    def extra_repr(self):
        return self.name


class _Registered(torch.autograd.Function):
    @staticmethod
    def forward(context, x, name):
        context.save_for_backward(x)
        context.name = name
        return _run(ACTIVATIONS[name][0], x)

    @staticmethod
    @once_differentiable
    def backward(context, dy):
        return _run(ACTIVATIONS[context.name][1], *context.saved_tensors, dy), None


def _run(kernel: Kernel, *tensors: torch.Tensor) -> torch.Tensor:
    arrays = [np.ascontiguousarray(t.detach().cpu().numpy())[None] for t in tensors]
    out = np.empty_like(arrays[0])
    kernel.run(*arrays, out)
    return torch.from_numpy(out[0]).to(tensors[0].device)


class LearnedScale(nn.Module):
    """y = weight x with one number as the weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(()))

    def forward(self, x):
        return self.weight * x


# --- normalizations -------------------------------------------------------------------------------


class GroupRMSNorm(nn.Module):
    """Each group of successive channels over the root of its mean square plus eps: (n, c, ...)."""

    def __init__(self, groups: int, channels: int, eps: float):
        super().__init__()
        self.groups, self.eps = groups, eps
        self.weight = nn.Parameter(torch.empty(channels))

    def forward(self, x):
        groups = x.reshape(x.shape[0], self.groups, -1)
        inverse = (groups.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        return (groups * inverse).reshape(x.shape) * self.weight.view(-1, *[1] * (x.ndim - 2))

    def extra_repr(self):
        return f"{self.groups}, {len(self.weight)}, eps={self.eps}"


class BatchNormOfTokens(nn.BatchNorm1d):
    """Batch norm of the features of (n, ..., features), over examples and tokens."""

    def forward(self, x):
        return super().forward(x.flatten(0, -2)).reshape(x.shape)


# --- positions and tokens -------------------------------------------------------------------------


class MeanOver(nn.Module):
    """The mean over these axes."""

    def __init__(self, axes: Iterable[int]):
        super().__init__()
        self.axes = tuple(axes)

    def forward(self, x):
        return x.mean(self.axes)

    def extra_repr(self):
        return f"axes={self.axes}"


class EmbeddingOfFloats(nn.Embedding):
    """An embedding of whole numbers in a float type, rounded to the nearest."""

    def forward(self, x):
        return super().forward((x + 0.5).floor().long())


class AddedPositions(nn.Module):
    """Y[n, t] = X[n, t] + weight[t], a table that is learned or fixed."""

    def __init__(self, positions: int, features: int, learned: bool):
        super().__init__()
        table = torch.empty(positions, features)
        if learned:
            self.weight = nn.Parameter(table)
        else:
            self.register_buffer("weight", table)

    def forward(self, x):
        return x + self.weight[: x.shape[1]].to(x.dtype)


class DotProductAttention(nn.Module):
    """Queries, keys and values (n, 3, T, d) to (n, T, d); heads are successive parts of d."""

    def __init__(self, heads: int, causal: bool, scale: float | None):
        super().__init__()
        self.heads, self.causal, self.scale = heads, causal, scale

    def forward(self, x):
        q, k, v = x.unflatten(-1, (self.heads, -1)).transpose(2, 3).unbind(1)
        attend = nn.functional.scaled_dot_product_attention
        y = attend(q, k, v, is_causal=self.causal, scale=self.scale)
        return y.transpose(1, 2).flatten(2)

    def extra_repr(self):
        return f"heads={self.heads}, causal={self.causal}, scale={self.scale}"


# --- recurrence -----------------------------------------------------------------------------------


class States(nn.Module):
    """The states of a recurrence at all steps; gradients are cut after every ``truncation``."""

    def __init__(self, rnn: nn.Module, truncation: int | None):
        super().__init__()
        self.rnn, self.truncation = rnn, truncation

    def forward(self, x):
        found, state = [], None
        for piece in x.split(self.truncation or x.shape[1], dim=1):
            y, state = self.rnn(piece, state)
            state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
            found.append(y)
        return torch.cat(found, dim=1)

    def extra_repr(self):
        return f"truncation={self.truncation}"


class LinearRNN(nn.Module):
    """``nn.RNN`` of one layer without a nonlinearity, the batch first."""

    def __init__(self, inputs: int, features: int):
        super().__init__()
        self.weight_ih_l0 = nn.Parameter(torch.empty(features, inputs))
        self.weight_hh_l0 = nn.Parameter(torch.empty(features, features))
        self.bias_ih_l0 = nn.Parameter(torch.empty(features))
        self.bias_hh_l0 = nn.Parameter(torch.empty(features))

    def forward(self, x, state=None):
        linear = nn.functional.linear
        z = linear(x, self.weight_ih_l0, self.bias_ih_l0)
        h = z.new_zeros(z.shape[0], z.shape[2]) if state is None else state
        found = []
        for now in z.unbind(1):
            h = now + linear(h, self.weight_hh_l0, self.bias_hh_l0)
            found.append(h)
        return torch.stack(found, dim=1), h


class AtLastStep(nn.Module):
    """(n, T, h) at its last step: (n, h)."""

    def forward(self, x):
        return x[:, -1]
