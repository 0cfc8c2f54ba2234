"""The batch law against materialised gradients, exhaustive subsets and measured runs."""

from itertools import combinations
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import flowlab
from flowlab import schema
from flowlab.analysis import batch_law
from flowlab.errors import InputError
from flowlab.figures.weights_and_biases import demonstrations, weights_and_biases
from flowlab.initializers import Initializer
from flowlab.instruments import biases, subsets
from flowlab.layers import Linear, linear
from flowlab.measurement.setup import Batches
from flowlab.networks import build

SMALL = {"depth": 3, "width": 5, "activation": "tanh", "dtype": "float64", "seeds": 2, "seed": 7}
SMALL |= {"init": {"name": "he", "sigma_b": 0.3}}


def settings(**axes):
    return flowlab.make(**{**SMALL, "batch_size": 6, **axes})


def materialised(run):
    """Each example's gradients (seeds, n, elements) by (layer, parameter), from JAX's vmap."""
    batches = Batches(run)
    seeds = np.arange(run.seed, run.seed + run.seeds)
    x, labels = batches(seeds)
    network = build(run, batches.classes)
    initializer, parameters, shape = Initializer(run.init), [], batches.shape
    for layer, block in enumerate(network.blocks, 1):
        declared = block.declare(shape)
        shape = declared.output
        own = declared.parameters if isinstance(declared.parameters, dict) else None
        own = own or declared.parameters[0]
        arrays = []
        for role, parameter in enumerate(own.values()):
            arrays.append(np.empty((len(seeds), *parameter.shape)))
            initializer.draw(parameter, seeds, layer, role, arrays[-1])
        parameters.append(arrays)

    def loss(parameters, x, label):
        for W, b in parameters[:-1]:
            x = jnp.tanh(x @ W + b)
        W, b = parameters[-1]
        return -jax.nn.log_softmax(x @ W + b)[label]

    with jax.enable_x64(True):
        each = jax.vmap(jax.vmap(jax.grad(loss), (None, 0, 0)))(parameters, x, labels)
    return {
        (layer, name): np.asarray(array).reshape(run.seeds, run.batch_size, -1)
        for layer, arrays in enumerate(each, 1)
        for name, array in zip("Wb", arrays, strict=True)
    }


def check_against_materialised(run):
    law = batch_law.law(flowlab.measure(run)).set_index(["seed", "layer", "parameter"])
    n = run.batch_size
    assert len(law) == run.seeds * run.depth * 2
    for (layer, parameter), gradients in materialised(run).items():
        for seed, g in enumerate(gradients, run.seed):
            row = law.loc[(seed, layer, parameter)]
            K = g @ g.T
            off = K[~np.eye(n, dtype=bool)].mean()
            trace = np.cov(g.T).trace()
            assert 10**row.log10_diagonal == pytest.approx(np.diag(K).mean(), rel=1e-10)
            assert row.alignment == pytest.approx(off / np.diag(K).mean(), rel=1e-9, abs=1e-12)
            assert 10**row.log10_trace == pytest.approx(trace, rel=1e-9)
            if off > 0:
                assert 10**row.log10_mean_square == pytest.approx(off, rel=1e-8)
                assert row.noise_scale == pytest.approx(trace / off, rel=1e-8)
                B_s = row.noise_scale
                assert row.slope == pytest.approx((2 * n + B_s) / (n + B_s) / 2, rel=1e-9)
                assert row.note == ""
            else:
                assert row.noise_scale == np.inf and "not above 0" in row.note


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("data", ["digits", "gaussian"])
def test_law_equals_that_of_materialised_gradients(reduction, data):
    check_against_materialised(settings(reduction=reduction, data=data, batch_size=9))


def _forgets_an_example(x, dy, out):
    squares = (x[:, 1:] ** 2).sum(2), (dy[:, 1:] ** 2).sum(2)
    out[:, 0] = 0.5 * np.log2((squares[0] * squares[1]).sum(1))
    out[:, 1] = 0.5 * np.log2(squares[1].sum(1))


def _multiplies_sums(x, dy, out):
    squares = (x**2).sum((1, 2)), (dy**2).sum((1, 2))
    out[:, 0] = 0.5 * np.log2(squares[0] * squares[1])
    out[:, 1] = 0.5 * np.log2(squares[1])


