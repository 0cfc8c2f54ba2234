"""Numbers that know their digits: right over the whole float range, or said to be lost."""

import math

import mpmath
import numpy as np
import pandas as pd
import pytest

import flowlab
from flowlab.errors import InputError
from flowlab.initializers import Initializer
from flowlab.instruments.ledger import gains
from flowlab.kernel import ShapeError
from flowlab.layer import Chain, Parameter, Workspace
from flowlab.layers import (
    GRU,
    LSTM,
    Activation,
    BatchNorm,
    GroupNorm,
    LayerNorm,
    Linear,
    MaxPool2d,
    MultiHeadAttention,
    Recurrent,
    RMSNorm,
    ScaledDotProductAttention,
    SoftmaxCrossEntropy,
    TokenEmbedding,
)
from flowlab.layers.attention import token_cosine
from flowlab.measurement.setup import Batches
from flowlab.networks import Network
from flowlab.schema import DELTA

GAUSSIAN = {"upstream": "gaussian", "data": "gaussian"}
SMALL = {"depth": 4, "width": 8, "batch_size": 6, "seeds": 3}
DW, DB = "dW_log10_norm", "db_log10_norm"
ROUNDING = {np.float32: 2e-6, float: 1e-14}
both = pytest.mark.parametrize("real", ROUNDING)


@pytest.fixture(autouse=True)
def digits():
    with mpmath.workdps(400):
        yield


def table(**axes) -> pd.DataFrame:
    return flowlab.measure(flowlab.make(**axes))


def exact(a):
    """An array of exact numbers of any size."""
    return np.vectorize(mpmath.mpf, otypes=[object])(np.asarray(a, float))


def close(ours, theirs, tolerance):
    """Relative to the largest element, which may be far below or above any float."""
    error = abs(exact(ours) - theirs).max()
    assert error <= tolerance * abs(theirs).max()


def run(layer, x, parameters, dy):
    workspace = Workspace(np.nan)
    y, tape = layer.forward(x, parameters, workspace)
    dx, gradients = layer.pullback(dy, tape, workspace)
    return y, dx, gradients


# --- losses ---------------------------------------------------------------------------------------


def residuals(z, label, exponent):
    """p - y in many digits."""
    out = []
    for row, k in zip(z, label, strict=True):
        e = [mpmath.exp(mpmath.ldexp(mpmath.mpf(float(v)), exponent)) for v in row]
        out.append([v / sum(e) for v in e])
        out[-1][k] = -sum(v for j, v in enumerate(out[-1]) if j != k)
    return np.array(out)


@both
@pytest.mark.parametrize("exponent", [-3, 0, 6, 9])
@pytest.mark.parametrize("wrong", [False, True])
def test_a_sure_and_right_answer_keeps_its_digits(real, exponent, wrong):
    z = np.array([[[1.0, 2.5, -0.5], [0.25, -1.0, 3.0]]], real)
    label = np.array([[1, 0 if wrong else 2]])
    targets = {"label": label, "exponent": np.array([exponent])}
    dz, power = SoftmaxCrossEntropy("sum").cotangent(z, targets, Workspace())
    expected = residuals(z[0], label[0], exponent)
    if not wrong and exponent == 9:
        assert power[0] < -1000  # beyond float64
    scaled = [[mpmath.ldexp(v, -int(power[0])) for v in row] for row in expected]
    close(dz[0], np.array(scaled), max(ROUNDING[real] / 4, 1e-12))


