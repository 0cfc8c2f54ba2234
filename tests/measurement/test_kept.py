"""Buffers and programs that are kept from one measurement to the next change nothing."""

import numpy as np
import pandas as pd
import pytest

import flowlab
from flowlab.kernel import kernel
from flowlab.layer import Chain, Declaration, Primitive
from flowlab.layers import Activation, Linear
from flowlab.measurement import ensemble
from flowlab.networks import Network

RUN = {"width": 8, "batch_size": 4, "seeds": 3, "depth": 30, "data": "gaussian", "threads": 2}
# Neighbours differ in what decides the kernels that are called, or their constants, alone.
CONDITIONS = [
    {"init": "he"},
    {"init": "xavier"},
    {"init": {"name": "normal", "sigma_w": 1.3, "sigma_b": 0.2}},
    {"init": {"name": "normal", "sigma_w": 1.3, "sigma_b": 0.1}},
    {"init": "torch_default"},
    {"activation": "tanh"},
    {"activation": "tanh", "dtype": "float64"},
    {"batch_size": 5},
    {"seeds": 5},
    {"skip": "identity"},
    {"skip": "scaled"},
    {"skip": "scaled", "depth": 40},
    {"norm": "layer"},
    {"network": "transformer", "depth": 26},
]


def test_measurements_in_a_row_are_what_each_is_alone():
    alone = []
    for axes in CONDITIONS:
        ensemble.forget()
        alone.append(flowlab.measure(**RUN | axes))
    for _ in range(2):
        for axes, table in zip(CONDITIONS, alone, strict=True):
            pd.testing.assert_frame_equal(flowlab.measure(**RUN | axes), table, check_exact=True)


@kernel("(n,i)->(n,i)")
def times(x, y, factor):
    y[:] = factor * x


@kernel("(n,i)->(n,i)")
def times_back(dy, dx, factor):
    dx[:] = factor * dy


class Times(Primitive):
    name, homogeneous, pullback_reads = "times", True, ()
    forward_kernel, pullback_kernel = times, times_back

    def __init__(self, factor):
        self.factor = factor

    def shapes(self, shape):
        return Declaration(output=shape, constants=(self.factor,))


def test_a_layer_that_changes_is_recorded_anew():
    layer = Times(1.0)
    blocks = [Chain([Linear(8), layer, Activation("leaky_relu")], "block")] * 30
    norms = []
    for factor in (1.0, 2.0):
        layer.factor = factor
        layer.__dict__.pop("_declared", None)
        table = flowlab.measure(
            network=Network(blocks, name="times"), upstream="gaussian", **RUN | {"depth": 1}
        )
        norms.append(table["activation_log10_norm"].to_numpy().reshape(3, 30))
    doubled = np.log10(2.0) * np.arange(1, 31)
    np.testing.assert_allclose(norms[1] - norms[0], np.tile(doubled, (3, 1)), rtol=1e-12)


def test_a_measurement_that_fails_leaves_nothing_in_use():
    before = flowlab.measure(**RUN)

    def fail(operation):
        raise RuntimeError("seen enough")

    with pytest.raises(RuntimeError, match="seen enough"):
        flowlab.measure(observe=fail, **RUN)
    pd.testing.assert_frame_equal(flowlab.measure(**RUN), before, check_exact=True)


def test_what_is_kept_is_bounded(monkeypatch):
    flowlab.measure(**RUN)
    kept = [array for workspace, _ in ensemble._desks for array in held(workspace)]
    assert kept
    monkeypatch.setattr(ensemble, "_KEPT_BYTES", max(array.nbytes for array in kept))
    flowlab.measure(**RUN)
    assert not [array for workspace, _ in ensemble._desks for array in held(workspace)]


def held(workspace):
    return [array for arrays in workspace._all.values() for array in arrays]
