"""Normalizations: the laws, parity with JAX and PyTorch, the identities A6 and A7, bad input."""

from copy import copy
from functools import partial

import numpy as np
import pytest

from flowlab import laws
from flowlab.claims import twins
from flowlab.errors import InputError
from flowlab.initializers import SCHEMES, Initializer, InitSettings
from flowlab.layer import Chain, Parameter, Workspace
from flowlab.layers import BatchNorm, GroupNorm, LayerNorm, Linear, RMSNorm
from flowlab.measurement.scan import Stack, record
from flowlab.numerics.scale import log2_norm
from tests.support.passes import close

SEEDS, EPS = 3, 1e-5
RANDOM = np.random.default_rng(1)
CASES = {
    "batch 2-D": (BatchNorm(), (5, 3)),
    "batch 3-D": (BatchNorm(), (3, 2, 4)),
    "batch 4-D": (BatchNorm(), (2, 3, 2, 3)),
    "batch of one image": (BatchNorm(), (1, 2, 5)),
    "batch eval": (BatchNorm(training=False), (1, 3)),
    "batch eval 3-D": (BatchNorm(training=False), (2, 3, 4)),
    "batch last 3-D": (BatchNorm(channels_last=True), (3, 2, 4)),
    "batch last 4-D": (BatchNorm(channels_last=True), (1, 2, 3, 2)),
    "batch last eval": (BatchNorm(training=False, channels_last=True), (2, 3, 4)),
    "layer 2-D": (LayerNorm(), (4, 5)),
    "layer 3-D": (LayerNorm(), (2, 3, 4)),
    "rms 2-D": (RMSNorm(), (4, 5)),
    "rms 3-D": (RMSNorm(), (2, 3, 4)),
    "group 2-D": (GroupNorm(2), (2, 8)),
    "group 3-D": (GroupNorm(2), (2, 6, 3)),
    "group 4-D": (GroupNorm(3), (2, 3, 2, 2)),
    "group 2-D, not centred": (GroupNorm(2, centred=False), (2, 8)),
    "group 4-D, not centred": (GroupNorm(2, centred=False), (2, 4, 2, 2)),
    "one group, not centred": (GroupNorm(1, centred=False), (1, 3, 4)),
    "another eps": (BatchNorm(eps=0.3), (5, 3)),
}
every = pytest.mark.parametrize("layer, shape", CASES.values(), ids=CASES)
ALONE = {name: case for name, case in CASES.items() if not case[0].couples_examples}
independent = pytest.mark.parametrize("layer, shape", ALONE.values(), ids=ALONE)


def targets(layer, shape):
    """Running statistics for batch norm that is not in training."""
    if getattr(layer, "training", True):
        return {}
    channels = layer.declare(shape).parameters["mean"].shape
    mean = np.random.default_rng(2).standard_normal((SEEDS, *channels))
    return {"mean": mean, "variance": 0.3 + mean**2}


def centres(layer):
    return layer.name != "rms_norm" and getattr(layer, "centred", True)


def channels_and_cells(layer, shape):
    """Of each element its channel, and the number of the values that share its statistics."""
    index = np.indices(shape)
    if layer.name in ("layer_norm", "rms_norm"):
        return index[-1], np.ravel_multi_index(index[:-1], shape[:-1])
    axis = -1 if getattr(layer, "channels_last", False) else 1
    if layer.name == "batch_norm":
        return index[axis], index[axis]
    group = index[1] // (shape[1] // layer.groups)
    return index[1], index[0] * layer.groups + group


def means(a, cells):
    """The mean over each cell, for each seed."""
    return np.stack([np.bincount(cells.ravel(), b.ravel()) for b in a]) / np.bincount(cells.ravel())


def without_eps(layer):
    layer = copy(layer)
    layer._declared, layer.eps = {}, 0.0
    return layer


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


@every
def test_laws(layer, shape):
    assert laws.check(layer, shape, parameters=targets(layer, shape)) == list(laws.LAWS)


