"""Studies: one question each, answered by a sweep, figures and findings.

``<name>.py`` stands for the sweep ``conf/experiment/<name>.yaml`` and holds its ``STUDY``. To add a
study, add these two files: every module here is found by itself, and its findings are claims.
"""

from importlib import import_module
from pkgutil import iter_modules

from flowlab.studies.study import Drawing, Reading, Study, TableClaim, by_step, chosen

__all__ = ["ANY", "SINGLE", "Drawing", "Reading", "Study", "TableClaim", "load", "of"]

# Of an experiment that no study is about, and of single runs.
ANY, SINGLE = (
    Study(
        "How far does the gradient's norm change on its way back?",
        "the results folder",
        (chosen(name), by_step(f"{name}_by_step")),
    )
    for name in ("sweep", "profiles")
)


def load() -> dict[str, Study]:
    """Every study by its name, in alphabetical order; their findings join the claims."""
    names = [module.name for module in iter_modules(__path__) if module.name != "study"]
    return {name: import_module(f"{__name__}.{name}").STUDY for name in names}


def of(experiment: str) -> list[Study]:
    """The studies whose runs lie under an experiment's name; where there is none, :data:`ANY`."""
    own = [study for name, study in load().items() if (study.experiment or name) == experiment]
    return own or [SINGLE if experiment == "single" else ANY]
