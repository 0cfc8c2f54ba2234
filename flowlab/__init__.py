"""flowlab: a laboratory for gradient flow.

::

    import flowlab

    table = flowlab.measure(init="he", depth=50)  # one row per seed and layer
    prediction = flowlab.predict(init="he", depth=50)  # the same rows, from theory
    print(flowlab.judge(table, prediction).sentence)
    print(flowlab.run(init="he", depth=50))  # all of this, kept in results/single
    print(flowlab.compare("results/depth"))  # its runs ranked, best first
    trained = flowlab.train(training="sgd", depth=10)  # .table at logged steps, .curve of the loss
    print(flowlab.diff(table, other))  # where two runs part
    sweep = flowlab.load("results/depth", columns=["run", "depth", "delta_log10_norm"])
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowlab.analysis.diff import diff
    from flowlab.analysis.verdicts import judge
    from flowlab.errors import InputError
    from flowlab.modules.assertion import assert_flow
    from flowlab.modules.attach import attach
    from flowlab.modules.laboratory import to_torch
    from flowlab.modules.probing import probe
    from flowlab.modules.pytrees import rows
    from flowlab.registration import register_activation, register_initializer
    from flowlab.runs import compare, measure, predict, run, train
    from flowlab.settings import Settings, make
    from flowlab.storage.experiment import load
    from flowlab.storage.versions import __version__

__all__ = [
    "InputError",
    "Settings",
    "__version__",
    "assert_flow",
    "attach",
    "compare",
    "diff",
    "judge",
    "load",
    "make",
    "measure",
    "predict",
    "probe",
    "register_activation",
    "register_initializer",
    "rows",
    "run",
    "to_torch",
    "train",
]

# The module of each name, loaded when the name is used: importing flowlab takes a moment.
_HOMES = {
    "InputError": "errors",
    "Settings": "settings",
    "__version__": "storage.versions",
    "assert_flow": "modules.assertion",
    "attach": "modules.attach",
    "compare": "runs",
    "diff": "analysis.diff",
    "judge": "analysis.verdicts",
    "load": "storage.experiment",
    "make": "settings",
    "measure": "runs",
    "predict": "runs",
    "probe": "modules.probing",
    "register_activation": "registration",
    "register_initializer": "registration",
    "rows": "modules.pytrees",
    "run": "runs",
    "to_torch": "modules.laboratory",
    "train": "runs",
}


def __getattr__(name: str):
    """A name of ``__all__``, or a part of flowlab that nothing has imported yet."""
    path = f"{__name__}.{_HOMES.get(name, name)}"
    try:
        module = import_module(path)
    except ModuleNotFoundError as error:
        if error.name != path:
            raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    value = getattr(module, name) if name in _HOMES else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
