"""Which modules of a model have rows: by pattern or type; by default those that own parameters,
and activations."""

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

from torch import nn

from flowlab.errors import InputError, unknown

Choice = str | type | Iterable[str | type] | Callable[[str, nn.Module], bool] | None


def choose(model: nn.Module, wanted: Choice = None) -> dict[str, nn.Module]:
    """The chosen modules by path, in the model's order; aliases of a module are left out.

    ``wanted`` is a pattern of paths such as ``layers.*`` (``""`` is the model itself), a class of
    modules, several of both, or a function of (path, module). Raises InputError for a pattern or a
    class that no module answers to, and for anything else.
    """
    named = dict(model.named_modules())
    if wanted is None:
        return {path: module for path, module in named.items() if _by_default(module)}
    if callable(wanted) and not isinstance(wanted, type):
        found = {path: module for path, module in named.items() if wanted(path, module)}
        if not found:
            raise InputError(
                "modules must choose at least one module; got a function that chose none"
            )
        return found
    several = isinstance(wanted, Iterable) and not isinstance(wanted, str | type)
    rules = list(wanted) if several else [wanted]
    if not rules:
        raise InputError("modules must name at least one pattern or class; got none")
    chosen = set()
    for rule in rules:
        if isinstance(rule, str):
            own = {path for path in named if fnmatchcase(path, rule)}
        elif isinstance(rule, type):
            own = {path for path, module in named.items() if isinstance(module, rule)}
        else:
            raise InputError(f"modules must be patterns or classes; got {rule!r}")
        if not own and isinstance(rule, str):
            raise unknown("pattern of modules", rule, [path for path in named if path])
        if not own:
            raise InputError(f"modules must be in the model; got {rule.__name__}, which is not")
        chosen |= own
    return {path: module for path, module in named.items() if path in chosen}


def _by_default(module: nn.Module) -> bool:
    if next(module.parameters(recurse=False), None) is not None:
        return True
    return type(module).__module__ == "torch.nn.modules.activation"


def paths(model: nn.Module) -> dict[nn.Module, list[str]]:
    """Every module's paths, the first its name, the others aliases."""
    found: dict[nn.Module, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        found.setdefault(module, []).append(path)
    return found