def test_laws_in_a_chain():
    # A bias right before batch norm has no gradient but rounding, which two types do not share.
    laws.check(Chain([BatchNorm(), Linear(6), LayerNorm(), Linear(8), GroupNorm(2)]), (5, 3))


# --- the same maps in JAX and PyTorch -----------------------------------------------------------


@every
def test_against_frameworks(apart, layer, shape):
    data = {name: a[: twins.SEEDS] for name, a in targets(layer, shape).items()}
    assert apart(layer, shape, data) < 1e-12


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
    [
        (BatchNorm(eps=0.0), 1, 2),
        (LayerNorm(eps=0.0), 2, 2),
        (RMSNorm(eps=0.0), 2, 1),
        (GroupNorm(1, eps=0.0, centred=False), 2, 1),
    ],
    ids=["batch", "layer", "rms", "group, not centred"],
)
def test_share_of_an_independent_cotangent_that_passes(layer, axis, lost):
    """A7: σ²‖dz‖²/‖dy‖² is Beta((m - lost)/2, lost/2) for each vector of m values.

    The pullback projects onto m - lost dimensions, and dy is a standard normal vector. Beside the
    cotangent with frozen statistics, the whole is a mean of such shares.
    """
    seeds, shape = 200, (B, D)
    z, dy = RANDOM.standard_normal((2, seeds, *shape))
    got, tape = run(layer, z, ones(layer, z), dy)
    dz = got["dx"]
    deviation = z if lost == 1 else z - z.mean(axis, keepdims=True)
    ratio = (deviation**2).mean(axis) * (dz**2).sum(axis) / (dy**2).sum(axis)
    m = z.shape[axis]
    a, b = (m - lost) / 2, lost / 2
    se = np.sqrt(a * b / ((a + b) ** 2 * (a + b + 1)) / ratio.size)
    assert abs(ratio.mean() - (m - lost) / m) <= 4 * se
    assert 4 * se < 0.2 / m  # parts lost from lost ± 1
    whole = 4.0 ** (log2_norm(dz) - layer.frozen_log2_norm(dy, tape))
    se = whole.std() / np.sqrt(seeds)
    assert abs(whole.mean() - (m - lost) / m) <= 4 * se
    assert 4 * se < 0.3 / m


@every
def test_output_is_standardized(layer, shape):
    """Mean 0 and mean square 1 (ε = 0) over the values that share statistics."""
    if not getattr(layer, "training", True):
        return
    layer, (_, cells) = without_eps(layer), channels_and_cells(layer, shape)
    x = 3 + draw(layer, shape)[0]
    y = run(layer, x, ones(layer, x), x)[0]["y"]
    np.testing.assert_allclose(means(y**2, cells), 1, rtol=1e-13)
    if centres(layer):
        np.testing.assert_allclose(means(y, cells), 0, atol=1e-14)


# --- the cotangent with frozen statistics -------------------------------------------------------


def frozen(layer, x, parameters, dy):
    """gain dy / σ, from the definition of σ."""
    channels, cells = channels_and_cells(layer, x.shape[1:])
    if "variance" in parameters:
        variance = parameters["variance"]
    else:
        mean = means(x, cells) if centres(layer) else np.zeros((len(x), cells.max() + 1))
        variance = means((x - mean[:, cells]) ** 2, cells)
    return parameters["gain"][:, channels] * dy / np.sqrt(variance + layer.eps)[:, cells]


