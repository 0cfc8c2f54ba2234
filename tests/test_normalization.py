"""Normalizations: the laws, parity with JAX and PyTorch, the identities A6 and A7, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowlab import laws
from flowlab.errors import InputError
from flowlab.initializers import SCHEMES, Initializer, InitSettings
from flowlab.layer import Chain, Parameter, Workspace
from flowlab.layers import BatchNorm, GroupNorm, LayerNorm, Linear, RMSNorm

SEEDS, EPS = 3, 1e-5
RANDOM = np.random.default_rng(1)
CASES = {
    "batch 2-D": (BatchNorm(), (5, 3)),
    "batch 3-D": (BatchNorm(), (3, 2, 4)),
    "batch 4-D": (BatchNorm(), (2, 3, 2, 3)),
    "batch of one image": (BatchNorm(), (1, 2, 5)),
    "batch eval": (BatchNorm(training=False), (1, 3)),
    "batch eval 3-D": (BatchNorm(training=False), (2, 3, 4)),
    "layer 2-D": (LayerNorm(), (4, 5)),
    "layer 3-D": (LayerNorm(), (2, 3, 4)),
    "rms 2-D": (RMSNorm(), (4, 5)),
    "rms 3-D": (RMSNorm(), (2, 3, 4)),
    "group 2-D": (GroupNorm(2), (2, 8)),
    "group 3-D": (GroupNorm(2), (2, 6, 3)),
    "group 4-D": (GroupNorm(3), (2, 3, 2, 2)),
    "another eps": (BatchNorm(eps=0.3), (5, 3)),
}
every = pytest.mark.parametrize("layer, shape", CASES.values(), ids=CASES)


def targets(layer, shape):
    """Running statistics for batch norm that is not in training."""
    if getattr(layer, "training", True):
        return {}
    mean = np.random.default_rng(2).standard_normal((SEEDS, shape[1]))
    return {"mean": mean, "variance": 0.3 + mean**2}


def draw(layer, shape):
    random = np.random.default_rng(3)
    parameters = {
        name: random.standard_normal((SEEDS, *p.shape))
        for name, p in layer.declare(shape).parameters.items()
    } | targets(layer, shape)
    return (
        random.standard_normal((SEEDS, *shape)),
        parameters,
        random.standard_normal((SEEDS, *shape)),
    )


def run(layer, x, parameters, dy):
    workspace = Workspace(np.nan)
    y, tape = layer.forward(x, parameters, workspace)
    dx, gradients = layer.pullback(dy, tape, workspace)
    return {"y": y, "dx": dx, **gradients}, tape


def ones(layer, x):
    """Parameters as they start, in x's type."""
    declared = layer.declare(x.shape[1:]).parameters
    values = {"gain": np.ones, "bias": np.zeros}
    return {name: values[name]((len(x), *p.shape), x.dtype) for name, p in declared.items()}


def close(ours, theirs, tolerance=1e-12):
    assert ours.shape == theirs.shape
    assert np.linalg.norm(ours - theirs) <= tolerance * np.linalg.norm(theirs)


@every
def test_laws(layer, shape):
    assert laws.check(layer, shape, parameters=targets(layer, shape)) == list(laws.LAWS)


def test_laws_in_a_chain():
    # A bias right before batch norm has no gradient but rounding, which two types do not share.
    laws.check(Chain([BatchNorm(), Linear(6), LayerNorm(), Linear(8), GroupNorm(2)]), (5, 3))


# --- the same maps in JAX and PyTorch -----------------------------------------------------------


def in_jax(layer, x, p):
    axes = {"layer_norm": (-1,), "rms_norm": (-1,)}.get(layer.name)
    columns = (-1,) if axes else (-1, *[1] * (x.ndim - 2))
    gain = p["gain"].reshape(columns)
    if layer.name == "rms_norm":
        return gain * x / jnp.sqrt((x**2).mean(-1, keepdims=True) + layer.eps)
    bias = p["bias"].reshape(columns)
    if layer.name == "group_norm":
        grouped = x.reshape(x.shape[0], layer.groups, -1)
        mean, variance = grouped.mean(2, keepdims=True), grouped.var(2, keepdims=True)
        x = ((grouped - mean) / jnp.sqrt(variance + layer.eps)).reshape(x.shape)
        return gain * x + bias
    axes = axes or (0, *range(2, x.ndim))
    mean, variance = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    if "mean" in p:
        mean, variance = p["mean"].reshape(columns), p["variance"].reshape(columns)
    return gain * (x - mean) / jnp.sqrt(variance + layer.eps) + bias


