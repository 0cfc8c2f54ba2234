"""Largest eigenvalues against explicit Hessians: closed forms, and JAX's of a tanh net."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowlab.training.sharpness import (
    adam_preconditioner,
    hessian_product,
    sharpness,
    stability_limit,
)

SEEDS = np.arange(3, 7)


@pytest.fixture(scope="module")
def quadratics():
    """Symmetric matrices (4, 30, 30) with both signs among their eigenvalues."""
    a = np.random.default_rng(0).standard_normal((4, 30, 30))
    return a + a.transpose(0, 2, 1)


def of_quadratics(matrices):
    return lambda theta: np.einsum("sij,sj->si", matrices, theta)


def sizes():
    return 5, 7, 3


def tanh_loss(theta, x, y):
    """Mean squared error of a net with one hidden layer of tanh, biases included."""
    inputs, hidden, outputs = sizes()
    cuts = np.cumsum([inputs * hidden, hidden, hidden * outputs])
    w1, b1, w2, b2 = jnp.split(theta, cuts)
    h = jnp.tanh(x @ w1.reshape(inputs, hidden) + b1)
    return jnp.mean((h @ w2.reshape(hidden, outputs) + b2 - y) ** 2)


@pytest.fixture(scope="module")
def net():
    """(gradient, parameters, explicit Hessians) of four tanh nets."""
    inputs, hidden, outputs = sizes()
    draw = np.random.default_rng(1)
    count = inputs * hidden + hidden + hidden * outputs + outputs
    theta = draw.standard_normal((len(SEEDS), count))
    x, y = draw.standard_normal((20, inputs)), draw.standard_normal((20, outputs))
    gradients = jax.vmap(jax.grad(tanh_loss), (0, None, None))
    hessians = jax.vmap(jax.hessian(tanh_loss), (0, None, None))(theta, x, y)
    return lambda at: np.asarray(gradients(at, x, y)), theta, np.asarray(hessians)


def test_products_of_a_net_are_those_of_its_explicit_hessian(net):
    gradient, theta, hessians = net
    v = np.random.default_rng(2).standard_normal(theta.shape) * [[1], [1e-9], [1e9], [1]]
    exact = np.einsum("sij,sj->si", hessians, v)
    error = np.linalg.norm(hessian_product(gradient, theta, v) - exact, axis=1)
    assert (error < 1e-8 * np.linalg.norm(exact, axis=1)).all()


def test_a_step_thirty_times_longer_or_shorter_is_worse(net, monkeypatch):
    gradient, theta, hessians = net
    v = np.random.default_rng(2).standard_normal(theta.shape)
    exact = np.einsum("sij,sj->si", hessians, v)

    def error(factor):
        monkeypatch.setattr(np, "cbrt", lambda eps: factor * eps ** (1 / 3))
        return np.linalg.norm(hessian_product(gradient, theta, v) - exact)

    assert error(1.0) < min(error(30.0), error(1 / 30))


def test_sharpness_of_quadratics_is_their_largest_eigenvalue(quadratics):
    theta = np.zeros((4, 30))
    found = sharpness(of_quadratics(quadratics), theta, SEEDS, tolerance=1e-7)
    assert found == pytest.approx(np.linalg.eigvalsh(quadratics)[:, -1], rel=1e-7)


def test_the_largest_of_negative_eigenvalues_is_the_least_in_size():
    matrices = -np.stack([np.diag(np.arange(1.0, 13.0))] * 2)
    found = sharpness(of_quadratics(matrices), np.ones((2, 12)), SEEDS[:2], tolerance=1e-9)
    assert found == pytest.approx([-1, -1], rel=1e-6)


def test_sharpness_of_a_net_is_that_of_its_explicit_hessian(net):
    gradient, theta, hessians = net
    exact = np.linalg.eigvalsh(hessians)[:, -1]
    assert sharpness(gradient, theta, SEEDS) == pytest.approx(exact, rel=1e-4)
    assert sharpness(gradient, theta, SEEDS, tolerance=1e-7) == pytest.approx(exact, rel=1e-7)


def test_preconditioned_sharpness_is_that_of_the_scaled_hessian(net):
    gradient, theta, hessians = net
    p = 10 ** np.random.default_rng(3).uniform(-4, 1, theta.shape)
    exact = [
        np.linalg.eigvals(h / one[:, None]).real.max() for h, one in zip(hessians, p, strict=True)
    ]
    found = sharpness(gradient, theta, SEEDS, preconditioner=p, tolerance=1e-6)
    assert found == pytest.approx(exact, rel=1e-6)


def test_directions_without_curvature_cost_no_digits(net):
    """Adam's P is ε where a gradient has always been zero, as that of a pixel that is never on."""
    gradient, theta, hessians = net

    def with_dead(at):
        return np.concatenate([gradient(np.ascontiguousarray(at[:, :-9])), 0 * at[:, -9:]], axis=1)

    padded = np.concatenate([theta, np.ones((len(theta), 9))], axis=1)
    p = np.concatenate([np.full_like(theta, 1e-2), np.full((len(theta), 9), 1e-8)], axis=1)
    exact = np.linalg.eigvalsh(hessians)[:, -1] / 1e-2
    assert sharpness(with_dead, padded, SEEDS, preconditioner=p) == pytest.approx(exact, rel=1e-4)


