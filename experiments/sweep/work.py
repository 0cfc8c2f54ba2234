"""The work of a sweep: conditions measured one after another, in whatever process and place.

A sweep's folder holds one file of conditions for each part. Processes find all they need there and
in the results, and write to both alone; so any launcher can run parts, on any machine that shares
the files.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from experiments.sweep.progress import ENDS, Journal
from flowlab.analysis.comparison import row
from flowlab.analysis.training import ends
from flowlab.compilation import Compilation
from flowlab.errors import InputError
from flowlab.measurement.setup import Batches, least
from flowlab.runs import run
from flowlab.settings import Settings, from_plain
from flowlab.storage.experiment import Experiment
from flowlab.storage.files import StorageError, storing

ATTEMPTS = 3  # processes that may die over one condition


@dataclass(frozen=True)
class Work:
    """The parts of a sweep, to be called by any launcher: a job's number is its part's.

    ``folder`` is the sweep's, ``threads`` how many a process may use (None: one for each core) and
    ``share`` among how many processes the memory is divided.
    """

    folder: str
    threads: int | None = None
    share: int = 1

    def __call__(self, config: DictConfig) -> str | None:
        """What engines call, once for each job."""
        return self.part(HydraConfig.get().job.num)

    def part(self, number: int) -> str | None:
        """Do the conditions of a part that are not done yet; what stopped it, if anything did.

        A condition that cannot run is reported and passed over. A disk that refuses stops the part.
        """
        try:
            return self._part(number)
        except StorageError as error:
            return str(error)

    def begun(self, number: int) -> int:
        """How often processes began a condition of a part."""
        events = Journal(Path(self.folder) / "journal", number).earlier()
        return sum(event["event"] == "begun" for event in events)

    def _part(self, number: int) -> str | None:
        folder = Path(self.folder)
        journal = Journal(folder / "journal", number)
        try:
            part = json.loads((folder / f"part-{number}.json").read_text())
        except FileNotFoundError:
            return "the sweep was given up"
        events = list(journal.earlier())
        ended = {event["condition"] for event in events if event["event"] in ENDS}
        begun = Counter(event["condition"] for event in events if event["event"] == "begun")
        for condition in part["conditions"]:
            index = condition["index"]
            if index in ended:
                continue
            if begun[index] >= ATTEMPTS:
                reason = f"{ATTEMPTS} processes died over it, for want of memory perhaps"
                journal.write(index, "failed", reason=reason)
                continue
            journal.write(index, "begun")
            try:
                outcome = self._condition(condition, part, journal)
            except StorageError as error:
                journal.write(index, "failed", reason=str(error))
                raise
            except InputError as error:
                outcome = {"event": "failed", "reason": str(error)}
            except MemoryError:
                outcome = {
                    "event": "failed",
                    "reason": "memory ran out; a smaller memory_gib helps",
                }
            except Exception as error:  # one condition's defect must not end a sweep of thousands
                reason = f"unforeseen {type(error).__name__}: {' '.join(str(error).split())}"
                outcome = {"event": "failed", "reason": reason}
            journal.write(index, **outcome)
        return None

    def _condition(self, condition: dict, part: dict, journal: Journal) -> dict:
        settings = from_plain(condition["settings"])
        experiment = Experiment(Path(settings.results_dir) / settings.experiment)
        if not settings.overwrite and experiment.has(settings.run()):
            # By another sweep, or by a process that died before it removed what this replaces.
            if condition["extend"]:
                kept = experiment.index()
                own = kept[settings.run()]
                experiment.remove(
                    run for run in condition["extend"] if run in kept and kept[run].within(own)
                )
            return {"event": "skipped"}
        settings = replace(
            settings,
            threads=settings.threads or self.threads,
            memory_gib=_share(settings, self.share),
        )

        def report(kernels: int, busy: bool) -> None:
            event = "compiling" if busy else "compiled"
            journal.write(condition["index"], event, kernels=kernels)

        with Compilation(report):
            done = run(settings, command=part["command"], extend=condition["extend"])
        trend, judged = done.verdict.trend, row(done.verdict)
        if done.curve is not None:
            judged |= ends(done.curve)
        return {"event": "done", "seconds": done.seconds, "trend": trend, "judged": judged}


def _share(settings: Settings, share: int) -> float:
    """What of the memory one of ``share`` processes may have: what one network needs, at least."""
    if share == 1:
        return settings.memory_gib
    network, row = least(settings, Batches(settings))
    one = min(network + row * settings.seeds, settings.memory_gib)
    return max(settings.memory_gib / share, one)


def write_part(folder: Path, number: int, conditions: list[dict], **common) -> None:
    """Write the file that :meth:`Work.part` reads; raises StorageError."""
    text = json.dumps({"conditions": conditions, **common})
    with storing(folder):
        (folder / f"part-{number}.json").write_text(text)


def described(index: int, settings: Settings, extend: Sequence[str]) -> dict:
    """A condition as a part's file holds it, for processes in whatever folder."""
    plain = asdict(settings) | {"results_dir": str(Path(settings.results_dir).absolute())}
    return {"index": index, "settings": plain, "extend": list(extend)}