@every
def test_against_jax(layer, shape):
    x, parameters, dy = draw(layer, shape)
    ours, _ = run(layer, x, parameters, dy)
    with jax.enable_x64(True):

        @jax.jit
        @jax.vmap
        def theirs(x, p, dy):
            y, pull = jax.vjp(lambda x, p: in_jax(layer, x, p), x, p)
            dx, gradients = pull(dy)
            return {"y": y, "dx": dx, **gradients}

        expected = {name: np.asarray(a) for name, a in theirs(x, parameters, dy).items()}
    assert ours.keys() == expected.keys() - {"mean", "variance"}
    for name, array in ours.items():
        close(array, expected[name])


@every
def test_against_torch(layer, shape):
    torch = pytest.importorskip("torch")
    F = torch.nn.functional
    x, parameters, dy = draw(layer, shape)
    ours, _ = run(layer, x, parameters, dy)
    for s in range(SEEDS):
        given = {"dx": x[s], **{name: a[s] for name, a in parameters.items()}}
        p = {name: torch.tensor(a) for name, a in given.items()}
        moving = {name: p[name].requires_grad_() for name in ours if name != "y"}
        gain, bias = p["gain"], p.get("bias")
        if layer.name == "batch_norm":
            y = F.batch_norm(
                p["dx"], p.get("mean"), p.get("variance"), gain, bias, layer.training, eps=layer.eps
            )
        elif layer.name == "group_norm":
            y = F.group_norm(p["dx"], layer.groups, gain, bias)
        elif layer.name == "layer_norm":
            y = F.layer_norm(p["dx"], shape[-1:], gain, bias)
        else:
            y = F.rms_norm(p["dx"], shape[-1:], gain, eps=EPS)
        y.backward(torch.tensor(dy[s]))
        close(ours["y"][s], y.detach().numpy())
        for name, tensor in moving.items():
            close(ours[name][s], tensor.grad.numpy())


def test_defaults_are_those_of_torch():
    nn = pytest.importorskip("torch").nn
    for layer, module in (
        (BatchNorm(), nn.BatchNorm1d(4)),
        (LayerNorm(), nn.LayerNorm(4)),
        (GroupNorm(2), nn.GroupNorm(2, 4)),
    ):
        assert layer.eps == module.eps
    assert RMSNorm().eps == EPS


# --- identities ---------------------------------------------------------------------------------

B, D = 16, 12


@pytest.mark.parametrize("shape", [(B, D), (4, 3, 5)])
def test_batch_norm_removes_two_directions_of_each_channel(shape):
    """A6: Σ dz = 0 and Σ dz x̂ = 0, of each channel, against x̂ from its definition."""
    layer = BatchNorm(eps=0.0)
    z, parameters, dy = draw(layer, shape)
    dz = run(layer, z, parameters, dy)[0]["dx"]
    axes = (1, *range(3, z.ndim))
    normalized = (z - z.mean(axes, keepdims=True)) / z.std(axes, keepdims=True)
    size = np.abs(dz).sum(axes)
    assert np.all(np.abs(dz.sum(axes)) <= 1e-14 * size)
    assert np.all(np.abs((dz * normalized).sum(axes)) <= 1e-13 * size)


