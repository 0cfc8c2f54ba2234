"""Every network's table against JAX, number by number; its bits; extreme lengths; bad input."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import flowlab
from flowlab.claims.twins import in_jax
from flowlab.claims.twins.attention import probabilities
from flowlab.claims.twins.normalization import along_features, statistics
from flowlab.errors import InputError
from flowlab.initializers import Initializer
from flowlab.layer import leaves, map_leaves
from flowlab.layers import Scale, ScaledDotProductAttention
from flowlab.layers.loss import LOSSES
from flowlab.layers.normalization import Normalization
from flowlab.layers.recurrent import Recurrence
from flowlab.measurement import passes, scan
from flowlab.measurement.quantities import columns
from flowlab.measurement.scan import record
from flowlab.measurement.setup import Batches
from flowlab.networks import build
from flowlab.numerics import random
from tests.support.tapped import tapped

DH = "dh_log10_norm"
NUMBERS = [*columns(), DH]
UPSTREAM = 2**32 - 1  # the stream of the cotangent at the output
TOLERANCE = 1e-9 / math.log(10)  # in decades, a relative 1e-9
ROUNDING = -12  # log10 of what rounding leaves of a zero, relative to its terms


# --- the same measurement in JAX ------------------------------------------------------------------


class Taps:
    """Names and values of a pass in order; adds ``zeros`` where there are any."""

    def __init__(self, zeros=None):
        self.zeros, self.names, self.values, self.number = zeros, [], [], 0

    def __call__(self, layer, place, a):
        if self.zeros is not None:
            a = a + self.zeros[len(self.values)]
        self.names.append((self.number, layer, place))
        self.values.append(a)
        return a


def drawn(settings, network, shape, seeds):
    """Every block's parameters as (seed, layer, role) have them."""
    initializer, parameters = Initializer(settings.init), []
    for number, block in enumerate(network.blocks, 1):
        declaration, arrays = block.declare(shape), []
        for role, (_, parameter) in enumerate(leaves(declaration.parameters)):
            arrays.append(np.empty((len(seeds), *parameter.shape)))
            initializer.draw(parameter, seeds, number, role, arrays[-1])
        following = iter(arrays)
        parameters.append(map_leaves(lambda _, f=following: next(f), declaration.parameters))
        shape = declaration.output
    return parameters


def gaussian_upstream(settings, shape, seed):
    dy = np.empty((1, math.prod(shape)))
    weight = 1 / settings.batch_size if settings.reduction == "mean" else 1.0
    random.fill_normal.run(np.array([seed]), np.array([UPSTREAM]), dy, weight, 0)
    return dy.reshape(shape)


def norm(a):
    """log10 of the Frobenius norm; of zeros -inf."""
    with np.errstate(divide="ignore"):
        return np.log10(np.linalg.norm(np.ravel(a)))


def of_primitives(nest):
    """The dictionaries of nested parameters, one for each primitive in forward order."""
    return [nest] if isinstance(nest, dict) else [d for inner in nest for d in of_primitives(inner)]


def expected(settings):
    """(seed, layer, op, time) and NUMBERS of every row as it should be, from JAX's vjp."""
    batches = Batches(settings)
    network = build(settings, batches.classes if settings.upstream == "loss" else None)
    seeds = np.arange(settings.seed, settings.seed + settings.seeds)
    parameters = drawn(settings, network, batches.shape, seeds)
    rows = []
    for k, (seed, x, labels) in enumerate(zip(seeds, *batches(seeds), strict=True)):
        of_seed = [map_leaves(lambda a, k=k: a[k], own) for own in parameters]
        rows += [
            {"seed": seed, **row} for row in of_one(settings, network, seed, of_seed, x, labels)
        ]
    return pd.DataFrame(rows)


