"""flowlab: a laboratory for gradient flow.

::

    import flowlab

    table = flowlab.measure(init="he", depth=50)  # one row per seed and layer
    prediction = flowlab.predict(init="he", depth=50)  # the same rows, from theory
    print(flowlab.judge(table, prediction).sentence)
    print(flowlab.run(init="he", depth=50))  # all of this, kept in results/single
    print(flowlab.compare("results/depth"))  # its runs ranked, best first
    trained = flowlab.train(training="sgd", depth=10)  # .table at logged steps, .curve of the loss
    sweep = flowlab.load("results/depth", columns=["run", "depth", "delta_log10_norm"])
"""

from flowlab.analysis.verdicts import judge
from flowlab.errors import InputError
from flowlab.registration import register_activation, register_initializer
from flowlab.runs import compare, measure, predict, run, train
from flowlab.settings import Settings, make
from flowlab.storage.experiment import load
from flowlab.storage.versions import __version__

__all__ = [
    "InputError",
    "Settings",
    "__version__",
    "compare",
    "judge",
    "load",
    "make",
    "measure",
    "predict",
    "register_activation",
    "register_initializer",
    "run",
    "train",
]
