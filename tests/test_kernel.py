"""Kernels refuse shapes by name, run over the ensemble, and are compiled once on a machine."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from flowlab.errors import InputError
from flowlab.kernel import ShapeError, jit, kernel
from flowlab.layer import Chain, Workspace
from flowlab.layers import Linear, Residual, SoftmaxCrossEntropy
from flowlab.layers.linear import linear_forward, linear_pullback
from flowlab.layers.residual import scale_forward, weighted_sum
from tests.support.scripts import printed

S, N, I, O = 2, 4, 3, 5


def forward_shapes(**changed):
    shapes = {"x": (S, N, I), "W": (S, I, O), "b": (S, O), "y": (S, N, O)}
    return [np.ones(shape) for shape in (shapes | changed).values()]


def test_a_kernel_runs_over_the_ensemble():
    x, W, b, y = forward_shapes()
    W *= np.arange(1, S + 1)[:, None, None]
    linear_forward(x, W, b, y)
    np.testing.assert_array_equal(
        y, (I * np.arange(1, S + 1) + 1.0)[:, None, None] * np.ones((N, O))
    )


def test_constants_may_have_any_name():
    """Those that the code around a kernel might have used for itself, too."""

    @kernel("(n)->(n)")
    def whole(x, y, s, single, a0):
        y[:] = x + s + single + a0

    @kernel("...->...")
    def mapped(x, i, scalar, a0):
        return x + i + scalar + a0

    x, y = np.arange(6.0).reshape(3, 2), np.empty((3, 2))
    for function in (whole, mapped):
        function(x, y, 0.5, 10.0, 100.0)
        np.testing.assert_array_equal(y, x + 110.5)


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"W": (S, 7, O)}, "axis i of W must be 3, as in x; got 7"),
        ({"b": (S, 6)}, "axis o of b must be 5, as in W; got 6"),
        ({"y": (S, 9, O)}, "axis n of y must be 4, as in x; got 9"),
        ({"y": (S, N, 6)}, "axis o of y must be 5, as in W; got 6"),
        ({"W": (3, I, O)}, "axis seeds of W must be 2, as in x; got 3"),
        ({"b": (1, O)}, "axis seeds of b must be 2, as in x; got 1"),
        ({"y": (1, N, O)}, "axis seeds of y must be 2, as in x; got 1"),
        ({"x": (N, I)}, "x must have 3 axes (seeds, n, i); got shape (4, 3)"),
        ({"b": (S, 1, O)}, "b must have 2 axes (seeds, o); got shape (2, 1, 5)"),
    ],
)
def test_forward_refuses_a_mismatch_by_name(changed, message):
    with pytest.raises(ShapeError) as refused:
        linear_forward(*forward_shapes(**changed))
    assert str(refused.value) == f"linear_forward: {message}"


@pytest.mark.parametrize("name, axis, dimension", [
    ("W", 1, "i"), ("W", 2, "o"), ("dy", 1, "n"), ("dy", 2, "o"), ("dx", 1, "n"), ("dx", 2, "i"),
    ("dW", 1, "i"), ("dW", 2, "o"), ("db", 1, "o"),
])  # fmt: skip
def test_pullback_refuses_each_mismatched_axis(name, axis, dimension):
    shapes = {
        "x": (S, N, I), "W": (S, I, O), "dy": (S, N, O),
        "dx": (S, N, I), "dW": (S, I, O), "db": (S, O),
    }  # fmt: skip
    wrong = list(shapes[name])
    wrong[axis] += 1
    shapes[name] = tuple(wrong)
    with pytest.raises(ShapeError, match=rf"^linear_pullback: axis {dimension} of ") as refused:
        linear_pullback(*(np.ones(shape) for shape in shapes.values()))
    assert {str(wrong[axis]), str(wrong[axis] - 1)} <= set(
        str(refused.value).replace(",", "").replace(";", "").split()
    )


def test_strided_data_are_refused():
    x, _, b, y = forward_shapes()
    with pytest.raises(ShapeError, match=r"^linear_forward: W must be C-contiguous; got strided"):
        linear_forward(x, np.ones((S, O, I)).transpose(0, 2, 1), b, y)


def test_too_few_and_wrong_arguments():
    with pytest.raises(ShapeError, match=r"^linear_forward takes 4 arrays; got 2$"):
        linear_forward(*forward_shapes()[:2])
    with pytest.raises(ShapeError, match=r"^linear_forward: b must be an array; got 1.0$"):
        x, W, _, y = forward_shapes()
        linear_forward(x, W, 1.0, y)


def test_an_ellipsis_stands_for_the_same_axes_everywhere():
    one = np.ones((S, N, I))
    weighted_sum(one, one, np.empty((S, N, I)), 2.0, 3.0)
    with pytest.raises(ShapeError, match=r"^weighted_sum: axis 2 of v must be 3, as in u; got 4$"):
        weighted_sum(one, np.ones((S, N, 4)), one.copy(), 1.0, 1.0)
    with pytest.raises(ShapeError, match=r"^weighted_sum: the output must have 3 axes"):
        weighted_sum(one, one, np.ones((S, N)), 1.0, 1.0)
    with pytest.raises(ShapeError, match=r"^scale_forward: axis 1 of y must be 4, as in x; got 5$"):
        scale_forward(one, np.ones(S), np.ones((S, 5, I)))


def test_layers_name_themselves():
    with pytest.raises(ShapeError, match=r"^linear: input must have axes \(batch, ..., features\)"):
        Linear(5).declare((4,))
    with pytest.raises(ShapeError, match=r"^chain, layer 2: residual: axis 1 of the branch's outp"):
        Chain([Linear(5), Residual(Linear(4))]).declare((4, 3))
    with pytest.raises(ShapeError, match=r"^softmax_cross_entropy: input must have axes"):
        SoftmaxCrossEntropy().declare((4,))
    layer, x = Linear(5), np.ones((S, N, I))
    with pytest.raises(ShapeError, match=r"^linear: axis 1 of W must be 3; got 4"):
        layer.forward(x, {"W": np.ones((S, 4, 5)), "b": np.ones((S, 5))}, Workspace())
    with pytest.raises(ShapeError, match=r"^linear: parameters must be \['W', 'b'\]; got \['W'\]"):
        layer.forward(x, {"W": np.ones((S, 4, 5))}, Workspace())
    _, tape = layer.forward(x, {"W": np.ones((S, I, 5)), "b": np.ones((S, 5))}, Workspace())
    with pytest.raises(ShapeError, match=r"^linear: axis 2 of dy must be 5; got 6"):
        layer.pullback(np.ones((S, N, 6)), tape, Workspace())
    with pytest.raises(InputError, match=r"^linear: features must be at least 1; got 0$"):
        Linear(0)


PROGRAM = """
import json
import numpy as np
from flowlab.layers.linear import linear_forward
from flowlab.layers.activation import relu_forward

