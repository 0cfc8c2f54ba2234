"""What every command answers about itself: ``--help`` and ``--version``."""

import re
import sys
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from experiments import command
from flowlab import settings
from flowlab.errors import InputError
from flowlab.storage.versions import __version__

WIDTH = 100
_COLUMN = 28  # in which meanings begin
_WIDEST = 64  # commands that have their meanings beside them
_SECTIONS = {
    "network": "Options of networks:",
    "init": "Options of initializations:",
    "data": "Options of data:",
    "training": "Options of training:",
}


class Option(NamedTuple):
    """An option of a command's own: default, meaning and, in words, the values that it takes.

    The default is not ``shown`` where the meaning says it better.
    """

    default: Any
    meaning: str
    allowed: str = ""
    shown: bool = True


class Operand(NamedTuple):
    """What a command is given without a key: its name, how many of them, and their meaning."""

    name: str
    count: int
    meaning: str


RESULTS_DIR = Option("results", "folder of all experiments")
EXPERIMENT = Option("", "one experiment; all where none is named")


@dataclass(frozen=True)
class Command:
    """A command, as it starts and as it describes itself.

    ``text`` is its module's, whose first line says what it does. ``examples`` are arguments, each
    with what they ask for; ``options`` are the command's own, and ``composed`` says that it takes
    the settings of a run beside them; ``operand`` is what it takes without a key, handed on as the
    list ``operands``. ``more`` is what else a user should know.
    """

    name: str
    text: str
    examples: dict[str, str]
    options: dict[str, Option] = field(default_factory=dict)
    composed: bool = False
    more: str = ""
    operand: Operand | None = None

    def start(self, arguments: list[str], action: Callable[..., None]) -> int:
        """Answer, or call ``action`` with the options; the exit code."""
        if (answered := self.answer(arguments)) is not None:
            return answered
        return command.guarded(lambda: action(**self.given(arguments)))

    def compose(self, task: Callable[[settings.Settings], None], swept: bool = False) -> int:
        """Answer, or run ``task`` on the settings of the command line; the exit code."""
        if (answered := self.answer(sys.argv[1:])) is not None:
            return answered
        return command.main(task, swept)

    def given(self, arguments: list[str]) -> dict[str, Any]:
        """The options' values, and the operands; raises InputError for what is neither, or for no
        value of an option.
        """
        if self.operand:
            operands = [text for text in arguments if not re.match(r"\w+=", text)]
            if len(operands) != self.operand.count:
                raise InputError(
                    f"{self.operand.name} must be given {self.operand.count} times; "
                    f"got {' '.join(operands) or 'none'}"
                )
            options = [text for text in arguments if text not in operands]
            return {"operands": operands, **self._options(options)}
        return self._options(arguments)

    def _options(self, arguments: list[str]) -> dict[str, Any]:
        if arguments and not self.options:
            raise InputError(f"{self.name} takes no options; got {' '.join(arguments)}")
        return command.options(arguments, {name: own.default for name, own in self.options.items()})

    def answer(self, arguments: list[str]) -> int | None:
        """Print help or version if they are asked for; the exit code, None if they are not."""
        if {"-h", "--help"} & set(arguments):
            return command.guarded(lambda: print(self.help()))
        if "--version" in arguments:
            return command.guarded(lambda: print(f"flowlab {__version__}"))
        return None

    def help(self) -> str:
        """What it does, examples, and options with their defaults and allowed values."""
        started = {
            command.invocation(self.name, *arguments.split()): meaning
            for arguments, meaning in self.examples.items()
        }
        widest = max(map(len, started)) + 5
        column = widest if widest <= _WIDEST else _COLUMN
        parts = [summary(self.text), _columns(started.items(), column)]
        if self.operand:
            name = " ".join([self.operand.name] * self.operand.count)
            parts.append(f"Arguments:\n\n{_columns([(name, self.operand.meaning)])}")
        if self.options:
            parts.append(_section("Options, set by key=value:", self.options))
        if self.composed:
            parts += [_section(title, rows) for title, rows in sections().items()]
        if self.more:
            parts.append(self.more)
        parts.append(_columns([("-h, --help", "this text"), ("--version", "flowlab's version")]))
        return "\n\n".join(parts)


def summary(text: str) -> str:
    """The first line of a module's text: what its command does."""
    return text.strip().partition("\n")[0]


def sections() -> dict[str, dict[str, Option]]:
    """The settings of a run by section and key."""
    choices, found = command.groups(), {}
    known = {*command.keys(), *choices}  # others are made, not given
    for row in settings.frame().itertuples():
        if row.key not in known:
            continue
        group, _, name = row.key.rpartition(".")
        meaning = f"{row.meaning} ({row.unit})" if row.unit else row.meaning
        if group == "network":
            readers = [net for net, (read, _) in settings.NETWORKS.items() if name in read]
            meaning += f"; for {', '.join(readers)}"
        allowed = ", ".join(choices.get(row.key, ())) or row.allowed
        if row.key == "experiment":
            meaning += ", or a sweep of conf/experiment"
            allowed = f"text, or {allowed}"
        title = _SECTIONS.get(group, "Settings, set by key=value:")
        found.setdefault(title, {})[row.key] = Option(written(row.default), meaning, allowed)
    return found


def written(value: Any) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, tuple):
        return ",".join(map(written, value))
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _section(title: str, rows: dict[str, Option]) -> str:
    described = []
    for name, (default, meaning, allowed, shown) in rows.items():
        left = f"{name}={written(default) if shown and default is not None else ''}"
        described.append((left, f"{meaning} [{allowed}]" if allowed else meaning))
    return f"{title}\n\n{_columns(described)}"


def _columns(rows: Iterable[tuple[str, str]], column: int = _COLUMN) -> str:
    """Rows of two columns, the second one wrapped."""
    lines = []
    for left, right in rows:
        wrapped = textwrap.wrap(right, max(WIDTH - column, 30)) or [""]
        left = f"  {left}"
        if len(left) > column - 2:
            lines.append(left)
            left = ""
        lines.append(f"{left:<{column}}{wrapped[0]}".rstrip())
        lines += [" " * column + line for line in wrapped[1:]]
    return "\n".join(lines)
