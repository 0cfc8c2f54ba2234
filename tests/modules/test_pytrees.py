"""Pytrees of JAX, Flax, NumPy and PyTorch as rows; norms against sums in higher precision."""

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

import flowlab
from flowlab.errors import InputError
from flowlab.modules.pytrees import rows
from flowlab.modules.table import joined
from flowlab.schema import DELTA

DW, DB, DGAIN, DBIAS = (f"{name}_log10_norm" for name in ("dW", "db", "dgain", "dbias"))
W, H = "W_log10_norm", "activation_log10_norm"
COLUMNS = (DW, DB, DGAIN, DBIAS)


def log10_norm(*arrays):
    squares = (np.square(np.abs(np.asarray(a)).astype(np.longdouble)).sum() for a in arrays)
    return float(np.log10(np.sqrt(sum(squares))))


def random(*shape, dtype=np.float32):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(dtype)


def columns_of(table):
    """The filled column of each parameter, by its path."""
    own = table[table["parameter"].notna()]
    paths = own["module"] + "." + own["parameter"]
    return {path: own.loc[k, list(COLUMNS)].dropna().index[0] for k, path in paths.items()}


def test_gradients_of_jax_have_their_norms():
    """Each weight, bias, output and cotangent of a net against NumPy's on JAX's own arrays."""
    jax = pytest.importorskip("jax")
    layers = 12
    keys = jax.random.split(jax.random.key(0), layers)
    parameters = {
        f"layer_{k}": {"kernel": jax.random.normal(keys[k], (8, 8)) / 3, "bias": jax.numpy.zeros(8)}
        for k in range(layers)
    }
    x = jax.random.normal(jax.random.key(1), (5, 8))

    def loss(parameters, probes):
        h, outputs = x, {}
        for name, own in parameters.items():
            h = jax.numpy.tanh(h @ own["kernel"] + own["bias"]) + probes[name]
            outputs[name] = h
        return (h**2).sum(), outputs

    parameters = {name: parameters[name] for name in sorted(parameters, key=lambda n: int(n[6:]))}
    zero = {name: jax.numpy.zeros((5, 8)) for name in parameters}
    # JAX sorts the keys of what it returns: layer_10 comes before layer_2.
    (gradients, cotangents), outputs = jax.grad(loss, argnums=(0, 1), has_aux=True)(
        parameters, zero
    )
    assert list(gradients)[2] == "layer_10"
    table = rows(gradients, outputs, cotangents, parameters, name="tanh", seed=3)
    assert set(table["seed"]) == {3} and set(table["network"]) == {"tanh"}
    assert set(table["op"]) == {"layer"} and set(table["status"]) == {"ok"}
    for name in parameters:
        of = table[table["module"] == name]
        assert set(of["layer"]) == {int(name[6:]) + 1}
        own = of[of["parameter"].isna()].iloc[0]
        weight, bias = (of[of["parameter"] == p].iloc[0] for p in ("kernel", "bias"))
        for row, column, array in (
            (own, H, outputs[name]),
            (own, DELTA, cotangents[name]),
            (weight, DW, gradients[name]["kernel"]),
            (weight, W, parameters[name]["kernel"]),
            (bias, DB, gradients[name]["bias"]),
        ):
            assert row[column] == pytest.approx(log10_norm(array), rel=1e-12, abs=1e-12)
        assert (weight["fan_in"], weight["fan_out"]) == (8, 8)
    assert flowlab.judge(table).crossed == layers - 1


def test_gradients_of_jax_in_bfloat16_and_of_whole_numbers():
    jax = pytest.importorskip("jax")
    x = {"w": jax.numpy.full((4, 4), 3.0, "bfloat16"), "table": jax.numpy.arange(3)}
    gradients = jax.grad(lambda p: (p["w"] ** 2).sum(), allow_int=True)(x)
    table = rows(gradients).set_index("parameter")
    assert table.loc["w", DW] == pytest.approx(math.log10(24), rel=1e-12)
    assert table.loc["table", "status"] == "unused"


def test_what_is_still_being_traced_is_refused():
    jax = pytest.importorskip("jax")
    with pytest.raises(InputError, match=r"gradients\.w must be an array of numbers; got .*Tracer"):
        jax.jit(lambda w: rows({"w": w}) is None)(1.0)