def test_linear_layer_before_batch_norm():
    """A6: db ≡ 0, and dw is orthogonal to w for every unit; with ε > 0 only the first holds."""
    for eps, orthogonal in ((0.0, True), (0.3, False)):
        layer = BatchNorm(eps=eps)
        x, parameters, dy = draw(layer, (B, D))
        W = RANDOM.standard_normal((SEEDS, D, D))
        chain, p = Chain([Linear(D), layer]), ({"W": W, "b": parameters["bias"]}, parameters)
        workspace = Workspace()
        _, tape = chain.forward(x, p, workspace)
        gradients = chain.pullback(dy, tape, workspace)[1][0]
        dW, db = gradients["W"], gradients["b"]
        assert np.all(np.abs(db) <= 1e-14 * np.abs(dy * parameters["gain"][:, None]).sum(1))
        cosine = (W * dW).sum(1) / np.linalg.norm(W, axis=1) / np.linalg.norm(dW, axis=1)
        assert (np.abs(cosine).max() <= 1e-12) == orthogonal


@pytest.mark.parametrize(
    "layer, axis, lost",
    [(BatchNorm(eps=0.0), 1, 2), (LayerNorm(eps=0.0), 2, 2), (RMSNorm(eps=0.0), 2, 1)],
    ids=["batch", "layer", "rms"],
)
def test_share_of_an_independent_cotangent_that_passes(layer, axis, lost):
    """A7: σ²‖dz‖²/‖dy‖² is Beta((m - lost)/2, lost/2) for each vector of m values.

    The pullback projects onto m - lost dimensions, and dy is a standard normal vector.
    """
    seeds, shape = 200, (B, D)
    z, dy = RANDOM.standard_normal((2, seeds, *shape))
    dz = run(layer, z, ones(layer, z), dy)[0]["dx"]
    deviation = z if layer.name == "rms_norm" else z - z.mean(axis, keepdims=True)
    ratio = (deviation**2).mean(axis) * (dz**2).sum(axis) / (dy**2).sum(axis)
    m = z.shape[axis]
    a, b = (m - lost) / 2, lost / 2
    se = np.sqrt(a * b / ((a + b) ** 2 * (a + b + 1)) / ratio.size)
    assert abs(ratio.mean() - (m - lost) / m) <= 4 * se
    assert 4 * se < 0.2 / m  # tells lost from lost ± 1


@every
def test_output_is_standardized(layer, shape):
    """Mean 0 and mean square 1 (ε = 0) over the values that share statistics."""
    if not getattr(layer, "training", True):
        return
    layer = GroupNorm(layer.groups, 0.0) if layer.name == "group_norm" else type(layer)(eps=0.0)
    x = 3 + draw(layer, shape)[0]
    y = run(layer, x, ones(layer, x), x)[0]["y"]
    if layer.name == "batch_norm":
        y = y.reshape(SEEDS, *shape[:2], -1).swapaxes(1, 2).reshape(SEEDS, shape[1], -1)
    if layer.name == "group_norm":
        y = y.reshape(SEEDS, shape[0], layer.groups, -1)
    np.testing.assert_allclose((y**2).mean(-1), 1, rtol=1e-13)
    if layer.name != "rms_norm":
        np.testing.assert_allclose(y.mean(-1), 0, atol=1e-14)


# --- accuracy -----------------------------------------------------------------------------------

CENTRED = [(BatchNorm(), (64, 4)), (LayerNorm(), (4, 64)), (GroupNorm(2), (3, 4, 32))]
centred = pytest.mark.parametrize("layer, shape", CENTRED, ids=["batch", "layer", "group"])


@centred
@pytest.mark.parametrize("dtype, offset", [(np.float32, 1e6), (np.float64, 1e8)])
def test_a_large_offset_costs_nothing(layer, shape, dtype, offset):
    """x + c gives what x gives, where x + c is exact: x are multiples of the spacing at c."""
    _, parameters, dy = draw(layer, shape)
    spacing = np.spacing(dtype(offset))
    x = np.round(np.random.default_rng(4).standard_normal((SEEDS, *shape)) / spacing) * spacing
    near, far = x.astype(dtype), (x + offset).astype(dtype)
    assert np.all(far.astype(float) - offset == x)
    parameters = {name: a.astype(dtype) for name, a in parameters.items()}
    expected = run(layer, near.astype(float), parameters, dy)[0]
    got, _ = run(layer, far, parameters, dy.astype(dtype))
    for name, array in got.items():
        close(array, expected[name], 8 * np.finfo(dtype).eps)