@every
@pytest.mark.parametrize("dtype, up", [("float64", 0), ("float64", -250), ("float32", 30)])
def test_frozen_log2_norm(layer, shape, dtype, up):
    x, parameters, dy = draw(layer, shape)
    scaled = (dy * 10.0**up).astype(dtype)
    cast = {name: a.astype(dtype) for name, a in parameters.items()}
    got, tape = run(layer, x.astype(dtype), cast, scaled)
    norms = layer.frozen_log2_norm(scaled, tape)
    expected = log2_norm(frozen(layer, x, parameters, dy)) + up * np.log2(10)
    assert norms.dtype == np.float64 and norms.shape == (SEEDS,)
    np.testing.assert_allclose(norms, expected, rtol=0, atol=1e-5 if dtype == "float32" else 1e-11)
    if not getattr(layer, "training", True):
        np.testing.assert_allclose(norms, log2_norm(got["dx"]), rtol=0, atol=1e-6)


def test_frozen_log2_norm_beyond_the_range_of_single_precision():
    layer, shape = RMSNorm(), (2, 5)
    x, parameters, dy = draw(layer, shape)
    tape = run(layer, x, parameters, dy)[1]
    expected = layer.frozen_log2_norm(dy, tape) + 50 * np.log2(10)
    tape["gain"], tape["inverse"] = (tape["gain"] * 1e20).astype("f4"), tape["inverse"].astype("f4")
    got = layer.frozen_log2_norm((dy * 1e30).astype("f4"), tape)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


def backward_step(layer, carry, tape):
    dx, _ = layer.pullback(carry[0], tape, Workspace())
    examples = np.empty((SEEDS, len(layer.declare(tape["x"].shape[1:]).parameters)))
    if layer.example_norms is not None:
        read = [tape[name] for name in layer.example_norms_reads]
        layer.example_norms.run(*read, carry[0], examples)
    return (dx,), (layer.frozen_log2_norm(carry[0], tape), examples)


@pytest.mark.parametrize(
    "layer, shape",
    [
        (BatchNorm(), (3, 2, 4)),
        (BatchNorm(channels_last=True), (3, 2, 4)),
        (RMSNorm(), (1, 3)),
        (GroupNorm(1), (1, 3, 2)),
        (GroupNorm(2, centred=False), (2, 4, 2)),
    ],
    ids=["batch", "batch last", "rms of one", "group of one", "group, not centred"],
)
def test_norms_can_be_recorded(layer, shape):
    """A compiled pass over three layers gives the bits of the calls one by one."""
    tapes = [
        run(layer, *(RANDOM.standard_normal((SEEDS, *shape)), draw(layer, shape)[1]), dy)[1]
        for dy in RANDOM.standard_normal((3, SEEDS, *shape))
    ]
    dy, step = draw(layer, shape)[2], partial(backward_step, layer)
    _, program = record(step, (dy.copy(),), tapes[2])
    stacks = {name: Stack(np.stack([t[name] for t in tapes], axis=1)) for name in tapes[0]}
    (dx,), (norms, examples), _ = program.scan((dy,), stacks, 3, np.empty, (False,), -1)
    carry = (dy,)
    for at, tape in enumerate(reversed(tapes)):
        carry, expected = step(carry, tape)
        np.testing.assert_array_equal(norms.at(at), expected[0])
        if layer.example_norms is not None:
            np.testing.assert_array_equal(examples.at(at), expected[1])
    np.testing.assert_array_equal(dx, carry[0])


# --- norms of the examples ----------------------------------------------------------------------


def example_norms(layer, tape, dy):
    out = np.empty((len(dy), sum(name in tape for name in ("gain", "bias"))))
    layer.example_norms.run(*(tape[name] for name in layer.example_norms_reads), dy, out)
    return out


