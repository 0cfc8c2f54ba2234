"""Convolution: laws, direct sums, frameworks, norms of examples, initial kernels."""

import math
from itertools import product

import numpy as np
import pytest

from flowlab import laws
from flowlab.claims import convolution
from flowlab.errors import InputError
from flowlab.initializers import Initializer, InitSettings
from flowlab.layer import Chain
from flowlab.layers import (
    Activation,
    AvgPool2d,
    Conv1d,
    Conv2d,
    Flatten,
    Linear,
    MaxPool2d,
)
from tests.support.passes import close, run

SEEDS = 2
MODES = ("zeros", "circular")
# Kernel size, stride, padding, dilation, groups.
GRID = [
    *((1, 1, 0, 1, 1), (3, 1, 1, 1, 1), (3, 2, 1, 1, 2), (2, 1, 0, 3, 1), (2, 3, 2, 1, 4)),
    *((3, 2, 2, 2, 2), (5, 1, 4, 1, 1), (2, 2, 1, 1, 1), (1, 2, 1, 1, 1)),
]


def cases():
    for numbers, mode in product(GRID, MODES):
        yield Conv1d(4, *numbers, mode), (3, 4, 8)
        yield Conv2d(4, *numbers, mode), (3, 4, 6, 7)


def draw(layer, shape, seeds=SEEDS):
    """x, parameters and dy, standard normal."""
    random, declaration = np.random.default_rng(3), layer.declare(shape)
    x = random.standard_normal((seeds, *shape))
    p = {k: random.standard_normal((seeds, *v.shape)) for k, v in declaration.parameters.items()}
    return x, p, random.standard_normal((seeds, *declaration.output))


