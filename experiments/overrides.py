"""Settings on the command line: unknown names are refused, text is taken as it is typed.

Hydra reads values by a grammar of its own, in which 2024_06_30 and 1.10 are numbers and accents,
brackets or an equals sign need quotes. Where a setting is text, whatever the grammar would not take
for that text is put in quotes before Hydra sees it.
"""

import argparse
import warnings
from collections.abc import Iterator
from contextlib import suppress
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, Quote, QuotedString
from hydra.errors import HydraException

from experiments.choices import groups, keys, need_optimizer
from experiments.hydra_private import get_args_parser, raw
from flowlab.errors import InputError, Notice, unknown
from flowlab.settings import make

_PARSER = OverridesParser.create()


def check_overrides(arguments: list[str]) -> argparse.Namespace:
    """The arguments as Hydra takes them, ``overrides`` with text in quotes where it needs them.

    Raises InputError for an unknown key or choice, suggesting the nearest, and for a value that
    cannot be read.
    """
    options = get_args_parser()
    options.error = _refuse
    received = options.parse_args(arguments)
    if received.experimental_rerun is not None:
        raise InputError("--experimental-rerun is not offered; a run's file holds its settings")
    choices = groups(*_folders(received.config_dir))
    known, texts = keys(), {*choices, *keys(kind=str)}
    read = []
    for text in received.overrides:
        key, equals, value = text.partition("=")
        if not equals or key.startswith("~"):
            raise InputError(f"settings are written key=value; got {text}")
        if key in texts:
            text = f"{key}={as_typed(key, value)}"
        override = _parsed(text)
        if override is None:
            raise InputError(f"{key} must be a value, or values between commas; got {value}")
        if override.is_sweep_override() and not received.multirun:
            hint = "" if key not in texts else ", and a comma quotes of its own, as in 'a,b'"
            raise InputError(f"several values need a sweep, -m{hint}; got {key}={value}")
        _check(override, choices, known, received)
        read.append(text)
    received.overrides = read
    if not (received.config_path or received.config_name):
        need_optimizer(dict(text.partition("=")[::2] for text in received.overrides))
    _check_experiment(received, choices["experiment"])
    return received


def _check_experiment(received, kept: list[str]) -> None:
    """Say that an experiment's name is new where it resembles one that is kept in a file.

    Raises InputError for a sweep that is neither kept nor given values.
    """
    overrides = {o.key_or_group: o for o in map(_parsed, received.overrides)}
    if "experiment" not in overrides or overrides["experiment"].is_sweep_override():
        return
    name = overrides["experiment"].value()
    name = name.text if isinstance(name, QuotedString) else name
    if name is None or name in kept:
        return
    if received.multirun and not any(o.is_sweep_override() for o in overrides.values()):
        near = get_close_matches(str(name), kept, n=1, cutoff=0.5)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise InputError(
            f"experiment must be a sweep that is kept in a file; got {name}{hint}; a name of your "
            f"own goes with values, as in -m experiment={name} depth=5,10"
        )
    for near in get_close_matches(str(name), kept, n=1, cutoff=0.8):
        text = f"experiment={name} is a folder of your own; experiment={near} is a sweep kept here"
        warnings.warn(text, Notice, stacklevel=2)


def _check(override: Override, choices: dict, known: list[str], received) -> None:
    """Raise InputError for a key that is not known and a choice that is none."""
    key = override.key_or_group
    if key == "hydra/launcher":
        _check_launcher(str(override.value()))
    if key.startswith(("hydra.", "hydra/")):
        return
    if key in choices:
        values = override.value()
        picked = getattr(values, "list", None) if override.is_sweep_override() else [values]
        for value in picked or []:
            value = value.text if isinstance(value, QuotedString) else str(value)
            if received.config_path is None and value not in choices[key]:
                if key != "experiment" or override.is_delete():
                    raise unknown(key, value, choices[key])
                _own_experiment(value)
    elif key not in known:
        raise unknown("setting", key, [*choices, *known])


def _own_experiment(name: str) -> None:
    """Let ``experiment=name`` name the folder of results, where no file of that name is kept."""
    make(experiment=name)
    node = {"experiment": name}
    ConfigStore.instance().store(group="experiment", name=name, node=node, package="_global_")


def as_typed(key: str, value: str) -> str:
    """A text's value, or several between commas, in quotes where Hydra would read another.

    Stays what it is: text in quotes, null, an interpolation, and a function such as choice(a,b).
    """
    if "${" in value or value.strip() == "null":
        return value
    override = _parsed(f"{key}={value}")
    if override is not None:
        if override.is_sweep_override() and not _simple(override):
            return value
        if not override.is_sweep_override() and isinstance(raw(override), (str, QuotedString)):
            return value
    return ",".join(_quoted(key, part) for part in _between_commas(value))


def _simple(override: Override) -> bool:
    """Is it a sweep of values between commas alone?"""
    sweep = raw(override)
    return isinstance(sweep, ChoiceSweep) and sweep.simple_form and not sweep.tags


def _quoted(key: str, text: str) -> str:
    override = _parsed(f"{key}={text}")
    same = override is not None and not override.is_sweep_override()
    if same and isinstance(raw(override), (str, QuotedString, type(None))):
        return text
    return QuotedString(text=text, quote=Quote.single).with_quotes()


def _between_commas(value: str) -> Iterator[str]:
    """The parts of a text between commas that stand in no quotes or brackets."""
    part, inside, escaped = "", [], False
    closing = {"(": ")", "[": "]", "{": "}"}
    for letter in value:
        if inside and inside[-1] in "'\"":
            if letter == inside[-1] and not escaped:
                inside.pop()
        elif letter in "'\"" and not part.strip():
            inside.append(letter)
        elif letter in closing:
            inside.append(closing[letter])
        elif inside and letter == inside[-1]:
            inside.pop()
        elif letter == "," and not inside:
            yield part
            part = ""
            continue
        escaped = letter == "\\" and not escaped
        part += letter
    yield part


def _parsed(text: str) -> Override | None:
    try:
        return _PARSER.parse_override(text)
    except (HydraException, RecursionError):
        return None


def _folders(name: str | None) -> list[Path]:
    """The folder that --config-dir adds; raises InputError where it is none."""
    if name is None:
        return []
    try:
        if Path(name).is_dir():
            return [Path(name)]
    except (OSError, ValueError):
        pass
    raise InputError(f"--config-dir must be a folder; got {name}")


# Launchers, the packages that bring them, and the extras that install these.
_LAUNCHERS = {
    "local": None,
    "basic": None,
    "ray": ("hydra_plugins.hydra_ray_launcher", "ray"),
    "submitit_local": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
    "submitit_slurm": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
}


def _check_launcher(name: str) -> None:
    if name not in _LAUNCHERS:
        raise unknown("hydra/launcher", name, _LAUNCHERS)
    package, extra = _LAUNCHERS[name] or (None, None)
    with suppress(ModuleNotFoundError):  # of the namespace that plugins share
        if package is None or find_spec(package):
            return
    raise InputError(
        f"hydra/launcher={name} needs the extra {extra}: pip install -e '.[{extra}]' "
        "-c constraints.txt"
    )


def _refuse(message: str) -> None:
    """The option parser's complaint in one line."""
    raise InputError(f"options stand before settings, as in -m depth=5,10; {message}")
