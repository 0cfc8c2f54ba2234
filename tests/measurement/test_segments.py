"""Segments that are passed forward again on the way back: the same bits, in little memory."""

from dataclasses import replace

import numpy as np
import pytest

import flowlab
from flowlab.initializers import Initializer
from flowlab.layer import Workspace, leaves
from flowlab.layers import Activation, Linear
from flowlab.measurement import passes
from flowlab.measurement.ensemble import entered, upstream
from flowlab.measurement.passes import Drawn, Gradients, Passes
from flowlab.measurement.scan import Scans
from flowlab.measurement.setup import prepare
from flowlab.networks import Network
from tests.support.networks import NETWORKS

BIASED = NETWORKS["biased"] | {"depth": 100}
DEEP = {
    **NETWORKS,
    "biased": BIASED,
    "vanishing": {"depth": 80, "init": "literal"},
    "normalized by batch": {"depth": 60, "norm": "batch"},
    "deep and recurrent": {"network": "rnn", "depth": 30, "init": "torch_default"},
}


class Counting(Workspace):
    """A workspace that knows the most bytes that it has held."""

    most = 0

    def take(self, shape, dtype):
        array = super().take(shape, dtype)
        held = sum(array.nbytes for arrays in self._all.values() for array in arrays)
        self.most = max(self.most, held)
        return array


def prepared(own=None, **axes):
    return prepare(flowlab.make(width=8, batch_size=4, seeds=3, **axes), network=own)


def passed(setup, most=np.inf, recorded=True):
    """(bytes of all that a pass shows of each layer, its segments, the most bytes held)."""
    settings, seeds, workspace = setup.settings, setup.seeds, Counting()
    source = Drawn(Initializer(settings.init), seeds, np.dtype(settings.dtype))
    own = Passes(setup.network, setup.shapes, workspace, Scans(), recorded, most=most)
    x, labels = setup.batches(seeds)
    x, exponent, known = entered(x, settings.dtype, own.homogeneous)
    forward = list(own.forward((x, exponent), source))
    y, exponent, *_ = forward[-1].output
    shown = {0: [y.tobytes(), exponent.tobytes()]}
    for one in forward:
        arrays = one.exponents, one.norms, *one.more.values()
        for k in range(one.count):
            shown[one.start + k + 1] = [array[:, k].tobytes() for array in arrays]
    dy, _ = upstream(settings, seeds, y, exponent, labels, known, workspace)
    segments, back = own.segments(), []
    for one in own.backward(dy, forward, source, Gradients()):
        back.append(one)
        last = [array.tobytes() for array in one.output]
    for one in back:
        arrays = one.exponents, one.norms, *(stack.base for _, stack in leaves(one.found))
        count = one.forward.count
        for k in range(count):
            shown[one.start + count - k] += [array[:, k].tobytes() for array in arrays]
    return [*shown.values(), last], segments, workspace.most


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("axes", DEEP.values(), ids=DEEP)
def test_segments_change_no_bit(axes, recorded):
    setup = prepared(**axes)
    whole, one, _ = passed(setup, recorded=recorded)
    elements = setup.network.chain.declare(setup.shape).elements
    parts, several, _ = passed(setup, elements / 3, recorded)
    assert len(one) == 1 and len(several) >= 3
    assert parts == whole


def test_segments_of_unequal_blocks_change_no_bit():
    widths = [8, 8, 5, 5, 5, 12, 3, 8] * 4
    blocks = [layer for n in widths for layer in (Linear(n), Activation("tanh"))]
    blocks = [flowlab.layer.Chain(blocks[k : k + 2]) for k in range(0, len(blocks), 2)]
    setup = prepared(Network(blocks), upstream="gaussian", init="torch_default")
    for most in (1, 300, 2000):
        assert passed(setup, most)[0] == passed(setup)[0]


@pytest.mark.parametrize("axes", [{}, {"norm": "layer"}, {"network": "rnn"}])
def test_the_tape_of_a_segment_is_all_that_is_held(axes):
    setup = prepared(depth=240, init="he", **axes)
    elements = setup.network.chain.declare(setup.shape).elements
    _, _, whole = passed(setup)
    _, segments, held = passed(setup, elements / 8)
    assert len(segments) >= 8
    assert held < whole / 6


def another_exponent(scaled):
    x, exponent, *along = scaled
    return x, exponent + 1, *along


def another_input(scaled):
    x, *exponents = scaled
    return np.nextafter(x, 1), *exponents


@pytest.mark.parametrize("wrong", [another_exponent, another_input])
def test_a_wrong_checkpoint_is_seen(monkeypatch, wrong):
    keep = passes._without_tape
    monkeypatch.setattr(
        passes, "_without_tape", lambda forward, checkpoint: keep(forward, wrong(checkpoint))
    )
    setup = prepared(**BIASED)
    assert passed(setup, 5000)[0] != passed(setup)[0]


@pytest.mark.parametrize("name", ["_without_tape", "_own"])
def test_arrays_left_in_buffers_are_seen(monkeypatch, name):
    def left(way, *checkpoint):
        return replace(way, tape=None, checkpoint=checkpoint[0]) if checkpoint else way

    monkeypatch.setattr(passes, name, left)
    setup = prepared(**BIASED)
    assert passed(setup, 5000)[0] != passed(setup)[0]


@pytest.mark.parametrize("axes", [{}, {"norm": "layer", "skip": "identity"}])
def test_observers_are_shown_the_same(axes):
    shown = []
    for gib in (2.0, 1e-9):
        seen = {}

        def observe(of, seen=seen):
            arrays = of.x, of.x_exponent, of.dy, of.dy_exponent
            for k, seed in enumerate(of.seeds):
                seen[seed, of.layer, of.op] = [array[k].tobytes() for array in arrays]

        settings = flowlab.make(depth=60, width=8, batch_size=4, seeds=3, memory_gib=gib, **axes)
        table = flowlab.measure(settings, observe=observe)
        shown.append((seen, table.to_csv()))
    assert len(shown[0][0]) == len(table)
    assert shown[0] == shown[1]
