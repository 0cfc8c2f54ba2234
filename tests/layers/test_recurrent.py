"""Recurrence: laws, frameworks, exponents along time, closed forms, norms of examples, mutants."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowlab import laws
from flowlab.errors import InputError
from flowlab.initializers import SCHEMES, Initializer, InitSettings
from flowlab.layer import Chain, Workspace
from flowlab.layers import GRU, LSTM, LastStep, Linear, Recurrent
from flowlab.layers.recurrent import gate, gate_slope, opened
from flowlab.numerics.elementary import tanh_and_slope

SEEDS = 2
LAYERS = {
    "tanh": Recurrent(3),
    "relu": Recurrent(3, "relu"),
    "identity": Recurrent(3, "identity"),
    "lstm": LSTM(3),
    "lstm, forget bias": LSTM(3, forget_bias=1.0),
    "gru": GRU(3),
}
every = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
PARAMETERS = ("W_ih", "W_hh", "b_ih", "b_hh")


def close(ours, theirs, tolerance=1e-12):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert np.linalg.norm(ours - theirs) <= tolerance * np.linalg.norm(theirs)


def draw(layer, shape, dtype=np.float64, seeds=SEEDS):
    """x, parameters of a spectral radius near 1, and dy."""
    random, declaration = np.random.default_rng(3), layer.declare(shape)

    def normal(shape, deviation=1.0):
        return (deviation * random.standard_normal((seeds, *shape))).astype(dtype)

    p = {k: normal(v.shape, v.fan_in**-0.5) for k, v in declaration.parameters.items()}
    return normal(shape), p, normal(declaration.output)


def run(layer, x, parameters, dy, watch=None):
    """y, dx, gradients and the tape."""
    workspace = Workspace(np.nan)
    y, tape = layer.forward(x, parameters, workspace)
    dx, gradients = layer.pullback(dy, tape, workspace, watch)
    return y, dx, gradients, tape


def run_along_time(layer, x, parameters, dy, x_exponents, dy_exponents):
    """(y, exponents), (dx, exponents), gradients and the tape."""
    workspace = Workspace(np.nan)
    y, e_y, tape = layer.forward_along_time(x, x_exponents, parameters, workspace)
    dx, e_x, gradients = layer.pullback_along_time(dy, dy_exponents, tape, workspace)
    return (y, e_y), (dx, e_x), gradients, tape


# --- the same recurrences in JAX and PyTorch ------------------------------------------------------


def in_jax(layer, x, p, states=None):
    """States (n, T, h) of one network; ``states`` (n, T, h), if given, are added to them as h_t."""
    h = layer.features
    zero = jnp.zeros((x.shape[0], h))
    added = jnp.zeros((*x.shape[:2], h)) if states is None else states

    def step(carry, inputs):
        state, cell = carry
        t, x, add = inputs
        if layer.truncation:
            cut = (t % layer.truncation == 0) & (t > 0)
            state, cell = (jnp.where(cut, jax.lax.stop_gradient(a), a) for a in (state, cell))
        u, v = x @ p["W_ih"] + p["b_ih"], state @ p["W_hh"] + p["b_hh"]
        if layer.name == "lstm":
            i, f, g, o = jnp.split(u + v, 4, axis=1)
            f = jax.nn.sigmoid(f + layer.forget_bias)
            cell = f * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
            state = jax.nn.sigmoid(o) * jnp.tanh(cell)
        elif layer.name == "gru":
            (r, z, n), (vr, vz, vn) = jnp.split(u, 3, axis=1), jnp.split(v, 3, axis=1)
            z, n = jax.nn.sigmoid(z + vz), jnp.tanh(n + jax.nn.sigmoid(r + vr) * vn)
            state = (1 - z) * n + z * state
        else:
            phi = {"tanh": jnp.tanh, "relu": jax.nn.relu, "identity": lambda z: z}
            state = phi[layer.activation](u + v)
        state = state + add
        return (state, cell), state

    swap = lambda a: jnp.swapaxes(a, 0, 1)  # noqa: E731
    inputs = (jnp.arange(x.shape[1]), swap(x), swap(added))
    return swap(jax.lax.scan(step, (zero, zero), inputs)[1])


def compare_with_jax(layer, shape):
    x, p, dy = draw(layer, shape)
    y, dx, gradients, tape = run(layer, x, p, dy)
    with jax.enable_x64(True):

        @jax.jit
        @jax.vmap
        def theirs(x, p, dy):
            y, pull = jax.vjp(lambda x, p, s: in_jax(layer, x, p, s), x, p, jnp.zeros_like(dy))
            return y, pull(dy)

        expected, (their_dx, their_gradients, of_states) = theirs(x, p, dy)
    close(y, expected)
    close(dx, their_dx)
    for name in PARAMETERS:
        close(gradients[name], their_gradients[name])
    norms = np.linalg.norm(np.asarray(expected), axis=(1, 3))
    np.testing.assert_allclose(np.exp2(tape["state_log2_norms"]), norms, rtol=1e-12)
    norms = np.linalg.norm(np.asarray(of_states), axis=(1, 3))
    np.testing.assert_allclose(np.exp2(tape["state_cotangent_log2_norms"]), norms, rtol=1e-12)


@every
def test_laws(layer):
    assert laws.check(layer, (4, 5, 2)) == list(laws.LAWS)
    laws.check(layer, (1, 1, 1))


def test_laws_in_a_chain():
    laws.check(Chain([GRU(3), Recurrent(4), LSTM(2), LastStep(), Linear(3)]), (3, 4, 2))
    net = Chain([Recurrent(3, "relu"), Recurrent(4, "identity"), LastStep(), Linear(3)])
    assert net.homogeneous
    laws.check(net, (3, 4, 2))


@every
def test_against_jax(layer):
    compare_with_jax(layer, (4, 9, 5))


@pytest.mark.parametrize("k", [1, 3, 4, 20])
@pytest.mark.parametrize("kind", [Recurrent, LSTM, GRU])
def test_truncation_against_stop_gradient(kind, k):
    """No law of adjointness: a truncated pullback is not the adjoint of a derivative."""
    compare_with_jax(kind(3, truncation=k), (2, 9, 2))


def test_truncation_breaks_the_adjoint_and_nothing_before_it():
    with pytest.raises(laws.LawBroken) as broken:
        laws.check(LSTM(3, truncation=2), (3, 5, 2))
    assert broken.value.law == "adjoint"


@pytest.mark.parametrize("name", ["tanh", "relu", "lstm", "gru"])
def test_against_torch(name):
    torch, layer = pytest.importorskip("torch"), LAYERS[name]
    x, p, dy = draw(layer, (4, 9, 5))
    y, dx, gradients, _ = run(layer, x, p, dy)
    kinds = {"recurrent": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}
    more = {"nonlinearity": layer.activation} if layer.name == "recurrent" else {}
    module = kinds[layer.name](5, 3, batch_first=True, **more).double()
    theirs = [getattr(module, f"{kind}_l0") for kind in ("weight_ih", "weight_hh")]
    theirs += [module.bias_ih_l0, module.bias_hh_l0]
    for s in range(SEEDS):
        for name, parameter in zip(PARAMETERS, theirs, strict=True):
            parameter.data = torch.tensor(p[name][s].T)
        their_x = torch.tensor(x[s], requires_grad=True)
        their_y, _ = module(their_x)
        wanted = torch.autograd.grad(their_y, [their_x, *theirs], torch.tensor(dy[s]))
        close(y[s], their_y.detach())
        close(dx[s], wanted[0])
        for name, gradient in zip(PARAMETERS, wanted[1:], strict=True):
            close(gradients[name][s], gradient.numpy().T)


# --- exponents along time -------------------------------------------------------------------------


@every
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_mantissas_are_those_of_the_unscaled_pass(layer, dtype):
    """A13: with every step rescaled, the bits are those of a pass that never rescales."""
    given = draw(layer, (3, 40, 4), dtype)
    never, always = (type(layer).__new__(type(layer)) for _ in range(2))
    for other, comfort in ((never, math.inf), (always, 0.0)):
        vars(other).update(vars(layer), comfort=comfort)
    results = [run(one, *given) for one in (never, always, layer)]
    assert np.any(results[1][3]["cotangent_exponents"])
    for y, dx, gradients, _ in results[1:]:
        np.testing.assert_array_equal(y, results[0][0])
        np.testing.assert_array_equal(dx, results[0][1])
        for name in PARAMETERS:
            np.testing.assert_array_equal(gradients[name], results[0][2][name])


@every
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exponents_of_the_cotangent(layer, dtype):
    """dy 2^e for one e is the plain pullback, far out of the float range."""
    x, p, dy = draw(layer, (3, 12, 4), dtype)
    _, dx, gradients, tape = run(layer, x, p, dy)
    zero = np.zeros((SEEDS, 12), np.int64)
    for e in (-20_000, 0, 3000):
        _, (scaled, exponents), own, other = run_along_time(layer, x, p, dy, zero, zero + e)
        for t in range(12):
            for s in range(SEEDS):
                expected = np.ldexp(dx[s, :, t], e - exponents[s, t])
                np.testing.assert_array_equal(scaled[s, :, t], expected)
        for k, name in enumerate(PARAMETERS):
            shifted = np.ldexp(own[name].T, other["gradient_exponents"][:, k] - e).T
            np.testing.assert_array_equal(shifted, gradients[name])
        for name in ("state_cotangent_log2_norms", "delta_log2_norms"):
            np.testing.assert_allclose(other[name], tape[name] + e, rtol=1e-13)


def big_pass(layer, x, p, dy, x_exponents, dy_exponents):
    """A relu or identity recurrence of one network in exact rationals; its states and cotangents.

    Returns object arrays of fractions by name: h, dh, dz (T, n, h), dx (T, n, i), gradients.
    """

    def exact(a):
        return np.vectorize(Fraction, otypes=[object])(a)

    def times(a, exponents):
        powers = [Fraction(2) ** int(e) for e in exponents]
        return [exact(a[:, t]) * power for t, power in enumerate(powers)]

    x, dy = times(x, x_exponents), times(dy, dy_exponents)
    p = {name: exact(array[0]) for name, array in p.items()}
    h, z = [exact(np.zeros(dy[0].shape))], []
    for step in x:
        z.append(step @ p["W_ih"] + p["b_ih"] + h[-1] @ p["W_hh"] + p["b_hh"])
        h.append(z[-1] * (z[-1] > 0) if layer.activation == "relu" else z[-1])
    out = {name: [] for name in ("dh", "dz", "dx")}
    gradients = {name: 0 * array for name, array in p.items()}
    carry = 0 * h[0]
    for t in reversed(range(len(x))):
        dh = dy[t] + carry
        dz = dh * (z[t] > 0) if layer.activation == "relu" else dh
        carry = dz @ p["W_hh"].T
        gradients["W_ih"] = gradients["W_ih"] + x[t].T @ dz
        gradients["W_hh"] = gradients["W_hh"] + h[t].T @ dz
        for name in ("b_ih", "b_hh"):
            gradients[name] = gradients[name] + dz.sum(axis=0)
        for name, value in (("dh", dh), ("dz", dz), ("dx", dz @ p["W_ih"].T)):
            out[name].insert(0, value)
    return {"h": h[1:], **out, **gradients}


def log2_size(a):
    """log2 of the Frobenius norm of an array of fractions."""
    square = sum(v * v for v in np.ravel(a))
    if square == 0:
        return -math.inf
    shift = square.numerator.bit_length() - square.denominator.bit_length()
    return 0.5 * (math.log2(square / Fraction(2) ** shift) + shift)


@pytest.mark.parametrize("activation", ["relu", "identity"])
@pytest.mark.parametrize("radius", [2.0**-45, 2.0**45])
def test_a_scaled_stack_against_exact_rationals(activation, radius):
    """Two layers hand each other exponents of every step, far beyond float64, both ways."""
    T, layers = 30, [Recurrent(2, activation), Recurrent(3, activation)]
    x, p, _ = draw(layers[0], (2, T, 2), seeds=1)
    _, q, dy = draw(layers[1], (2, T, 2), seeds=1)
    p["W_hh"], q["W_hh"] = radius * np.abs(p["W_hh"]), radius * np.abs(q["W_hh"])
    p["W_ih"], q["W_ih"] = np.abs(p["W_ih"]), np.abs(q["W_ih"])
    random = np.random.default_rng(5)
    e_x, e_dy = random.integers(-9, 9, (2, 1, T))
    dy[:, :, 3:-1] = 0
    workspace, tapes = Workspace(np.nan), []
    y, e_y, tape = layers[0].forward_along_time(x, e_x, p, workspace)
    tapes.append(tape)
    top, e_top, tape = layers[1].forward_along_time(y, e_y, q, workspace)
    tapes.append(tape)
    middle, e_middle, second = layers[1].pullback_along_time(dy, e_dy, tape, workspace)
    dx, e_dx, first = layers[0].pullback_along_time(middle, e_middle, tapes[0], workspace)
    assert np.abs(tapes[0]["cotangent_exponents"]).max() > 1000

    upper = big_pass(layers[1], y[0], q, dy[0], e_y[0], e_dy[0])
    lower = big_pass(layers[0], x[0], p, middle[0], e_x[0], e_middle[0])
    for name, array, exponents, exact in (
        ("y", y, e_y, lower["h"]),
        ("top", top, e_top, upper["h"]),
        ("middle", middle, e_middle, upper["dx"]),
        ("dx", dx, e_dx, lower["dx"]),
    ):
        for t in range(T):
            ours = np.vectorize(Fraction, otypes=[object])(array[0, :, t])
            error = log2_size(ours * Fraction(2) ** int(exponents[0, t]) - exact[t])
            assert error <= log2_size(exact[t]) - 40, (name, t)
    for tape, gradients, exact in ((tapes[0], first, lower), (tapes[1], second, upper)):
        for name, wanted in (
            ("state_log2_norms", exact["h"]),
            ("state_cotangent_log2_norms", exact["dh"]),
            ("delta_log2_norms", exact["dz"]),
        ):
            np.testing.assert_allclose(tape[name][0], list(map(log2_size, wanted)), atol=1e-9)
        for k, name in enumerate(PARAMETERS):
            ours = np.vectorize(Fraction, otypes=[object])(gradients[name][0])
            ours = ours * Fraction(2) ** int(tape["gradient_exponents"][0, k])
            assert log2_size(ours - exact[name]) <= log2_size(exact[name]) - 40, name


# --- closed forms of long sequences ---------------------------------------------------------------

LONG = 3000


def matrix(layer, i, dtype):
    """The layer's own initial W_hh, positive W_ih, no biases."""
    declared = layer.declare((1, 1, i)).parameters
    p = {k: np.zeros((SEEDS, *v.shape), dtype) for k, v in declared.items()}
    p["W_ih"] += np.random.default_rng(6).uniform(0.1, 1.0, p["W_ih"].shape).astype(dtype)
    drawn = Initializer(InitSettings("he"))
    drawn.draw(declared["W_hh"], np.arange(SEEDS), 1, 1, p["W_hh"])
    return p


