"""Layers and whole nets against JAX, PyTorch and plain NumPy, in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowlab.layer import Chain, Workspace, leaves, map_leaves
from flowlab.layers import (
    ACTIVATIONS,
    Activation,
    Linear,
    Residual,
    Scale,
    SoftmaxCrossEntropy,
    SquaredError,
)
from tests.support import naive
from tests.support.oracle import in_jax

SEEDS, BATCH, INPUTS, WIDTH, CLASSES = 2, 6, 4, 5, 3
TOLERANCE = 1e-12  # of the norm
REDUCTIONS = ("mean", "sum")


def close(ours, theirs, tolerance=TOLERANCE):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert np.linalg.norm(ours - theirs) <= tolerance * np.linalg.norm(theirs)


def draw(layer, shape, data=()):
    """Random parameters in the layer's nest, with ``data`` for the targets."""
    random = np.random.default_rng(3)
    data = dict(data)

    def one(declared):
        if declared.role == "target":
            return data["exponent" if declared.shape == () else "target"]
        normal = random.standard_normal((SEEDS, *declared.shape))
        return normal / math.sqrt(declared.fan_in)

    x = random.standard_normal((SEEDS, *shape))
    return x, map_leaves(one, layer.declare(shape).parameters), random


def run(layer, x, parameters, dy):
    workspace = Workspace(np.nan)
    y, tape = layer.forward(x, parameters, workspace)
    dx, gradients = layer.pullback(dy, tape, workspace)
    return y, dx, gradients


# --- JAX ------------------------------------------------------------------------------------------


def compare_with_jax(layer, shape, data=()):
    x, parameters, random = draw(layer, shape, data)
    dy = random.standard_normal((SEEDS, *layer.declare(shape).output))
    y, dx, gradients = run(layer, x, parameters, dy)

    @jax.jit
    def pass_(x, parameters, dy):
        floats, tree = jax.tree.flatten(parameters)
        moving = [k for k, leaf in enumerate(floats) if leaf.dtype == jnp.float64]

        def f(x, values):
            filled = dict(zip(moving, values, strict=True))
            return in_jax(
                layer, x, tree.unflatten([filled.get(k, v) for k, v in enumerate(floats)])
            )

        y, pull = jax.vjp(f, x, [floats[k] for k in moving])
        dx, d = pull(dy)
        filled = dict(zip(moving, d, strict=True))
        return y, dx, tree.unflatten([filled.get(k, v) for k, v in enumerate(floats)])

    for s in range(SEEDS):
        ours = map_leaves(lambda a, s=s: a[s], parameters)
        their_y, their_dx, their_gradients = pass_(x[s], ours, dy[s])
        close(y[s], their_y)
        close(dx[s], their_dx)
        theirs = dict(leaves(their_gradients))
        for path, gradient in leaves(gradients):
            close(gradient[s], theirs[path])


def block(branch):
    return [Linear(WIDTH), Activation("relu"), branch, Linear(CLASSES)]


NETS = {
    "plain": [
        Linear(WIDTH),
        Activation("tanh"),
        Linear(WIDTH),
        Activation("gelu"),
        Linear(CLASSES),
    ],
    "residual": block(Residual(Chain([Linear(WIDTH), Activation("silu")]))),
    "scaled": block(Residual(Chain([Linear(7), Activation("selu"), Linear(WIDTH)]), 0.3, 0.5**0.5)),
    "rezero": block(Residual(Chain([Activation("softplus"), Linear(WIDTH), Scale()]), a=-1.5)),
    "nested": block(Residual(Chain([Residual(Linear(WIDTH), 0.1), Activation("erf")]), s=0.9)),
}
LABEL = np.random.default_rng(5).integers(0, CLASSES, (SEEDS, BATCH))
TARGET = np.random.default_rng(6).standard_normal((SEEDS, BATCH, CLASSES))
ZERO = np.zeros(SEEDS, int)
LOSSES = [
    (loss(reduction), {"target": target, "exponent": ZERO})
    for loss, target in ((SoftmaxCrossEntropy, LABEL), (SquaredError, TARGET))
    for reduction in REDUCTIONS
]
LOSS_NAMES = [f"{loss.name}-{loss.reduction}" for loss, _ in LOSSES]
# Compiling a pair costs JAX half a second: every net and, over the nets, every loss.
PAIRS = [(name, k % len(LOSSES)) for k, name in enumerate(NETS)]