def test_columns_follow_from_names_and_shapes():
    """As in Flax, Haiku and PyTorch."""
    tree = {
        "embed": {"embedding": random(9, 4)},
        "dense": {"kernel": random(4, 6), "bias": random(6)},
        "conv": {"kernel": random(3, 3, 4, 8), "bias": random(8)},
        "norm": {"scale": random(6), "bias": random(6)},
        "rms": {"scale": random(6)},
        "batch": {"gamma": random(6), "beta": random(6)},
        "torch": {"weight": random(7, 4, 3), "bias": random(7)},
        "layer_norm": {"weight": random(7), "bias": random(7)},
        "lstm": {"weight_ih_l0": random(8, 2), "bias_ih_l0": random(8)},
        "linear": {"w": random(2, 3), "b": random(3)},
        "scaled": {"kernel": random(2, 2), "scale": random(2)},
        "token": {"cls": random(6)},
    }
    table = rows({"params": tree})
    assert columns_of(table) == {
        **{"embed.embedding": DW, "dense.kernel": DW, "dense.bias": DB},
        **{"conv.kernel": DW, "conv.bias": DB, "norm.scale": DGAIN, "norm.bias": DBIAS},
        **{"rms.scale": DGAIN, "batch.gamma": DGAIN, "batch.beta": DBIAS},
        **{"torch.weight": DW, "torch.bias": DB, "layer_norm.weight": DGAIN},
        **{"layer_norm.bias": DBIAS, "lstm.weight_ih_l0": DW, "lstm.bias_ih_l0": DB},
        **{"linear.w": DW, "linear.b": DB, "scaled.kernel": DW, "scaled.scale": DW},
        "token.cls": DW,
    }
    fans = table.set_index(["module", "parameter"])[["fan_in", "fan_out"]]
    assert list(fans.loc[("conv", "kernel")]) == [36, 72]
    assert list(fans.loc[("torch", "weight")]) == [12, 21]
    assert list(fans.loc[("norm", "scale")]) == [1, 1]
    assert list(table.drop_duplicates("module")["module"]) == list(tree)  # unsorted: as they stand


class Pair(NamedTuple):
    kernel: Any
    bias: Any


@dataclasses.dataclass
class Net:
    first: Any
    rest: Any
    width: int = dataclasses.field(default=3, metadata={"static": True})


def test_every_container_is_walked():
    tree = Net(Pair(random(2, 3), random(3)), [(random(3, 3), random(3)), {"w": random(3, 1)}])
    found = columns_of(rows(tree))
    expected = {
        "first.kernel": DW,
        "first.bias": DB,
        "rest.0.0": DW,
        "rest.0.1": DB,
        "rest.1.w": DW,
    }
    assert found == expected
    assert list(rows(tree)["op"].unique()) == ["first", "rest"]
    assert rows({"w": random(2, 2)})[["module", "op"]].iloc[0].tolist() == ["", "model"]
    assert columns_of(rows(random(3, 3))) == {".": DW}


def test_a_state_dict_of_tensors():
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    net(torch.ones(2, 3)).square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in net.named_parameters()}
    gradients["0.bias"] = gradients["0.bias"].bfloat16()
    table = rows(gradients)
    assert columns_of(table) == {"0.weight": DW, "0.bias": DB, "1.weight": DGAIN, "1.bias": DBIAS}
    norms = table.set_index(["module", "parameter"])
    assert norms.loc[("0", "weight"), DW] == pytest.approx(log10_norm(net[0].weight.grad), rel=1e-9)
    exact = log10_norm(gradients["0.bias"].float())
    assert norms.loc[("0", "bias"), DB] == pytest.approx(exact, rel=1e-9)


def test_intermediates_of_flax_are_calls_of_modules():
    """Two calls are two rows; two outputs of one call have one each, and one together."""
    gradients = {
        "Dense_0": {"kernel": random(4, 4)},
        "Cell_0": {"Dense_0": {"kernel": random(4, 4)}},
    }
    first, second, a, b = (random(5, 4) * k for k in (1, 2, 3, 4))
    intermediates = {
        "intermediates": {
            "Cell_0": {"Dense_0": {"__call__": (first, second)}},
            "Dense_0": {"__call__": ({"a": a, "b": b},)},
            "act": random(5, 4),
        }
    }
    table = rows({"params": gradients}, intermediates)
    own = table[table["parameter"].isna()]
    places = own[["layer", "module", "use", "output", "op"]].astype(object)
    assert places.where(places.notna(), None).to_numpy().tolist() == [
        [1, "Cell_0.Dense_0", 1, None, "Dense"],
        [2, "Cell_0.Dense_0", 2, None, "Dense"],
        [3, "Dense_0", 1, "a", "Dense"],
        [3, "Dense_0", 1, "b", "Dense"],
        [3, "Dense_0", 1, None, "Dense"],
        [4, "act", 1, None, "act"],
    ]
    norms = [log10_norm(*arrays) for arrays in ([first], [second], [a], [b], [a, b])]
    assert list(own[H])[:5] == pytest.approx(norms, rel=1e-12)
    assert list(table[table["parameter"].notna()]["layer"]) == [1, 3]


def test_modules_without_activations_follow_their_neighbours():
    gradients = {name: {"w": random(2, 2)} for name in ("embed", "b", "a", "norm")}
    table = rows(gradients, {name: random(2) for name in ("b", "a", "relu")})
    places = table.drop_duplicates("layer").set_index("module")["layer"].to_dict()
    assert places == {"embed": 1, "b": 2, "a": 3, "norm": 4, "relu": 5}


