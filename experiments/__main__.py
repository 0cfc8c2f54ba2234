"""List the commands, or print bash's completion of them: ``--completion bash``."""

import ast
import sys
from pathlib import Path

from experiments.command import guarded, invocation
from flowlab.errors import InputError
from flowlab.storage.versions import __version__


def main(arguments: list[str]) -> int:
    """Print what the arguments ask for; the exit code."""
    return guarded(lambda: answer(arguments))


def answer(arguments: list[str]) -> None:
    """Print the list, the version or a completion; raises InputError for anything else."""
    match arguments:
        case [] | ["-h"] | ["--help"]:
            print(f"Commands, as in {invocation('run', '--help')}:\n")
            for name, does in commands().items():
                print(f"  {name:<10}  {does}")
            print("\nTab completion in bash: --completion bash prints it (docs/commands.md).")
        case ["--version"]:
            print(f"flowlab {__version__}")
        case ["--completion", "bash"]:
            from experiments.completion import script

            print(script(list(commands())))
        case _:
            raise InputError(
                "arguments must be none, --help, --version or --completion bash; "
                f"got {' '.join(arguments)}"
            )


def commands() -> dict[str, str]:
    """The commands by name, each with the first line of its module's text."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        declared = (node.targets[0] for node in tree.body if isinstance(node, ast.Assign))
        if "COMMAND" in {getattr(target, "id", None) for target in declared}:
            found[path.stem] = ast.get_docstring(tree).partition("\n")[0]
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