def test_the_cotangent_of_a_sure_answer_is_a_row_of_the_table():
    """One example, large weights: p - y from the drawn weights in float64, in many digits."""
    axes = {"depth": 3, "width": 16, "batch_size": 1, "seeds": 24, "init": {"name": "he"}}
    axes["init"]["gain"] = 12.0
    for dtype, tolerance in (("float64", 1e-9), ("float32", 1e-3)):
        settings = flowlab.make(dtype=dtype, **axes)
        got = flowlab.measure(settings)
        assert (got["status"] == "ok").all()
        last = got[got["layer"] == 3].set_index("seed")
        assert last[DELTA].min() < -200  # float32 ends at 1e-45
        batches, initializer = Batches(settings), Initializer(settings.init)
        for seed in range(24):
            x, labels = (a[0].astype(float) for a in batches([seed]))
            for layer, shape in enumerate([(64, 16), (16, 16), (16, 10)], 1):
                W = np.empty((1, *shape), dtype)
                parameter = Parameter(shape, fan_in=shape[0], fan_out=shape[1])
                initializer.draw(parameter, np.array([seed]), layer, 0, W)
                x = x @ W[0].astype(float)
                x = np.maximum(x, 0) if layer < 3 else x
            p = residuals(x, labels.astype(int), 0)
            expected = float(mpmath.log10(mpmath.norm(p.ravel().tolist())))
            assert last.loc[seed, DELTA] == pytest.approx(expected, rel=tolerance, abs=tolerance)
            assert last.loc[seed, DB] == pytest.approx(expected, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("label", [-100, -1, 3, 1000, 0.5, math.nan, math.inf])
def test_labels_outside_the_classes_are_refused(label):
    given = {"label": np.array([[0, label]]), "exponent": np.zeros(1, np.int64)}
    z = np.zeros((1, 2, 3))
    line = f"softmax_cross_entropy: labels must be whole numbers from 0 to 2; got {label:g}"
    for call in (SoftmaxCrossEntropy().forward, SoftmaxCrossEntropy().cotangent):
        with pytest.raises(InputError) as error:
            call(z, given, Workspace())
        assert str(error.value) == line


# --- attention ------------------------------------------------------------------------------------


def attention(x, dy, causal=False):
    """(y, dx) of one example (3, T, e) and one head, scale 1, in many digits."""
    q, k, v, dy = *exact(x), exact(dy)
    logits, A = q @ k.T, np.empty((len(q), len(q)), object)
    for t, row in enumerate(logits):
        e = [mpmath.exp(z - max(row)) if j <= t or not causal else 0 for j, z in enumerate(row)]
        A[t] = [value / sum(e) for value in e]
    dA = dy @ v.T
    dS = A * (dA - (A * dA).sum(axis=1, keepdims=True))
    return A @ v, np.array([dS @ k, dS.T @ q, A.T @ dy])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "real, gap",
    [*((np.float32, gap) for gap in (1, 20, 60)), *((float, gap) for gap in (1, 60, 600))],
)
def test_a_dominant_key_keeps_its_digits(causal, real, gap):
    """Its logit is ``gap`` above the others; dQ and dK are of the size of 1 - p."""
    random = np.random.default_rng(5)
    x = 0.1 * random.standard_normal((1, 1, 3, 4, 3))
    x[0, 0, 0] += 1
    x[0, 0, 1, 0] += gap / 3
    x, dy = x.astype(real), random.standard_normal((1, 1, 4, 3)).astype(real)
    layer = ScaledDotProductAttention(1, causal, scale=1.0)
    y, dx, _ = run(layer, x, {}, dy)
    expected, of_x = attention(x[0, 0], dy[0, 0], causal)
    close(y[0, 0], expected, 8 * ROUNDING[real])
    for k in range(3):  # the logits' own rounding is that of numbers of their size
        close(dx[0, 0, k], of_x[k], 4 * ROUNDING[real] * (1 + gap))
    if gap >= 60:
        assert 0 < abs(of_x[0]).max() < 1e-17 * abs(of_x[2]).max()


