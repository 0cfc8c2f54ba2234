"""Measure how gradients flow through networks at initialization; -m sweeps.

A run draws one network for each seed, sends a batch forward and a gradient back, compares with
theory and writes a table.
"""

import shlex
import sys

from experiments.command import invocation
from experiments.help import Command
from flowlab import runs
from flowlab.progress import Progress
from flowlab.settings import Settings

COMMAND = Command(
    "run",
    __doc__,
    {
        "init=he depth=50": "one run",
        "-m init=he,xavier depth=10,50": "a sweep over every combination",
        "-m experiment=depth": "a sweep of conf/experiment",
        "--cfg job init=xavier": "the settings, without running",
    },
    composed=True,
    more="""\
In a sweep, which resumes where it was stopped:

  hydra.launcher.workers=N  processes; by default one for each core [whole numbers from 1]
  hydra.sweeper.part=N      conditions that a process is given at a time [whole numbers from 1]
  hydra/launcher=local      where processes run [local, basic, ray, submitit_local, submitit_slurm]

Options stand before settings:

  -m, --multirun            a sweep: settings may have several values, between commas
  --cfg job                 print the settings and leave
  --config-dir FOLDER       a folder of configuration besides conf/
  --hydra-help              what Hydra itself offers""",
)


def run(settings: Settings) -> None:
    """Measure one configuration, write its table and prediction, say what happened."""
    command = shlex.join(["python", "-m", "experiments.run", *sys.argv[1:]])
    with Progress("measuring layers") as progress:
        done = runs.run(settings, command=command, progress=progress)
    print(
        f"{settings.seeds} {settings.network.name} nets, activation={settings.activation} "
        f"init={settings.init.name} depth={settings.depth} width={settings.width} "
        f"skip={settings.skip} norm={settings.norm}, "
        f"batch {settings.batch_size} of {settings.data.name}, upstream={settings.upstream}: "
        f"{progress.took()}\n"
    )
    print(done)
    print(f"\nTable:  {done.path}  ({len(done.table)} rows; pandas.read_parquet opens it)")
    print(f"Draw:   {invocation('plots', f'results_dir={settings.results_dir}')}\n")


if __name__ == "__main__":
    sys.exit(COMMAND.compose(run, swept=True))
