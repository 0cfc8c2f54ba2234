"""A model's parameters: their paths, roles and fans, and the columns that their gradients fill."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from torch import nn

from flowlab.measurement.rows import GRADIENTS


@dataclass(frozen=True)
class OwnedParameter:
    """A parameter once, under the first of its paths: ``owner`` is its module's path.

    ``column`` is that of its gradient's norm; fans are those of the field for maps, else 1.
    """

    owner: str
    name: str
    op: str
    column: str
    fan_in: int
    fan_out: int
    aliases: tuple[str, ...]
    value: nn.Parameter


def parameters(model: nn.Module) -> Iterator[OwnedParameter]:
    """Every parameter of a model, in its order."""
    found: dict[nn.Parameter, list[tuple[str, nn.Module, str]]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for name, value in module.named_parameters(recurse=False, remove_duplicate=False):
            found.setdefault(value, []).append((path, module, name))
    for value, places in found.items():
        (path, module, name), *others = places
        aliases = tuple(f"{at}.{other}".lstrip(".") for at, _, other in others)
        role = role_of(module, name, value)
        fans = fans_of(value, module) if role == "weight" else (1, 1)
        op = type(module).__name__
        yield OwnedParameter(path, name, op, GRADIENTS[role][0], *fans, aliases, value)


def role_of(module: nn.Module, name: str, value: nn.Parameter) -> str:
    """weight, bias, gain or shift, as :data:`flowlab.measurement.rows.GRADIENTS` has them."""
    bias = "bias" in name.lower()
    if value.dim() <= 1 and "norm" in type(module).__name__.lower():
        return "shift" if bias else "gain"
    return "bias" if bias else "weight"


def fans_of(value: nn.Parameter, module: nn.Module | None = None) -> tuple[int, int]:
    """(fan_in, fan_out) of a map of (out, in, *kernel); (1, 1) of a vector.

    The ``module`` says where they are the other way round, as in a transposed convolution and an
    embedding, and into how many groups a convolution's channels are divided.
    """
    if value.dim() < 2:
        return 1, 1
    out, inside, *kernel = value.shape
    groups = getattr(module, "groups", 1)
    fans = inside * prod(kernel), out // groups * prod(kernel)
    turned = getattr(module, "transposed", False) or isinstance(module, nn.Embedding)
    return fans[::-1] if turned else fans