@pytest.mark.parametrize("wrong", [_forgets_an_example, _multiplies_sums])
def test_a_wrong_kernel_is_caught(monkeypatch, wrong):
    right = linear.linear_norms

    def run(x, dy, dx, over_pairs, norms, examples, *others):
        right.run(x, dy, dx, over_pairs, norms, examples, *others)
        wrong(x, dy, examples)

    monkeypatch.setattr(linear, "linear_norms", SimpleNamespace(run=run))
    with pytest.raises(AssertionError):
        check_against_materialised(settings(batch_size=9))


@pytest.mark.parametrize(
    "axes",
    [
        {},
        {"reduction": "sum"},
        {"upstream": "gaussian", "skip": "identity"},
        {"upstream": "ones", "activation": "relu", "skip": "fixup", "depth": 5},
        {"loss": "squared_error", "skip": "rezero", "depth": 4},
    ],
)
def test_law_is_the_mean_over_all_subsets(axes):
    run = settings(**axes)
    sizes = [1, 2, 3, 5, 6]
    exact = batch_law.log10_norms(batch_law.law(flowlab.measure(run)), sizes, "sum")
    exact = exact.droplevel("run").reorder_levels([*subsets.ORDER, "batch_size"])
    found = subsets.direct(run, sizes, subsets=20).set_index(exact.index.names)
    assert set(found["subsets"]) == {1, 6, 15, 20}
    assert (found["relative_se"] == 0).all()
    expected = exact.reindex(found.index)
    assert len(found) == len(exact) and {"W", "b"} == set(expected.index.unique("parameter"))
    finite = np.isfinite(expected)
    assert (found["log10_norm"][~finite] == -np.inf).all()
    errors = 10 ** (2 * (found["log10_norm"] - expected)[finite]) - 1
    assert errors.abs().max() < 1e-10


def test_tokens_share_weights_in_the_law_over_all_subsets():
    network = {"name": "transformer", "steps": 4, "heads": 2}
    run = settings(network=network, width=4, depth=3, skip="identity", norm="layer")
    sizes = [1, 2, 4, 6]
    law = batch_law.law(flowlab.measure(run))
    exact = batch_law.log10_norms(law, sizes, "sum")
    exact = exact.droplevel("run").reorder_levels([*subsets.ORDER, "batch_size"])
    found = subsets.direct(run, sizes, subsets=20).set_index(exact.index.names)
    ops = {"embedding", "Q", "K", "V", "O", "mlp_in", "mlp_out", "linear"}
    assert set(found.index.unique("op")) == ops
    # A bias of keys moves all logits alike: its gradient is rounding.
    names = found.index.to_frame()
    kept = found[~((names["op"] == "K") & (names["parameter"] == "b"))]
    errors = 10 ** (2 * (kept["log10_norm"] - exact.reindex(kept.index))) - 1
    assert errors.abs().max() < 1e-9
    for layer, parameter in ((2, "W"), (2, "b"), (3, "W")):
        K = subsets.gram(run, layer, parameter)
        alignment = (K.sum(axis=(1, 2)) / 6 - 1) / 5
        rows = law.query("layer == @layer and parameter == @parameter")
        last = rows.drop_duplicates("seed", keep="last")["alignment"]
        assert last.to_numpy() == pytest.approx(alignment, rel=1e-8)


