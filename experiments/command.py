"""What every command shares: configuration by Hydra, and bad input reported in one line."""

import os
import re
import shlex
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import experiments
from experiments.choices import CONF, groups, keys
from flowlab import progress
from flowlab.errors import InputError, unknown
from flowlab.settings import Settings

__all__ = [
    "CONF",
    "at_initialization",
    "copied",
    "groups",
    "guarded",
    "invocation",
    "keys",
    "main",
    "note",
    "options",
    "ready",
]

DEFECT = 70  # exit code of what nobody foresaw: EX_SOFTWARE of sysexits.h
# The commands that make has, and the names of their targets.
TARGETS = {name: name for name in ("run", "ask", "compact", "plots", "report", "claims", "docs")}
TARGETS |= {"results": "list", "benchmark": "bench"}
# Packages that raise errors of any type for a command line or a file that they cannot read.
_READERS = {"hydra", "omegaconf", "yaml", "antlr4", "argparse"}


# Hydra is loaded where a configuration is composed: commands without one start sooner.


def settings_of(config) -> Settings:
    """The validated settings of a composed configuration, an omegaconf.DictConfig."""
    from omegaconf import OmegaConf

    return OmegaConf.to_object(config).validate()


def main(task: Callable[[Settings], None], swept: bool = False) -> int:
    """Run ``task`` on the configuration of the command line; the exit code.

    Under ``-m`` the sweeper measures every condition instead, if ``swept``.
    """
    from hydra.core.config_store import ConfigStore

    from experiments.sweep import plugins

    ConfigStore.instance().store(name="schema", node=Settings)
    plugins.register()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # so that exceptions arrive here
    return guarded(lambda: _hydra(task, swept), loaded=False)


def at_initialization(settings: Settings, command: str) -> None:
    """Raise InputError for networks that are to be trained; ``command`` measures before that."""
    if settings.trained:
        raise InputError(
            f"training must be none for {command}, which measures at initialization; "
            f"got {settings.training.name}"
        )


def guarded(action: Callable[[], None], loaded: bool = True) -> int:
    """Run an action; bad input becomes one line on stderr and exit code 2.

    What nobody foresaw is a defect, and said to be one: one line and exit code 70, or a traceback
    where FLOWLAB_DEBUG is set. What is not ``loaded`` yet calls :func:`ready` itself.
    """
    if loaded:
        ready()
    try:
        action()
        sys.stdout.flush()
    except InputError as error:
        print(f"error: {_printable(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"interrupted: {str(interrupt) or 'nothing unfinished was kept'}", file=sys.stderr)
        return 130
    except Exception as error:
        if (line := _foreseen(error)) is not None:
            print(f"error: {line}", file=sys.stderr)
            return 2
        if os.environ.get("FLOWLAB_DEBUG"):
            traceback.print_exc()
        reason = f"unforeseen {type(error).__name__}: {' '.join(str(error).split())}"
        print(
            f"error: {reason}; this is a defect of flowlab, and FLOWLAB_DEBUG=1 shows where",
            file=sys.stderr,
        )
        return DEFECT
    return 0


def ready() -> None:
    """All that a command needs is loaded: from now on its own work says what it is at."""
    if experiments.loading is not None:
        progress.heard = experiments.loading.end()
        experiments.loading = None


def _foreseen(error: Exception) -> str | None:
    """The line of an error that is no defect; None of one that nobody foresaw."""
    packages = {type(error).__module__.partition(".")[0], _raised_in(error)}
    if packages & {"hydra", "omegaconf"} or _raised_in(error) in _READERS:
        return _explain(error)
    reason = " ".join(str(error).split())
    if isinstance(error, MemoryError):
        return f"memory ran out ({reason or 'no more could be had'}); smaller settings need less"
    if isinstance(error, OSError):  # of files and folders: what surrounds us
        return f"{error.filename or 'the system'}: {error.strerror or reason}"
    return None


def _raised_in(error: BaseException) -> str:
    """The package in which an error was raised."""
    frame = error.__traceback__
    while frame.tb_next is not None:
        frame = frame.tb_next
    return frame.tb_frame.f_globals.get("__name__", "").partition(".")[0]


def _hydra(task, swept: bool) -> None:
    from hydra import version

    from experiments.hydra_private import get_args_parser, run_hydra
    from experiments.overrides import check_overrides

    refused = []

    def job(config) -> None:
        ready()
        try:
            task(settings_of(config))
        except Exception as error:  # raised within, it would be printed by Hydra too
            refused.append(error)

    job.swept = swept
    try:
        received = check_overrides(sys.argv[1:])
        if received.multirun and swept:
            from experiments.sweep import pool

            pool.warm()
        # As hydra.main does, with text as it was typed.
        version.setbase("1.3")
        run_hydra(
            args=received,
            args_parser=get_args_parser(),
            task_function=job,
            config_path=str(CONF),
            config_name="config",
        )
    finally:
        ready()
    if refused:
        raise refused[0]


def note(line: object) -> None:
    """Say, beside the results, what a user should know of."""
    print(f"note: {_printable(line)}", file=sys.stderr)


def invocation(name: str, *arguments: str) -> str:
    """How ``experiments.<name>`` is started from here, to be copied: by make or by this Python."""
    make = os.environ.get("FLOWLAB_MAKE")
    if make and name in TARGETS:
        given = shlex.quote(shlex.join(arguments).replace("$", "$$"))
        return f"{make} {TARGETS[name]}" + (f" ARGS={given}" if arguments else "")
    return shlex.join([_python(), "-m", f"experiments.{name}", *arguments])


def copied(command: str) -> str:
    """A command as it is kept beside results, in the form in which it works here."""
    try:
        python, option, module, *arguments = shlex.split(command)
    except ValueError:
        return command
    package, _, name = module.partition(".")
    if (python, option, package) != ("python", "-m", "experiments"):
        return command
    return invocation(name, *arguments)


def _python() -> str:
    """The shortest name by which a shell here starts this Python, with what is installed for it."""
    own = Path(sys.executable)
    found = shutil.which("python")
    if found is not None and Path(found).parent == own.parent:
        return "python"
    return str(own.relative_to(Path.cwd()) if own.is_relative_to(Path.cwd()) else own)


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
