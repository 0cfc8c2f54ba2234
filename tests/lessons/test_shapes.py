"""The worked example, gradients derived from shapes, what networks declare, and the command."""

import math

import numpy as np
import pytest

from experiments import shapes as command
from flowlab.errors import InputError
from flowlab.kernel import ShapeError
from flowlab.layer import Workspace, map_leaves
from flowlab.lessons import shapes
from flowlab.networks import build
from flowlab.settings import make

ADJOINTS = {"dX": "dY Wᵀ", "dW": "Xᵀ dY", "db": "1ᵀ dY"}


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Run the command in this process, in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")

    def run_command(*arguments):
        monkeypatch.setattr("sys.argv", ["shapes.py", *arguments])
        code = command.run(list(arguments))
        assert not list(tmp_path.iterdir())
        return code, *capsys.readouterr()

    return run_command


def test_the_worked_example_by_hand():
    example = shapes.worked_example()
    expected = {
        "X": [[1, 2], [-1, 0], [3, 2]],
        "W": [[1, -1], [0.5, 2]],
        "b": [0.5, -1],
        "dY": np.ones((3, 2)),
        "Y": [[2.5, 2], [-0.5, 0], [4.5, 0]],
        "dX": [[0, 2.5], [0, 2.5], [0, 2.5]],
        "dW": [[3, 3], [4, 4]],
        "db": [3, 3],
    }
    assert example.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(example[name], value, err_msg=name)
    assert max(shapes.differences(example).values()) < 1e-14


@pytest.mark.parametrize("name", ["Y", "dX", "dW", "db"])
def test_the_check_sees_a_small_error_in_any_entry(name):
    example = shapes.worked_example(4, 3, 5)
    assert shapes.differences(example)[name] < 1e-13
    example[name][-1] += 1e-6
    assert shapes.differences(example)[name] > 1e-8


# Linear products by hand: X (n, d1), W (d1, d2), dY (n, d2) joined wherever lengths coincide.
@pytest.mark.parametrize(
    "size, dX, dW, db",
    [
        ((3, 4, 5), 1, 1, 1),
        ((2, 7, 3), 1, 1, 1),
        ((3, 2, 2), 3, 2, 1),
        ((2, 2, 3), 2, 3, 1),
        ((2, 3, 2), 4, 4, 2),
        ((4, 4, 4), 18, 18, 2),
    ],
)
def test_shapes_leave_one_product_only_where_dimensions_differ(size, dX, dW, db):
    table = shapes.derive(*size)
    counts = table.groupby("gradient")["linear"].sum().to_dict()
    assert counts == {"dX": dX, "dW": dW, "db": db}
    assert table[table["adjoint"]].set_index("gradient")["formula"].to_dict() == ADJOINTS
    assert table.loc[~table["adjoint"], "residual"].min() > 1e-6
    assert bool(shapes.coincidences(*size)) == (dX + dW + db > 3)


def test_every_listed_product_has_the_gradients_shape_and_none_is_missing():
    size = 3, 2, 3
    table = shapes.derive(*size)
    drawn = {"X": np.ones((3, 2)), "W": np.ones((2, 3)), "dY": np.ones((3, 3))}
    names = [name + t for name in drawn for t in ("", "ᵀ")]
    value = {name: drawn[name.rstrip("ᵀ")] for name in names}
    value = {name: a.T if name.endswith("ᵀ") else a for name, a in value.items()}
    for gradient, wanted in {"dX": (3, 2), "dW": (2, 3)}.items():
        expected = {name for name in names if value[name].shape == wanted}
        for a in names:
            for b in names:
                if (value[a].shape[0], value[b].shape[1]) == wanted:
                    expected |= {f"{a} {b}"} if value[a].shape[1] == len(value[b]) else set()
        assert set(table.loc[table["gradient"] == gradient, "formula"]) == expected


@pytest.mark.parametrize(
    "given, error, message",
    [
        (dict(n=0), InputError, "n must be at least 1; got 0"),
        (dict(X=(3, -2)), InputError, "axis d1 of X must be at least 1; got -2"),
        (dict(X=(3, 2), W=(4, 2)), ShapeError, "axis d1 of W must be 2, as in X; got 4"),
        (dict(n=4, dY=(3, 2)), ShapeError, "axis n of dY must be 4, as given; got 3"),
        (dict(b=(2, 2)), ShapeError, r"b must have 1 axes \(d2\); got \(2, 2\)"),
    ],
)
def test_bad_shapes_are_refused_by_name(given, error, message):
    with pytest.raises(error, match=message):
        shapes.dimensions(**given)


def test_dimensions_come_from_shapes_and_defaults():
    assert shapes.dimensions() == {"n": 3, "d1": 2, "d2": 2}
    assert shapes.dimensions(X=(5, 4), b=(7,)) == {"n": 5, "d1": 4, "d2": 7}


class Counting(Workspace):
    """Counts the elements allocated, and the most that were ever out at once."""

    def __init__(self):
        super().__init__()
        self.out = self.most = 0

    def take(self, shape, dtype):
        self.out += math.prod(shape)
        self.most = max(self.most, self.out)
        return super().take(shape, dtype)

    def give(self, array):
        self.out -= array.size
        super().give(array)