@pytest.mark.parametrize(
    "layer",
    [Linear(WIDTH), Scale(), *(Activation(name) for name in ACTIVATIONS)],
    ids=lambda layer: layer.name,
)
def test_layer_against_jax(layer):
    compare_with_jax(layer, (BATCH, INPUTS))


def test_linear_on_tokens_against_jax():
    compare_with_jax(Linear(WIDTH), (2, 3, INPUTS))
    compare_with_jax(Linear(WIDTH), (2, 3, 2, INPUTS))


@pytest.mark.parametrize("loss, data", LOSSES, ids=LOSS_NAMES)
def test_loss_against_jax(loss, data):
    compare_with_jax(loss, (BATCH, CLASSES), data)


@pytest.mark.parametrize("name, loss", PAIRS)
def test_net_against_jax(name, loss):
    loss, data = LOSSES[loss]
    compare_with_jax(Chain([*NETS[name], loss]), (BATCH, INPUTS), data)


# --- PyTorch ------------------------------------------------------------------------------------


def in_torch(torch, layer, x, p):
    F = torch.nn.functional
    if isinstance(layer, Chain):
        for one, own in zip(layer.layers, p, strict=True):
            x = in_torch(torch, one, x, own)
        return x
    if isinstance(layer, Residual):
        return layer.s * (x + layer.a * in_torch(torch, layer.branch, x, p))
    if isinstance(layer, Linear):
        return F.linear(x, p["W"].T, p["b"])
    if isinstance(layer, Scale):
        return p["alpha"] * x
    if isinstance(layer, SoftmaxCrossEntropy):
        return F.cross_entropy(x, p["label"], reduction=layer.reduction)
    if isinstance(layer, SquaredError):
        return F.mse_loss(x, p["target"], reduction=layer.reduction)
    if layer.name == "identity":
        return x
    return torch.erf(x) if layer.name == "erf" else getattr(F, layer.name)(x)


def compare_with_torch(torch, layer, shape, data=()):
    x, parameters, random = draw(layer, shape, data)
    dy = random.standard_normal((SEEDS, *layer.declare(shape).output))
    y, dx, gradients = run(layer, x, parameters, dy)

    def tensor(array):
        return torch.tensor(array).requires_grad_(array.dtype.kind == "f")

    for s in range(SEEDS):
        their_x = tensor(x[s])
        theirs = map_leaves(lambda a, s=s: tensor(np.asarray(a[s])), parameters)
        their_y = in_torch(torch, layer, their_x, theirs)
        their_y.backward(torch.tensor(dy[s]))
        close(y[s], their_y.detach())
        close(dx[s], their_x.grad)
        theirs = dict(leaves(theirs))
        for path, gradient in leaves(gradients):
            close(gradient[s], theirs[path].grad)


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.mark.parametrize(
    "layer",
    [Linear(WIDTH), *(Activation(name) for name in ACTIVATIONS)],
    ids=lambda layer: layer.name,
)
def test_layer_against_torch(torch, layer):
    compare_with_torch(torch, layer, (BATCH, INPUTS))


def test_linear_on_tokens_against_torch(torch):
    compare_with_torch(torch, Linear(WIDTH), (2, 3, INPUTS))
    compare_with_torch(torch, Linear(WIDTH), (2, 3, 2, INPUTS))


def test_linear_against_torch_module(torch):
    """torch.nn.Linear keeps the transpose of W."""
    layer = Linear(WIDTH)
    x, parameters, random = draw(layer, (BATCH, INPUTS))
    dy = random.standard_normal((SEEDS, BATCH, WIDTH))
    y, dx, gradients = run(layer, x, parameters, dy)
    module, their_x = torch.nn.Linear(INPUTS, WIDTH).double(), torch.tensor(x[0])
    with torch.no_grad():
        module.weight.copy_(torch.tensor(parameters["W"][0].T))
        module.bias.copy_(torch.tensor(parameters["b"][0]))
    their_y = module(their_x.requires_grad_())
    their_y.backward(torch.tensor(dy[0]))
    close(y[0], their_y.detach())
    close(dx[0], their_x.grad)
    close(gradients["W"][0], module.weight.grad.T)
    close(gradients["b"][0], module.bias.grad)


