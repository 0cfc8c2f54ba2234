"""Tensors within what modules take and return: tuples, dictionaries, dataclasses, nested."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch


def tensors(value: Any) -> list[tuple[str | None, torch.Tensor]]:
    """The tensors of floating-point numbers in ``value`` with their names, each tensor once.

    A name joins keys, fields and positions by dots: ``hidden.0``. A value that is a tensor, or
    holds no other, has the name None: it is all there is.
    """
    found: dict[int, tuple[str | None, torch.Tensor]] = {}
    for name, tensor in _walk(value, ()):
        if tensor.is_floating_point() or tensor.is_complex():
            found.setdefault(id(tensor), (".".join(name), tensor))
    several = list(found.values())
    return [(None, several[0][1])] if len(several) == 1 else several


def _walk(value: Any, name: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield name, value
        return
    if isinstance(value, Mapping):
        inner = value.items()
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        inner = zip(value._fields, value, strict=True)
    elif isinstance(value, list | tuple):
        inner = enumerate(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        inner = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
    else:
        return
    for key, part in inner:
        yield from _walk(part, (*name, str(key)))
