"""What every layer owes: the laws, and the numbers of its twins in JAX and PyTorch."""

import inspect
from importlib import import_module
from pkgutil import iter_modules

import pytest

from flowlab import laws, layers
from flowlab.claims.twins import SEEDS, instances
from flowlab.layer import Layer
from flowlab.layers import MultiHeadAttention

INSTANCES = instances()
every = pytest.mark.parametrize("instance", INSTANCES.values(), ids=INSTANCES)


@every
def test_laws(instance):
    types = [("float64", "float32")]
    if isinstance(instance.layer, MultiHeadAttention):
        # The gradient of K's bias is 0, so that its rounding has no relative size.
        types = [("float64",), ("float32",)]
    for dtypes in types:
        given = {"parameters": instance.data, "inputs": instance.inputs, "seeds": SEEDS}
        held = laws.check(instance.layer, instance.shape, dtypes=dtypes, **given)
        assert held == list(laws.LAWS)


@every
def test_against_frameworks(instance, apart):
    fields = (instance.layer, instance.shape, instance.data, instance.inputs)
    assert apart(*fields) < 1e-13


def test_every_layer_has_a_twin():
    """The classes of ``layers/`` that no other is built upon."""
    found = set()
    for module in iter_modules(layers.__path__, "flowlab.layers."):
        for _, kind in inspect.getmembers(import_module(module.name), inspect.isclass):
            if issubclass(kind, Layer) and kind.__module__ == module.name:
                found.add(kind)
    bases = {base for kind in found for base in kind.__mro__[1:]}
    assert found - bases == {type(instance.layer) for instance in INSTANCES.values()}