def test_law_lies_within_the_spread_of_random_subsets():
    run = settings(depth=3, width=16, batch_size=128, activation="relu", seeds=2)
    sizes = [1, 4, 16, 64]
    exact = batch_law.log10_norms(batch_law.law(flowlab.measure(run)), sizes, "sum")
    exact = exact.droplevel("run").reorder_levels([*subsets.ORDER, "batch_size"])
    found = subsets.direct(run, sizes, subsets=120).set_index(exact.index.names)
    ratio = 10 ** (2 * (found["log10_norm"] - exact.reindex(found.index)))
    z = (ratio - 1) / found["relative_se"]
    assert z.abs().max() < 4.5 and 0.5 < z.std() < 1.6
    # The law in which |G|² is the squared norm of the mean, with its bias, is refused.
    biased = exact + 0.5 * np.log10(1 + exact.index.get_level_values("batch_size") / 128)
    wrong = (10 ** (2 * (found["log10_norm"] - biased.reindex(found.index))) - 1).abs()
    assert (wrong / found["relative_se"]).max() > 4.5


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_law_predicts_runs_at_smaller_batches(reduction):
    """Under one seed a run at B has a part of the larger run's examples, before its weights."""
    axes = {"depth": 3, "width": 16, "seeds": 200, "activation": "relu", "dtype": "float32"}
    axes |= {"reduction": reduction, "init": "he"}
    full = batch_law.law(flowlab.measure(settings(batch_size=64, **axes)))
    for size in (1, 8, 64):
        table = flowlab.measure(settings(batch_size=size, **axes)).set_index(["seed", "layer"])
        exact = batch_law.log10_norms(full, [size], reduction)
        for parameter in "Wb":
            exactly = exact.xs(parameter, level="parameter").reset_index(["run", "op"], drop=True)
            exactly = exactly.droplevel("batch_size").swaplevel().sort_index()
            ratio = 10 ** (2 * (table[f"d{parameter}_log10_norm"].sort_index() - exactly))
            layers = ratio.groupby("layer").agg(["mean", "sem"])
            tolerance = 4 * layers["sem"] if size < 64 else 1e-4
            assert ((layers["mean"] - 1).abs() < tolerance).all()


def test_curve_has_intervals_over_seeds_and_the_slope_is_its_derivative():
    table = flowlab.measure(settings(batch_size=50, seeds=4))
    curve = batch_law.curve(table, [49, 50], "sum")
    assert (curve["n"] == 4).all() and (curve["low"] < curve["high"]).all()
    law = batch_law.law(table)
    logs = batch_law.log10_norms(law, [50], "sum") - batch_law.log10_norms(law, [50], "mean")
    assert logs.to_numpy() == pytest.approx(np.log10(50))
    a, B, h = law["alignment"].to_numpy(), 50.0, 1e-4
    log = [np.log(B * np.exp(k * h) * (1 + (B * np.exp(k * h) - 1) * a)) / 2 for k in (-1, 1)]
    assert law["slope"].to_numpy() == pytest.approx((log[1] - log[0]) / (2 * h), rel=1e-6)


def test_depth_and_scale_do_not_matter():
    """Norms beyond any float: the law is in ratios."""
    axes = {"activation": "relu", "upstream": "gaussian", "data": "gaussian", "depth": 300}
    axes |= {"width": 16, "batch_size": 8, "dtype": "float32"}
    near, far = (
        batch_law.law(flowlab.measure(settings(**axes, init={"name": "he", "gain": gain})))
        for gain in (1.0, 2.0**-20)
    )
    assert far["log10_trace"].min() < -1600 and np.isfinite(far["log10_trace"]).all()
    for name in ("alignment", "noise_scale", "slope"):
        assert far[name].to_numpy() == pytest.approx(near[name].to_numpy(), rel=1e-9)


def test_runs_of_either_reduction_have_one_law():
    one, other = (
        batch_law.law(flowlab.measure(settings(reduction=r))).drop(columns="run")
        for r in ("sum", "mean")
    )
    pd.testing.assert_frame_equal(one, other, rtol=1e-10)


def test_every_table_carries_the_law_and_others_are_refused(monkeypatch):
    table = flowlab.measure(settings(skip="rezero"))
    assert set(schema.EXAMPLE_NORMS) <= set(table)
    assert table.loc[table["op"] == "scale", list(schema.EXAMPLE_NORMS)].isna().all(axis=None)
    assert set(batch_law.law(table)["op"]) == {"linear"}
    with pytest.raises(InputError, match="needs the column dW_examples_log10_norm"):
        batch_law.law(table.drop(columns="dW_examples_log10_norm"))
    monkeypatch.setattr(Linear, "couples_examples", True)
    coupled = flowlab.measure(settings())
    assert coupled[list(schema.EXAMPLE_NORMS)].isna().all(axis=None)
    with pytest.raises(InputError, match=r"couples examples \(batch norm\)"):
        batch_law.law(coupled)
    with pytest.raises(InputError, match=r"couples them \(batch norm\)"):
        subsets.direct(settings(), [1])


