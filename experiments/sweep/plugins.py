"""Hydra's side of a sweep: a sweeper that plans and resumes, and a launcher for this machine.

``-m`` goes through the sweeper whatever the launcher. Launchers get one job for each part of the
sweep, without overrides of its own: a part's number says all.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from omegaconf import open_dict

from experiments.command import ready
from experiments.sweep import engines, pool
from experiments.sweep.conditions import conditions
from experiments.sweep.plan import Plan
from experiments.sweep.work import Work
from flowlab.errors import InputError
from flowlab.progress import Progress


@dataclass
class SweepSettings:
    """``part`` is how many conditions a job does (null: few enough to balance the load)."""

    _target_: str = "hydra_plugins.flowlab.Sweep"
    params: dict[str, str] = field(default_factory=dict)
    part: int | None = None


@dataclass
class LocalSettings:
    """``workers`` is how many processes work (null: one for each core)."""

    _target_: str = engines.LOCAL
    workers: int | None = None


class Sweep(Sweeper):
    """Every combination of the overrides' values that is not kept yet, given out in parts."""

    __module__ = "hydra_plugins.flowlab"

    def __init__(self, params: dict[str, str], part: int | None):
        self._params, self._part = params, part

    def setup(self, *, hydra_context, task_function, config) -> None:
        self._context, self._task, self._config = hydra_context, task_function, config

    def sweep(self, arguments: Sequence[str]) -> None:
        if not getattr(self._task, "swept", False):
            raise InputError("-m sweeps experiments.run; this command takes one configuration")
        workers = self._config.hydra.launcher.get("workers")
        for name, value in (("sweeper.part", self._part), ("launcher.workers", workers)):
            if value is not None and value < 1:
                raise InputError(f"hydra.{name} must be at least 1; got {value}")
        overrides = [f"{key}={value}" for key, value in self._params.items()] + list(arguments)
        if not overrides:
            raise InputError("a sweep needs values, as in -m depth=5,10; got none")
        engines.check(self._config.hydra.launcher)
        ready()
        with Progress("planning the sweep"):
            plan = Plan(conditions(self._context.config_loader, self._config, overrides))
        if plan.waiting:
            with plan.prepared() as folder:
                self._launch(plan, folder)
        plan.report()

    def _launch(self, plan: Plan, folder: Path) -> None:
        launcher = self._config.hydra.launcher
        part, threads, share = engines.means(launcher, len(plan.waiting))
        part = self._part or part
        engines.complete(launcher, part)
        count = plan.write_parts(folder, part)
        # Jobs compose the configuration anew, on other machines perhaps.
        with open_dict(self._config):
            self._config.hydra.sweep.dir = str(folder)
            self._config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{folder}'")
        name = self._config.hydra.runtime.choices["hydra/launcher"]
        with plan.watched(folder):
            try:
                engine = Plugins.instance().instantiate_launcher(
                    hydra_context=self._context,
                    task_function=engines.task(launcher, Work(str(folder), threads, share)),
                    config=self._config,
                )
                jobs = engine.launch([[]] * count, initial_job_idx=0)
                plan.stopped = next((job.return_value for job in jobs if job.return_value), None)
            except InputError:
                raise
            except Exception as error:  # whatever engines raise
                plan.stopped = f"hydra/launcher={name}: {engines.reason(error)}"


class Local(Launcher):
    """Processes of this machine."""

    __module__ = "hydra_plugins.flowlab"

    def __init__(self, workers: int | None):
        self._workers = workers

    def setup(self, *, hydra_context, task_function, config) -> None:
        if not isinstance(task_function, Work):
            raise InputError("hydra/launcher=local goes with hydra/sweeper=flowlab")
        self._work = task_function

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        parts = range(initial_job_idx, initial_job_idx + len(job_overrides))
        done = JobReturn(status=JobStatus.COMPLETED)
        if self._workers == 1:  # this process does not wait for another to start
            done.return_value = next(filter(None, map(self._work.part, parts)), None)
        else:
            done.return_value = pool.run(self._work, parts, self._workers)
        return [done]


def register() -> None:
    """Make the plugins known to Hydra as ``hydra/sweeper=flowlab`` and ``hydra/launcher=local``.

    Hydra takes plugins from the package ``hydra_plugins`` alone, which others bring or nobody.
    """
    try:
        package = import_module("hydra_plugins")
    except ModuleNotFoundError:
        package = sys.modules["hydra_plugins"] = ModuleType("hydra_plugins")
        package.__path__ = []
    package.flowlab = sys.modules["hydra_plugins.flowlab"] = sys.modules[__name__]
    store = ConfigStore.instance()
    store.store(group="hydra/sweeper", name="flowlab", node=SweepSettings, provider="flowlab")
    store.store(group="hydra/launcher", name="local", node=LocalSettings, provider="flowlab")
    for plugin in (Sweep, Local):
        Plugins.instance().register(plugin)