x, y = np.ones((2, 3, 4)), np.empty((2, 3, 5))
linear_forward(x, np.ones((2, 4, 5)), np.ones((2, 5)), y)
relu_forward(y, y.copy())
stats = [kernel.compiled.stats for kernel in (linear_forward, relu_forward)]
print(json.dumps([[sum(s.cache_hits.values()), sum(s.cache_misses.values())] for s in stats]))
"""


def test_the_second_process_compiles_nothing(tmp_path):
    def stats():
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
        process = subprocess.run(
            [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True
        )
        assert process.returncode == 0, process.stderr
        return json.loads(process.stdout)

    assert stats() == [[0, 1], [0, 1]]
    assert stats() == [[1, 0], [1, 0]]


OWN = """
import sys
import numpy as np
from flowlab.kernel import kernel
from flowlab.layer import Chain, Declaration, Primitive
from flowlab.layers import Linear
from flowlab.networks import Network
import flowlab

def scaled(factor):
    @kernel("...->...")
    def forward(z):
        return factor * z

    @kernel("...,...->...")
    def pullback(z, dy):
        return factor * dy

    class Scaled(Primitive):
        name = "scaled"
        forward_kernel, pullback_kernel = forward, pullback

        def shapes(self, shape):
            return Declaration(output=shape)

    return Scaled()

for factor in map(float, sys.argv[1:]):
    block = Chain([Linear(4), scaled(factor)])
    net = Network((block,) * 6, (False,) * 6)
    table = flowlab.measure(
        network=net, data="gaussian", upstream="ones", width=4, batch_size=2, seeds=1, threads=1
    )
    print(float(table["delta_log10_norm"].iat[0] - table["delta_log10_norm"].iat[-1]))
"""


@pytest.mark.parametrize("command", [["own.py"], ["-c", OWN]])
def test_kernels_of_one_name_are_not_mistaken_for_one_another(tmp_path, command):
    """In a file, across processes; and as typed into a notebook, which has no file."""
    (tmp_path / "own.py").write_text(OWN)
    runs = [["1", "10"], ["100"]] if command == ["own.py"] else [["1", "10"]]
    found = []
    for factors in runs:
        found += map(float, printed(tmp_path, *command, *factors).split())
    steps = np.subtract(found[1:], found[0])
    np.testing.assert_allclose(steps, [5, 10][: len(steps)], atol=1e-4)


def test_python_may_call_what_kernels_call():
    @jit
    def twice(x):
        return 2 * x

    @kernel("(n)->(n)")
    def twice_each(x, y):
        for i in range(x.size):
            y[i] = twice(x[i])

    x, y = np.arange(6.0).reshape(2, 3), np.empty((2, 3))
    twice_each(x, y)
    assert twice.overloads and twice_each.single.overloads  # compiled without what Python needs
    assert (y == 2 * x).all() and (twice(1.5), twice(2)) == (3.0, 4)
    twice_each.single(x[1], y[0])
    assert (y[0] == y[1]).all()