@centred
def test_equal_values_are_zero_whatever_they_are(layer, shape):
    x = np.full((1, *shape), 0.1 + 1e8)
    assert np.all(run(layer, x, ones(layer, x), x)[0]["y"] == 0)


@every
def test_saved_values(layer, shape):
    """x̂ is y before gain and bias; 1/σ has one value for each set of values that share it."""
    x, parameters, dy = draw(layer, shape)
    got, tape = run(layer, x, parameters, dy)
    declared = layer.declare(shape)
    assert list(declared.saved) == ["normalized", "inverse"]
    columns = (SEEDS, 1, -1, *[1] * (len(shape) - 2))
    if layer.name in ("layer_norm", "rms_norm"):
        columns = (SEEDS, *[1] * (len(shape) - 1), -1)
    gain = parameters["gain"].reshape(columns)
    bias = parameters["bias"].reshape(columns) if "bias" in parameters else 0
    close(gain * tape["normalized"] + bias, got["y"])
    sharing = {"batch_norm": shape[1], "group_norm": shape[0] * getattr(layer, "groups", 1)}
    count = sharing.get(layer.name, int(np.prod(shape[:-1])))
    assert tape["inverse"][0].size == count and np.all(tape["inverse"] > 0)


# --- declarations and bad input -----------------------------------------------------------------


def test_only_training_batch_norm_couples_examples():
    coupling = {name for name, (layer, _) in CASES.items() if layer.couples_examples}
    assert coupling == {n for n in CASES if "batch" in n and "eval" not in n} | {"another eps"}
    assert Chain([Linear(3), BatchNorm()]).couples_examples
    assert all(layer.example_norms is None for layer, _ in CASES.values())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_gains_start_at_one_and_biases_at_zero(scheme):
    """Under every scheme, also one that draws biases."""
    initializer = Initializer(InitSettings(scheme))
    for name, parameter in BatchNorm().declare((4, 3)).parameters.items():
        out = np.full((2, 3), np.nan)
        initializer.draw(parameter, np.arange(2), 1, 0, out)
        assert np.all(out == {"gain": 1, "bias": 0}[name])
    out = np.empty((2, 3))
    initializer.draw(Parameter((3,), role="gain", factor=0.5), np.arange(2), 1, 0, out)
    assert np.all(out == 0.5)


BAD = [
    (lambda: BatchNorm().declare((1, 3)), "batch_norm: a training batch must have at least 2 values"
     " per channel; got 1 (shape (1, 3))"),
    (lambda: BatchNorm().declare((3,)),
     "batch_norm: input must have axes (batch, channels, ...); got shape (3,)"),
    (lambda: BatchNorm(eps=-1.0), "batch_norm: eps must be a finite number, at least 0; got -1.0"),
    (lambda: RMSNorm(eps=float("nan")),
     "rms_norm: eps must be a finite number, at least 0; got nan"),
    (lambda: LayerNorm().declare((3,)),
     "layer_norm: input must have axes (batch, ..., features); got shape (3,)"),
    (lambda: RMSNorm().declare(()),
     "rms_norm: input must have axes (batch, ..., features); got shape ()"),
    (lambda: GroupNorm(0), "group_norm: groups must be at least 1; got 0"),
    (lambda: GroupNorm(4).declare((2, 6, 3)),
     "group_norm: groups must divide the 6 channels; got 4"),
    (lambda: GroupNorm(1).declare((6,)),
     "group_norm: input must have axes (batch, channels, ...); got shape (6,)"),
]  # fmt: skip


@pytest.mark.parametrize("bad, message", BAD, ids=[message[:28] for _, message in BAD])
def test_bad_input(bad, message):
    with pytest.raises(InputError) as caught:
        bad()
    assert str(caught.value) == message


def test_eval_and_an_image_need_no_second_example():
    assert BatchNorm(training=False).declare((1, 3)).output == (1, 3)
    assert BatchNorm().declare((1, 3, 2)).output == (1, 3, 2)
