"""Programs: a scan makes the calls that were recorded, layer after layer, with the same bits."""

import numpy as np
import pandas as pd
import pytest

import flowlab
from flowlab.kernel import kernel
from flowlab.layer import Chain
from flowlab.layers import Activation, Linear
from flowlab.measurement import passes
from flowlab.measurement.scan import Program, Stack, record, single
from flowlab.networks import Network, build
from flowlab.schema import DELTA


@kernel("(n),()->(n),()")
def shift_and_sum(x, c, y, total):
    total[0] = 0
    for i in range(x.size):
        y[i] = x[i] + c
        total[0] += y[i]


@kernel("...->...")
def times(x, a):
    return a * x


def step(carry, xs):
    """A vector and a scalar carried, a scalar read; the vector also under another shape."""
    (x, _), (c,) = carry, xs
    y, summed, doubled = np.empty_like(x), np.empty(len(x)), np.empty((len(x), 1, x.shape[1]))
    shift_and_sum.run(x, c, y, summed)
    times.run(y.reshape(doubled.shape), doubled, 2.0)
    return (y, summed), {"x": x, "y": y, "rest": (doubled,)}


def drawn(layers, seed=0):
    rng = np.random.default_rng(seed)
    carry = rng.standard_normal((3, 5)), rng.standard_normal(3)
    return carry, rng.standard_normal((3, layers))


@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("keep", [(True, True), (False, True)])
def test_a_scan_repeats_the_step_over_layers(direction, keep):
    example, c = drawn(1, seed=9)
    _, program = record(step, example, (c[:, 0].copy(),))
    carry, cs = drawn(4)
    carries, ys, _ = program.scan(carry, (Stack(cs),), 4, np.empty, keep, direction)
    for at, layer in enumerate(range(4)[::direction]):
        before = carry
        carry, expected = step(carry, (cs[:, layer].copy(),))
        np.testing.assert_array_equal(ys["rest"][0].at(at), expected["rest"][0])
        np.testing.assert_array_equal(carries[1].at(at + 1), carry[1])
        if keep[0]:
            np.testing.assert_array_equal(ys["x"].at(at), before[0])
            np.testing.assert_array_equal(ys["y"].at(at), carry[0])
    np.testing.assert_array_equal(carries[0].at(4) if keep[0] else carries[0], carry[0])


def test_a_single_layer_looks_like_a_scan():
    carry, cs = drawn(1)
    carries, ys, _ = single(step, carry, (Stack(cs),), (True, True))
    expected, out = step(carry, (cs[:, 0].copy(),))
    np.testing.assert_array_equal(carries[0].at(1), expected[0])
    np.testing.assert_array_equal(carries[1].at(0), carry[1])
    np.testing.assert_array_equal(carries[1].at(1), expected[1])
    np.testing.assert_array_equal(ys["rest"][0].at(0), out["rest"][0])


@pytest.mark.parametrize(
    "axes",
    [
        {},
        {"skip": "rezero", "activation": "tanh", "dtype": "float64"},
        {"skip": "fixup", "init": "torch_default"},
        {"init": "orthogonal", "activation": "gelu"},
    ],
)
def test_measurements_with_and_without_programs_are_the_same(axes, monkeypatch):
    settings = flowlab.make(depth=30, width=8, batch_size=4, seeds=3, **axes)
    compiled = flowlab.measure(settings)
    monkeypatch.setattr(passes, "_WORTH_COMPILING", 10**9)
    assert compiled.equals(flowlab.measure(settings))
    monkeypatch.setattr(passes, "_WORTH_COMPILING", 24)
    monkeypatch.setattr(passes, "_LONGEST_RUN", 25)
    assert compiled.equals(flowlab.measure(settings))


class Doubled(Activation):
    """A layer that does by NumPy, beside its kernels, what a recording cannot repeat."""

    def __init__(self, part):
        super().__init__("identity")
        self.part = part

    def forward(self, x, parameters, workspace):
        y, tape = super().forward(x, parameters, workspace)
        if self.part == "forward":
            y *= 2
        return y, tape

    def pullback(self, dy, tape, workspace, watch=None):
        dx, gradients = super().pullback(dy, tape, workspace, watch)
        if self.part == "pullback":
            dx *= 2
        return dx, gradients


@pytest.mark.parametrize("part", ["forward", "pullback", "neither"])
def test_what_a_layer_does_outside_kernels_is_not_lost(part, monkeypatch):
    """Deep enough for a compiled loop the rows are those of layers passed one by one."""
    settings = flowlab.make(
        depth=40, width=8, batch_size=4, seeds=4, activation="identity", upstream="gaussian"
    )
    blocks = build(settings).blocks
    block = Chain((Doubled(part), Linear(8)), "block")
    network = Network((blocks[0], *[block] * 39), (False,) * 40)
    scans = []
    scan = Program.scan
    monkeypatch.setattr(Program, "scan", lambda *given: scans.append(given[3]) or scan(*given))
    done = []
    table = flowlab.measure(settings, lambda *at: done.append(at), network=network)
    if part == "forward":
        assert max(scans) == 1  # the attempts to repeat one layer
    if part == "neither":
        assert max(scans) == 39
    assert done[-1][0] == done[-1][1] == max(count for count, _ in done)
    monkeypatch.setattr(passes, "_WORTH_COMPILING", 1000)
    expected = flowlab.measure(settings, network=network)
    pd.testing.assert_frame_equal(table, expected)
    if part == "pullback":
        plain = Network(
            (blocks[0], *[Chain((Doubled(""), Linear(8)), "block")] * 39), (False,) * 40
        )
        more = table[DELTA] - flowlab.measure(settings, network=plain)[DELTA]
        assert more.to_numpy() == pytest.approx(np.log10(2) * (40 - table["layer"]), abs=1e-6)