@independent
def test_example_norms(layer, shape):
    """Against the gradients that each example gives when it is alone."""
    shape = (5, *shape[1:])
    x, parameters, dy = draw(layer, shape)
    out = example_norms(layer, run(layer, x, parameters, dy)[1], dy)
    squares = np.zeros_like(out)
    for n in range(shape[0]):
        alone, _ = run(layer, x[:, n : n + 1].copy(), parameters, dy[:, n : n + 1].copy())
        for k, name in enumerate([name for name in ("gain", "bias") if name in alone]):
            squares[:, k] += np.sum(alone[name] ** 2, axis=1)
    np.testing.assert_allclose(out, 0.5 * np.log2(squares), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "dtype, at, up",
    [("float32", 30, 30), ("float32", -36, -30), ("float64", -200, -250), ("float64", 200, 250)],
)
def test_example_norms_at_any_scale(dtype, at, up):
    """With given statistics x̂ may have any scale too."""
    layer, shape = BatchNorm(training=False), (4, 3, 2)
    _, parameters, dy = draw(layer, shape)
    tape = {**parameters, "normalized": RANDOM.standard_normal((SEEDS, *shape))}
    expected = example_norms(layer, tape, dy) + np.log2(10) * np.array([at + up, up])
    tape["normalized"] = (tape["normalized"] * 10.0**at).astype(dtype)
    out = example_norms(layer, tape, (dy * 10.0**up).astype(dtype))
    np.testing.assert_allclose(out, expected, atol=1e-5 if dtype == "float32" else 1e-9, rtol=0)


@independent
def test_example_norms_of_zero_and_of_what_is_not_finite(layer, shape):
    x, parameters, dy = draw(layer, shape)
    tape = run(layer, x, parameters, dy)[1]
    dy[0], dy[1].flat[0] = 0, np.inf
    tape["normalized"][2].flat[-1] = np.nan
    out = example_norms(layer, tape, dy)
    assert np.all(out[0] == -np.inf) and not np.isfinite(out[1]).any()
    assert np.isnan(out[2, 0]) and np.isfinite(out[2, 1:]).all()


# --- accuracy -----------------------------------------------------------------------------------

CENTRED = {
    "batch": (BatchNorm(), (64, 4)),
    "batch last": (BatchNorm(channels_last=True), (16, 4, 5)),
    "layer": (LayerNorm(), (4, 64)),
    "group": (GroupNorm(2), (3, 4, 32)),
}
centred = pytest.mark.parametrize("layer, shape", CENTRED.values(), ids=CENTRED)


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
    channels, cells = channels_and_cells(layer, shape)
    gain, bias = parameters["gain"], parameters.get("bias", np.zeros_like(parameters["gain"]))
    close(gain[:, channels] * tape["normalized"] + bias[:, channels], got["y"])
    assert tape["inverse"].shape == (SEEDS, cells.max() + 1) and np.all(tape["inverse"] > 0)


@pytest.mark.parametrize(
    "layer, shape", [(RMSNorm(), (2, 5)), (GroupNorm(1, centred=False), (2, 3, 4))]
)
@pytest.mark.parametrize("up", [25, -30])
def test_squares_stay_within_range(layer, shape, up):
    """Those of single-precision values at 10^±25 are beyond its range, and not eps = 0."""
    layer = without_eps(layer)
    x, parameters, dy = draw(layer, shape)
    expected = run(layer, x, parameters, dy)[0]["y"]
    x, dy, parameters["gain"] = (
        a.astype(np.float32) for a in (x * 10.0**up, dy, parameters["gain"])
    )
    close(run(layer, x, parameters, dy)[0]["y"], expected, 1e-6)


# --- declarations and bad input -----------------------------------------------------------------


def test_only_training_batch_norm_couples_examples():
    coupling = {name for name, (layer, _) in CASES.items() if layer.couples_examples}
    assert coupling == {n for n in CASES if "batch" in n and "eval" not in n} | {"another eps"}
    assert Chain([Linear(3), BatchNorm()]).couples_examples
    for layer, _ in CASES.values():
        assert (layer.example_norms is None) == layer.couples_examples


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
    (lambda: BatchNorm(channels_last=True).declare((1, 1, 3)), "batch_norm: a training batch must"
     " have at least 2 values per channel; got 1 (shape (1, 1, 3))"),
    (lambda: BatchNorm(channels_last=True).declare((3,)),
     "batch_norm: input must have axes (batch, ..., channels); got shape (3,)"),
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
