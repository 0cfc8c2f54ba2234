"""Linear maps against sums, frameworks and the gradients of single examples."""

import numpy as np
import pytest

from flowlab.layer import Workspace
from flowlab.layers import Linear, linear
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


# (n, i, o): from dW itself; from pairs of examples, in one tile, in several, in tiles that are cut.
DIRECT = [(6, 4, 5), (128, 64, 64)]
BY_PAIRS = [(16, 300, 200), (130, 700, 600)]
# Factors of x and of dy, and how the examples' gradients add up.
CASES = {
    "comfortable": (1.0, 1.0, "any"),
    "one example's": (1.0, 1.0, "one"),
    "cancelling to a thousandth": (1.0, 1.0, 1e-3),
    "cancelling to nothing": (1.0, 1.0, 0.0),
    "squares of x below float32": (1e-21, 1.0, "any"),
    "squares of x below float32, dy small": (1e-21, 1e-10, "any"),
    "squares of dy above float32": (1.0, 1e21, "any"),
    "no cotangent": (1.0, 0.0, "any"),
}


def measured_parts(shape, dtype, of_x=1.0, of_dy=1.0, sum_of="any"):
    """(layer, tape, dy) of two networks; the examples' gradients may be made to cancel."""
    (n, i, o), layer = shape, Linear(shape[2])
    x, parameters, random = draw(layer, (n, i))
    dy = random.standard_normal((SEEDS, n, o))
    if sum_of == "one":
        dy[:, 1:] = 0
    elif sum_of != "any":
        half = n // 2
        x[:, half : 2 * half], dy[:, half : 2 * half] = x[:, :half], -dy[:, :half]
        dy[:, 2 * half :] = 0
        dy[:, 0] *= 1 + sum_of
    arrays = (of_x * x, *parameters.values(), of_dy * dy)
    x, W, b, dy = (array.astype(dtype) for array in arrays)
    _, tape = layer.forward(x, {"W": W, "b": b}, Workspace())
    return layer, tape, dy


def norms_pulled(layer, tape, dy):
    dx, workspace = np.empty_like(tape["x"]), Workspace(fill=np.nan)
    measured = layer.pull_measured(dy, tape, dx, workspace)
    return dx, measured.norms, measured.examples


def norms_by_numpy(tape, dy):
    """log2 norms of dY, dX, dW, db and of the examples' own gradients, in long doubles."""
    x, W, dy = (a.astype(np.longdouble) for a in (tape["x"], tape["W"], dy))
    arrays = dy, np.einsum("sno,sio->sni", dy, W), np.einsum("sni,sno->sio", x, dy), dy.sum(axis=1)
    squares = [(a * a).reshape(SEEDS, -1).sum(axis=1) for a in arrays]
    of_examples = ((x * x).sum(axis=2) * (dy * dy).sum(axis=2)).sum(axis=1), squares[0]
    with np.errstate(divide="ignore"):
        return (
            0.5 * np.log2(np.stack(squares, axis=1)),
            0.5 * np.log2(np.stack(of_examples, axis=1)),
        )


@pytest.mark.parametrize("shape", DIRECT + BY_PAIRS, ids=str)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_norms_without_gradients(shape, case, dtype):
    layer, tape, dy = measured_parts(shape, dtype, *CASES[case])
    dx, norms, examples = norms_pulled(layer, tape, dy)
    expected, of_examples = norms_by_numpy(tape, dy)
    eps = float(np.finfo(dtype).eps)
    np.testing.assert_allclose(examples, of_examples, rtol=1e-15, atol=20 * eps)
    # Sums over examples are right to roundings of their terms, in log2 as in shares.
    terms = np.column_stack([expected[:, :2], of_examples])
    vanished = expected < terms + np.log2(eps)
    with np.errstate(invalid="ignore"):
        slack = 20 * eps * np.exp2(terms - expected) + 1e-15 * np.abs(expected)
        right = np.abs(norms - expected) <= slack
    assert (right | vanished | (norms == expected)).all()
    assert (norms <= terms + np.log2(20 * eps))[vanished].all()
    # Who needs gradients is shown the same bits.
    made, gradients = run_pullback(layer, tape, dy)
    beside = layer.measured(tape, dy, made, gradients)
    shown = dx, norms, examples
    assert bits(shown) == bits((made, beside.norms, beside.examples))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_norms_without_gradients_show_what_is_not_finite(value):
    layer, tape, dy = measured_parts(BY_PAIRS[0], "float32")
    dy[1, 3, 7] = value
    _, norms, examples = norms_pulled(layer, tape, dy)
    plain = layer.measured(tape, dy, *run_pullback(layer, tape, dy))
    np.testing.assert_array_equal(np.isfinite(norms), np.isfinite(plain.norms))
    np.testing.assert_array_equal(np.isfinite(examples), np.isfinite(plain.examples))
    assert np.isfinite(norms[0]).all()


def test_pairs_are_taken_where_they_are_fewer():
    assert [linear._by_pairs(*shape) for shape in DIRECT + BY_PAIRS] == [False, False, True, True]


def bits(arrays):
    return [array.tobytes() for array in arrays]


def run_pullback(layer, tape, dy):
    return layer.pullback(dy, tape, Workspace())
