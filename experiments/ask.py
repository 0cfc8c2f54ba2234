"""Look an answer up without measuring: theory's at once, with the runs kept beside it.

Any settings, several values between commas; what is not named has its default, and where no
initialization is named all are ranked. Below stands the command that measures what is not kept.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from itertools import product
from math import inf, nan, prod
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments.choices import groups, kinds, need_optimizer
from experiments.command import guarded, invocation, note
from experiments.help import Command
from experiments.ranking import check, ranking
from experiments.sweep import machine
from flowlab.analysis.comparison import LEADING, answer, axes_of, compare, named, ordered, row
from flowlab.analysis.verdicts import foresee
from flowlab.errors import InputError, unknown
from flowlab.initializers import PRESETS, Initializer
from flowlab.measurement.setup import Setup, needed, prepare
from flowlab.prediction import predict
from flowlab.progress import Progress
from flowlab.settings import NETWORKS, Settings, flat, from_plain, make, settings_of
from flowlab.storage.experiment import Experiment, condition_of, find

MOST = 200  # conditions that are predicted, kept runs that are read
_EFFICIENCY = 0.4  # of a measurement, against its matrix products alone at their fastest
# Settings that choose no run: where results lie, how many networks there are, how lists are sorted.
_APART = {own.name for own, setting in settings_of(Settings) if not setting.measured}
_APART |= {"seeds", "seed"}
_OF_IMAGES = ("delta_orthogonal", "delta_orthogonal_relu")


@dataclass(frozen=True)
class Asked:
    """One condition: its values as they were typed, its settings or why they are refused."""

    typed: dict[str, Any]
    settings: Settings | None
    refusal: str = ""

    @cached_property
    def setup(self) -> Setup:
        """What a run of it is made of."""
        return prepare(self.settings)


@dataclass(frozen=True)
class Kept:
    """A run that is kept: where, its settings, its condition's digest."""

    experiment: Experiment
    name: str
    settings: Settings
    condition: str


COMMAND = Command(
    "ask",
    __doc__,
    {
        "activation=tanh depth=100": "every initialization, ranked",
        "init=he depth=200 skip=none,scaled": "two conditions beside each other",
    },
    composed=True,
)


def main(arguments: list[str]) -> int:
    """Answer what the arguments (key=value) ask; the exit code."""
    if (answered := COMMAND.answer(arguments)) is not None:
        return answered
    return guarded(lambda: ask(arguments))


def ask(arguments: list[str]) -> None:
    """Print theory's ranking of what is asked, the kept runs that show it, and what is missing.

    Raises InputError for an unknown key, a value that breaks a rule, and where all of them do.
    """
    values = read(arguments)
    asked = conditions(values)
    able = [one for one in asked if one.settings]
    first = able[0].settings
    varying = [key for key, found in values.items() if len(found) > 1]
    check(first.rank, varying)
    with Progress() as progress:
        progress.at("looking at kept runs")
        kept = list(_kept(first.results_dir, values))
        progress.at("predicting")
        foreseen = _foreseen(able, progress)
        progress.at("judging kept runs")
        own = {run.condition: run for run in kept}
        measured = [own.get(condition_of(one.settings.resolved())) for one in able]
        table = _table(able, foreseen, measured, varying)
        others = [run for run in kept if run not in measured]
        beside = _compared(others[:MOST], first.rank, first.kept_within)
    print(f"{_shared(able, varying)}\n")
    _print_theory(table, first)
    for one in asked:
        if one.refusal:
            note(f"{_words(one.typed, varying)}: {one.refusal}")
    if len(beside):
        _print_others(beside, others, values, first)
    missing = [one for one, run in zip(able, measured, strict=True) if run is None]
    if missing:
        _print_cost(missing, values, arguments)


def read(arguments: list[str]) -> dict[str, list[Any]]:
    """The values of every key that is named, in the types of the settings."""
    # A group's name is that of its choice.
    known = {key.removesuffix(".name"): found for key, found in kinds().items()}
    found: dict[str, list[Any]] = {}
    need_optimizer(dict(text.partition("=")[::2] for text in arguments))
    for text in arguments:
        key, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"settings are written key=value; got {text}")
        if key not in known:
            raise unknown("setting", key, known)
        found[key] = [_typed(part, known[key]) for part in value.split(",")]
    return found


def _typed(text: str, kinds: tuple[type, ...]) -> Any:
    """A value as it was typed; what has none of the types stays text, which the settings refuse."""
    if text == "null" and type(None) in kinds:
        return None
    if bool in kinds:
        return {"true": True, "false": False}.get(text.lower(), text)
    for kind in (int, float):
        if kind in kinds:
            with suppress(ValueError):
                return kind(text)
    return text


