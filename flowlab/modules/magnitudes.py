"""The norm of a tensor and its share of zeros, measured where the tensor lies, read once a step.

On a CPU a kernel reads the tensor at once. Elsewhere the numbers stay on their device until
:func:`settle` moves those of a whole step in one go: a single synchronisation.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from flowlab.modules.norms import log2_norm_of, log2_of_all, room_of
from flowlab.numerics.scale import LOG10_2


@dataclass(frozen=True, slots=True)
class Magnitude:
    """log2 of a Frobenius norm: -inf is exactly 0, inf and NaN are of tensors with such entries.

    ``zeros`` of ``size`` entries are exactly 0. ``room`` is by how many powers of two the root mean
    square lay above what its type is too short for (:data:`flowlab.modules.norms.LOWEST`); inf of a
    tensor of zeros.
    """

    log2: float
    zeros: int
    size: int
    room: float

    @property
    def log10(self) -> float:
        return LOG10_2 * self.log2

    def divided(self, log2: float) -> "Magnitude":
        """That of the tensor divided by 2^``log2`` behind its computation, whose room stays."""
        return replace(self, log2=self.log2 - log2)


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A magnitude on its device: ``numbers`` are the scaled norm, the scale and the nonzeros."""

    numbers: torch.Tensor
    size: int
    dtype: str
    exponent: int


Found = Magnitude | _Waiting


def measure(tensor: torch.Tensor, exponent: int = 0) -> Found:
    """The magnitude of ``tensor`` times 2^exponent; of a sparse one that of its values."""
    tensor = tensor.detach()
    if tensor.layout != torch.strided:
        tensor = (
            tensor.coalesce().values() if tensor.layout == torch.sparse_coo else tensor.values()
        )
    if tensor.device.type == "mps":
        tensor = tensor.cpu()  # where there is float64
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    dtype, size = str(tensor.dtype).removeprefix("torch."), tensor.numel()
    if _at_hand(tensor):
        if tensor.dtype not in (torch.float32, torch.float64):
            tensor = tensor.float()  # exact: shorter types are subsets of float32
        log2, zeros = log2_norm_of(_as_it_lies(tensor.resolve_neg()).numpy())
        return _magnitude(log2, round(zeros * size) if size else 0, size, dtype, exponent)
    scale = torch.ones((), dtype=torch.float64, device=tensor.device)
    if tensor.dtype == torch.float64 and size:  # squares of all others are in float64's range
        largest = tensor.abs().amax()
        scale = torch.where((largest > 0) & largest.isfinite(), largest, scale)
        tensor = tensor / scale
    norm = torch.linalg.vector_norm(tensor, dtype=torch.float64)
    nonzero = torch.count_nonzero(tensor).double()
    return _Waiting(torch.stack([norm, scale, nonzero]), size, dtype, exponent)


def _at_hand(tensor: torch.Tensor) -> bool:
    return tensor.device.type == "cpu"


def _as_it_lies(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers in the order of memory, without a copy where they fill it."""
    if tensor.is_contiguous():
        return tensor
    order = sorted(range(tensor.dim()), key=lambda axis: -tensor.stride(axis))
    return tensor.permute(order).contiguous()


def _magnitude(log2: float, zeros: int, size: int, dtype: str, exponent: int) -> Magnitude:
    return Magnitude(log2 + exponent, zeros, size, room_of(log2, size, dtype))


def settle(found: Sequence[Found]) -> list[Magnitude]:
    """All of them as numbers; those that wait on a device are moved together."""
    waiting = [one for one in found if isinstance(one, _Waiting)]
    moved = iter(())
    if waiting:
        device = waiting[0].numbers.device
        moved = iter(torch.stack([one.numbers.to(device) for one in waiting]).tolist())
    return [_settled(one, *next(moved)) if isinstance(one, _Waiting) else one for one in found]


def _settled(one: _Waiting, norm: float, scale: float, nonzero: float) -> Magnitude:
    log2 = norm if not norm > 0 else math.log2(norm) + math.log2(scale)
    log2 = -math.inf if norm == 0 else log2
    return _magnitude(log2, one.size - int(nonzero), one.size, one.dtype, one.exponent)


def together(parts: Iterable[Magnitude]) -> Magnitude | None:
    """The magnitude of several tensors as one: the root of their sum of squares; None of none."""
    parts = list(parts)
    if len(parts) < 2:
        return parts[0] if parts else None
    log2 = log2_of_all(np.array([one.log2 for one in parts]))
    zeros, size = (sum(getattr(one, name) for one in parts) for name in ("zeros", "size"))
    return Magnitude(log2, zeros, size, min(one.room for one in parts))
