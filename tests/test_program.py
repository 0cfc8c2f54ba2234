"""Programs: a replay makes the calls that were recorded, with the same bits."""

import numpy as np
import pytest

import flowlab
from flowlab.kernel import kernel
from flowlab.layer import Chain, Workspace
from flowlab.layers import Activation, Linear, Residual, Scale
from flowlab.program import record


@kernel("(n),()->(n),()")
def shift_and_sum(x, c, y, total):
    total[0] = 0
    for i in range(x.size):
        y[i] = x[i] + c
        total[0] += y[i]


@kernel("...->...")
def times(x, a):
    return a * x


def steps(x, c):
    """A vector and a scalar per network; the vector also under another shape."""
    y, total, doubled = np.empty_like(x), np.empty(len(x)), np.empty((len(x), 1, x.shape[1]))
    shift_and_sum.run(x, c, y, total)
    times.run(y.reshape(doubled.shape), doubled, 2.0)
    return {"y": y, "rest": (total, doubled)}


def test_a_replay_does_on_other_arrays_what_was_recorded():
    rng = np.random.default_rng(0)
    first, second = [(rng.standard_normal((3, 5)), rng.standard_normal(3)) for _ in range(2)]
    result, program = record(steps, *first)
    np.testing.assert_array_equal(result["y"], first[0] + first[1][:, None])
    replayed, taken = program(second, np.empty)
    expected = steps(*second)
    np.testing.assert_array_equal(replayed["y"], expected["y"])
    np.testing.assert_array_equal(replayed["rest"][0], expected["rest"][0])
    np.testing.assert_array_equal(replayed["rest"][1], 2 * expected["y"][:, None])
    assert len(taken) == 3
    # The recorded arrays are left alone.
    np.testing.assert_array_equal(result["y"], first[0] + first[1][:, None])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_layers_replay_bit_for_bit(dtype):
    branch = Chain([Activation("tanh"), Linear(6), Scale()])
    block = Chain([Linear(6), Activation("relu"), Residual(branch, a=0.5, s=0.7)])
    rng = np.random.default_rng(1)

    def draw():
        weights = [rng.standard_normal((2, 6, 6)).astype(dtype) for _ in range(2)]
        biases = [rng.standard_normal((2, 6)).astype(dtype) for _ in range(2)]
        alpha = rng.standard_normal(2).astype(dtype)
        inner = ({}, {"W": weights[1], "b": biases[1]}, {"alpha": alpha})
        x, dy = (rng.standard_normal((2, 4, 6)).astype(dtype) for _ in range(2))
        return x, ({"W": weights[0], "b": biases[0]}, {}, inner), dy

    def both(x, parameters, dy):
        workspace = Workspace()
        y, tape = block.forward(x, parameters, workspace)
        dx, gradients = block.pullback(dy, tape, workspace)
        return y, dx, gradients

    _, program = record(both, *draw())
    other = draw()
    (y, dx, gradients), _ = program(other, np.empty)
    expected = both(*other)
    np.testing.assert_array_equal(y, expected[0])
    np.testing.assert_array_equal(dx, expected[1])
    for got, want in zip(gradients[2][1:], expected[2][2][1:], strict=True):
        for name in want:
            np.testing.assert_array_equal(got[name], want[name])


@pytest.mark.parametrize(
    "axes",
    [{}, {"skip": "rezero"}, {"skip": "fixup"}, {"activation": "gelu"}, {"init": "orthogonal"}],
)
def test_measurements_with_and_without_programs_are_the_same(axes, monkeypatch):
    settings = flowlab.make(depth=18, width=8, batch_size=4, seeds=3, **axes)
    compiled = flowlab.measure(settings)
    import sys

    monkeypatch.setattr(sys.modules["flowlab.measure"], "_WORTH_COMPILING", 10**9)
    plain = flowlab.measure(settings)
    assert compiled.equals(plain)