def conditions(values: dict[str, list[Any]]) -> list[Asked]:
    """Every combination; of all initializations where none is named.

    Raises InputError for too many, and for the first that breaks a rule where all do.
    """
    if "init" not in values and not any(key.startswith("init.") for key in values):
        network = make(network=values.get("network", ["mlp"])[0]).network.name
        images = "kernel_size" in NETWORKS[network][0]
        values["init"] = [init for init in groups()["init"] if images or init not in _OF_IMAGES]
    count = prod(map(len, values.values()))
    if count > MOST:
        raise InputError(f"ask takes at most {MOST} combinations; got {count:,}")
    asked = []
    for combination in product(*values.values()):
        typed = dict(zip(values, combination, strict=True))
        try:
            asked.append(Asked(typed, _made(typed)))
        except InputError as error:
            asked.append(Asked(typed, None, str(error)))
    if not any(one.settings for one in asked):
        raise InputError(asked[0].refusal)
    return asked


def _made(typed: dict[str, Any]) -> Settings:
    """Settings from values by dotted key."""
    nested: dict[str, Any] = {}
    for key, value in typed.items():
        group, _, name = key.rpartition(".")
        if group or f"{key}.name" in kinds():
            nested.setdefault(group or key, {})[name if group else "name"] = value
        else:
            nested[key] = value
    return make(**nested)


def _kept(results_dir: str, values: dict[str, list[Any]]) -> Iterator[Kept]:
    """The runs whose settings are among those that are named; untrained ones by default."""
    if not Path(results_dir).is_dir():
        return
    problems: list[str] = []
    wanted = {key: found for key, found in values.items() if key not in _APART}
    wanted = {"training": ["none"]} | wanted
    for folder in find(results_dir, ("runs", ".old-runs"), problems).values():
        experiment = Experiment(folder)
        with suppress(InputError):  # damaged: the other commands say so
            for name, metadata in experiment.all_metadata().items():
                settings = _settings(metadata)
                if settings and _matches(settings, wanted):
                    digest = condition_of(metadata["settings"])
                    yield Kept(experiment, name, settings, digest)


def _settings(metadata: dict) -> Settings | None:
    """The settings of a kept run; None of a foreign one."""
    try:
        return from_plain(metadata["settings"]).validate()
    except (AttributeError, LookupError, TypeError, InputError):
        return None


def _matches(settings: Settings, wanted: dict[str, list[Any]]) -> bool:
    """Whether each setting that is named has one of its values."""
    own = flat(asdict(settings))
    for key, found in wanted.items():
        if key == "init":
            gain = settings.init.gain
            names = [PRESETS.get(name, {"name": name, "gain": gain}) for name in found]
            if {"name": settings.init.name, "gain": gain} not in names:
                return False
        elif key in own and own[key] not in found:
            return False
    return True


def _foreseen(asked: list[Asked], progress: Progress) -> list[dict]:
    """Theory's row of a comparison for each, with its silence; equals are predicted once."""
    known: dict[str, dict] = {}
    rows = []
    for done, one in enumerate(asked):
        progress(done, len(asked))
        settings, key = one.settings, _seen_by_theory(one.setup)
        if key not in known:
            verdict = foresee(
                predict(settings), settings.upstream, settings.seeds, settings.kept_within
            )
            because = verdict.because if np.isnan(verdict.change.mean) else ""
            alone = {"theory": nan, "difference": nan, "agreement": "no theory"}
            known[key] = row(verdict) | alone | {"because": because}
        rows.append(known[key])
    return rows


def _seen_by_theory(setup: Setup) -> str:
    """The settings, with what theory sees of an initialization in its place.

    That is the variances of the weights and biases and whether a map is orthogonal: uniform weights
    are as Gaussian ones of the same variance.
    """
    settings = setup.settings
    init, plain = Initializer(settings.init), settings.resolved() | {"init": None}
    operations = {(row.fan_in, row.fan_out) for rows in setup.rows for row in rows}
    variances = [
        (init.weight_variance(*fans), init.bias_variance(fans[0])) for fans in sorted(operations)
    ]
    return repr((plain, init.orthogonal, init.delta, init.identity, variances))


def _table(able: list[Asked], foreseen: list[dict], measured: list, varying: list[str]):
    """Theory's comparison, ranked, with the measured change in a column ``measured``."""
    rows = []
    for one, found, run in zip(able, foreseen, measured, strict=True):
        seen = "" if run is None else _measured(run)
        typed = {key: one.typed[key] for key in varying}
        digest = {"seeds": one.settings.seeds, "run": one.settings.run()}
        rows.append({**typed, **found, **digest, "measured": seen})
    frame = pd.DataFrame(rows)
    more = frame.set_index("run")[["measured", "because"]]
    return ordered(frame.drop(columns=list(more)), able[0].settings.rank).join(more, on="run")


def _measured(run: Kept) -> str:
    """The change of a kept run, whether theory agrees, and the experiment that holds it."""
    where = run.experiment.folder.name
    compared = _compared([run], "kept", run.settings.kept_within)
    if compared.empty or np.isnan(compared["decades"].iat[0]):
        return f"not known, in {where}"
    found = compared.iloc[0]
    interval = f"[{found['low']:z.2f}, {found['high']:z.2f}] " if np.isfinite(found["low"]) else ""
    return f"{found['decades']:z.2f} {interval}{found['agreement']}, in {where}"