def of_one(settings, network, seed, parameters, x, labels):
    """The rows of one network."""

    def forward(parameters, zeros=None):
        taps, a = Taps(zeros), x
        for taps.number, (block, own) in enumerate(zip(network.blocks, parameters, strict=True)):
            a = taps(block, "out", tapped(block, a, own, taps))
        return a, taps

    y, taps = forward(parameters)
    zeros = [jnp.zeros_like(a) for a in taps.values]
    _, pull = jax.vjp(lambda p, zeros: forward(p, zeros)[0], parameters, zeros)
    if settings.upstream == "loss":
        loss = LOSSES[settings.loss](settings.reduction)
        given = {"label": labels, "target": np.eye(y.shape[1])[labels]}
        dy = np.asarray(jax.grad(lambda y: in_jax(loss, y, given))(y))
    else:
        dy = gaussian_upstream(settings, y.shape, seed)
    gradients, cotangents = pull(dy)
    each = None
    if not network.chain.couples_examples:  # an example's own gradient: the cotangent of it alone
        alone = np.zeros((len(dy), *dy.shape))
        alone[np.arange(len(dy)), np.arange(len(dy))] = dy
        each = jax.vmap(lambda own: pull(own)[0])(alone)

    for number in range(len(network.blocks)):
        operations, here = [], {}
        for (n, layer, place), value, cotangent in zip(
            taps.names, taps.values, cotangents, strict=True
        ):
            if n == number and place == "out":
                output, passed = value, cotangent
            elif n == number:
                here[place], here["d" + place] = value, cotangent
                if place == "y":
                    operations.append((layer, here))
                    here = {}
        own = [of_primitives(nest[number]) for nest in (parameters, gradients, each) if nest]
        rows = []
        for k, (layer, here) in enumerate(operations):
            rows += rows_of(layer, here, *(nest[k] for nest in own))
            if isinstance(layer, Recurrence):
                yield from ({"layer": number + 1, **row} for row in steps_of(here))
        for row in rows:
            same = [other for other in rows if other["op"] == row["op"]]
            if len(same) > 1:
                for k, other in enumerate(same, 1):
                    other["op"] += f"_{k}"
        rows[-1]["activation_log10_norm"] = norm(output)
        if network.residual[number]:
            rows[-1]["delta_log10_norm"] = norm(passed)
        if network.tokens and output.ndim == 3:
            rows[-1]["token_cosine"] = cosine(np.asarray(output))
        yield from ({"layer": number + 1, **row} for row in rows)


GRADIENTS = {"W": "dW", "alpha": "dW", "P": "dW", "b": "db", "gain": "dgain", "bias": "dbias"}


def rows_of(layer, taps, parameters, gradients, each=None):
    """The rows of one operation, without what belongs to the block."""
    if isinstance(layer, Recurrence):
        shared = {"delta_log10_norm": norm(taps["dz"])}
        first = {"op": layer.name + "_ih", **shared, "dX_log10_norm": norm(taps["dx"])}
        rows = [first, {"op": layer.name + "_hh", **shared}]
        for row, of in zip(rows, ("ih", "hh"), strict=True):
            for name in ("W", "b"):
                row[f"d{name}_log10_norm"] = norm(gradients[f"{name}_{of}"])
                if each:
                    row[f"d{name}_examples_log10_norm"] = norm(each[f"{name}_{of}"])
        return rows
    row = {"op": layer.name, "dX_log10_norm": norm(taps["dx"])}
    if isinstance(layer, ScaledDotProductAttention):
        A = probabilities(jax, layer, taps["x"][:, 0], taps["x"][:, 1], {})
        return [{**row, "attention_entropy": jax.scipy.special.entr(A).sum(-1).mean()}]
    if not gradients:
        return []
    for name, gradient in gradients.items():
        row[f"{GRADIENTS[name]}_log10_norm"] = norm(gradient)
        if each and not isinstance(layer, Scale):
            row[f"{GRADIENTS[name]}_examples_log10_norm"] = norm(each[name])
    if not isinstance(layer, Normalization):
        return [{**row, "delta_log10_norm": norm(taps["dy"])}]
    shape, _, inverse = statistics(jax, layer, taps["x"], {})
    frozen = along_features(layer, taps["x"], parameters["gain"]) * taps["dy"]
    frozen = frozen.reshape(shape) * inverse
    with np.errstate(invalid="ignore"):  # 0 / 0
        return [{**row, "statistics_log10_gain": norm(taps["dx"]) - norm(frozen)}]