@pytest.mark.parametrize(
    "leaf, norm, status",
    [
        (np.zeros((2, 2)), -math.inf, "zero"),
        (np.zeros((0, 2)), -math.inf, "zero"),
        (np.full((2, 2), 1e-43, np.float32), math.log10(2e-43), "underflow"),
        (np.full((2, 2), 1e-200), math.log10(2) - 200, "ok"),
        (np.full((2, 2), 1e-5, np.float16), math.log10(2e-5), "underflow"),
        (np.array([[3 + 4j]]), math.log10(5), "ok"),
        (np.array([[1.0, np.inf]]), math.inf, "nonfinite"),
        (np.array([[1.0, np.nan]]), math.nan, "nonfinite"),
        (100.0, 2.0, "ok"),
        (None, math.nan, "unused"),
    ],
)
def test_statuses(leaf, norm, status):
    table = rows({"a": {"w": leaf}, "b": {"w": np.ones((1, 1))}})
    row = table[table["module"] == "a"].iloc[0]
    assert row["status"] == status
    assert row[DW] == pytest.approx(norm, rel=1e-2 if leaf is not None and status == "underflow"
                                    else 1e-12, nan_ok=True)  # fmt: skip


def test_several_outputs_are_one_tensor_in_their_last_row():
    """Zeros beside others are no zero norm; what is not finite stays so."""
    outputs = {"m": {"a": np.zeros(6), "b": np.full(2, 1e200), "c": np.full(1, 1e-200)}}
    last = rows({"m": {"w": random(2, 2)}}, outputs).query("parameter.isna()").iloc[-1]
    assert last[H] == pytest.approx(200 + math.log10(math.sqrt(2)), rel=1e-12)
    assert (last["activation_zeros"], last["status"]) == (pytest.approx(6 / 9), "ok")
    outputs["m"]["c"] = np.array([np.nan])
    table = rows({"m": {"w": random(2, 2)}}, None, outputs)
    assert list(table["status"].iloc[:4]) == ["zero", "ok", "nonfinite", "nonfinite"]
    assert math.isnan(table[DELTA].iloc[3])
    empty = {"m": {"a": np.zeros(0), "b": None}}
    table = rows({"m": {"w": random(2, 2)}}, empty)
    assert list(table["status"].iloc[:3]) == ["zero", "unused", "zero"]


def test_a_loss_scale_is_divided_out_of_gradients_alone():
    tree = {"m": {"w": random(2, 2)}}
    plain, scaled = (
        rows(tree, {"m": random(3)}, {"m": random(3)}, tree, scale=s) for s in (1, 1024)
    )
    shift = 10 * math.log10(2)
    for column, by in ((DW, shift), (DELTA, shift), (H, 0.0), (W, 0.0)):
        known = plain[column].notna()
        assert list(plain.loc[known, column] - scaled.loc[known, column]) == pytest.approx([by])


def test_seeds_join_to_one_run():
    tables = [rows({"w": random(2, 2) * (s + 1)}, seed=s, step=t) for s in range(2) for t in (1, 2)]
    table = joined(tables)
    assert table["run"].nunique() == 1 and table["run"].notna().all()
    assert table.groupby("seed")["step"].agg(list).to_dict() == {0: [1, 2], 1: [1, 2]}
    assert len({of["run"].iloc[0] for of in tables}) == 4
    pd.testing.assert_frame_equal(joined([joined(tables[:2]), *tables[2:]]), table)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"gradients": {}}, "gradients must hold at least one array; got none"),
        ({"gradients": None}, "gradients must hold at least one array; got none"),
        ({"gradients": {"a": {"w": "x"}}}, r"gradients\.a\.w must be an array of numbers; got str"),
        ({"gradients": [np.array([None])]}, r"gradients\.0 must be an array of numbers; got ndar"),
        ({"gradients": {"a": object()}}, r"gradients\.a must be an array of numbers; got object"),
        ({"gradients": {"w": np.zeros(2, "longdouble")}}, "an array must hold numbers of at most"),
        ({"activations": {"x": np.ones(2)}}, "activations must have paths of gradients, such as a"),
        ({"cotangents": [np.ones(2)]}, "cotangents must have paths of gradients, .*; got 0"),
        ({"parameters": {"x": np.ones(2)}}, r"parameters must have paths .* such as a\.w; got x"),
        ({"scale": 0.0}, "scale must be a finite number above 0; got 0"),
        ({"seed": -1}, "seed must be a whole number from 0; got -1"),
        ({"seed": 1.5}, "seed must be a whole number from 0; got 1.5"),
        ({"step": "last"}, "step must be a whole number from 0; got 'last'"),
    ],
)
def test_bad_input_is_one_line(arguments, message):
    given = {"gradients": {"a": {"w": random(2, 2)}, "b": {"w": random(2, 2)}}, **arguments}
    with pytest.raises(InputError, match=f"^{message}"):
        rows(**given)
