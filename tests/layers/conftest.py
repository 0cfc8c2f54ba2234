"""The frameworks with which layers are compared."""

import pytest

from flowlab.claims.parity import FRAMEWORKS, difference
from flowlab.claims.trial import Trial
from flowlab.claims.twins import SEEDS, Instance


@pytest.fixture(params=FRAMEWORKS)
def apart(request):
    """How far a layer's y, dx and gradients are from a framework's, relative to their norms.

    A function of the fields of an ``Instance``: the layer, the input's shape, data and inputs.
    """
    pytest.importorskip(request.param)
    framework = FRAMEWORKS[request.param]
    return lambda *fields, **more: difference(Trial(0, SEEDS), Instance(*fields, **more), framework)
