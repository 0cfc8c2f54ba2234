"""What every command shares: configuration by Hydra, and bad input told in one line."""

import dataclasses
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flowlab.errors import InputError, unknown
from flowlab.settings import Settings

CONF = Path(__file__).resolve().parent.parent / "conf"


def settings_of(config: DictConfig) -> Settings:
    """The validated settings of a composed configuration."""
    return OmegaConf.to_object(config).validate()


def main(task: Callable[[Settings], None], swept: bool = False) -> int:
    """Run ``task`` on the configuration of the command line; the exit code.

    Under ``-m`` the sweeper measures every condition instead, if ``swept``.
    """
    from experiments.sweep import plugins

    ConfigStore.instance().store(name="schema", node=Settings)
    plugins.register()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that exceptions arrive here
    return guarded(lambda: _hydra(task, swept))


def guarded(action: Callable[[], None]) -> int:
    """Run an action; bad input becomes one line on stderr and exit code 2."""
    try:
        action()
        sys.stdout.flush()
    except InputError as error:
        print(f"error: {_printable(error)}", file=sys.stderr)
        return 2
    except (HydraException, OmegaConfBaseException) as error:
        print(f"error: {_explain(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"interrupted: {str(interrupt) or 'nothing unfinished was kept'}", file=sys.stderr)
        return 130
    return 0


def _hydra(task, swept: bool) -> None:
    if check_overrides(sys.argv[1:]) and swept:
        from experiments.sweep import pool

        pool.warm()
    refused = []

    def job(config: DictConfig) -> None:
        try:
            task(settings_of(config))
        except InputError as error:  # raised within, it would be told by Hydra too
            refused.append(error)

    job.swept = swept
    hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(job)()
    if refused:
        raise refused[0]


def note(line: object) -> None:
    """Tell, beside the results, what a user should know of."""
    print(f"note: {_printable(line)}", file=sys.stderr)


def _printable(line: object) -> str:
    """A line as it can be printed: names of files may hold anything, ends of lines too."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(line))


def options(arguments: list[str], defaults: dict) -> dict:
    """``key=value`` arguments over ``defaults``, whose types they take (tuples: comma-separated).

    For commands that compose no configuration. Raises InputError for what is no option.
    """
    given = dict(defaults)
    for text in arguments:
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"options are written key=value; got {text}")
        if key not in defaults:
            raise unknown("option", key, defaults)
        default = defaults[key]
        try:
            if isinstance(default, tuple):
                given[key] = tuple(type(default[0])(item) for item in value.split(","))
            else:
                given[key] = value if default is None else type(default)(value)
        except ValueError:
            kind = "an integer" if isinstance(default, int) else f"like {default}"
            raise InputError(f"{key} must be {kind}; got {value}") from None
    return given


def groups() -> dict[str, list[str]]:
    """The choices of each configuration group."""
    return {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
        for folder in sorted(CONF.iterdir())
        if folder.is_dir()
    }


def keys(schema=Settings, prefix: str = "") -> list[str]:
    """Every dotted key of the settings."""
    names = []
    for field in dataclasses.fields(schema):
        inner = field.default_factory
        if dataclasses.is_dataclass(inner):
            names += keys(inner, f"{prefix}{field.name}.")
        else:
            names.append(prefix + field.name)
    return names


def check_overrides(arguments: list[str]) -> bool:
    """Raise InputError for an unknown key or choice, suggesting the nearest; is it a sweep?"""
    options = get_args_parser()
    options.error = _refuse
    received = options.parse_args(arguments)
    choices, known, parser = groups(), keys(), OverridesParser.create()
    for text in received.overrides:
        try:
            override = parser.parse_override(text)
        except HydraException:
            override = None
        if override is None or override.is_delete():
            raise InputError(f"settings are written key=value; got {text}")
        if override.is_sweep_override() and not received.multirun:
            raise InputError(f"several values need a sweep, -m; got {text}")
        key = override.key_or_group
        if key == "hydra/launcher":
            _check_launcher(str(override.value()))
        if key.startswith("hydra"):
            continue
        if key in choices:
            values = override.value()
            picked = getattr(values, "list", None) if override.is_sweep_override() else [values]
            for value in picked or []:
                if str(value) not in choices[key]:
                    raise unknown(key, str(value), choices[key])
        elif key not in known:
            raise unknown("setting", key, [*choices, *known])
    return received.multirun


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


def _explain(error: BaseException) -> str:
    """The innermost cause in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error)
    bad_type = re.match(r"Value '(.*?)'(?: of type '\w+')? could not be converted to (\w+)", text)
    key = re.search(r"full_key: (\S+)", text)
    if bad_type and key:
        kind = {"Integer": "an integer", "Float": "a number", "Boolean": "true or false"}
        wanted = kind.get(bad_type[2], bad_type[2])
        return f"{key[1]} must be {wanted}; got {bad_type[1]}"
    return " ".join(text.split())
