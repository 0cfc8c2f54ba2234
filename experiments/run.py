"""Measure gradient flow: ``python -m experiments.run init=he depth=50``; ``-m`` sweeps."""

import shlex
import sys

from experiments.command import main
from flowlab import runs
from flowlab.settings import Settings


def run(settings: Settings) -> None:
    """Measure one configuration, write its table and prediction, say what happened."""
    command = shlex.join(["python", "-m", "experiments.run", *sys.argv[1:]])
    with _Bar() as bar:
        done = runs.run(settings, command=command, progress=bar)
    print(
        f"{settings.seeds} {settings.network.name} nets, activation={settings.activation} "
        f"init={settings.init.name} depth={settings.depth} width={settings.width} "
        f"skip={settings.skip} norm={settings.norm}, "
        f"batch {settings.batch_size} of {settings.data.name}, upstream={settings.upstream}: "
        f"{done.seconds:.1f} s\n"
    )
    print(done)
    print(f"\nTable:  {done.path}  ({len(done.table)} rows; pandas.read_parquet opens it)")
    where = shlex.quote(f"results_dir={settings.results_dir}")
    print(f"Draw:   python -m experiments.plots {where}\n")


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
    sys.exit(main(run, swept=True))