def steps_of(taps):
    """The rows of a recurrence's steps."""
    for t in range(taps["h"].shape[1]):
        row = {"op": "state", "time": t + 1, "activation_log10_norm": norm(taps["y"][:, t])}
        yield row | {"delta_log10_norm": norm(taps["dz"][:, t]), DH: norm(taps["dh"][:, t])}


def cosine(x):
    """Mean cosine of an example's different tokens (n, T, d), pair by pair."""
    u = x / np.linalg.norm(x, axis=-1, keepdims=True)
    pairs = np.einsum("ntd,nud->ntu", u, u)
    return pairs[:, ~np.eye(x.shape[1], dtype=bool)].mean()


# --- every number of every network ----------------------------------------------------------------

SMALL = {"batch_size": 4, "seeds": 2, "seed": 3, "dtype": "float64", "depth": 4, "width": 4}
SMALL |= {"init": {"name": "he", "sigma_b": 0.3}}
GAUSSIAN = {"upstream": "gaussian", "data": "gaussian"}
SUM = {**GAUSSIAN, "reduction": "sum"}
LOSS = {"data": "digits"}
SQUARED = {**LOSS, "loss": "squared_error", "reduction": "sum"}
OF_NETWORK = {
    "mlp": {},
    **{name: {"image": 4} for name in ("cnn", "resnet")},
    **{name: {"steps": 4} for name in ("rnn", "lstm", "gru")},
    "transformer": {"steps": 4, "heads": 2},
}
DEPTHS = {"rnn": 3, "lstm": 3, "gru": 3}
WEAK = {"name": "normal", "sigma_w": 0.5, "sigma_b": 0.3}  # or attention saturates
ORTHOGONAL = {"recurrent": "orthogonal", "radius": 0.9}
# By operation, the layers whose bias moves nothing: it shifts what a softmax or a batch norm reads.
KEYS, INNER = {"K": (2, 3)}, {"K": (2, 3, 4)}
STREAM = {"embedding": (1,), "V": (2, 3), "O": (2, 3), "mlp_out": (2, 3), **KEYS}
POST = {"V": (2, 3, 4), "O": (2, 3, 4), "mlp_out": (2, 3, 4), **INNER}
CASES = [
    ("mlp", LOSS, {}, {"activation": "gelu"}, {}),
    ("mlp", GAUSSIAN, {}, {"norm": "batch", "activation": "tanh"}, {"linear": (1, 2, 3)}),
    ("mlp", SQUARED, {}, {"norm": "layer"}, {}),
    ("mlp", GAUSSIAN, {}, {"norm": "rms", "skip": "mix", "activation": "tanh"}, {}),
    ("mlp", SUM, {"branch_maps": 2}, {"norm": "layer", "skip": "identity"}, {}),
    ("mlp", LOSS, {"branch_scale": "inverse_depth"}, {"norm": "rms", "skip": "scaled"}, {}),
    ("cnn", GAUSSIAN, {}, {}, {}),
    ("cnn", LOSS, {"padding": "circular"}, {"activation": "tanh"}, {}),
    ("cnn", LOSS, {"kernel_size": 5}, {"norm": "batch"}, {"conv2d": (1, 2, 3)}),
    ("cnn", SUM, {"channels": 2}, {"norm": "layer", "activation": "tanh"}, {}),
    ("cnn", GAUSSIAN, {"padding": "circular"}, {"norm": "rms"}, {}),
    ("cnn", GAUSSIAN, {}, {"skip": "mix"}, {}),
    ("resnet", GAUSSIAN, {}, {}, {"conv2d_1": (2, 3, 4)}),
    ("resnet", LOSS, {}, {}, {"conv2d": (1,), "conv2d_1": (2, 3), "conv2d_2": (2, 3)}),
    ("resnet", SUM, {"branch_maps": 1}, {"skip": "scaled", "norm": "none"}, {}),
    ("resnet", GAUSSIAN, {"padding": "circular"}, {"skip": "mix", "norm": "layer"}, {}),
    ("resnet", GAUSSIAN, {}, {"skip": "rezero", "norm": "rms"}, {}),
    ("resnet", SUM, {}, {"skip": "fixup", "norm": "none"}, {}),
    ("resnet", GAUSSIAN, {}, {"skip": "none", "norm": "layer"}, {}),
    ("transformer", LOSS, {}, {}, KEYS),
    ("transformer", SQUARED, {"causal": True, "placement": "post"}, {"activation": "tanh"}, KEYS),
    ("transformer", SUM, {"logit_scale": "inverse"}, {"norm": "none", "init": WEAK}, INNER),
    ("transformer", LOSS, {"causal": True}, {"norm": "batch"}, STREAM),
    ("transformer", GAUSSIAN, {"placement": "post"}, {"norm": "batch", "skip": "mix"}, POST),
    ("transformer", GAUSSIAN, {"expansion": 2}, {"norm": "rms", "skip": "scaled"}, INNER),
    ("transformer", GAUSSIAN, {"placement": "post"}, {"norm": "rms", "skip": "rezero"}, INNER),
    ("transformer", GAUSSIAN, {"heads": 1}, {"skip": "fixup"}, INNER),
    ("transformer", GAUSSIAN, {"placement": "post"}, {"skip": "none"}, INNER),
    ("rnn", LOSS, {}, {}, {}),
    ("rnn", GAUSSIAN, {"recurrent": "identity", "truncation": 3}, {"activation": "relu"}, {}),
    ("rnn", SUM, ORTHOGONAL, {"activation": "identity", "norm": "batch"}, {}),
    ("rnn", GAUSSIAN, {"recurrent": "lecun"}, {"activation": "relu", "norm": "layer"}, {}),
    ("lstm", LOSS, {}, {"norm": "rms"}, {}),
    ("lstm", GAUSSIAN, {**ORTHOGONAL, "forget_bias": 1.0, "truncation": 2}, {}, {}),
    ("gru", SQUARED, {}, {"norm": "layer"}, {}),
    ("gru", GAUSSIAN, {**ORTHOGONAL, "truncation": 2}, {}, {}),
]


