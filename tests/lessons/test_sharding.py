"""Split layers against plain NumPy, with and without their all-reduce; what nets communicate."""

import numpy as np
import pytest

from flowlab.errors import InputError
from flowlab.layers import Activation, Linear
from flowlab.lessons import sharding
from flowlab.networks import build
from flowlab.settings import make

N, D1, D2 = 7, 5, 4


@pytest.fixture
def layer():
    draw = np.random.default_rng(3).standard_normal
    return draw((N, D1)), draw((D1, D2)), draw(D2), draw((N, D2))


def link():
    return sharding.Link(sharding.AllReduce(), sharding.AllReduce())


def assert_equals_numpy(got, x, W, b, dy):
    expected = {"Y": x @ W + b, "dX": dy @ W.T, "dW": x.T @ dy, "db": dy.sum(0)}
    for name, value in expected.items():
        for copy in got[name]:
            np.testing.assert_allclose(copy, value, rtol=0, atol=1e-14 * np.abs(value).sum())


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize(
    "split, copies, sent",
    [
        (sharding.by_data, {"dW", "db"}, (0, D1 * D2 + D2)),
        (sharding.by_column, {"dX"}, (0, N * D1)),
        (sharding.by_row, {"Y", "db"}, (N * D2, 0)),
    ],
)
def test_splits_equal_the_whole_layer_on_every_device(layer, split, copies, sent, count):
    counted = link()
    got = split(*layer, count, counted)
    assert_equals_numpy(got, *layer)
    assert {name for name, arrays in got.items() if len(arrays) == count} == copies
    assert (counted.forward.elements, counted.backward.elements) == sent


@pytest.mark.parametrize("count", [2, 3, 7])
def test_a_mean_over_unequal_shards_needs_their_weights(layer, count):
    x, W, b, dy = layer
    got = sharding.by_data(x, W, b, dy, count, link(), reduction="mean")
    assert_equals_numpy(got, x, W, b, dy / N)
    unweighted = sharding.mean_of_means(N, 7, 7, count)
    assert unweighted < 1e-14 if N % count == 0 else unweighted > 0.01


def test_a_block_split_by_columns_then_rows(layer):
    x, W1, b1, _ = layer
    draw = np.random.default_rng(4).standard_normal
    W2, b2, dy = draw((D2, 6)), draw(6), draw((N, 6))
    h = np.tanh(x @ W1 + b1)
    y, dx = h @ W2 + b2, ((dy @ W2.T) * (1 - h**2)) @ W1.T
    counted = link()
    got = sharding.column_then_row(x, (W1, b1), (W2, b2), dy, 3, counted)
    for name, value in {"Y": y, "dX": dx}.items():
        assert len(got[name]) == 3
        for copy in got[name]:
            np.testing.assert_allclose(copy, value, rtol=1e-12, atol=1e-13)
    assert (counted.forward.elements, counted.backward.elements) == (N * 6, N * D1)


@pytest.mark.parametrize("size", [(7, 5, 4, 3), (8, 8, 8, 2), (3, 2, 2, 2)])
def test_an_all_reduce_is_needed_exactly_where_the_transpose_says(size):
    n, d1, d2, _ = size
    table = sharding.compare(*size).set_index(["split", "direction"])
    expected = {
        ("data, sum", "backward"): d1 * d2 + d2,
        ("data, mean", "backward"): d1 * d2 + d2,
        ("column", "backward"): n * d1,
        ("row", "forward"): n * d2,
        ("column, then row", "forward"): n * d1,
        ("column, then row", "backward"): n * d1,
    }
    needed = table[table["elements"] > 0]
    assert needed["elements"].to_dict() == expected
    assert table["error"].max() < 1e-14
    assert needed["without"].min() > 0.1
    assert table.loc[table["elements"] == 0, "without"].isna().all() and len(table) == 10


@pytest.mark.parametrize(
    "size, message",
    [
        ((3, 2, 2, 1), "shards must be at least 2; got 1"),
        ((3, 4, 4, 4), "shards must be at most n = 3; got 4"),
        ((3, 4, 2, 3), "shards must be at most d2 = 2; got 3"),
        ((3, 4000, 2, 2), "d1 must be at most 1024 for shards; got 4000"),
    ],
)
def test_devices_without_a_part_are_refused(size, message):
    for function in (sharding.compare, sharding.mean_of_means):
        with pytest.raises(InputError, match=message):
            function(*size)


def totals(net, shape, layout):
    table = sharding.communication(net, shape, layout)
    return table.groupby("collective")[["forward", "backward"]].sum().to_numpy().tolist()


def test_communication_of_one_layer_is_what_its_split_sends():
    table = sharding.compare(N, D1, D2, 2).set_index("split")
    for layout, name in (("data", "data, sum"), ("column", "column"), ("row", "row")):
        sent = sharding.communication(Linear(D2), (N, D1), layout)
        reduced = sent[sent["collective"] == "all-reduce"][["forward", "backward"]]
        assert reduced.to_numpy().tolist() == [table.loc[name, "elements"].tolist()]


@pytest.mark.parametrize("skip", ["none", "identity"])
def test_communication_of_a_net_by_hand(skip):
    net = build(make(depth=4, width=8, skip=skip), 10)
    inputs, outputs = 4 * (6 + 8 + 8 + 8), 4 * (8 + 8 + 8 + 10)
    parameters = 6 * 8 + 2 * 8 * 8 + 8 * 10 + 3 * 8 + 10
    assert totals(net, (4, 6), "data") == [[0, parameters]]
    assert totals(net, (4, 6), "column") == [[outputs, 0], [0, inputs]]  # gather, reduce
    assert totals(net, (4, 6), "row") == [[0, inputs], [outputs, 0]]
    assert sharding.communication(net, (4, 6), "row")["layer"].unique().tolist() == [1, 2, 3, 4]


def test_only_linear_layers_are_split():
    net = build(make(depth=4, width=8, skip="rezero"), 10)
    data = sharding.communication(net, (4, 6), "data")
    assert data.loc[data["op"] == "scale", "backward"].tolist() == [1, 1]
    assert set(sharding.communication(net, (4, 6), "row")["op"]) == {"linear"}
    assert sharding.communication(Activation("relu"), (4, 6), "data").empty
    with pytest.raises(InputError, match="layout must be one of data, column, row; got rows"):
        sharding.communication(net, (4, 6), "rows")