def _compared(kept: list[Kept], by: str, kept_within: float) -> pd.DataFrame:
    """The comparison of kept runs; those that cannot be read are left out."""
    tables, predictions, curves = [], [], [pd.DataFrame()]
    for run in kept:
        with suppress(InputError):
            table, prediction = run.experiment.read(run.name), run.experiment.prediction(run.name)
            if run.settings.trained:
                curves.append(run.experiment.curve(run.name))
            tables.append(table)
            predictions.append(prediction)
    if not tables:
        return pd.DataFrame()
    table, prediction, curve = map(pd.concat, (tables, predictions, curves))
    return compare(table, prediction, kept_within, by, curve)


def _print_theory(table: pd.DataFrame, first: Settings) -> None:
    frame = table.drop(columns=["measured", "because"])
    start = ", at initialization" if first.trained else ""
    print(f"By theory{start}: {answer(frame, first.kept_within)}\n")
    more = {"measured": list(table["measured"])} if table["measured"].any() else {}
    if len(table) > 1:
        print(ranking(frame, first.rank, "name fewer values to see them", more) + "\n")
    elif more:
        print(f"Measured: {more['measured'][0]}\n")
    silent = table[table["because"] != ""]
    for reason, rows in silent.groupby("because"):
        names = "; ".join(named(one, axes_of(frame)) for _, one in rows.iterrows())
        print(f"Theory is silent on {names}: {reason}\n")


def _print_others(beside: pd.DataFrame, others: list[Kept], values: dict, first: Settings) -> None:
    """Kept runs that share what is named and differ in what is not."""
    folders = sorted({str(run.experiment.folder) for run in others})
    shared = " ".join(f"{k}={','.join(map(str, v))}" for k, v in values.items() if k not in _APART)
    cut = f" (the first {MOST} of {len(others):,})" if len(others) > MOST else ""
    print(f"Also kept with {shared or 'any settings'}, other settings apart{cut}:")
    print(f"{answer(beside, first.kept_within)}\n")
    where = " and ".join(f"flowlab.compare({folder!r})" for folder in folders[:3])
    if len(beside) > 1:
        print(ranking(beside, first.rank, where) + "\n")


def _print_cost(missing: list[Asked], values: dict, arguments: list[str]) -> None:
    """The command that measures what is not measured yet, and what it takes."""
    seconds = sum(_seconds(one.setup) for one in missing)
    gib = max(_memory(one.setup) for one in missing)
    given = list(arguments)
    if not any(text.startswith("init=") for text in arguments) and "init" in values:
        given.append("init=" + ",".join(dict.fromkeys(str(one.typed["init"]) for one in missing)))
    several = any("," in text for text in given)
    command = invocation("run", *(["-m"] * several), *given)
    done = "train" if all(one.settings.trained for one in missing) else "measure"
    runs = "it" if len(missing) == 1 else f"the {len(missing)} that are not {done.rstrip('e')}ed"
    print(f"To {done} {runs} ({_about(seconds)}, {gib * 1024:,.0f} MiB):\n  {command}")


def _seconds(setup: Setup) -> float:
    """Roughly how long it takes: its matrix products, in every step, at this machine's pace."""
    settings, operations, steps = setup.settings, 0, 1
    if settings.trained:
        steps = settings.training.step_count(settings.batch_size, setup.batches.rows)
    for place in setup.network.walk(setup.shape):
        weights = sum(
            prod(parameter.shape)
            for _, parameters in place.operations
            for parameter in parameters.values()
        )
        operations += 6 * weights * prod(place.shape[:-1])
    return steps * operations * settings.seeds / (_EFFICIENCY * _pace())


@cache
def _pace() -> float:
    """Operations per second of matrix products on all cores, whatever else they do just now."""
    a = np.ones((512, 512), np.float32)
    best = inf
    for _ in range(3):
        begun = time.process_time()
        a @ a
        best = min(best, time.process_time() - begun)
    return machine.cores() * 2 * 512**3 / best


def _memory(setup: Setup) -> float:
    """GiB of the seeds that are measured at a time."""
    settings = setup.settings
    network, row = needed(settings, setup.batches)
    return min((network + row) * settings.seeds, settings.memory_gib)


def _about(seconds: float) -> str:
    if seconds < 1:
        return "less than a second"
    if seconds < 90:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.0f} h"


def _shared(able: list[Asked], varying: list[str]) -> str:
    """The settings that all conditions share, in a line."""
    plain = able[0].settings.axes()
    shown = [name for name in LEADING if plain.get(name) is not None and name not in varying]
    typed = [key for key in able[0].typed if key not in (*shown, *varying, *_APART)]
    parts = [f"{name}={plain[name]}" for name in shown]
    return ", ".join([*parts, *(f"{key}={able[0].typed[key]}" for key in typed)])


def _words(typed: dict[str, Any], varying: list[str]) -> str:
    return ", ".join(f"{key}={typed[key]}" for key in varying)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