def settings_of(name, network=None, **axes):
    network = {"name": name, **OF_NETWORK[name], **(network or {})}
    if axes.get("data") == "digits" and "image" in network:
        del network["image"]
    return flowlab.make(**{**SMALL, "depth": DEPTHS.get(name, 4), **axes, "network": network})


def check(settings, without_db):
    """Every number of the table against JAX."""
    keys = ["seed", "layer", "time", "op"]
    got, want = flowlab.measure(settings), expected(settings).reindex(columns=[*keys, *NUMBERS])
    want["time"] = want["time"].astype("Int64")
    # Operations stay in the order of the forward pass.
    got, want = (
        frame.sort_values(keys[:3], kind="stable", ignore_index=True) for frame in (got, want)
    )
    pd.testing.assert_frame_equal(got[keys], want[keys], check_dtype=False)
    lost = pd.Series(False, got.index)
    for op, layers in without_db.items():
        rows = (got["op"] == op) & got["layer"].isin(layers)
        assert rows.sum() == settings.seeds * len(layers)
        rows &= ~np.isneginf(want["delta_log10_norm"])  # at the start of a branch that is off
        lost |= rows
        for column in ("db_log10_norm", "db_examples_log10_norm"):
            present = want[rows & want[column].notna()]
            assert (present[column] <= present["delta_log10_norm"] + ROUNDING).all()
            assert got.loc[rows, column].isna().all()
            want.loc[rows, column] = math.nan
    assert ((got["status"] == "lost") == lost).all()
    assert set(got["status"]) <= {"ok", "zero", "lost"}
    for column in NUMBERS:
        ours, theirs = (frame[column].astype(float) for frame in (got, want))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE, err_msg=column)


@pytest.mark.parametrize("name, upstream, network, axes, without_db", CASES)
def test_every_number_is_that_of_jax(name, upstream, network, axes, without_db):
    check(settings_of(name, network, **upstream, **axes), without_db)


