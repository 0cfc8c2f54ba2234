"""Speed beside peers: ``python -m experiments.benchmark``; ``suite=probe widths=64,256 rounds=9``.

Every suite prints ratios of times within one run with their spread, since machines are noisy, and
writes its table to ``results/benchmark/``. Each suite's own arguments can be set by name.
"""

import inspect
import shlex
import sys
from pathlib import Path

from experiments.benchmarks import batch_law, layers, probe, sweeps
from experiments.command import guarded, options
from flowlab.errors import check_count, unknown
from flowlab.storage import tables
from flowlab.storage.files import writable
from flowlab.storage.versions import versions

SUITES = {
    "probe": (probe.probe, probe.report),
    "batch_law": (batch_law.batch_law, batch_law.report),
    "layers": (layers.layers, layers.report),
    "sweeps": (sweeps.sweeps, sweeps.report),
}


def main(arguments: list[str]) -> None:
    """Run the chosen suites and print their tables and what they mean."""
    defaults = {"suite": "all", "results_dir": "results"}
    own = {name: _arguments(run) for name, (run, _) in SUITES.items()}
    for given in own.values():
        defaults |= given
    chosen = options(arguments, defaults)
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
        table = run(**{key: chosen[key] for key in own[name] if key in named})
        print(table.to_string(index=False, float_format=lambda v: f"{v:.3g}"))
        print(f"\n{conclusion(table)}\n")
        metadata = {
            "command": shlex.join(["python", "-m", "experiments.benchmark", *arguments]),
            "versions": versions("torch", "jax"),
        }
        tables.write(table, folder / f"{name}.parquet", metadata)


def _arguments(run) -> dict:
    return {name: p.default for name, p in inspect.signature(run).parameters.items()}


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(sys.argv[1:])))