@pytest.mark.parametrize("real, power", [(np.float32, 70), (np.float32, 100), (float, 700)])
@pytest.mark.parametrize("masked", [False, True])
def test_logits_beyond_the_float_range_are_a_choice(real, power, masked):
    """The largest logit takes all, also where no float holds it."""
    random = np.random.default_rng(1)
    x = np.ldexp(random.standard_normal((1, 2, 3, 5, 4)), power).astype(real)
    layer = ScaledDotProductAttention(2, masked=masked)
    parameters = {"hidden": np.zeros((1, 2, 5), real)} if masked else {}
    if masked:
        parameters["hidden"][:, :, 1] = 1
    y, _, _ = run(layer, x, parameters, np.ones((1, 2, 5, 4), real))
    for n in range(2):
        for h in (slice(0, 2), slice(2, 4)):
            q, k, v = exact(np.ldexp(x[0, n, :, :, h].astype(float), -power))
            logits = q @ k.T
            if masked:
                logits[:, 1] = -mpmath.inf
            np.testing.assert_array_equal(
                np.ldexp(y[0, n, :, h].astype(float), -power),
                v.astype(float)[logits.argmax(axis=1)],
            )


@pytest.mark.parametrize(
    "real, size",
    [*((np.float32, 10.0**k) for k in (-25, 25)), *((float, 10.0**k) for k in (-200, 0, 200))],
)
def test_cosines_at_any_size(real, size):
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5)) + 0.5
    expected = token_cosine(x)
    np.testing.assert_allclose(token_cosine((size * x).astype(real)), expected, rtol=1e-6)


# --- normalizations -------------------------------------------------------------------------------

NORMS = {
    "batch": (BatchNorm, lambda a: a.mean(axis=0, keepdims=True), True),
    "layer": (LayerNorm, lambda a: a.mean(axis=1, keepdims=True), True),
    "rms": (RMSNorm, lambda a: a.mean(axis=1, keepdims=True), False),
    "group": (lambda eps: GroupNorm(1, eps), lambda a: a.mean(axis=1, keepdims=True), True),
    "group rms": (
        lambda eps: GroupNorm(1, eps, centred=False),
        lambda a: a.mean(axis=1, keepdims=True),
        False,
    ),
}


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("eps", [0.0, 1e-5])
@pytest.mark.parametrize(
    "real, power",
    [(np.float32, k) for k in (-100, -64, 0, 64, 112)]
    + [(float, k) for k in (-1000, -600, -512, 0, 512, 600, 1000)],
)
def test_normalizations_over_the_whole_range(kind, eps, real, power):
    make, mean, centred = NORMS[kind]
    random, layer = np.random.default_rng(2), make(eps=eps)
    x = np.ldexp(random.standard_normal((1, 5, 4)), power).astype(real)
    dy = random.standard_normal((1, 5, 4)).astype(real)
    gain = random.standard_normal((1, 4)).astype(real)
    parameters = {"gain": gain, "bias": np.zeros((1, 4), real)}
    if not centred:
        del parameters["bias"]
    y, dx, gradients = run(layer, x, parameters, dy)

    a, g = exact(x[0]), exact(dy[0]) * exact(gain[0])
    d = a - mean(a) if centred else a
    sigma = np.vectorize(mpmath.sqrt)(mean(d * d) + mpmath.mpf(eps))
    h = d / sigma
    close(y[0], h * exact(gain[0]), 4 * ROUNDING[real])
    close(dx[0], (g - (mean(g) if centred else 0) - h * mean(g * h)) / sigma, 8 * ROUNDING[real])
    close(gradients["gain"][0], (exact(dy[0]) * h).sum(axis=0), 8 * ROUNDING[real])


