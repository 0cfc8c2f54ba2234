"""The loss over all parameters of a network in training, against JAX's gradients and Hessians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowlab
from flowlab.layer import leaves
from flowlab.measurement.setup import prepare
from flowlab.training.curvature import Landscape
from flowlab.training.loop import Part, train

STEPS = {"data": {"name": "gaussian", "features": 24, "classes": 3}}
SMALL = {"depth": 3, "width": 4, "activation": "tanh", "batch_size": 12, "seeds": 2}


def part_of(training=None, **axes):
    """A part of a small ensemble before its first step."""
    training = {"name": "sgd", "lr": 0.5, "steps": 4, "sharpness": True, **(training or {})}
    data = {"name": "gaussian", "features": 3, "classes": 3}
    setup = prepare(flowlab.make(**{**SMALL, "data": data, "training": training, **axes}))
    return Part(setup, setup.seeds)


def mlp_loss(point, x, labels, depth, phi, squared=False):
    """The mean loss of a net with W and b of every layer in a row, as text books have it."""
    at = 0
    for layer in range(depth):
        outputs = 3 if layer == depth - 1 else SMALL["width"]
        w = point[at : at + x.shape[1] * outputs].reshape(x.shape[1], outputs)
        at += w.size
        x = x @ w + point[at : at + outputs]
        at += outputs
        x = phi(x) if layer < depth - 1 else x
    onehot = jax.nn.one_hot(labels, 3)
    if squared:
        return jnp.mean((x - onehot) ** 2)
    return -jnp.mean(jnp.sum(onehot * jax.nn.log_softmax(x), axis=1))


def oracle(part, step, transform, depth=SMALL["depth"], phi=jnp.tanh, squared=False):
    """(point, what JAX's ``transform`` of the loss gives of each network there)."""
    x, labels = part.setup.batches(part.seeds, step)
    point = Landscape(part.setup, part.seeds, x, labels).point(part.held.held)
    of = transform(lambda at, x, labels: mlp_loss(at, x, labels, depth, phi, squared))
    found = [of(*one) for one in zip(point, x.astype(np.float64), labels, strict=True)]
    return point, np.array(found)


@pytest.mark.parametrize(
    "axes, phi",
    [
        ({"loss": "squared_error"}, jnp.tanh),
        ({"init": "torch_default"}, jnp.tanh),
        ({"depth": 30, "activation": "relu", "init": "torch_default"}, jax.nn.relu),
        ({"depth": 30, "activation": "relu", "init": "he", "dtype": "float64"}, jax.nn.relu),
    ],
    ids=["squared", "biases", "vanishing", "in one stretch"],
)
def test_gradients_are_those_of_jax(axes, phi):
    part = part_of(**axes)
    squared = axes.get("loss") == "squared_error"
    depth = axes.get("depth", SMALL["depth"])
    landscape = Landscape(part.setup, part.seeds, *part.setup.batches(part.seeds, 1))
    if any(array.shape[1] > 1 for nest in part.held.held.values() for _, array in leaves(nest)):
        order = in_layers(landscape, part.held.held)
    else:
        order = slice(None)
    point = landscape.point(part.held.held)
    found = landscape.gradient(point, part.held.held)
    x, labels = part.setup.batches(part.seeds, 1)
    of = jax.grad(lambda at, x, labels: mlp_loss(at, x, labels, depth, phi, squared))
    for own, got, one, label in zip(point, found, x.astype(np.float64), labels, strict=True):
        exact = np.asarray(of(own[order], one, label))
        assert np.linalg.norm(got[order] - exact) < 1e-9 * np.linalg.norm(exact)


def in_layers(landscape, held):
    """Where each layer's W and b stand in a point whose stretches hold many layers."""
    numbers, at = {}, 0
    for start in sorted(held):
        for place, (_, array) in enumerate(leaves(held[start])):
            for k in range(array.shape[1]):
                size = array[0, k].size
                numbers[start + k, place] = np.arange(at, at + size)
                at += size
    return np.concatenate([numbers[key] for key in sorted(numbers)])


def test_a_point_is_the_held_parameters_in_a_row():
    part = part_of(depth=30, norm="layer", dtype="float64")
    landscape = Landscape(part.setup, part.seeds, *part.setup.batches(part.seeds, 1))
    again = landscape.held(landscape.point(part.held.held), part.held.held)
    for start, nest in part.held.held.items():
        for (path, old), (other, new) in zip(leaves(nest), leaves(again[start]), strict=True):
            assert path == other and (old == new).all()


@pytest.mark.parametrize(
    "axes", [{}, {"norm": "batch"}, {"skip": "identity"}, {"network": "rnn", **STEPS}]
)
def test_gradients_are_slopes_of_the_logged_loss(axes):
    """Along a random direction, for networks that JAX is not written out for."""
    part = part_of(dtype="float64", **axes)
    landscape = Landscape(part.setup, part.seeds, *part.setup.batches(part.seeds, 1))
    point = landscape.point(part.held.held)
    v = np.random.default_rng(0).standard_normal(point.shape)
    slope = np.sum(landscape.gradient(point, part.held.held) * v, axis=1)
    losses = []
    for shift in (1e-5, -1e-5):
        moved = part_of(dtype="float64", **axes)
        nests = landscape.held(point + shift * v, part.held.held)
        for start, nest in moved.held.held.items():
            for (_, into), (_, new) in zip(leaves(nest), leaves(nests[start]), strict=True):
                into[...] = new
        losses.append(moved.log(1, 0.0).curve["training_loss"])
    assert slope == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-6)