def orthogonal(radius, dtype):
    """A long linear recurrence with one input and one cotangent, and what A11 says of its norms."""
    layer, h = Recurrent(16, "identity", recurrent="orthogonal", radius=radius), 16
    p, random = matrix(layer, 4, dtype), np.random.default_rng(7)
    x, dy = np.zeros((SEEDS, 2, LONG, 4), dtype), np.zeros((SEEDS, 2, LONG, h), dtype)
    x[:, :, 0] = random.standard_normal(x[:, :, 0].shape)
    dy[:, :, -1] = random.standard_normal(dy[:, :, -1].shape)
    steps = math.log2(radius) * np.arange(LONG)
    first = np.log2(np.linalg.norm(x[:, :, 0] @ p["W_ih"], axis=(1, 2)))
    last = np.log2(np.linalg.norm(dy[:, :, -1], axis=(1, 2)))
    return layer, x, p, dy, first[:, None] + steps, last[:, None] + steps[::-1]


@pytest.mark.parametrize("radius", [0.7, 1.0, 1.5])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_orthogonal_recurrence_keeps_norms(radius, dtype):
    """A11: states and cotangents by the radius each step, over 1,500 powers of ten."""
    layer, x, p, dy, forward, backward = orthogonal(radius, dtype)
    _, dx, _, tape = run(layer, x, p, dy)
    tolerance = 4 * LONG * np.finfo(dtype).eps
    np.testing.assert_allclose(tape["state_log2_norms"], forward, atol=tolerance)
    for name in ("state_cotangent_log2_norms", "delta_log2_norms"):
        np.testing.assert_allclose(tape[name], backward, atol=tolerance)
    # What a float cannot hold reads 0 or infinite, never NaN.
    assert not np.isnan(dx).any()
    assert np.all(dx[:, :, 0] == 0) == (radius < 1)
    assert np.all(np.isinf(dx[:, :, 0])) == (radius > 1)
    # dW_hh sums products of states and cotangents that are all of one size.
    zero = np.zeros((SEEDS, LONG), np.int64)
    _, _, gradients, tape = run_along_time(layer, x, p, dy, zero, zero)
    size = np.log2(np.linalg.norm(gradients["W_hh"].astype(float), axis=(1, 2)))
    size += tape["gradient_exponents"][:, 1]
    expected = (forward[:, 0] + backward[:, 1]) + math.log2(LONG - 1)
    assert np.all(size < expected + 1e-3) and np.all(size > expected - 8)