def direct(layer, x, W, b):
    """The sum that defines a convolution, one output at a time."""
    ends = [(layer.padding, layer.padding)] * (x.ndim - 2)
    mode = {"zeros": "constant", "circular": "wrap"}[layer.padding_mode]
    x = np.pad(x, [(0, 0), (0, 0), *ends], mode=mode)
    o, c, *k = W.shape
    s, d = layer.stride, layer.dilation
    lengths = [(n - d * (m - 1) - 1) // s + 1 for n, m in zip(x.shape[2:], k, strict=True)]
    y = np.empty((len(x), o, *lengths))
    for n, j in np.ndindex(len(x), o):
        first = j // (o // layer.groups) * c
        for at in np.ndindex(*lengths):
            window = [slice(s * i, s * i + d * m, d) for i, m in zip(at, k, strict=True)]
            y[n, j, *at] = np.sum(W[j] * x[n, first : first + c][:, *window]) + b[j]
    return y


@pytest.mark.parametrize("layer, shape", cases())
def test_against_the_direct_sum(layer, shape):
    """The output; and, a convolution being bilinear, both gradients by pairing with any v."""
    x, p, dy = draw(layer, shape)
    y, dx, gradients = run(layer, x, p, dy)
    random = np.random.default_rng(4)
    for s in range(SEEDS):
        W, b = p["W"][s], p["b"][s]
        close(y[s], direct(layer, x[s], W, b))
        for _ in range(3):
            u, V = random.standard_normal(x[s].shape), random.standard_normal(W.shape)
            Ju, JV = direct(layer, u, W, 0 * b), direct(layer, x[s], V, 0 * b)
            size = np.linalg.norm(dy[s])
            assert abs(np.vdot(dx[s], u) - np.vdot(dy[s], Ju)) < 1e-13 * size * np.linalg.norm(Ju)
            assert abs(np.vdot(gradients["W"][s], V) - np.vdot(dy[s], JV)) < (
                1e-13 * size * np.linalg.norm(JV)
            )
        close(gradients["b"][s], dy[s].sum(axis=(0, *range(2, dy[s].ndim))))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("numbers", [(3, 1, 1, 1, 1), (3, 2, 2, 1, 1), (2, 2, 1, 3, 2)])
def test_many_tiles_and_no_element_beyond(numbers, mode, dtype):
    """Shapes that tiles do not divide; and the neighbours in memory stay as they are."""
    layer, shape = Conv2d(14, *numbers, mode), (2, 10, 7, 29)
    declaration, tolerance = layer.declare(shape), 1e-12 if dtype == "float64" else 1e-6
    x, p, dy = (
        {k: v.astype(dtype) for k, v in a.items()} if isinstance(a, dict) else a.astype(dtype)
        for a in draw(layer, shape, seeds=1)
    )
    own = slice(1, 2)  # of three networks, those of the others hold NaN

    def guarded(shapes):
        return [np.full((3, *s), np.nan, dtype) for s in shapes]

    scratch, weights = declaration.scratch.values(), {"W": p["W"].shape[1:], "b": (14,)}
    y, dx, dW, db = written = guarded([declaration.output, shape, *weights.values()])
    for kernel, reads, writes in (
        (layer.forward_kernel, (x, *p.values()), [y]),
        (layer.pullback_kernel, (x, p["W"], dy), [dx, dW, db]),
    ):
        buffers = guarded(scratch)
        kernel.run(*reads, *(a[own] for a in writes + buffers), *declaration.constants)
        for array in writes + buffers:
            assert np.isnan(array[[0, 2]]).all()
    assert not any(np.isnan(array[own]).any() for array in written)
    close(y[1], direct(layer, x[0], p["W"][0], p["b"][0]), tolerance)
    random = np.random.default_rng(4)
    u, V = random.standard_normal(shape), random.standard_normal(p["W"].shape[1:])
    for gradient, v, Jv in (
        (dx[1], u, direct(layer, u, p["W"][0], 0 * p["b"][0])),
        (dW[1], V, direct(layer, x[0], V, 0 * p["b"][0])),
    ):
        size = np.linalg.norm(dy) * np.linalg.norm(Jv)
        assert abs(np.vdot(gradient, v) - np.vdot(dy[0], Jv)) < tolerance * size
    close(db[1], dy[0].sum(axis=(0, 2, 3)), tolerance)


@pytest.mark.parametrize("numbers", [(3, 1, 1, 1, 1), (3, 2, 2, 2, 2), (2, 3, 1, 1, 4)])
@pytest.mark.parametrize("mode", MODES)
def test_laws(numbers, mode):
    laws.check(Conv1d(4, *numbers, mode), (2, 4, 5))
    laws.check(Conv2d(4, *numbers, mode), (2, 4, 5, 3))
    laws.check(Conv2d(4, *numbers, mode), (1, 4, 3, 3))


def network():
    return Chain(
        [
            *(Conv2d(4, 3, padding=1, padding_mode="circular"), Activation("relu"), MaxPool2d(2)),
            *(Conv2d(6, 2, groups=2), AvgPool2d(2, 1), Flatten(), Linear(3)),
        ],
        name="net",
    )


def test_laws_of_a_network():
    assert network().homogeneous
    assert laws.check(network(), (2, 2, 6, 7), seeds=2) == list(laws.LAWS)


@pytest.mark.parametrize("layer, shape", cases())
def test_against_frameworks(apart, layer, shape):
    if layer.padding_mode == "circular" and layer.padding > min(shape[2:]):
        pytest.skip("PyTorch wraps around once")
    assert apart(layer, shape) < 1e-12


def test_defaults_are_those_of_torch():
    torch = pytest.importorskip("torch")
    ours, theirs = Conv2d(4, 3), torch.nn.Conv2d(2, 4, 3)
    for name in ("stride", "padding", "dilation"):
        assert (getattr(ours, name),) * 2 == getattr(theirs, name)
    assert (ours.groups, ours.padding_mode) == (theirs.groups, theirs.padding_mode)


@pytest.mark.parametrize("stride, padding, dilation, groups", [(1, 1, 1, 1), (2, 1, 2, 2)])
def test_input_gradient_is_torchs_transposed_convolution(stride, padding, dilation, groups):
    torch = pytest.importorskip("torch")
    layer = Conv2d(4, 3, stride, padding, dilation, groups)
    shape = (2, 4, convolution.HEIGHT, convolution.WIDTH)
    x, p, dy = draw(layer, shape)
    _, dx, _ = run(layer, x, p, dy)
    reach = dilation * 2
    rest = [(length + 2 * padding - reach - 1) % stride for length in shape[2:]]
    own = convolution.transposed(layer, convolution.flipped(p["W"], groups), dy, "zeros")
    close(own, dx)
    for s in range(SEEDS):
        W = torch.tensor(p["W"][s])
        theirs = torch.nn.functional.conv_transpose2d(
            torch.tensor(dy[s]), W, None, stride, padding, rest, groups, dilation
        )
        close(dx[s], theirs)


# --- norms of the examples ----------------------------------------------------------------------


@pytest.mark.parametrize("layer, shape", [*cases()][::3])
def test_example_norms(layer, shape):
    """Against the gradients that each example gives when it is alone."""
    x, p, dy = draw(layer, shape)
    out = np.empty((SEEDS, 2))
    layer.example_norms.run(x, dy, out)
    squares = np.zeros((2, SEEDS))
    for n in range(shape[0]):
        _, _, alone = run(layer, x[:, n : n + 1].copy(), p, dy[:, n : n + 1].copy())
        for row, name in zip(squares, ("W", "b"), strict=True):
            row += np.sum(alone[name].reshape(SEEDS, -1) ** 2, axis=1)
    np.testing.assert_allclose(out.T, 0.5 * np.log2(squares), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "dtype, at, up",
    [("float32", 30, 30), ("float32", -36, -30), ("float64", -200, -250), ("float64", 200, 250)],
)
def test_example_norms_at_any_scale(dtype, at, up):
    layer, shape = Conv2d(4, 3, padding=1), (3, 2, 4, 5)
    x, _, dy = draw(layer, shape)
    plain, out = np.empty((SEEDS, 2)), np.empty((SEEDS, 2))
    layer.example_norms.run(x, dy, plain)
    layer.example_norms.run((x * 10.0**at).astype(dtype), (dy * 10.0**up).astype(dtype), out)
    expected = plain + np.log2(10) * np.array([at + up, up])
    np.testing.assert_allclose(out, expected, atol=1e-5 if dtype == "float32" else 1e-9, rtol=0)


def test_example_norms_of_zero_and_of_what_is_not_finite():
    layer, shape = Conv1d(4, 3, padding=1), (3, 2, 5)
    x, _, dy = draw(layer, shape, seeds=4)
    dy[0], x[1, 2, 1, 3], dy[2, 0, 1, 1] = 0, np.nan, np.inf
    out = np.empty((4, 2))
    layer.example_norms.run(x, dy, out)
    assert np.all(out[0] == -np.inf)
    assert np.isnan(out[1, 0]) and np.isfinite(out[1, 1])
    assert not np.isfinite(out[2]).any() and np.isfinite(out[3]).all()


# --- initial kernels ----------------------------------------------------------------------------


def kernels(layer, shape, init, seeds=4):
    declared = layer.declare(shape).parameters["W"]
    W = np.full((seeds, *declared.shape), np.nan)
    initializer = Initializer(InitSettings(init, gain=1.5))
    initializer.draw(declared, np.arange(seeds), 1, 0, W)
    return W / 1.5, declared, initializer.deviation(declared) / 1.5


def test_fans():
    declared = Conv2d(6, 3, groups=2).declare((1, 4, 5, 5)).parameters
    for parameter in declared.values():
        assert (parameter.fan_in, parameter.fan_out) == (2 * 9, 3 * 9)
    torch = pytest.importorskip("torch")
    for module, layer in (
        (torch.nn.Conv2d(4, 6, 3), Conv2d(6, 3)),
        (torch.nn.Conv1d(4, 6, 5), Conv1d(6, 5)),
    ):
        W = layer.declare((1, 4, *[9] * (module.weight.ndim - 2))).parameters["W"]
        theirs = torch.nn.init._calculate_fan_in_and_fan_out(module.weight)
        assert (W.fan_in, W.fan_out) == theirs and W.shape == tuple(module.weight.shape)


@pytest.mark.parametrize("features", [3, 40])
def test_orthogonal_kernels(features):
    W, _, deviation = kernels(Conv2d(features, 3), (1, 4, 5, 5), "orthogonal")
    for w in W.reshape(4, features, -1):
        gram = w @ w.T if features <= w.shape[1] else w.T @ w
        np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-13)
    assert np.mean(W**2) == pytest.approx(deviation**2, rel=1e-12)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("features", [4, 12])
