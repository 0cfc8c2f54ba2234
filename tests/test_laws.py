"""Every layer obeys every law, alone and composed."""

import numpy as np
import pytest

from flowlab import laws
from flowlab.errors import InputError
from flowlab.kernel import ShapeError
from flowlab.layer import Chain, Primitive, Workspace
from flowlab.layers import (
    ACTIVATIONS,
    Activation,
    Linear,
    Residual,
    Scale,
    SoftmaxCrossEntropy,
    SquaredError,
)

SEEDS, BATCH, CLASSES = 3, 4, 5
LABEL = np.random.default_rng(1).integers(0, CLASSES, (SEEDS, BATCH))
TARGET = np.random.default_rng(2).standard_normal((SEEDS, BATCH, CLASSES))


def two_maps():
    return Chain([Linear(6), Activation("relu"), Linear(3)], name="two maps")


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_of_one_number(name):
    assert laws.check(Activation(name), (1, 1)) == list(laws.LAWS)


@pytest.mark.parametrize("layer", [Linear(5), Linear(1), Scale()], ids=["5", "1", "scale"])
@pytest.mark.parametrize("shape", [(4, 3), (1, 7)])
def test_layers_with_parameters(layer, shape):
    laws.check(layer, shape)


@pytest.mark.parametrize("shape", [(4, 2, 3), (2, 3, 2, 4), (1, 1, 3)])
def test_linear_on_tokens(shape):
    laws.check(Linear(5, name="Q"), shape)


def test_linear_on_tokens_names_an_axis_that_does_not_fit():
    layer, x = Linear(5, name="V"), np.ones((2, 3, 6, 4))
    with pytest.raises(ShapeError, match=r"^V: axis 1 of W must be 4; got 3"):
        layer.forward(x, {"W": np.ones((2, 3, 5)), "b": np.ones((2, 5))}, Workspace())
    _, tape = layer.forward(x, {"W": np.ones((2, 4, 5)), "b": np.ones((2, 5))}, Workspace())
    with pytest.raises(ShapeError, match=r"^V: axis 1 of dy must be 3; got 6"):
        layer.pullback(np.ones((2, 6, 3, 5)), tape, Workspace())
    W, b, y = np.ones((2, 4, 5)), np.ones((2, 5)), np.ones((2, 6, 3, 5))
    with pytest.raises(ShapeError, match=r"^linear_forward: axis n of y must be 3, as in x; got 6"):
        Linear.forward_kernel(x, W, b, y)
    with pytest.raises(ShapeError, match=r"^linear_forward: axis 2 of y must be 6, as in x; got 3"):
        Linear.forward_kernel(x, W, b, np.ones((2, 3, 3, 5)))
    with pytest.raises(ShapeError, match=r"^linear_forward: axis i of W must be 4, as in x; got 3"):
        Linear.forward_kernel(x, W[:, :3].copy(), b, np.ones((2, 3, 6, 5)))
    with pytest.raises(ShapeError, match=r"^linear_forward: y must have 4 axes \(seeds, n, 2, o\)"):
        Linear.forward_kernel(x, W, b, np.ones((2, 18, 5)))
    with pytest.raises(ShapeError, match=r"^V: input must have axes \(batch, ..., features\); got"):
        layer.declare((4,))


@pytest.mark.parametrize("a, s", [(1.0, 1.0), (0.3, 1.0), (1.0, 0.5**0.5), (-0.7, 1.1), (0.0, 1.0)])
@pytest.mark.parametrize("branch", [Linear(3), two_maps()], ids=["one map", "two maps"])
def test_residual(branch, a, s):
    laws.check(Residual(branch, a=a, s=s), (4, 3))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_losses(reduction):
    exponent = np.zeros(SEEDS, int)
    for loss, data in (
        (SoftmaxCrossEntropy(reduction), {"label": LABEL}),
        (SquaredError(reduction), {"target": TARGET}),
    ):
        laws.check(loss, (BATCH, CLASSES), parameters={**data, "exponent": exponent})


@pytest.mark.parametrize("loss", [SoftmaxCrossEntropy("mean"), SquaredError("sum")])
def test_whole_nets(loss):
    net = Chain(
        [
            Linear(6),
            Activation("gelu"),
            Residual(Chain([Linear(6), Activation("tanh"), Linear(6), Scale()]), a=0.5),
            Residual(Chain([])),
            Chain([]),
            Linear(CLASSES),
            loss,
        ],
        name="net",
    )
    data = {"label": LABEL} if isinstance(loss, SoftmaxCrossEntropy) else {"target": TARGET}
    data["exponent"] = np.zeros(SEEDS, int)
    laws.check(net, (BATCH, 3), parameters={f"6.{key}": value for key, value in data.items()})


@pytest.mark.parametrize("activation", ["relu", "leaky_relu"])
def test_homogeneous_net(activation):
    net = Chain([Linear(6), Activation(activation), Residual(Linear(6), 0.3, 0.9), Scale()])
    assert net.homogeneous
    laws.check(net, (BATCH, 3))


def test_inputs_beside_a_kink_and_far_from_one():
    """Differences must not be fooled by a kink within their step, nor by the scale of the input."""
    x = np.array([1e-3, -1e-3, 0.05, -0.05, 1.0, -1.0]) * np.ones((SEEDS, 2, 1))
    for scale in (1e-6, 1.0, 1e6):
        laws.check(Activation("leaky_relu"), (2, 6), inputs=scale * x)


def test_one_dtype_suffices():
    assert laws.check(Linear(2), (4, 3), dtypes=("float32",), seeds=1)


class Huber(Primitive):
    """A user's layer in NumPy alone: φ(z) = sqrt(1 + z²) - 1."""

    name = "huber"
    recorded = False
    forward_kernel, pullback_kernel = ACTIVATIONS["tanh"]

    def shapes(self, shape):
        return Activation("tanh").shapes(shape)

    def forward(self, x, parameters, workspace):
        y = workspace.take(x.shape, x.dtype)
        y[...] = x * (x / (1 + np.hypot(1, x)))
        return y, x

    def pullback(self, dy, tape, workspace, watch=None):
        dx = workspace.take(dy.shape, dy.dtype)
        dx[...] = tape / np.hypot(1, tape) * dy
        if watch is not None:
            watch(self, tape, dy, dx, {})
        return dx, {}


def test_a_users_own_layer():
    laws.check(Huber(), (4, 3))


def test_parameters_that_do_not_fit():
    with pytest.raises(InputError, match=r"^parameters must hold the target label; got \[\]$"):
        laws.check(SoftmaxCrossEntropy(), (4, 5))
    with pytest.raises(InputError, match=r"^parameters must be among \['W', 'b'\]; got w$"):
        laws.check(Linear(5), (4, 3), parameters={"w": np.ones((3, 3, 5))})
    with pytest.raises(InputError, match=r"^W must have shape \(3, 3, 5\); got \(3, 5\)$"):
        laws.check(Linear(5), (4, 3), parameters={"W": np.ones((3, 5))})
    with pytest.raises(InputError, match=r"^inputs must have shape \(3, 4, 3\); got \(4, 3\)$"):
        laws.check(Linear(5), (4, 3), inputs=np.ones((4, 3)))
