"""Networks rewritten by a rule: what it is asked, what it changes, and what it leaves."""

import math
from functools import cache

import numpy as np
import pytest

from flowlab.kernel import kernel
from flowlab.layer import Chain, Declaration, Primitive, primitives
from flowlab.layers import Activation, Fork, Linear, Residual
from flowlab.layers.activation import identity_forward
from flowlab.measurement.ensemble import measure
from flowlab.networks import Network, build
from flowlab.networks.rewrite import rewrite
from flowlab.settings import make

SMALL = {"width": 8, "batch_size": 4, "seeds": 2, "dtype": "float64"}
NETWORKS = {
    "mlp": {"depth": 4},
    "residual": {"depth": 4, "skip": "mix", "network": {"name": "mlp", "branch_maps": 2}},
    "resnet": {"depth": 4, "network": "resnet"},
    "lstm": {"depth": 3, "network": "lstm"},
    "transformer": {"depth": 3, "network": "transformer", "skip": "scaled", "norm": "layer"},
}


@kernel("...->...")
def to_bfloat16(x):
    mantissa, exponent = math.frexp(x)
    return math.ldexp(np.rint(256 * mantissa) / 256, exponent)


class ToBfloat16(Primitive):
    """The nearest of the numbers with 8 binary digits; cotangents pass."""

    name = "bfloat16"
    forward_kernel, pullback_kernel = to_bfloat16, identity_forward
    pullback_reads = ()

    def shapes(self, shape):
        return Declaration(output=shape)


@cache
def rounded(primitive):
    return Chain([primitive, ToBfloat16()], name="rounded")


def activations_rounded(primitive, place):
    return rounded(primitive) if isinstance(primitive, Activation) else primitive


def network_of(name):
    settings = make(**SMALL, **NETWORKS[name])
    return settings, build(settings, 10)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_rule_that_changes_nothing_gives_an_equal_network(name):
    _, network = network_of(name)
    same = rewrite(network, lambda primitive, place: primitive)
    assert same == network and same.digest() == network.digest()


def test_a_rule_is_asked_of_every_primitive_with_its_place():
    _, network = network_of("residual")
    asked = []

    def rule(primitive, place):
        asked.append((primitive.name, *place))
        return primitive

    rewrite(network, rule)
    maps = [("relu", "relu_1"), ("linear", "linear_1"), ("relu", "relu_2"), ("linear", "linear_2")]
    blocks = [(name, layer, op) for layer in (2, 3) for name, op in maps]
    readout = [("relu", 4, "relu"), ("linear", 4, "linear")]
    assert asked == [("linear", 1, "linear"), *blocks, *readout]


@pytest.mark.parametrize("name", sorted({*NETWORKS} - {"lstm"}))
def test_values_rounded_to_a_format(name):
    settings, network = network_of(name)
    rewritten = rewrite(network, activations_rounded)
    assert rewritten.digest() != network.digest()
    count = sum(isinstance(p, Activation) for p in primitives(network.chain))
    assert sum(p.name == "bfloat16" for p in primitives(rewritten.chain)) == count > 0
    read = []

    def observe(operation):
        if operation.layer > 1 and isinstance(operation.primitive, Linear):
            read.append((operation.op, operation.x.copy()))

    norms = "activation_log10_norm"
    ours = measure(settings, network=rewritten, rewritten="rounded", observe=observe)[norms]
    theirs = measure(settings)[norms]
    difference = (ours - theirs).abs().max()
    assert 0 < difference < 0.02  # 8 digits are right to 1/500
    behind = [x for op, x in read if op == "mlp_out"] if name == "transformer" else None
    if name == "mlp":
        behind = [x for _, x in read]
    for x in behind or ():
        mantissa, _ = np.frexp(x)
        assert np.array_equal(256 * mantissa, np.rint(256 * mantissa))


def test_composites_keep_what_they_are():
    fork = Fork([Linear(3), Linear(3)], name="pair")
    chain = Chain([fork, Activation("relu")], name="both")
    network = Network((Residual(chain, a=0.5, s=0.25),), (True,))

    def rule(primitive, place):
        return Linear(3) if place == (1, "linear_2") else primitive

    (block,) = rewrite(network, rule).blocks
    assert (type(block), block.a, block.s) == (Residual, 0.5, 0.25)
    inner = block.branch
    assert (type(inner), inner.name, inner.layers[1]) == (Chain, "both", chain.layers[1])
    assert (type(inner.layers[0]), inner.layers[0].name) == (Fork, "pair")
    first, second = inner.layers[0].branches
    assert first is fork.branches[0] and second is not fork.branches[1]


def test_equal_layers_stay_one_object_and_are_passed_by_one_recording():
    settings = make(**SMALL | {"dtype": "float32"}, depth=40, upstream="gaussian")
    rewritten = rewrite(build(settings), activations_rounded)
    assert len(set(rewritten.blocks)) == len(set(build(settings).blocks)) == 2

    def anew(primitive, place):  # every layer an object of its own, passed as it stands
        return Chain([primitive, ToBfloat16()]) if primitive.name == "relu" else primitive

    apart = rewrite(build(settings), anew)
    assert len(set(apart.blocks)) == 40
    tables = [measure(settings, network=net, rewritten="rounded") for net in (rewritten, apart)]
    assert tables[0].equals(tables[1])