@pytest.mark.parametrize("loss, data", LOSSES, ids=LOSS_NAMES)
@pytest.mark.parametrize("name", NETS)
def test_net_against_torch(torch, name, loss, data):
    compare_with_torch(torch, Chain([*NETS[name], loss]), (BATCH, INPUTS), data)


# --- plain NumPy --------------------------------------------------------------------------------

# Where φ or φ' runs into a zero of its own (GELU's slope near -0.75, say), the error is of the
# size of the terms that cancel; everywhere else it is a few units in the last place.
POINTS = np.concatenate(
    [sign * np.geomspace(1e-300, 700, 400) for sign in (1, -1)]
    + [np.array([0.0, -0.0, 1e-12, -1e-12, 30, -30]), np.linspace(-40, 40, 801)]
)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_everywhere(name):
    """Values and slopes are relatively right from 1e-300 to 700, in both tails."""
    phi, slope = naive.ACTIVATIONS[name]
    z = POINTS[None, None]
    with np.errstate(under="ignore"):
        expected, expected_slope = phi(POINTS), slope(POINTS)
    y, dz, _ = run(Activation(name), z, {}, np.ones_like(z))
    tail = np.abs(POINTS) ** 2 if name in ("gelu", "erf") else np.abs(POINTS)
    # A relative error of one rounding in the exponent is |exponent| roundings of the result.
    rounding = 8 * np.finfo(float).eps * (1 + np.minimum(tail, 750))
    scale = np.abs(expected_slope)
    if name in ("gelu", "silu"):
        near = (POINTS > -3) & (POINTS < -0.5)
        scale = np.where(near, 1.0, scale)
    tiny = np.finfo(float).tiny
    assert np.all(np.abs(y[0, 0] - expected) <= rounding * np.abs(expected) + tiny)
    assert np.all(np.abs(dz[0, 0] - expected_slope) <= rounding * scale + tiny)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_of_nan_is_nan(name):
    z = np.array([[[np.nan, 1.0]]])
    y, _, _ = run(Activation(name), z, {}, np.ones_like(z))
    assert np.isnan(y[0, 0, 0]) and np.isfinite(y[0, 0, 1])


def test_slope_at_the_kink():
    """φ'(0) = 0 for ReLU and 0.01 for leaky ReLU, PyTorch's convention."""
    zero, one = np.zeros((1, 1, 2)), np.ones((1, 1, 2))
    assert np.all(run(Activation("relu"), zero, {}, one)[1] == 0)
    assert np.all(run(Activation("leaky_relu"), zero, {}, one)[1] == 0.01)


def test_linear_against_sums():
    layer = Linear(WIDTH)
    x, parameters, random = draw(layer, (BATCH, INPUTS))
    dy = random.standard_normal((SEEDS, BATCH, WIDTH))
    y, dx, gradients = run(layer, x, parameters, dy)
    for s in range(SEEDS):
        W, b = parameters["W"][s], parameters["b"][s]
        close(y[s], naive.linear(x[s], W, b))
        expected = naive.linear_pullback(x[s], W, dy[s])
        for ours, theirs in zip(
            (dx[s], gradients["W"][s], gradients["b"][s]), expected, strict=True
        ):
            close(ours, theirs)


def norms_of_examples(x, dy):
    """log2 √Σ_n ‖g_n‖² of W and b from the gradient of each example, (seeds, 2)."""
    x, dy = (a.reshape(*a.shape[:2], -1, a.shape[-1]) for a in (x, dy))
    g, own = np.einsum("snti,snto->snio", x, dy), dy.sum(axis=2)
    return np.log2([np.sqrt((g**2).sum((1, 2, 3))), np.sqrt((own**2).sum((1, 2)))]).T


@pytest.mark.parametrize("tokens", [(1,), (3,), (2, 2), (20,)], ids=str)  # few: by pairs of them
@pytest.mark.parametrize(
    "dtype, at, up",
    [("float64", 0, 0), ("float64", -200, -150), ("float64", 200, 90), ("float32", 30, 30)],
)
def test_example_norms_of_tokens(tokens, dtype, at, up):
    random = np.random.default_rng(0)
    x, dy = (random.standard_normal((SEEDS, 4, *tokens, k)) for k in (24, 30))
    out = np.empty((SEEDS, 2))
    Linear.example_norms.run((x * 10.0**at).astype(dtype), (dy * 10.0**up).astype(dtype), out)
    expected = norms_of_examples(x, dy) + np.log2(10) * np.array([at + up, up])
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-12 if at == 0 else 1e-5)


