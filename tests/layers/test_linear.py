"""Linear maps against sums, frameworks and the gradients of single examples."""

import numpy as np
import pytest

from flowlab.layers import Linear
from tests.support import naive
from tests.support.passes import close, run

SEEDS, BATCH, INPUTS, WIDTH = 2, 6, 4, 5


def draw(layer, shape):
    random = np.random.default_rng(3)
    x = random.standard_normal((SEEDS, *shape))
    parameters = {
        name: random.standard_normal((SEEDS, *declared.shape)) / declared.fan_in**0.5
        for name, declared in layer.declare(shape).parameters.items()
    }
    return x, parameters, random


@pytest.mark.parametrize("shape", [(BATCH, INPUTS), (2, 3, INPUTS), (2, 3, 2, INPUTS)])
def test_against_frameworks(apart, shape):
    assert apart(Linear(WIDTH), shape) < 1e-12


def test_against_torch_module():
    """torch.nn.Linear keeps the transpose of W."""
    torch, layer = pytest.importorskip("torch"), Linear(WIDTH)
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


def test_against_sums():
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