def test_what_is_not_defined_says_why():
    table = flowlab.measure(settings(seeds=1))
    W = ["dW_log10_norm", "dW_examples_log10_norm"]
    table.loc[0, W] = [-np.inf, 0.0]  # an exact cancellation
    table.loc[1, W] = -np.inf
    table.loc[2, W], table.loc[2, "status"] = np.nan, "nonfinite"
    law = batch_law.law(table)
    cancelled, zero, lost = law[law["parameter"] == "W"].to_dict("records")
    assert cancelled["noise_scale"] == np.inf and cancelled["note"] == batch_law.NO_SIGNAL
    assert cancelled["alignment"] == pytest.approx(-1 / 5)
    assert np.isnan(zero["noise_scale"]) and zero["note"] == batch_law.ZERO
    assert np.isnan(lost["noise_scale"]) and lost["note"] == batch_law.UNKNOWN
    single = batch_law.law(flowlab.measure(settings(batch_size=1)))
    assert single["noise_scale"].isna().all() and (single["note"] == batch_law.ONE_EXAMPLE).all()
    assert (batch_law.curve(flowlab.measure(settings(batch_size=1)), [1])["n"] == 2).all()
    equal = flowlab.measure(settings(), batches=_Alike(Batches(settings())))
    assert batch_law.law(equal)["noise_scale"].to_numpy() == pytest.approx(0, abs=1e-12)
    assert batch_law.law(equal)["slope"].to_numpy() == pytest.approx(1, rel=1e-12)


class _Alike:
    def __init__(self, batches):
        self.batches, self.example, self.classes = batches, batches.example, batches.classes

    def __call__(self, seeds):
        return tuple(np.repeat(a[:, :1], a.shape[1], axis=1) for a in self.batches(seeds))


@pytest.mark.parametrize(
    "dtype, at, up",
    [("float32", 0, 0), ("float32", 30, -30), ("float64", -200, -150), ("float64", 200, 90)],
)
def test_example_norms_at_any_scale(dtype, at, up):
    random = np.random.default_rng(0)
    x, dy = random.standard_normal((3, 7, 5)), random.standard_normal((3, 7, 4))
    out = np.empty((3, 2))
    Linear.example_norms.run((x * 10.0**at).astype(dtype), (dy * 10.0**up).astype(dtype), out)
    g = np.einsum("sni,sno->snio", x, dy)
    expected = [np.sqrt((g**2).sum((1, 2, 3))), np.sqrt((dy**2).sum((1, 2)))]
    scale = np.log2(10) * np.array([at + up, up])
    assert out == pytest.approx(
        np.log2(expected).T + scale, abs=1e-6 if dtype == "float32" else 1e-9
    )
    # An ensemble of single examples gives the norm of each.
    each = np.empty((21, 2))
    Linear.example_norms.run(x.reshape(21, 1, 5), dy.reshape(21, 1, 4), each)
    assert 2 ** each[:, 0] == pytest.approx(np.sqrt((g**2).sum((2, 3))).ravel(), rel=1e-12)
    dy[0] = 0
    x[1, 2, 3] = np.nan
    Linear.example_norms.run(x, dy, out)
    assert (out[0] == -np.inf).all() and np.isnan(out[1, 0]) and np.isfinite(out[2]).all()


def test_gram_matrices_are_those_of_materialised_gradients():
    run = settings(batch_size=9)
    for (layer, parameter), gradients in materialised(run).items():
        K = gradients @ gradients.transpose(0, 2, 1)
        unit = np.trace(K, axis1=1, axis2=2)[:, None, None] / 9
        assert subsets.gram(run, layer, parameter) == pytest.approx(K / unit, abs=1e-12)


def test_estimators_are_unbiased_and_their_cost_is_counted():
    run = settings(batch_size=64, width=8, seeds=1, activation="relu", init="he")
    found = subsets.estimators(run, 4, 16, draws=(1, 4), repeats=400)
    for quantity in ("mean_square", "trace"):
        bias, spread = found[f"{quantity}_bias"], found[f"{quantity}_spread"]
        assert (bias.abs() < 4.5 * spread / np.sqrt(400)).all()
        by = found.pivot_table(f"{quantity}_spread", "draws", "estimator")
        assert by.loc[1].to_numpy() / by.loc[4].to_numpy() == pytest.approx(2, rel=0.25)
    law = batch_law.law(flowlab.measure(run)).set_index(["layer", "parameter"])["noise_scale"]
    estimated = found.set_index(["layer", "parameter"])["noise_scale"]
    assert estimated.to_numpy() == pytest.approx(law.reindex(estimated.index).to_numpy(), rel=1e-8)
    two = found[(found["estimator"] == subsets.TWO_BATCHES) & (found["draws"] == 4)]
    assert set(two["passes"]) == {8} and set(two["examples"]) == {80}
    assert two["gflop"].iloc[0] == pytest.approx(6e-9 * (64 * 8 + 8 * 8 + 8 * 10) * 80)
    # Per-example gradients show trΣ far better than two norms.
    trace = found.pivot_table("trace_spread", "estimator")["trace_spread"]
    assert trace[subsets.PER_EXAMPLE] < 0.5 * trace[subsets.TWO_BATCHES]


