"""Networks of a user's own: a digest that differs where they do, kept runs, bad input."""

import numpy as np
import pandas as pd
import pytest

import flowlab
from flowlab.errors import InputError
from flowlab.kernel import kernel
from flowlab.layer import Chain, Declaration, Primitive
from flowlab.layers import Activation, LayerNorm, Linear, Residual
from flowlab.networks import Network
from flowlab.storage.experiment import Experiment

SMALL = {"batch_size": 8, "seeds": 2}


def scaled(factor, **attributes):
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

    layer = Scaled()
    vars(layer).update(attributes)
    return layer


class Cubed(Primitive):
    """Its name alone says what it does."""

    name = "scaled"

    def shapes(self, shape):
        return Declaration(output=shape)


def net(layer, **more):
    return Network([Chain([Linear(6), layer])] * 3 + [Linear(10)], **more)


def test_networks_that_differ_have_digests_that_differ():
    differ = [
        net(scaled(2.0)),
        net(scaled(3.0)),
        net(Cubed()),
        net(scaled(2.0), name="twice"),
        net(scaled(2.0, table=np.arange(3))),
        net(scaled(2.0, table=np.arange(3) + 1)),
        net(scaled(2.0, rank=np.int64(3))),
        net(scaled(2.0, rank=np.int64(4))),
        net(scaled(2.0, options={"a": [1, 2]})),
        net(scaled(2.0, options={"a": [1, 3]})),
        net(scaled(2.0, rule=lambda x: x)),
        net(Activation("relu")),
        net(Residual(Chain([LayerNorm(), Linear(6)]), a=0.5)),
        net(Residual(Chain([LayerNorm(), Linear(6)]), a=0.25)),
    ]
    assert len({network.digest() for network in differ}) == len(differ)
    assert net(scaled(2.0)).digest() == net(scaled(2.0)).digest()
    with pytest.raises(InputError, match=r"^scaled.stream must be plain data, an array, .*; got G"):
        net(scaled(2.0, stream=np.random.default_rng(0))).digest()


def test_a_run_of_ones_own_network_is_kept(tmp_path):
    folder = {"experiment": "mine", "results_dir": str(tmp_path)}
    one = flowlab.run(network=net(scaled(2.0), name="twice"), **SMALL, **folder)
    other = flowlab.run(network=net(scaled(3.0), name="thrice"), **SMALL, **folder)
    flowlab.run(depth=4, width=6, **SMALL, **folder)
    again = flowlab.measure(network=net(scaled(2.0), name="twice"), **SMALL, **folder)
    pd.testing.assert_frame_equal(one.table, again, check_exact=True)
    loaded = flowlab.load(tmp_path / "mine")
    assert loaded["run"].nunique() == 3 and set(loaded["network"]) == {"twice", "thrice", "mlp"}
    assert one.table["width"].isna().all() and set(one.table["depth"]) == {4}
    growth = other.table["activation_log10_norm"] - one.table["activation_log10_norm"]
    layers = one.table["layer"].clip(upper=3)
    np.testing.assert_allclose(growth, layers * np.log10(1.5), atol=1e-5)
    assert one.verdict == flowlab.judge(one.table, one.prediction)
    assert one.verdict.agreement == "no theory" and "not one's own" in str(one)
    assert set(one.prediction["run"]) == {one.path.stem} == set(one.table["run"])
    stored = Experiment(tmp_path / "mine").metadata(one.path.stem)["settings"]
    assert stored["network"]["blocks"] == ["3 x Chain(Linear(6), Scaled())", "Linear(10)"]
    assert (stored["network"]["name"], stored["depth"]) == ("twice", 4)
    assert "activation" not in stored and stored["init"]["name"] == "he"


def test_seeds_of_ones_own_network_are_joined(tmp_path):
    axes = {"network": net(scaled(2.0)), "batch_size": 8, "results_dir": str(tmp_path)}
    few = flowlab.run(seeds=2, **axes)
    more = flowlab.run(seeds=3, extend=[few.path.stem], **axes)
    pd.testing.assert_frame_equal(more.table, flowlab.measure(seeds=3, **axes), check_exact=True)
    assert Experiment(tmp_path / "single").names() == [more.path.stem]


BAD = [
    (lambda: Network([]), "blocks of a network must be at least one, .*; got 0 and 0"),
    (lambda: Network([3]), "blocks of a network must be layers; got 3"),
    (lambda: Network(Linear(3)), "blocks of a network must be a list of layers; got one layer"),
    (lambda: Network([Linear(3)], [True, False]), "with residual for each; got 1 and 2"),
    (lambda: Network([Linear(3)], name="mlp"), "must be one of its own; got 'mlp'"),
    (lambda: Network([Linear(3)], name=""), "must be one of its own; got ''"),
    (
        lambda: flowlab.measure(network=Network([Linear(8)]), **SMALL),
        r"the network must end in 10 outputs for upstream=loss; got shape \(8,\)",
    ),
    (
        lambda: flowlab.measure(network=Network([Linear(8), Activation("relu")]), **SMALL),
        "block 2 of the network must hold an operation with parameters, .*; got relu",
    ),
    (
        lambda: flowlab.predict(network=[Linear(8)], **SMALL),
        "network must be a name or a dictionary of settings",
    ),
]


@pytest.mark.parametrize("call, expected", BAD)
def test_bad_networks_are_one_line(call, expected):
    with pytest.raises(InputError, match=expected) as caught:
        call()
    assert "\n" not in str(caught.value)
