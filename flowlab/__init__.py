"""flowlab: a laboratory for gradient flow.

::

    import flowlab

    settings = flowlab.make(init="he", depth=50)
    table = flowlab.measure(settings)  # one row per seed and layer
    prediction = flowlab.predict(settings)  # the same rows, from theory
    print(flowlab.judge(table, prediction).sentence)
    sweep = flowlab.load("results/depth", columns=["run", "depth", "delta_log10_norm"])
"""

from flowlab.analysis.verdicts import judge
from flowlab.errors import InputError
from flowlab.measurement.ensemble import measure
from flowlab.prediction import predict
from flowlab.settings import Settings, make
from flowlab.storage.experiment import load
from flowlab.storage.versions import __version__

__all__ = ["InputError", "Settings", "__version__", "judge", "load", "make", "measure", "predict"]