def test_subsets_are_uniform():
    random = np.random.default_rng(0)
    rows = subsets._indicators(5, 2, 20000, random)
    assert (rows.sum(axis=1) == 2).all()
    pairs = pd.Series(map(tuple, rows)).value_counts()
    assert len(pairs) == len(list(combinations(range(5), 2)))
    assert (pairs - 2000).abs().max() < 4.5 * np.sqrt(2000)


def test_duplicated_examples_double_both_gradients():
    axes = {"depth": 6, "batch_size": 33, "seeds": 3, "dtype": "float64"}
    found = biases.duplicated(settings(**axes))
    assert found["worst"].max() < 1e-12
    assert set(found["parameter"]) == {"W", "b"} and set(found["layer"]) == set(range(1, 7))
    assert found.groupby("reduction")["factor"].mean().to_dict() == pytest.approx(
        {"sum": 2, "mean": 1}
    )


def test_constant_upstream_parts_weights_from_biases_only_at_zero_mean():
    found = biases.constant_upstream(seeds=32, batch_sizes=(1, 4, 16, 64))
    d = biases._WIDTH
    for (inputs, parameter), rows in found.groupby(["inputs", "parameter"]):
        n = rows["batch_size"].to_numpy()
        m = 0.0 if inputs == "zero-mean" else 1.0
        square = d * d * (n + n**2 * m**2) if parameter == "W" else d * n**2
        # (1/d) Σ_i of a mean of n normals' square: relative sd √((2 + 4nm²)/d)/(1 + nm²) per seed.
        se = np.sqrt((2 + 4 * n * m**2) / d / 32) / (1 + n * m**2) if parameter == "W" else 1e-6
        assert (np.abs(10 ** (2 * rows["rms"]) / square - 1) < 4 * se).all()
    fit = biases.slopes(found, "inputs").set_index(["inputs", "parameter"])["slope"]
    assert fit["zero-mean", "b"] == pytest.approx(1) and fit["mean 1", "b"] == pytest.approx(1)
    assert fit["zero-mean", "W"] == pytest.approx(0.5, abs=0.03) and fit["mean 1", "W"] > 0.9


def test_uniform_softmax_has_slope_one_half_unless_labels_balance():
    found = biases.uniform_softmax(seeds=200, batch_sizes=(2, 8, 32, 128))
    found = found.set_index(["labels", "parameter"])
    rows = found.loc[("independent", "b")]
    ratio = 10 ** (2 * rows["rms"]) / (0.9 * rows["batch_size"])
    # ‖db‖² is at most a χ² with 9 degrees of freedom over 9: relative variance 2/9.
    assert ((ratio - 1).abs() < 4 * np.sqrt(2 / 9 / 200)).all()
    assert found.loc[("balanced", "b"), "mean"].isna().all()  # lost to rounding
    assert (found.loc[("balanced", "W"), "mean"] > 0).all()


def test_the_bias_has_the_smaller_noise_scale():
    he = flowlab.make(depth=6, width=64, batch_size=128, seeds=4, reduction="sum")
    law = batch_law.law(flowlab.measure(he))
    rows = biases.compared(law).set_index("layer")
    means = law.groupby(["layer", "parameter"])["alignment"].mean().unstack()
    assert rows["mean"].to_numpy() == pytest.approx((means["b"] - means["W"]).to_numpy())
    assert (rows["mean"] > 0).all()
    scales = batch_law.noise_scales(law).set_index(["layer", "parameter"])["noise_scale"].unstack()
    assert (scales["b"] < scales["W"]).all()