@pytest.mark.parametrize("size", [2, 3, 5])
def test_delta_orthogonal_kernels(groups, features, size):
    layer = Conv2d(features, size, groups=groups)
    W, declared, deviation = kernels(layer, (1, 8, 9, 9), "delta_orthogonal")
    assert np.mean(W**2) == pytest.approx(deviation**2, rel=1e-12)
    centres = W[..., size // 2, size // 2].copy()
    W[..., size // 2, size // 2] = 0
    assert not W.any()
    centres = centres.reshape(4 * groups, features // groups, declared.shape[1])
    for w in centres:
        gram = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
        np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-13)
    assert len({round(w[0, 0], 12) for w in centres}) == len(centres)


@pytest.mark.parametrize("kind, lengths", [(Conv1d, (9,)), (Conv2d, (5, 6))])
@pytest.mark.parametrize("channels", [(6, 6), (6, 4), (4, 6)])
def test_delta_orthogonal_keeps_norms(kind, lengths, channels):
    """Onto as many channels in both directions, onto fewer backward, onto more forward."""
    c, o = channels
    layer = kind(o, 3, padding=1, padding_mode="circular")
    x, _, dy = draw(layer, (2, c, *lengths), seeds=4)
    W, *_ = kernels(layer, (2, c, *lengths), "delta_orthogonal")
    y, dx, _ = run(layer, x, {"W": W, "b": np.zeros((4, o))}, dy)
    if o <= c:
        assert np.linalg.norm(dx) == pytest.approx(np.linalg.norm(dy), rel=1e-14)
    if o >= c:
        assert np.linalg.norm(y) == pytest.approx(np.linalg.norm(x), rel=1e-14)


def test_delta_orthogonal_matrices_are_orthogonal_ones():
    declared = Linear(5).declare((1, 3)).parameters["W"]
    drawn = np.empty((2, 3, 3, 5))
    for out, name in zip(drawn, ("orthogonal", "delta_orthogonal"), strict=True):
        Initializer(InitSettings(name)).draw(declared, np.arange(3), 1, 0, out)
    np.testing.assert_array_equal(*drawn)
    with pytest.raises(InputError, match=r"^init\.mode does not apply to delta_orthogonal; got .*"):
        Initializer(InitSettings("delta_orthogonal", mode="fan_in"))


def test_torch_default_is_torchs():
    """Weights and biases uniform on ±1/sqrt(fan_in), as torch.nn.Conv2d draws them."""
    parameters = Conv2d(60, 3, groups=2).declare((1, 8, 5, 5)).parameters
    bound = 1 / math.sqrt(4 * 9)
    for role, parameter in enumerate(parameters.values()):
        out = np.empty((20, *parameter.shape))
        Initializer(InitSettings("torch_default")).draw(parameter, np.arange(20), 1, role, out)
        assert 0.99 * bound < np.abs(out).max() <= bound
        sd = math.sqrt(4 / 5 / out.size)  # a uniform's kurtosis is 9/5
        assert abs(np.mean(out**2) / (bound**2 / 3) - 1) < 4 * sd


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, line",
    [
        (lambda: Conv2d(0, 3), "conv2d: features must be at least 1; got 0"),
        (lambda: Conv2d(4, 0), "conv2d: kernel_size must be at least 1; got 0"),
        (lambda: Conv1d(4, 3, stride=0), "conv1d: stride must be at least 1; got 0"),
        (lambda: Conv1d(4, 3, dilation=-1), "conv1d: dilation must be at least 1; got -1"),
        (lambda: Conv2d(4, 3, groups=0), "conv2d: groups must be at least 1; got 0"),
        (lambda: Conv2d(4, 3, padding=-1), "conv2d: padding must be at least 0; got -1"),
        (
            lambda: Conv2d(4, 3, groups=3),
            "conv2d: groups must divide features; got 3 groups of 4",
        ),
        (
            lambda: Conv2d(4, 3, padding_mode="zero"),
            "conv2d: padding_mode must be one of zeros, circular; got zero; did you mean zeros?",
        ),
        (
            lambda: Conv2d(4, 3, groups=2).declare((1, 3, 5, 5)),
            "conv2d: groups must divide the input's channels; got 2 groups of 3",
        ),
        (
            lambda: Conv2d(4, 3, dilation=2, padding=1).declare((1, 3, 9, 2)),
            "conv2d: the kernel's extent must be at most the padded width, 4; got 5",
        ),
        (
            lambda: Conv1d(4, 3).declare((1, 3, 2)),
            "conv1d: the kernel's extent must be at most the padded length, 2; got 3",
        ),
        (
            lambda: Conv1d(4, 3).declare((1, 3, 5, 5)),
            "conv1d: input must have axes (batch, channels, length); got shape (1, 3, 5, 5)",
        ),
        (
            lambda: Conv2d(4, 3).declare((3, 5)),
            "conv2d: input must have axes (batch, channels, height, width); got shape (3, 5)",
        ),
    ],
)
def test_bad_input_is_one_line(make, line):
    with pytest.raises(InputError) as caught:
        make()
    assert str(caught.value) == line
