"""flowlab: a laboratory for gradient flow.

::

    import flowlab

    settings = flowlab.make(init="he", depth=50)
    table = flowlab.measure(settings)  # one row per seed and layer
    prediction = flowlab.predict(settings)  # the same rows, from theory
    print(flowlab.judge(table, prediction).sentence)
"""

from flowlab.errors import InputError
from flowlab.measure import measure
from flowlab.prediction import predict
from flowlab.settings import Settings, make
from flowlab.verdicts import judge

__all__ = ["InputError", "Settings", "judge", "make", "measure", "predict"]