# --- rows: right, or said to be lost --------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("norm", ["layer", "batch", "rms"])
def test_normalized_nets_of_huge_weights(dtype, norm):
    """Weights of 1e±20 and 1: x̂ is the same, and so are dW times σ_w and the layers' deltas."""
    norms = {}
    for sigma_w in (1e-20, 1.0, 1e20):
        init = {"name": "normal", "sigma_w": sigma_w}
        t = table(norm=norm, init=init, dtype=dtype, activation="tanh", **SMALL, **GAUSSIAN)
        if sigma_w >= 1:
            assert set(t["status"]) <= ({"ok", "lost"} if norm == "batch" else {"ok"})
            norms[sigma_w] = t[(t["op"] == "linear") & (t["layer"] < 4)]
    # A pre-activation of 1 is not quite free of eps.
    change = norms[1e20][DW].to_numpy() - norms[1.0][DW].to_numpy()
    last = 20.0  # the read-out's weights pass the cotangent on
    np.testing.assert_allclose(change + 20, last, rtol=0, atol=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_bias_before_batch_norm_is_lost_and_nothing_else(dtype):
    t = table(norm="batch", dtype=dtype, **SMALL)
    before = (t["op"] == "linear") & (t["layer"] < 4)
    assert (t.loc[before, "status"] == "lost").all() and t.loc[before, DB].isna().all()
    assert np.isfinite(t.loc[before, ["delta_log10_norm", "dX_log10_norm", DW]]).all(axis=None)
    assert (t.loc[~before, "status"] == "ok").all()
    assert np.isfinite(t.loc[(t["op"] == "linear") & ~before, DB]).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_bias_of_keys_is_lost_and_nothing_else(dtype):
    network = {"name": "transformer", "steps": 4, "heads": 2}
    t = table(network=network, dtype=dtype, **SMALL)
    keys = t["op"] == "K"
    assert keys.any() and (t.loc[keys, "status"] == "lost").all()
    assert t.loc[keys, [DB, "db_examples_log10_norm"]].isna().all(axis=None)
    assert np.isfinite(t.loc[keys, [DELTA, DW, "dX_log10_norm"]]).all(axis=None)
    assert (t.loc[~keys, "status"] == "ok").all()


class Alike:
    """Batches of gaussian tokens, each ``spread`` times its own normals apart from the others."""

    classes = 3

    def __init__(self, batch, tokens, features, dtype, spread):
        self.example, self.spread, self.batch = (tokens, features), spread, batch
        self.dtype = dtype

    def __call__(self, seeds):
        random, (_, features) = np.random.default_rng(0), self.example
        x = random.standard_normal((len(seeds), self.batch, 1, features))
        own = random.standard_normal((len(seeds), self.batch, *self.example))
        return (x + self.spread * own).astype(self.dtype), np.zeros((len(seeds), self.batch), int)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_queries_and_keys_of_like_tokens_are_lost(dtype):
    """Rank collapse: dS is a difference of what all tokens share. Noise says so, numbers do not."""
    axes = {"depth": 1, "width": 8, "batch_size": 5, "seeds": 2, "upstream": "gaussian"}
    settings = flowlab.make(dtype=dtype, **axes)
    network = Network((Chain([MultiHeadAttention(8, 2)]),), (False,), tokens=True)
    rows = {}
    for spread in (0.0, 1e-3, 1.0):
        batches = Alike(5, 6, 8, dtype, spread)
        rows[spread] = flowlab.measure(settings, batches=batches, network=network).set_index("op")
    gradients = [DELTA, "dX_log10_norm", DW, DB]
    for op in ("Q", "K"):
        collapsed = rows[0.0].loc[op]
        assert (collapsed["status"] == "lost").all() and collapsed[gradients].isna().all(axis=None)
    for op in ("V", "O"):
        assert (rows[0.0].loc[op, "status"] == "ok").all()
    for spread in (1e-3, 1.0):
        assert np.isfinite(rows[spread].loc[["Q", "K"], [DELTA, DW]]).all(axis=None)
        assert (rows[spread].drop("K")["status"] == "ok").all()
    # dK, which sees the queries themselves, falls with the spread; dQ with its square.
    fall = (rows[1e-3].loc["K", DELTA] - rows[1.0].loc["K", DELTA]).to_numpy()
    assert (np.abs(fall + 3) < 1).all()


def test_a_batch_norm_of_two_examples_is_true_or_lost():
    """x̂ is ±1 but for eps, so almost nothing passes: float32 says what float64 does, or lost."""
    axes = {**SMALL, "batch_size": 2, "depth": 8, "norm": "batch"}
    single, double = (table(dtype=d, **axes) for d in ("float32", "float64"))
    known = single[DELTA].notna()
    assert (single.loc[~known & (single["op"] == "linear"), "status"] == "lost").all()
    np.testing.assert_allclose(single.loc[known, DELTA], double.loc[known, DELTA], atol=0.1)
    assert single.loc[known, DELTA].min() < -3


def test_a_constant_cotangent_before_batch_norm_is_lost():
    t = table(norm="batch", activation="identity", upstream="ones", data="gaussian", **SMALL)
    first = t[(t["layer"] < 4) & (t["op"] == "linear")]
    assert first[[DELTA, DW, DB]].isna().all(axis=None) and (first["status"] == "lost").all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("axes", [{}, {"activation": "gelu"}, {"norm": "rms", "skip": "mix"},
                                  {"skip": "rezero"}, {"skip": "fixup"}])  # fmt: skip
def test_ordinary_nets_lose_nothing(dtype, axes):
    t = table(dtype=dtype, **{**SMALL, "depth": 40, "width": 32, "batch_size": 32}, **axes)
    assert set(t["status"]) <= {"ok", "zero"}
    zero = np.isneginf(t[[DELTA, DW, DB]]).any(axis=1)
    assert zero.any() == (axes.get("skip") in ("rezero", "fixup"))


HUGE = [
    {"init": {"name": "he", "gain": 1e38}, "depth": 20},
    {"init": {"name": "normal", "sigma_w": 1e38}},
    {"init": {"name": "normal", "sigma_w": 1e38}, "activation": "tanh"},
    {"init": {"name": "he", "gain": 1e-38}},
    {"init": {"name": "he", "gain": 1e-44}},
    {"init": {"name": "he", "gain": 1e-44}, "skip": "identity"},
    {"init": {"name": "he", "gain": 1e-30}, "norm": "layer"},
    {"init": {"name": "he", "gain": 1e30}, "norm": "batch"},
    {"init": {"name": "he", "gain": 1e25}, "network": {"name": "transformer", "heads": 2}},
    {"init": {"name": "he", "gain": 1e-25}, "network": {"name": "transformer", "heads": 2}},
    {"init": {"name": "he", "gain": 1e30}, "network": {"name": "cnn"}},
    {"init": {"name": "he", "gain": 1e30}, "network": {"name": "lstm"}, "depth": 3},
    {"init": {"name": "he", "gain": 1e-30}, "network": {"name": "gru"}, "depth": 3},
    {"init": {"name": "he", "gain": 1e20}, "network": {"name": "rnn"}, "activation": "relu"},
]


@pytest.mark.parametrize("axes", HUGE)
@pytest.mark.parametrize("upstream", ["gaussian", "loss"])
def test_single_precision_is_double_or_says_that_it_is_not(axes, upstream):
    """No row of float32 is another than that of float64, far beyond what float32 holds."""
    axes = {**SMALL, "upstream": upstream, **axes}
    single, double = (table(dtype=d, **axes) for d in ("float32", "float64"))
    for column in ("activation_log10_norm", DELTA, "dX_log10_norm", DW, DB):
        said = single[column].notna()
        known = said & double[column].notna()
        ours, theirs = single.loc[known, column], double.loc[known, column]
        zero = np.isneginf(ours)
        assert (np.isneginf(theirs) == zero).all(), column
        # A difference of half a decade is no rounding; masks and argmaxes may turn.
        assert (np.abs(ours - theirs)[~zero] < 0.5).all(), column
        assert not np.isposinf(ours).any() or (single["status"] == "nonfinite").any()
    null = single[[DELTA, "activation_log10_norm"]].isna().all(axis=1) & (single["op"] == "linear")
    assert single.loc[null & single.get("time").isna(), "status"].isin(["lost", "nonfinite"]).all()


@pytest.mark.parametrize("size", [1e200, 1e30, 1e-30, 1e-200])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_inputs_that_single_precision_does_not_hold(size, activation):
    class Scaled(Batches):
        def _load(self, seed):
            loaded = super()._load(seed)
            object.__setattr__(loaded, "x", size * loaded.x)
            return loaded

    axes = {**SMALL, **GAUSSIAN, "activation": activation}
    of = {}
    for dtype in ("float32", "float64"):
        settings = flowlab.make(dtype=dtype, **axes)
        of[dtype] = flowlab.measure(settings, batches=Scaled(settings))
    plain = table(dtype="float64", **axes)
    single = of["float32"]
    if activation == "relu":
        assert (single["status"] == "ok").all()
        shift = single["activation_log10_norm"] - plain["activation_log10_norm"]
        np.testing.assert_allclose(shift, math.log10(size), rtol=0, atol=1e-5)
        np.testing.assert_allclose(single[DELTA], plain[DELTA], rtol=0, atol=1e-5)
        shift = single[DW] - plain[DW]
        np.testing.assert_allclose(shift, math.log10(size), rtol=0, atol=1e-5)
    elif size > 1e38:
        assert (single["status"] == "nonfinite").all() and single[DELTA].isna().all()
    elif size < 1e-38:
        assert (single["status"] == "lost").all() and single[DW].isna().all()
        assert not np.isneginf(single[[DELTA, DW, DB]]).any(axis=None)


def test_saturated_slopes_are_lost():
    t = table(activation="sigmoid", init={"name": "he", "gain": 3e4}, **SMALL)
    assert not np.isneginf(t[[DELTA, DW, DB]]).any(axis=None)
    assert (t.loc[t[DELTA].isna(), "status"] == "lost").all() and t[DELTA].isna().any()
    t = table(network={"name": "lstm"}, init={"name": "he", "gain": 3e4}, **{**SMALL, "depth": 3})
    assert not np.isneginf(t[DELTA]).any()
    assert (t.loc[t[DELTA].isna(), "status"] == "lost").all() and t[DELTA].isna().any()


def test_the_ledger_knows_what_is_lost():
    axes = {**SMALL, "data": "gaussian"}
    books = gains(flowlab.make(norm="batch", **axes))
    assert (books["status"] == "ok").all()  # a bias is beside the cotangent's way
    lost = gains(flowlab.make(norm="batch", activation="identity", upstream="ones", **axes))
    known = lost["log10_gain"].notna()
    assert (lost.loc[~known, "status"] == "lost").all()
    assert (lost.loc[lost["layer"] < 3, "status"] == "lost").all() and known.any()


def test_a_profile_of_what_is_lost_is_not_known():
    t = table(norm="batch", **SMALL)
    assert not flowlab.analysis.statistics.backward_slope(t, DB).known
    assert flowlab.analysis.statistics.backward_slope(t).known


# --- kernels cannot be reached with what their arrays do not hold ---------------------------------


@pytest.mark.parametrize(
    "layer, shape",
    [
        *[(kind(3), (0, 4, 2)) for kind in (Recurrent, LSTM, GRU)],
        *[(kind(3), (2, 0, 2)) for kind in (Recurrent, LSTM, GRU)],
        *[(kind(3), (2, 4, 0)) for kind in (Recurrent, LSTM, GRU)],
        *[(Linear(3), (0, 4)), (Linear(3), (4, 0)), (Activation("relu"), (0, 3))],
        *[(LayerNorm(), (0, 3)), (ScaledDotProductAttention(1), (2, 3, 0, 4))],
    ],
)
def test_empty_inputs_are_refused(layer, shape):
    line = f"{layer.name}: every axis of the input must be at least 1; got shape {shape}"
    for call in (
        lambda: layer.declare(shape),
        lambda: layer.forward(np.empty((1, *shape)), {}, Workspace()),
    ):
        with pytest.raises(ShapeError) as error:
            call()
        assert str(error.value) == line


def test_offsets_and_tokens_that_float32_does_not_hold_are_refused():
    with pytest.raises(ShapeError, match="must lie within 16777216 successive values"):
        MaxPool2d(3).declare((1, 1, 3, 2**23))
    MaxPool2d(2).declare((1, 1, 3, 2**23))
    with pytest.raises(InputError, match="vocabulary must be at most 16777216; got 16777217"):
        TokenEmbedding(2**24 + 1, 1)
