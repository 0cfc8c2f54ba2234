"""What settings may be named and chosen on the command line; known without loading Hydra."""

import dataclasses
from pathlib import Path
from typing import get_args

from flowlab.errors import InputError
from flowlab.settings import Settings

CONF = Path(__file__).resolve().parent.parent / "conf"


def groups(*more: Path) -> dict[str, list[str]]:
    """The choices of each configuration group, those in other folders of configuration included."""
    found: dict[str, set[str]] = {}
    for folder in sorted(folder for root in (CONF, *more) for folder in root.iterdir()):
        if folder.is_dir():
            found.setdefault(folder.name, set()).update(f.stem for f in folder.glob("*.yaml"))
    return {group: sorted(choices) for group, choices in found.items()}


def kinds(schema=Settings, prefix: str = "") -> dict[str, tuple[type, ...]]:
    """The types that the value of every dotted key of the settings may have."""
    found: dict[str, tuple[type, ...]] = {}
    for field in dataclasses.fields(schema):
        inner = field.default_factory
        if dataclasses.is_dataclass(inner):
            found |= kinds(inner, f"{prefix}{field.name}.")
        elif field.init:
            found[prefix + field.name] = get_args(field.type) or (field.type,)
    return found


def keys(kind: type | None = None) -> list[str]:
    """Every dotted key of the settings, or of those of one ``kind``."""
    return [key for key, found in kinds().items() if kind in (None, *found)]


def need_optimizer(given: dict[str, str]) -> None:
    """Raise InputError for options of training where nothing trains; an experiment may.

    Settings themselves cannot see an option that is given as it is by default.
    """
    if {"training", "training.name", "experiment"} & {*given}:
        return
    for key, value in given.items():
        if key.startswith("training."):
            raise InputError(
                f"{key} needs an optimizer, training=sgd, adam or adamw; got {key}={value} alone"
            )
