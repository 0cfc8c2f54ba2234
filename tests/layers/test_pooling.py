"""Pooling and reshaping: laws, frameworks where windows overlap, leave gaps, tie or hold NaN."""

import numpy as np
import pytest

from flowlab import laws
from flowlab.errors import InputError
from flowlab.kernel import ShapeError
from flowlab.layer import Workspace
from flowlab.layers import AvgPool2d, Flatten, GlobalAveragePool, MaxPool2d, TokenMean
from tests.support.passes import close, run

SEEDS, SHAPE = 2, (2, 3, 7, 8)
WINDOWS = [(1, 1), (1, 3), (2, 1), (2, 2), (2, 3), (3, 2), (3, 3), (7, 1)]


@pytest.mark.parametrize("size, stride", WINDOWS)
@pytest.mark.parametrize("kind", [MaxPool2d, AvgPool2d])
def test_against_frameworks(apart, kind, size, stride):
    assert apart(kind(size, stride), SHAPE) < 1e-13


@pytest.mark.parametrize("size, stride", WINDOWS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["max", "average"])
def test_ties_and_nan_against_torch(kind, dtype, size, stride):
    """Of few whole numbers, so that most windows tie, and of NaN: sums are exact in any order."""
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0)
    x = random.integers(-1, 2, (SEEDS, *SHAPE)).astype(dtype)
    if kind == "max":
        x[random.random(x.shape) < 0.1] = np.nan
        layer, theirs = MaxPool2d(size, stride), torch.nn.MaxPool2d(size, stride)
    else:
        layer, theirs = AvgPool2d(size, stride), torch.nn.AvgPool2d(size, stride)
    dy = random.integers(-9, 10, (SEEDS, *layer.declare(SHAPE).output)).astype(dtype)
    y, dx, _ = run(layer, x, {}, dy)
    for s in range(SEEDS):
        their_x = torch.tensor(x[s], requires_grad=True)
        their_y = theirs(their_x)
        (their_dx,) = torch.autograd.grad(their_y, their_x, torch.tensor(dy[s]))
        tolerance = 0 if kind == "max" else 4 * np.finfo(dtype).eps
        np.testing.assert_allclose(y[s], their_y.detach(), rtol=tolerance)
        np.testing.assert_allclose(dx[s], their_dx, rtol=tolerance, atol=9 * tolerance)


def test_the_stride_is_the_size_unless_given():
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).standard_normal((1, 2, 3, 8, 7))
    for pool, module in (
        (MaxPool2d(3), torch.nn.MaxPool2d(3)),
        (AvgPool2d(3), torch.nn.AvgPool2d(3)),
    ):
        y, _ = pool.forward(x, {}, Workspace())
        close(y[0], module(torch.tensor(x[0])))


def test_ties_go_to_the_first_maximum():
    x = np.array([[1.0, 2, 2], [2, 0, 2], [2, 2, 2]]).reshape(1, 1, 1, 3, 3)
    y, dx, _ = run(MaxPool2d(2, 1), x, {}, np.array([1.0, 10, 100, 1000]).reshape(1, 1, 1, 2, 2))
    assert np.all(y == 2)
    assert dx[0, 0, 0].tolist() == [[0, 11, 0], [100, 0, 1000], [0, 0, 0]]
    x[...] = -np.inf
    y, dx, _ = run(MaxPool2d(3), x, {}, np.ones((1, 1, 1, 1, 1)))
    assert np.all(y == -np.inf) and dx[0, 0, 0, 0, 0] == 1 == dx.sum()
    x[0, 0, 0, 1, 1] = np.nan
    assert np.isnan(run(MaxPool2d(3), x, {}, np.ones((1, 1, 1, 1, 1)))[0]).all()


@pytest.mark.parametrize(
    "layer",
    [MaxPool2d(2), MaxPool2d(3, 1), MaxPool2d(2, 3), AvgPool2d(2), AvgPool2d(3, 2)],
    ids=lambda layer: f"{layer.name}-{layer.kernel_size}-{layer.stride}",
)
@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (1, 1, 3, 3)])
def test_laws_of_pooling(layer, shape):
    laws.check(layer, shape)


@pytest.mark.parametrize("layer", [GlobalAveragePool(), Flatten()], ids=lambda layer: layer.name)
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (3, 2, 4), (1, 1, 1, 1)])
def test_laws_of_reshaping(layer, shape):
    laws.check(layer, shape)


def test_the_mean_over_tokens():
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5))
    laws.check(TokenMean(), (3, 4, 5))
    y, tape = TokenMean().forward(x, {}, Workspace())
    np.testing.assert_allclose(y, x.mean(axis=2), rtol=1e-14)
    dx, _ = TokenMean().pullback(y, tape, Workspace())
    np.testing.assert_allclose(dx, np.repeat(y[:, :, None] / 4, 4, axis=2), rtol=1e-14)
    with pytest.raises(ShapeError, match=r"axes \(batch, tokens, features\); got shape \(1, 2\)"):
        TokenMean().declare((1, 2))


@pytest.mark.parametrize(
    "make, line",
    [
        (lambda: MaxPool2d(0), "max_pool2d: kernel_size must be at least 1; got 0"),
        (lambda: AvgPool2d(2, 0), "avg_pool2d: stride must be at least 1; got 0"),
        (
            lambda: MaxPool2d(3).declare((1, 2, 2, 5)),
            "max_pool2d: kernel_size must be at most the input's height, 2; got 3",
        ),
        (
            lambda: AvgPool2d(3).declare((1, 2, 5)),
            "avg_pool2d: input must have axes (batch, channels, height, width); "
            "got shape (1, 2, 5)",
        ),
        (
            lambda: GlobalAveragePool().declare((1, 2)),
            "global_average_pool: input must have axes (batch, channels, positions, ...); "
            "got shape (1, 2)",
        ),
        (lambda: Flatten().declare(()), "flatten: input must have axes (batch, ...); got shape ()"),
    ],
)
def test_bad_input_is_one_line(make, line):
    with pytest.raises(InputError) as caught:
        make()
    assert str(caught.value) == line