def test_sentences_are_of_the_net_that_was_asked_for():
    for axes in ({"init": "xavier", "data": "gaussian"}, {"activation": "tanh", "depth": 3}):
        own = settings(**{"batch_size": 32, "seeds": 6, "depth": 4, **axes})
        law = batch_law.law(flowlab.measure(own))
        first, second = biases.findings(own, law)
        assert "2.000 times" in first and "1.000 times" in first
        rows = biases.compared(law)
        assert f"of {own.depth} linear maps" in second
        assert f"init={own.init.name}, data={own.data.name}" in second
        assert (
            f"in {(rows['low'] > 0).sum()} and the larger one in {(rows['high'] < 0).sum()};"
            in (second)
        )
    gaussian = settings(batch_size=32, seeds=6, upstream="gaussian")
    law = batch_law.law(flowlab.measure(gaussian))
    assert "upstream=gaussian equal examples have unlike" in biases.findings(gaussian, law)[0]
    with pytest.raises(InputError, match="upstream must be loss or ones"):
        biases.duplicated(gaussian)
    assert "slope 1.00" in biases.demonstration(biases.constant_upstream(4))


def test_runs_over_the_law_and_their_figures():
    runs = [
        flowlab.measure(settings(batch_size=size, seeds=40, reduction="sum", data="gaussian"))
        for size in (1, 4, 32)
    ]
    table = pd.concat(runs, ignore_index=True)
    rows = batch_law.against_runs(table)
    assert len(rows) == 3 * 2 * 3
    largest = rows[rows["batch_size"] == 32]
    assert largest["ratio"].to_numpy() == pytest.approx(1, rel=1e-10)
    se = (rows["high"] - rows["low"]) / 4
    assert ((rows["ratio"] - 1).abs() <= 4.5 * se + 1e-10).all()
    law = batch_law.law(runs[-1])
    scales = batch_law.noise_scales(law)
    aligned = law.groupby(["layer", "parameter"])["alignment"].mean()
    found = scales.set_index(["layer", "parameter"])
    seen = np.isfinite(found["noise_scale"])
    assert found["noise_scale"][seen].to_numpy() == pytest.approx(
        (1 / aligned - 1)[seen].to_numpy()
    )
    assert (found["low"] <= found["noise_scale"]).all()
    assert (found["noise_scale"] <= found["high"]).all()

    constant = biases.constant_upstream(4, batch_sizes=(1, 8))
    softmax = biases.uniform_softmax(4, batch_sizes=(2, 8, 32))
    assert len(demonstrations(constant, softmax).axes) == 2
    shown = weights_and_biases(law).axes[1].containers
    slopes = law.groupby(["parameter", "layer"])["slope"].mean()
    assert shown[0].lines[0].get_ydata() == pytest.approx(slopes["W"].to_numpy())
    with pytest.raises(InputError, match="one run for each batch size; got 2 of 4"):
        batch_law.against_runs(pd.concat([table, runs[1].assign(run="other")]))
    with pytest.raises(InputError, match="same seeds and layers"):
        batch_law.against_runs(table[(table["batch_size"] < 32) | (table["seed"] < 10)])


def _table():
    return flowlab.measure(settings())


@pytest.mark.parametrize(
    "action, message",
    [
        (
            lambda: batch_law.curve(_table(), [7]),
            "from 1 to the 6 examples measured; got 7",
        ),
        (lambda: batch_law.curve(_table(), [0]), "got 0"),
        (lambda: batch_law.curve(_table(), [1.5]), "got 1.5"),
        (lambda: batch_law.curve(_table(), []), "at least one batch size; got none"),
        (lambda: batch_law.curve(_table(), [1], "men"), "reduction must be .*did you mean mean"),
        (lambda: subsets.direct(settings(), [7]), "got 7"),
        (lambda: subsets.direct(settings(), [2], subsets=0), "subsets must be at least 1"),
        (lambda: subsets.direct(settings(), [2], layers=[4]), "layer must be from 1 to 3"),
        (lambda: subsets.gram(settings(), 0), "layer must be from 1 to 3; got 0"),
        (lambda: subsets.gram(settings(), 1, "c"), "parameter must be W or b; got c"),
        (lambda: subsets.estimators(settings(), 2, 7), "small < big <= 6 .*got 2, 7"),
        (lambda: subsets.estimators(settings(), 2, 4, repeats=0), "repeats must be"),
        (lambda: flowlab.measure(settings(batch_size=5000)), "at most the 1797 rows"),
    ],
)
def test_bad_input_is_one_line(action, message):
    with pytest.raises(InputError, match=message) as error:
        action()
    assert "\n" not in str(error.value)