# --- bits -----------------------------------------------------------------------------------------

SINGLE = {**GAUSSIAN, "dtype": "float32", "seeds": 3, "batch_size": 3}


@pytest.mark.parametrize("name", ["cnn", "transformer", "lstm"])
def test_bits_do_not_depend_on_parts_or_threads(name):
    whole = flowlab.measure(settings_of(name, **SINGLE, threads=1))
    for axes in ({"threads": 2}, {"threads": 2, "memory_gib": 1e-9}):
        parts = flowlab.measure(settings_of(name, **SINGLE, **axes))
        pd.testing.assert_frame_equal(whole, parts, check_exact=True)


@pytest.mark.parametrize(
    "name, axes", [("cnn", {"norm": "layer"}), ("resnet", {"norm": "batch"}), ("transformer", {})]
)
def test_compiled_runs_of_blocks_have_the_bits_of_single_ones(monkeypatch, name, axes):
    settings = settings_of(name, depth=27, **{**SINGLE, **axes})
    recorded = []
    monkeypatch.setattr(
        scan,
        "record",
        lambda *a: recorded.append(a) or record(*a),
    )
    scanned = flowlab.measure(settings)
    assert len(recorded) >= 2  # forward and backward
    recorded.clear()
    monkeypatch.setattr(passes, "WORTH_COMPILING", 1000)
    pd.testing.assert_frame_equal(scanned, flowlab.measure(settings), check_exact=True)
    assert not recorded


# --- beyond the float range -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "activation, sigma_w, tolerance",
    [("identity", 0.6, 1e-3), ("relu", 1.0, 0.05)],  # rounding turns a few of ReLU's masks
)
def test_a_deep_cnn_in_single_precision_is_that_in_double(activation, sigma_w, tolerance):
    init = {"name": "normal", "sigma_w": sigma_w}
    axes = {**SINGLE, "depth": 300, "width": 24, "init": init, "activation": activation, "seeds": 2}
    single, double = (
        flowlab.measure(settings_of("cnn", **{**axes, "dtype": dtype}))
        for dtype in ("float32", "float64")
    )
    for column in ("activation_log10_norm", "delta_log10_norm", "dX_log10_norm", "dW_log10_norm"):
        assert single[column].min() < -46  # float32 ends at 1e-45
        np.testing.assert_allclose(single[column], double[column], rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-4), ("float64", 1e-10)])
def test_two_linear_recurrences_over_any_time(dtype, tolerance):
    """With W_hh = r: ∂L/∂h of the upper layer is r^(T-t) g, of the lower (T-t+1) r^(T-t) g Wᵀ."""
    T, r = 600, 0.2
    network = {"steps": T, "recurrent": "identity", "radius": r}
    axes = {**SINGLE, "activation": "identity", "dtype": dtype, "seeds": 1}
    t = flowlab.measure(settings_of("rnn", network, **axes))
    before = T - np.arange(1, T + 1)
    for layer, terms in ((2, 1 + 0 * before), (1, 1 + before)):
        along = t[t["time"].notna() & (t["layer"] == layer)].sort_values("time")
        for column in (DH, "delta_log10_norm"):
            measured = along[column].to_numpy()
            expected = measured[-1] + np.log10(terms) + before * math.log10(r)
            assert measured[0] < -400  # float64 ends at 1e-324
            np.testing.assert_allclose(measured, expected, rtol=0, atol=tolerance)
    assert (t["status"] == "ok").all()


def test_relu_keeps_what_its_living_units_pass():
    """With strong biases and weak inputs a unit lives always or never: ∂L/∂h_t = r ∂L/∂h_(t+1)."""
    network = {"steps": 600, "recurrent": "identity", "radius": 0.5}
    init = {"name": "normal", "sigma_w": 1e-4, "sigma_b": 1.0}
    axes = {**SINGLE, "activation": "relu", "init": init, "depth": 2, "width": 16}
    t = flowlab.measure(settings_of("rnn", network, **axes))
    for _, along in t[t["time"].notna()].groupby("seed"):
        measured = along.sort_values("time")["delta_log10_norm"]
        np.testing.assert_allclose(np.diff(measured), math.log10(2), rtol=0, atol=1e-6)
        assert measured.iloc[0] < -179


