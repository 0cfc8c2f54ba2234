"""Time flowlab beside peers, and print what the times mean.

Every suite prints ratios of times within one run with their spread, since machines are noisy, and
writes its table to ``results/benchmark/``. Each suite's own arguments can be set by name.
"""

import inspect
import shlex
import sys
from pathlib import Path

from experiments.benchmarks import batch_law, layers, probe, sweeps, training
from experiments.help import RESULTS_DIR, Command, Option, written
from flowlab.errors import check_count, unknown
from flowlab.progress import Progress
from flowlab.storage import tables
from flowlab.storage.files import writable
from flowlab.storage.versions import versions

SUITES = {
    "probe": (probe.probe, probe.report),
    "batch_law": (batch_law.batch_law, batch_law.report),
    "layers": (layers.layers, layers.report),
    "sweeps": (sweeps.sweeps, sweeps.report),
    "training": (training.training, training.report),
}


def _arguments(run) -> dict:
    return {name: p.default for name, p in inspect.signature(run).parameters.items()}


_OWN = {name: _arguments(run) for name, (run, _) in SUITES.items()}


def _suites(key: str) -> str:
    """The suites that have an argument, and their defaults."""
    found = {name: written(own[key]) for name, own in _OWN.items() if key in own}
    return ", ".join(f"{name}: {text if len(text) < 40 else 'all'}" for name, text in found.items())


COMMAND = Command(
    "benchmark",
    __doc__,
    {"": "every suite", "suite=probe widths=64,256 rounds=9": "one, by arguments of its own"},
    {
        "suite": Option("all", "what is timed", ", ".join(["all", *SUITES])),
        "results_dir": RESULTS_DIR,
        **{
            key: Option(default, _suites(key), shown=False)
            for own in _OWN.values()
            for key, default in own.items()
        },
    },
)


def main(arguments: list[str]) -> int:
    """Run the chosen suites and print their tables and what they mean; the exit code."""
    return COMMAND.start(arguments, lambda **chosen: benchmark(arguments, **chosen))


def benchmark(arguments: list[str], **chosen) -> None:
    """Run, print and keep the suites that are chosen, with what the arguments name."""
    suite, folder = chosen["suite"], Path(chosen["results_dir"]) / "benchmark"
    if suite not in ("all", *SUITES):
        raise unknown("suite", suite, ("all", *SUITES))
    for name, value in chosen.items():
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int) and name != "compiled":  # which may be 0: not
                check_count(name, number)
    writable(folder)
    named = {text.partition("=")[0] for text in arguments}
    for name in SUITES if suite == "all" else [suite]:
        run, conclusion = SUITES[name]
        print(f"suite={name}", flush=True)
        with Progress(f"timing {name}"):
            table = run(**{key: chosen[key] for key in _OWN[name] if key in named})
        print(table.to_string(index=False, float_format=lambda v: f"{v:.3g}"))
        print(f"\n{conclusion(table)}\n")
        metadata = {
            "command": shlex.join(["python", "-m", "experiments.benchmark", *arguments]),
            "versions": versions("torch", "jax"),
        }
        tables.write(table, folder / f"{name}.parquet", metadata)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