def test_example_norms_of_tokens_that_cancel():
    """Equal tokens whose cotangents sum to nearly nothing: pairs would lose every digit."""
    random = np.random.default_rng(0)
    x = np.repeat(random.standard_normal((SEEDS, 4, 1, 40)), 3, axis=2)
    dy = random.standard_normal((SEEDS, 4, 3, 40))
    dy += 1e-9 * random.standard_normal(dy.shape) - dy.mean(axis=2, keepdims=True)
    out = np.empty((SEEDS, 2))
    Linear.example_norms.run(x, dy, out)
    np.testing.assert_allclose(out, norms_of_examples(x, dy), rtol=0, atol=1e-5)
    dy[0], x[1, 2, 1, 3] = 0, np.nan
    Linear.example_norms.run(x, dy, out)
    assert np.all(out[0] == -np.inf) and np.isnan(out[1, 0]) and np.isfinite(out[1, 1])


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_losses_against_numpy(reduction):
    z = np.random.default_rng(7).standard_normal((SEEDS, BATCH, CLASSES))
    one = np.ones(SEEDS)
    for loss, name, target, oracle in (
        (SoftmaxCrossEntropy, "label", LABEL, naive.cross_entropy),
        (SquaredError, "target", TARGET, naive.squared_error),
    ):
        given = {name: target, "exponent": ZERO}
        value, dz, _ = run(loss(reduction), z, given, one)
        for s in range(SEEDS):
            expected = oracle(z[s], target[s], reduction == "mean")
            close(value[s], expected[0])
            close(dz[s], expected[1])


def test_cross_entropy_of_a_sure_and_right_answer():
    """Where p rounds to 1 the loss is still Σ e^(z_k - z_label), and so is the gradient."""
    z, label = np.array([[[60.0, 0.0, 0.0]]]), np.zeros((1, 1), int)
    given = {"label": label, "exponent": np.zeros(1, int)}
    _, dz, _ = run(SoftmaxCrossEntropy(), z, given, np.ones(1))
    p = math.exp(-60.0)
    np.testing.assert_allclose(dz[0, 0], [-2 * p, p, p], rtol=1e-14)


@pytest.mark.parametrize("exponent", [-5, 3, 40, 2000])
def test_cross_entropy_of_logits_beside_an_exponent(exponent):
    """The true logits are z 2^e; the cotangent belongs to those logits."""
    z = np.array([[[0.25, -1.0, 0.5], [0.5, 0.125, 0.25]]])
    label = np.array([[2, 1]])
    given = {"label": label, "exponent": np.array([exponent])}
    loss, dz, _ = run(SoftmaxCrossEntropy("sum"), z, given, np.ones(1))
    if exponent <= 3:
        expected, expected_dz = naive.cross_entropy(np.ldexp(z[0], exponent), label[0], False)
        np.testing.assert_allclose(loss[0], expected, rtol=1e-14)
    else:  # a saturated softmax: the largest logit takes all
        expected_dz = np.array([[0, 0, 0], [1, -1, 0]])
        assert loss[0] == np.ldexp(0.375, exponent) if exponent < 1000 else np.isinf(loss[0])
    np.testing.assert_allclose(dz[0], expected_dz, atol=1e-15)


@pytest.mark.parametrize("exponent", [-5, 0, 3, 600])
def test_squared_error_of_outputs_beside_an_exponent(exponent):
    """The cotangent is written beside 2^max(e, 0), which keeps it finite."""
    z, given = TARGET[:1] + 0.5, {"target": TARGET[:1], "exponent": np.array([exponent])}
    _, dz, _ = run(SquaredError("sum"), z, given, np.ones(1))
    expected = 2 * (np.ldexp(z, exponent) - TARGET[:1])
    np.testing.assert_allclose(dz, expected, rtol=1e-12, atol=1e-15)
    dz, kept = SquaredError("sum").cotangent(z, given, Workspace())
    assert kept[0] == max(exponent, 0)
    np.testing.assert_allclose(np.ldexp(dz, kept[0]), expected, rtol=1e-12, atol=1e-15)