def test_the_curves_sharpness_is_that_of_the_step_before_its_update():
    part = part_of(loss="squared_error")
    part.step(1, 0.5)
    _, hessians = oracle(part, 2, jax.hessian, squared=True)
    found = part.log(2, 0.5).curve
    assert found["sharpness"] == pytest.approx(np.linalg.eigvalsh(hessians)[:, -1], rel=1e-4)
    assert "preconditioned_sharpness" not in found


def test_adams_preconditioner_is_that_of_the_step():
    beta1, beta2, eps = 0.8, 0.9, 1e-4
    training = {"name": "adam", "lr": 0.01, "beta1": beta1, "beta2": beta2, "eps": eps}
    part, gradients = part_of(training, dtype="float64"), []
    for step in (1, 2):
        gradients.append(oracle(part, step, jax.grad)[1])
        if step == 1:
            part.step(1, 0.01)
    _, hessians = oracle(part, 2, jax.hessian)
    square = (1 - beta2) * (beta2 * gradients[0] ** 2 + gradients[1] ** 2)
    p = (1 - beta1**2) * (np.sqrt(square / (1 - beta2**2)) + eps)
    exact = np.linalg.eigvals(hessians / p[:, :, None]).real.max(axis=1)
    found = part.log(2, 0.01).curve
    assert found["preconditioned_sharpness"] == pytest.approx(exact, rel=1e-4)


def test_sharpness_is_in_the_curve_where_it_is_asked_for():
    with_it = train(part_of(seeds=3).setup.settings).curve
    assert np.isfinite(with_it["sharpness"]).all() and len(with_it) == 12
    assert with_it["preconditioned_sharpness"].isna().all()
    without = train(part_of({"sharpness": False}, seeds=3).setup.settings).curve
    assert without["sharpness"].isna().all()
    same = ["training_loss", "held_out_loss", "gradient_log10_norm"]
    assert with_it[same].equals(without[same])


def test_diverged_networks_have_no_sharpness_and_leave_others_theirs():
    alone = part_of().log(1, 0.5).curve["sharpness"]
    part = part_of()
    first = leaves(next(iter(part.held.held.values())))
    next(first)[1][0] = np.inf
    found = part.log(1, 0.5).curve["sharpness"]
    assert np.isnan(found[0]) and found[1] == alone[1]