def test_without_the_carry_the_closed_form_fails():
    layer, x, p, dy, _, backward = orthogonal(0.7, np.float32)
    layer.comfort = math.inf
    norms = run(layer, x, p, dy)[3]["state_cotangent_log2_norms"]
    assert np.isneginf(norms[:, 0]).all() and np.isfinite(backward).all()


def test_an_identity_recurrence_has_ratio_one():
    """A12: with ReLU and non-negative preactivations."""
    layer = Recurrent(8, "relu", recurrent="identity")
    p, random = matrix(layer, 3, np.float32), np.random.default_rng(8)
    x = random.uniform(0, 1, (SEEDS, 2, LONG, 3)).astype(np.float32)
    dy = np.zeros((SEEDS, 2, LONG, 8), np.float32)
    dy[:, :, -1] = random.standard_normal(dy[:, :, -1].shape)
    tape = run(layer, x, p, dy)[3]
    for name in ("state_cotangent_log2_norms", "delta_log2_norms"):
        assert np.ptp(tape[name], axis=1).max() == 0


@pytest.mark.parametrize("forget_bias", [-2.0, 0.0, 3.0])
def test_the_cell_alone_multiplies_by_its_forget_gates(forget_bias):
    """A12: with the path through h cut, the cell's cotangent is a product of forget gates."""
    layer = LSTM(1, forget_bias=forget_bias, radius=0.0)
    x, p, dy = draw(layer, (1, LONG, 2))
    p["W_hh"][:] = 0
    dy[:, :, :-1] = 0
    tape = run(layer, x, p, dy)[3]
    sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    for s in range(SEEDS):
        z = x[s, 0] @ p["W_ih"][s] + p["b_ih"][s] + p["b_hh"][s]
        i, f, o = sigmoid(z[:, 0]), sigmoid(z[:, 1] + forget_bias), sigmoid(z[:, 3])
        g, c = np.tanh(z[:, 2]), [0.0]
        for t in range(LONG):
            c.append(f[t] * c[-1] + i[t] * g[t])
        last = dy[s, 0, -1, 0]
        of_c = math.log2(abs(last * o[-1] * (1 - np.tanh(c[-1]) ** 2)))
        of_c = of_c + np.append(np.cumsum(np.log2(f[:0:-1]))[::-1], 0.0)
        slopes = g * i * (1 - i), np.array(c[:-1]) * f * (1 - f), i * (1 - g**2)
        expected = of_c + 0.5 * np.log2(sum(slope**2 for slope in slopes))
        np.testing.assert_allclose(tape["delta_log2_norms"][s, :-1], expected[:-1], atol=1e-9)
        assert np.isneginf(tape["state_cotangent_log2_norms"][s, :-1]).all()


