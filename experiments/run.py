"""Measure gradient flow: ``python -m experiments.run init=he depth=50``; ``-m`` sweeps."""

import platform
import shlex
import sys
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from experiments.command import main
from flowlab import tables
from flowlab.errors import InputError
from flowlab.measure import measure
from flowlab.prediction import predict
from flowlab.settings import Settings
from flowlab.summary import summarise
from flowlab.verdicts import judge

PACKAGES = ("flowlab", "numpy", "scipy", "numba", "pandas", "pyarrow")


def run(settings: Settings) -> None:
    """Measure one configuration, write its table and prediction, say what happened."""
    folder = Path(settings.results_dir) / settings.experiment
    tables.writable(folder)
    begun = time.perf_counter()
    with _Bar() as bar:
        table = measure(settings, bar)
    prediction = predict(settings)
    metadata = {
        "settings": settings.resolved(),
        "experiment": settings.experiment,
        "command": shlex.join(["python", "-m", "experiments.run", *sys.argv[1:]]),
        "versions": versions(),
    }
    name = f"{settings.run()}.parquet"
    predicted = tables.write(prediction, folder / "theory" / name, metadata)
    try:
        path = tables.write(table, folder / "runs" / name, metadata)
    except InputError:
        predicted.unlink(missing_ok=True)  # a prediction without its run is of no use
        raise
    verdict, seconds = judge(table, prediction), time.perf_counter() - begun
    job = HydraConfig.get()
    if job.mode == RunMode.MULTIRUN:
        condition = " ".join(job.overrides.task)
        print(f"{job.job.num + 1:>4}  {condition}  ({seconds:.1f} s)\n      {verdict.sentence}")
        return
    print(
        f"{settings.seeds} {settings.network.name} nets, activation={settings.activation} "
        f"init={settings.init.name} depth={settings.depth} width={settings.width} "
        f"skip={settings.skip} norm={settings.norm}, "
        f"batch {settings.batch_size} of {settings.data.name}, upstream={settings.upstream}: "
        f"{seconds:.1f} s\n"
    )
    print(summarise(table, verdict))
    print(f"\nTable:  {path}  ({len(table)} rows; pandas.read_parquet opens it)")
    print(f"Draw:   python -m experiments.plots results_dir={settings.results_dir}\n")


def versions(*others: str) -> dict[str, str]:
    """Versions of Python, of the packages that make the numbers, and of others if installed."""
    found = {"python": platform.python_version()}
    for package in (*PACKAGES, *others):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


class _Bar:
    """A progress bar on a terminal, for runs that take more than two seconds."""

    def __enter__(self):
        from tqdm import tqdm

        self._bar = tqdm(
            desc="layers", unit="layer", delay=2, leave=False, disable=not sys.stderr.isatty()
        )
        return self

    def __call__(self, done: int, total: int) -> None:
        self._bar.total = total
        self._bar.update(done - self._bar.n)

    def __exit__(self, *exception):
        self._bar.close()


if __name__ == "__main__":
    sys.exit(main(run))
