"""Measure how gradients flow through networks, at initialization or in training; -m sweeps.

A run draws one network for each seed, sends a batch forward and a gradient back, compares with
theory and writes a table. With ``training=`` an optimizer goes on from there, and a curve of the
training is written beside.
"""

import shlex
import sys

from experiments.command import invocation
from experiments.help import Command
from flowlab import runs
from flowlab.ahead import Ahead
from flowlab.analysis.comparison import value_words
from flowlab.progress import Progress
from flowlab.settings import Settings, make

COMMAND = Command(
    "run",
    __doc__,
    {
        "init=he depth=50": "one run",
        "training=sgd depth=10 training.lr=0.1": "networks that are trained",
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
    """Measure or train one configuration, write what came of it, say what happened."""
    command = shlex.join(["python", "-m", "experiments.run", *sys.argv[1:]])
    what = "training" if settings.trained else "measuring layers"
    with Progress(what) as progress, Ahead(settings):
        done = runs.run(settings, command=command, progress=progress)
    print(
        f"{settings.seeds} {settings.network.name} nets, activation={settings.activation} "
        f"init={settings.init.name} depth={settings.depth} width={settings.width} "
        f"skip={settings.skip} norm={settings.norm}, "
        f"batch {settings.batch_size} of {settings.data.name}, upstream={settings.upstream}"
        f"{how(settings)}: {progress.took()}\n"
    )
    print(done)
    print(f"\nTable:  {done.path}  ({len(done.table)} rows; pandas.read_parquet opens it)")
    if done.curve is not None:
        path = done.path.parent.with_name("curves") / done.path.name
        print(f"Curve:  {path}  ({len(done.curve)} rows)")
    print(f"Draw:   {invocation('plots', f'results_dir={settings.results_dir}')}\n")


def how(settings: Settings) -> str:
    """How networks are trained, as it is typed: the optimizer and what is not by default."""
    if not settings.trained:
        return ""
    chosen = settings.training
    default = vars(make(training=chosen.name).training)
    options = {"lr": chosen.lr} | {k: v for k, v in vars(chosen).items() if v != default[k]}
    words = " ".join(f"{name}={value_words(value)}" for name, value in options.items())
    return f", training={chosen.name} {words}"


if __name__ == "__main__":
    sys.exit(COMMAND.compose(run, swept=True))