def test_a_networks_bits_do_not_depend_on_its_neighbours(quadratics):
    def found(places):
        def gradient(theta):
            return np.stack([quadratics[k] @ one for k, one in zip(places, theta, strict=True)])

        return sharpness(gradient, np.zeros((len(places), 30)), SEEDS[places]).tolist()

    assert found([2, 0, 3, 1]) == [found([k])[0] for k in (2, 0, 3, 1)]


def test_what_is_not_found_is_not_a_number(quadratics):
    gradient = of_quadratics(quadratics)

    def broken(theta):
        found = gradient(theta)
        found[1] = np.inf
        return found

    found = sharpness(broken, np.zeros((4, 30)), SEEDS)
    assert np.isnan(found).tolist() == [False, True, False, False]
    assert np.isnan(sharpness(gradient, np.zeros((4, 30)), SEEDS, tolerance=1e-9, most=3)).all()


def test_a_flat_loss_has_no_sharpness():
    found = sharpness(lambda theta: np.ones_like(theta), np.ones((2, 8)), SEEDS[:2])
    assert found.tolist() == [0, 0]


def test_adams_preconditioner_undoes_its_step():
    """A step of PyTorch's Adam is -η P^(-1) m, m being the running mean of gradients."""
    torch = pytest.importorskip("torch")
    lr, beta1, beta2, eps = 0.1, 0.8, 0.95, 1e-3
    gradients = np.random.default_rng(4).standard_normal((5, 6))
    theta = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([theta], lr=lr, betas=(beta1, beta2), eps=eps)
    mean, square = np.zeros(6), np.zeros(6)
    for step, g in enumerate(gradients, 1):
        before, theta.grad = theta.detach().numpy().copy(), torch.tensor(g)
        adam.step()
        mean, square = beta1 * mean + (1 - beta1) * g, beta2 * square + (1 - beta2) * g**2
        p = adam_preconditioner(square, step, beta1, beta2, eps)
        assert theta.detach().numpy() - before == pytest.approx(-lr * mean / p, rel=1e-12)


@pytest.mark.parametrize("beta1, factor", [(0.0, 2.0), (0.9, 38.0)])
def test_descent_diverges_just_above_the_limit(beta1, factor):
    assert stability_limit(0.5, beta1) == pytest.approx(factor / 0.5)

    def end(curvature):
        theta, mean = 1.0, 0.0
        for _ in range(20_000):
            mean = beta1 * mean + (1 - beta1) * curvature * theta
            theta -= 0.5 * mean
        return abs(theta)

    limit = stability_limit(0.5, beta1)
    assert end(0.999 * limit) < 1e-3 and end(1.001 * limit) > 1e3