# --- norms of examples ----------------------------------------------------------------------------


def example_norms_of(layer, x, p, dy, exponent=0):
    """What a watch reads: log2 √Σ_n ‖g_n‖² of each parameter (seeds, 4)."""
    out = np.empty((SEEDS, 4))

    def watch(layer, tape, dy, dx, gradients):
        layer.example_norms.run(*(tape[name] for name in layer.example_norms_reads), dy, out)

    if exponent == 0:
        run(layer, x, p, dy, watch)
    else:
        workspace, zero = Workspace(np.nan), np.zeros((SEEDS, x.shape[2]), np.int64)
        _, _, tape = layer.forward_along_time(x, zero, p, workspace)
        layer.pullback_along_time(dy, zero + exponent, tape, workspace, watch)
    return out


@pytest.mark.parametrize("shape", [(5, 30, 3), (5, 2, 24)], ids=["products", "pairs"])
@pytest.mark.parametrize(
    "layer", [Recurrent(20), Recurrent(20, "relu"), LSTM(20), GRU(20)], ids=lambda a: a.name
)
def test_norms_of_examples(layer, shape):
    x, p, dy = draw(layer, shape)
    squares = np.zeros((SEEDS, 4))
    for n in range(shape[0]):
        alone = run(layer, x[:, n : n + 1].copy(), p, dy[:, n : n + 1].copy())[2]
        for k, name in enumerate(PARAMETERS):
            squares[:, k] += np.sum(alone[name].reshape(SEEDS, -1) ** 2, axis=1)
    expected = 0.5 * np.log2(squares)
    np.testing.assert_allclose(example_norms_of(layer, x, p, dy), expected, atol=1e-11)
    np.testing.assert_allclose(example_norms_of(layer, x, p, dy, -9000), expected - 9000, atol=1e-9)
    single = [a.astype(np.float32) for a in (x, dy)]
    q = {name: a.astype(np.float32) for name, a in p.items()}
    np.testing.assert_allclose(
        example_norms_of(layer, single[0], q, single[1]), expected, atol=1e-4
    )