def test_one_step_of_recurrence_has_no_past():
    t = flowlab.measure(settings_of("gru", {"steps": 1}, **SINGLE, depth=2))
    past = t[t["op"] == "gru_hh"]
    assert (past["status"] == "zero").all() and np.isneginf(past["dW_log10_norm"]).all()
    assert np.isfinite(past["db_log10_norm"]).all()


# --- bad input ------------------------------------------------------------------------------------

OTHERS = [
    *[("mlp", "heads", 2), ("cnn", "steps", 3), ("resnet", "radius", 0.5), ("rnn", "heads", 2)],
    *[("lstm", "causal", True), ("gru", "forget_bias", 1.0), ("transformer", "branch_maps", 2)],
]
BAD = [
    *[
        (
            name,
            {option: value},
            {},
            f"network.{option} does not apply to network={name}; got {value}",
        )
        for name, option, value in OTHERS
    ],
    *[
        (name, {"steps": 5}, LOSS, "network.steps must divide the data's 64 features; got 5")
        for name in ("rnn", "lstm", "gru", "transformer")
    ],
    *[
        (
            name,
            {"channels": 3},
            LOSS,
            f"network={name} needs square images, data with channels x "
            "side x side features; got 64 features for 3 channels",
        )
        for name in ("cnn", "resnet")
    ],
    *[
        (
            name,
            {"kernel_size": 4},
            {},
            "network.kernel_size must be odd, to keep the image's size; got 4",
        )
        for name in ("cnn", "resnet")
    ],
    *[
        (name, {}, {"skip": "mix"}, f"skip must be none for network={name}; got mix")
        for name in ("rnn", "lstm", "gru")
    ],
    *[
        (
            name,
            {},
            {"activation": "relu"},
            f"activation of network={name} must be one of tanh; got relu",
        )
        for name in ("lstm", "gru")
    ],
    *[
        (
            name,
            {"image": 1} if name == "cnn" else {"steps": 1} if name == "rnn" else {},
            {"norm": "batch", "batch_size": 1, **GAUSSIAN},
            "batch_norm: a training batch must have at least 2 values per channel; got 1",
        )
        for name in ("mlp", "cnn", "rnn")
    ],
    ("transformer", {"heads": 3}, GAUSSIAN, "network.heads must divide the width 4; got 3"),
    (
        "transformer",
        {},
        {"depth": 1, **LOSS},
        "depth must be at least 2 for network=transformer with upstream=loss; got 1",
    ),
    ("transformer", {"placement": "pst"}, {}, "one of pre, post; got pst; did you mean post?"),
    ("rnn", {}, {"activation": "gelu"}, "must be one of tanh, relu, identity; got gelu"),
    ("rnn", {"recurrent": "he"}, {}, "one of lecun, orthogonal, identity; got he"),
    ("rnn", {"truncation": 0}, {}, "network.truncation must be at least 1; got 0"),
    ("lstm", {"forget_bias": math.inf}, {}, "network.forget_bias must be finite; got inf"),
    (
        "cnn",
        {"padding": "zero"},
        {},
        "network.padding must be one of zeros, circular; got zero; did you mean zeros?",
    ),
]


@pytest.mark.parametrize("name, network, axes, message", BAD)
def test_bad_input_is_one_line(name, network, axes, message):
    with pytest.raises(InputError) as error:
        flowlab.measure(settings_of(name, network, **axes))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_the_command_says_so_too(call, tmp_path):
    sizes = ["network=transformer", "network.heads=3", "width=8", "depth=3", "batch_size=4"]
    code, _, errors = call(*sizes, "seeds=1")
    assert code != 0
    assert errors.splitlines() == ["error: network.heads must divide the width 8; got 3"]
    assert not list(tmp_path.rglob("*.parquet"))
