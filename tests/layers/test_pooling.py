"""Pooling against PyTorch where windows overlap, leave gaps, tie or hold NaN."""

import numpy as np
import pytest

from flowlab.layer import Workspace
from flowlab.layers import AvgPool2d, MaxPool2d

SEEDS, SHAPE = 2, (2, 3, 7, 8)
WINDOWS = [(1, 1), (1, 3), (2, 1), (2, 2), (2, 3), (3, 2), (3, 3), (7, 1)]


def ours(layer, x, dy_of):
    workspace = Workspace(np.nan)
    y, tape = layer.forward(x, {}, workspace)
    dy = dy_of(y.shape)
    return y, layer.pullback(dy, tape, workspace)[0], dy


@pytest.mark.parametrize("size, stride", WINDOWS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["max", "average"])
def test_against_torch(kind, dtype, size, stride):
    """Of few whole numbers, so that most windows tie, and of NaN: sums are exact in any order."""
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0)
    x = random.integers(-1, 2, (SEEDS, *SHAPE)).astype(dtype)
    if kind == "max":
        x[random.random(x.shape) < 0.1] = np.nan
        layer, theirs = MaxPool2d(size, stride), torch.nn.MaxPool2d(size, stride)
    else:
        layer, theirs = AvgPool2d(size, stride), torch.nn.AvgPool2d(size, stride)
    y, dx, dy = ours(layer, x, lambda shape: random.integers(-9, 10, shape).astype(dtype))
    for s in range(SEEDS):
        their_x = torch.tensor(x[s], requires_grad=True)
        their_y = theirs(their_x)
        (their_dx,) = torch.autograd.grad(their_y, their_x, torch.tensor(dy[s]))
        tolerance = 0 if kind == "max" else 4 * np.finfo(dtype).eps
        np.testing.assert_allclose(y[s], their_y.detach(), rtol=tolerance)
        np.testing.assert_allclose(dx[s], their_dx, rtol=tolerance, atol=9 * tolerance)