# --- mutants --------------------------------------------------------------------------------------


class MissedBias(LSTM):
    def pullback(self, dy, tape, workspace, watch=None):
        dx, gradients = super().pullback(dy, tape, workspace, watch)
        gradients["b_hh"][:] = 0
        return dx, gradients


class Transposed(LSTM):
    def pullback(self, dy, tape, workspace, watch=None):
        h = self.features
        blocks = tape["W_hh"].reshape(-1, h, 4, h).swapaxes(1, 3)
        changed = {**tape, "W_hh": np.ascontiguousarray(blocks).reshape(tape["W_hh"].shape)}
        return super().pullback(dy, changed, workspace, watch)


class NoCarry(GRU):
    def __init__(self, features):
        super().__init__(features, truncation=1)


class SwappedCotangents(LSTM):
    def pullback(self, dy, tape, workspace, watch=None):
        dx, gradients = super().pullback(dy, tape, workspace, watch)
        W = gradients["W_ih"].reshape(*gradients["W_ih"].shape[:-1], 4, -1)
        W[...] = W[..., [1, 0, 2, 3], :]
        return dx, gradients


class SwappedGates(LSTM):
    """Consistent in itself, so that only an independent oracle finds it."""

    def forward(self, x, parameters, workspace):
        def swap(a):
            gates = a.reshape(*a.shape[:-1], 4, -1)[..., [1, 0, 2, 3], :]
            return np.ascontiguousarray(gates).reshape(a.shape)

        return super().forward(x, {k: swap(a) for k, a in parameters.items()}, workspace)


