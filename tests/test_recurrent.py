"""Recurrence: laws, frameworks, exponents along time, closed forms, norms of examples, mutants."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowlab import laws
from flowlab.layer import Chain, Workspace
from flowlab.layers import GRU, LSTM, LastStep, Linear, Recurrent

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
