"""flowlab: a laboratory for gradient flow.

::

    import flowlab

    table = flowlab.measure(flowlab.make(init="he", depth=50))
"""

from flowlab.errors import InputError
from flowlab.measure import measure
from flowlab.settings import Settings, make

__all__ = ["InputError", "Settings", "make", "measure"]