@pytest.mark.parametrize("mutant", [MissedBias, Transposed, NoCarry, SwappedCotangents])
def test_mutant_is_rejected_by_the_adjoint(mutant):
    with pytest.raises(laws.LawBroken) as broken:
        laws.check(mutant(3), (3, 4, 2))
    assert broken.value.law == "adjoint"


def test_swapped_gates_are_rejected_by_jax():
    with pytest.raises(AssertionError):
        compare_with_jax(SwappedGates(3), (2, 9, 2))


# --- initial parameters, functions, bad input -----------------------------------------------------


@pytest.mark.parametrize("kind, gates", [(Recurrent, 1), (LSTM, 4), (GRU, 3)])
@pytest.mark.parametrize("scheme", ["orthogonal", "identity", "lecun"])
def test_spectral_radius_of_every_gate(kind, gates, scheme):
    h = 150 if scheme == "lecun" else 12
    declared = kind(h, recurrent=scheme, radius=0.8).declare((1, 1, 5)).parameters["W_hh"]
    W = np.empty((1, *declared.shape))
    Initializer(InitSettings("he", gain=3.0)).draw(declared, np.arange(1), 1, 1, W)
    blocks = W[0].reshape(h, gates, h)
    for k in range(gates):
        radius = np.abs(np.linalg.eigvals(blocks[:, k])).max()
        # The edge of the circular law is reached up to about 1/sqrt(h).
        assert radius == pytest.approx(0.8, rel=1e-12 if scheme != "lecun" else 0.15)