@pytest.mark.parametrize("skip", ["none", "identity", "rezero", "fixup"])
def test_declared_memory_is_what_a_pass_takes(skip):
    network = build(make(depth=6, width=8, skip=skip), 10)
    shape, workspace = (4, 5), Counting()
    table = shapes.declared(network, shape)
    memory = shapes.memory(table)
    declared = network.chain.declare(shape).parameters
    parameters = map_leaves(lambda p: np.zeros((1, *p.shape)), declared)
    sizes = []
    map_leaves(lambda p: sizes.append(p.size), parameters)
    assert memory["parameters"] == sum(sizes)
    x = y = np.zeros((1, *shape))
    tape = []
    for block, own in zip(network.blocks, parameters, strict=True):  # as measurements pass them
        y, entry = block.forward(y, own, workspace)
        tape.append(entry)
    assert memory["activations"] == workspace.out + x.size
    assert y.shape[1:] == table["output"].iat[-1]
    before = workspace.most = workspace.out
    dy = workspace.take(y.shape, y.dtype)
    network.chain.pullback(dy, tape, workspace, lambda *_: None)
    taken = workspace.most - before
    # Cotangents inside a block come on top.
    assert memory["cotangents"] <= taken <= 2.5 * memory["cotangents"]


def test_a_net_by_hand():
    table = shapes.declared(build(make(depth=5, width=8), 10), (4, 6))
    assert table[["first", "last"]].to_numpy().tolist() == [[1, 1], [2, 4], [5, 5]]
    assert table["x"].tolist() == [(4, 6), (4, 8), (4, 8)]
    assert table["output"].tolist() == [(4, 8), (4, 8), (4, 10)]
    assert table["parameters"].tolist() == [6 * 8 + 8, 8 * 8 + 8, 8 * 10 + 10]
    assert list(table["weights"].iat[1].values()) == [(8, 8), (8,)]
    assert table["kept"].tolist() == [32, 32, 40]  # of ReLU the activation alone


def test_ten_thousand_layers_are_three_rows(call):
    code, output, errors = call("depth=10000", "data=gaussian", "data.features=64")
    assert (code, errors) == (0, "")
    rows = {line.split()[0] for line in output.splitlines() if line}
    assert {"1", "2-9999", "10000"} <= rows and len(output.splitlines()) < 30
    assert f"{64 * 128 + 128 + 9998 * (128**2 + 128) + 1290:,}" in output


def test_nothing_of_a_huge_net_is_allocated(call):
    code, output, _ = call("data=gaussian", "width=1000000", "batch_size=1000000", "depth=2")
    assert code == 0 and "(1000000, 1000000)" in output


@pytest.mark.parametrize("arguments", [(), ("n=3", "d1=4", "d2=5"), ("X=3x4", "W=4x5")])
def test_the_command_prints_values_checks_and_products(call, arguments):
    code, output, errors = call(*arguments)
    assert (code, errors) == (0, "")
    for part in ("Y (3, ", "dX (3, ", "differs from finite differences", *ADJOINTS.values()):
        assert part in output
    assert ("decides" in output) == (not arguments)


def test_the_command_fails_when_a_kernel_is_wrong(call, monkeypatch):
    def wrong(n, d1, d2):
        example = right(n, d1, d2)
        return example | {"dX": example["dX"] * 1.0001}

    right = shapes.worked_example
    monkeypatch.setattr(shapes, "worked_example", wrong)
    with pytest.raises(SystemExit) as end:
        call()
    assert "differ from their oracles" in str(end.value.code)


def test_the_command_shows_shards(call):
    code, output, errors = call("shards=2", "n=7", "d1=4", "d2=5")
    assert (code, errors) == (0, "")
    assert "column, then row" in output and "averaging their means is off" in output


@pytest.mark.parametrize(
    "arguments, parts",
    [
        ("n=abc", ["n must be an integer; got abc"]),
        ("d1=-2", ["d1 must be at least 1; got -2"]),
        ("d2=0", ["d2 must be at least 1; got 0"]),
        ("n=2.5", ["n must be an integer; got 2.5"]),
        ("n=", ["n must be an integer; got nothing"]),
        ("n=65", ["n must be at most 64"]),
        ("n", ["settings are written key=value; got n"]),
        ("n=3 n=4", ["n must be given once"]),
        ("X=3by2", ["X must be a shape such as 3x2; got 3by2"]),
        ("X=3x2 W=4x2", ["axis d1 of W must be 2, as in X; got 4"]),
        ("n=3 d3=4", ["setting of one layer", "got d3"]),
        ("n=3 depth=5", ["n must stand without settings of a network; got depth"]),
        ("shards=1", ["shards must be at least 2; got 1"]),
        ("shards=3", ["shards must be at most d1 = 2; got 3"]),
        ("shards=two", ["shards must be an integer; got two"]),
        ("depth=0", ["depth must be at least 1; got 0"]),
        ("depth=x", ["depth must be an integer; got x"]),
        ("network=mpl", ["network must be one of", "did you mean mlp?"]),
        ("batch_size=5000", ["batch_size must be at most the 1797 rows of digits; got 5000"]),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(call, arguments, parts):
    code, output, errors = call(*arguments.split())
    assert code != 0 and output == ""
    assert errors.startswith("error: ") and errors.count("\n") == 1
    for part in parts:
        assert part in errors
