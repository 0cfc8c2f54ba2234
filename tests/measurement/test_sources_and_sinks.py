"""Parameters drawn or held, gradients measured or held: the same pass, bit for bit."""

import numpy as np
import pytest

import flowlab
from flowlab import schema
from flowlab.initializers import Initializer
from flowlab.kernel import kernel
from flowlab.layer import Workspace, leaves
from flowlab.measurement import quantities
from flowlab.measurement.ensemble import entered, upstream
from flowlab.measurement.passes import Drawn, Gradients, Held, Passes
from flowlab.measurement.scan import Scans
from flowlab.measurement.setup import prepare
from flowlab.schema import Column
from tests.support.networks import NETWORKS


def passed(held, **axes):
    """(setup, scaled output, scaled cotangent of the input, gradients held) of one pass."""
    setup = prepare(flowlab.make(width=8, batch_size=4, seeds=3, dtype="float64", **axes))
    settings, seeds = setup.settings, setup.seeds
    source, sink = Drawn(Initializer(settings.init), seeds, np.dtype("float64")), Gradients()
    passes = Passes(setup.network, setup.shapes, Workspace(), Scans())
    x, labels = setup.batches(seeds)
    x, exponent, known = entered(x, settings.dtype, passes.homogeneous)
    source = Held.drawn(source, passes) if held else source
    forward = list(passes.forward((x, exponent), source))
    y, exponent, *_ = output = forward[-1].output
    dy, _ = upstream(settings, seeds, y, exponent, labels, known, passes.workspace)
    for stretch in passes.backward(dy, forward, source, sink):
        sink.keep(stretch)
    return setup, output, stretch.output, sink


def bits(arrays):
    return [array.tobytes() for array in arrays]


@pytest.mark.parametrize("axes", NETWORKS.values(), ids=NETWORKS)
def test_parameters_held_give_the_bits_of_parameters_drawn(axes):
    setup, *drawn, of_drawn = passed(False, **axes)
    _, *held, of_held = passed(True, **axes)
    for one, other in zip(drawn, held, strict=True):
        assert bits(one) == bits(other)
    one, other = (sink.true(setup.network, setup.shape) for sink in (of_drawn, of_held))
    assert [bits(block.values()) for block in one] == [bits(block.values()) for block in other]


def squares_of_weights(setup, gradients):
    """Σ‖dW‖² over all layers, (seeds,)."""
    total = np.zeros(len(setup.seeds))
    for place, block in zip(setup.network.walk(setup.shape), gradients, strict=True):
        declared = dict(leaves(place.block.declare(place.shape).parameters))
        for path, gradient in block.items():
            if declared[path].role in ("weight", "scale"):
                total += np.square(gradient.reshape(len(gradient), -1)).sum(axis=1)
    return total


@pytest.mark.parametrize("axes", NETWORKS.values(), ids=NETWORKS)
def test_gradients_held_have_the_norms_of_the_table(axes):
    setup, _, _, sink = passed(True, **axes)
    table = flowlab.measure(setup.settings)
    measured = (10 ** (2 * table["dW_log10_norm"])).groupby(table["seed"]).sum()
    found = squares_of_weights(setup, sink.true(setup.network, setup.shape))
    np.testing.assert_allclose(found, measured, rtol=1e-10)


def test_gradients_held_far_below_any_float_have_their_exponents():
    setup, _, _, sink = passed(True, depth=600, activation="sigmoid", init="xavier")
    table = flowlab.measure(setup.settings)
    expected = table.loc[table["layer"] == 1, "dW_log10_norm"].to_numpy()
    assert (expected < -330).all()  # no float64 holds them
    of_dy, of_x = (exponents[:, 0] for exponents in sink.exponents[0])
    held = next(array for _, array in leaves(sink.held[0]) if array.ndim == 4)[:, 0]
    norms = np.log10(np.linalg.norm(held.reshape(3, -1), axis=1))
    np.testing.assert_allclose(norms + np.log10(2) * (of_dy + of_x), expected, rtol=1e-12)


@kernel("(...)->()")
def _largest(dy, out):
    out[0] = 0.0
    for value in dy.reshape(dy.size):
        out[0] = max(out[0], abs(value))


@pytest.mark.parametrize("depth", [4, 40])
def test_a_registered_quantity_of_every_operation_is_a_column(depth, monkeypatch):
    """One function, registered with its column, is all that a new quantity takes."""
    settings = flowlab.make(depth=depth, width=8, batch_size=4, seeds=2, upstream="ones")
    monkeypatch.setattr(schema, "_COLUMNS", dict(schema._COLUMNS))
    monkeypatch.setattr(quantities, "_OPERATIONS", dict(quantities._OPERATIONS))
    before = flowlab.measure(settings)

    @quantities.operation_quantity(Column("delta_largest", "", "largest entry of the cotangent"))
    def delta_largest(tape, dy, dx, gradients):
        out = np.empty(len(dy))
        _largest.run(dy.reshape(len(dy), -1), out)
        return out

    table = flowlab.measure(settings)
    assert [name for name in table if name not in before] == ["delta_largest"]
    last = table[table["layer"] == depth]
    assert last["delta_largest"].tolist() == [0.25, 0.25]
    assert table["delta_largest"].gt(0).all()
    assert before.equals(table[list(before)])