def test_slopes_are_right_in_both_tails():
    points = np.concatenate([np.geomspace(1e-200, 340, 300), np.linspace(0.1, 3, 100)])
    for z in [0.0, *points, *-points]:
        e = np.exp(-abs(np.longdouble(z)))
        slope, small = e / (1 + e) ** 2, e / (1 + e)
        q = gate(z)
        sigma, rest = (small, 1 - small) if z < 0 else (1 - small, small)
        assert float(opened(q)) == pytest.approx(float(sigma), rel=2e-15)
        assert float(opened(-q)) == pytest.approx(float(rest), rel=2e-15)
        assert gate_slope(q) == pytest.approx(float(slope), rel=2e-15)
        tanh, slope = tanh_and_slope(z)
        assert tanh == pytest.approx(math.tanh(z), rel=2e-15)
        assert slope == pytest.approx(float(4 * e * e / (1 + e * e) ** 2), rel=2e-15)
    assert math.isnan(tanh_and_slope(math.nan)[0]) and math.isnan(opened(gate(math.nan)))


def test_last_step():
    assert laws.check(LastStep(), (3, 4, 2)) == list(laws.LAWS)
    x, dy = np.random.default_rng(1).standard_normal((SEEDS, 3, 4, 2)), np.ones((SEEDS, 3, 2))
    y, dx, _, _ = run(LastStep(), x, {}, dy)
    np.testing.assert_array_equal(y, x[:, :, -1])
    assert not dx[:, :, :-1].any() and np.all(dx[:, :, -1] == 1)


@pytest.mark.parametrize(
    "make, line",
    [
        (lambda: LSTM(0), "lstm: features must be at least 1; got 0"),
        (lambda: GRU(3, truncation=0), "gru: truncation must be at least 1; got 0"),
        (lambda: GRU(3, radius=-1.0), "gru: radius must be a finite number, at least 0; got -1.0"),
        (
            lambda: GRU(3, recurrent="orthogonl"),
            f"gru: recurrent must be one of {', '.join(SCHEMES)}; got orthogonl; "
            "did you mean orthogonal?",
        ),
        (
            lambda: LSTM(3, forget_bias=math.nan),
            "lstm: forget_bias must be a finite number; got nan",
        ),
        (
            lambda: Recurrent(3, "relo"),
            "recurrent: activation must be one of identity, relu, tanh; got relo; "
            "did you mean relu?",
        ),
        (
            lambda: Recurrent(3).declare((4, 5)),
            "recurrent: input must have axes (batch, time, features); got shape (4, 5)",
        ),
        (
            lambda: LastStep().declare((4, 5)),
            "last_step: input must have axes (batch, time, features); got shape (4, 5)",
        ),
    ],
)
def test_bad_input_is_one_line(make, line):
    with pytest.raises(InputError) as caught:
        make()
    assert str(caught.value) == line
