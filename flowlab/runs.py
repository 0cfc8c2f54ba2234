"""Runs: measured, predicted, judged and kept, for commands and Python alike.

Every function takes the settings of a run whole, or by keywords as :func:`flowlab.settings.make`
does: ``measure(init="he", depth=50)``. Both at once are refused.
"""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from flowlab import notebook, schema
from flowlab.analysis import comparison
from flowlab.analysis.summary import norms, summarise
from flowlab.analysis.training import outcome
from flowlab.analysis.verdicts import KEPT_WITHIN, READ, Verdict, judge
from flowlab.compilation import Compilation
from flowlab.errors import InputError
from flowlab.measurement import ensemble
from flowlab.measurement.ensemble import Progress
from flowlab.measurement.norms import Observer
from flowlab.measurement.setup import Batches
from flowlab.measurement.table import axes_of, tidy
from flowlab.networks import Network
from flowlab.prediction import predict as predicted
from flowlab.progress import shown
from flowlab.settings import Settings, given
from flowlab.storage.experiment import Experiment, load
from flowlab.storage.files import writable
from flowlab.storage.versions import versions
from flowlab.training import loop
from flowlab.training.curve import of_training
from flowlab.training.loop import Trained


@dataclass(frozen=True)
class FinishedRun:
    """A run that is kept: its file, table, prediction and verdict, and the seconds that it took.

    Compiling kernels, which happens once, is not among them. A trained run has a ``curve``, too,
    and its verdict is that of initialization. It prints as the summary in plain words.
    """

    path: Path
    table: pd.DataFrame
    prediction: pd.DataFrame
    verdict: Verdict
    seconds: float
    curve: pd.DataFrame | None = None

    def __str__(self) -> str:
        flow = summarise(self.table, self.verdict)
        if self.curve is None:
            return flow
        return f"{outcome(self.table, self.curve)}\n\nAt initialization: {flow}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return notebook.of_run(self.verdict, norms(self.table), self.path)


def measure(
    settings: Settings | None = None,
    progress: Progress | bool | None = None,
    batches: Batches | None = None,
    observe: Observer | None = None,
    network: Network | str | dict | None = None,
    **axes: Any,
) -> pd.DataFrame:
    """One row per (seed, layer, op) with the log10 Frobenius norms over the whole batch.

    ``network`` is a setting, or a :class:`flowlab.networks.Network` to be measured in place of the
    one that the settings describe; its run has a name of its own. ``progress`` is True for a line
    or a notebook's bar that says how far it is, or what to call with (done, total); ``batches`` and
    ``observe`` are those of :func:`flowlab.measurement.ensemble.measure`. Raises InputError for
    settings that break a rule or need more memory than they allow.
    """
    settings, own = _given(settings, network, axes)
    with shown(progress) as watch:
        return ensemble.measure(settings, watch, batches, observe, own)


def train(
    settings: Settings | None = None,
    progress: Progress | bool | None = None,
    network: Network | str | dict | None = None,
    **axes: Any,
) -> Trained:
    """Train one network for each seed: ``flowlab.train(training="sgd", depth=10)``.

    The result has two frames. ``table`` has the rows of :func:`measure` for every logged ``step``,
    of the parameters and the batch that the step starts from; ``curve`` has one row for each seed
    and logged step: loss, held-out loss and accuracy, gradient norm, clipping, noise scale and
    status. Without an optimizer among the settings it is sgd. Raises InputError as :func:`measure`
    does.
    """
    if settings is None:
        axes = {"training": "sgd", **axes}
    settings, own = _given(settings, network, axes)
    with shown(progress) as watch:
        return loop.train(settings, watch, network=own)


def predict(
    settings: Settings | None = None, network: Network | str | dict | None = None, **axes: Any
) -> pd.DataFrame:
    """What theory predicts of a run, as :func:`flowlab.prediction.predict` says.

    Raises InputError as :func:`measure` does.
    """
    return predicted(*_given(settings, network, axes))


def _given(
    settings: Settings | None, network: Network | str | dict | None, axes: dict[str, Any]
) -> tuple[Settings, Network | None]:
    """The settings, validated, and the network that replaces theirs."""
    own = network if isinstance(network, Network) else None
    if network is not None and own is None:
        axes = axes | {"network": network}
    return given(settings, axes), own


def compare(
    runs: str | Path | pd.DataFrame,
    prediction: pd.DataFrame | None = None,
    kept_within: float = KEPT_WITHIN,
    by: str = "best",
    curve: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Runs ranked: the folder of an experiment, ``compare("results/depth")``, or a table.

    One row for each run, with what sets it apart, the change of the gradient, its rate, theory and
    agreement, and how trained runs end, as :func:`flowlab.analysis.comparison.compare` says. Of a
    folder the predictions and curves are read too. Raises InputError for what is no such folder or
    table, and for an unknown order.
    """
    if not isinstance(runs, pd.DataFrame):
        folder = Path(runs)
        runs = load(folder)
        runs = runs[[name for name in runs if name in {*READ, *schema.names("run", "setting")}]]
        if prediction is None:
            prediction = Experiment(folder).load(part="theory")
        if curve is None:
            curve = Experiment(folder).load(part="curves")
    return comparison.compare(runs, prediction, kept_within, by, curve)


def run(
    settings: Settings | None = None,
    *,
    command: str = "",
    extend: Sequence[str] = (),
    progress: Progress | bool | None = None,
    network: Network | str | dict | None = None,
    **axes: Any,
) -> FinishedRun:
    """Measure and predict a run, judge it, and keep table and prediction.

    ``network`` and ``progress`` are as of :func:`measure`; the metadata name the blocks of one's
    own. The run is kept in ``results_dir/experiment``, with ``command`` in its metadata. Seeds that
    the kept runs ``extend`` hold are taken from there, and such runs give way to the new one if it
    holds all of theirs. Raises InputError where the settings or the disk refuse.
    """
    begun = time.perf_counter()
    call = axes if network is None else {**axes, "network": network}
    call = ", ".join(f"{name}={_written(value)}" for name, value in call.items())
    settings, own = _given(settings, network, axes)
    folder = Path(settings.results_dir) / settings.experiment
    writable(folder)
    experiment, known = Experiment(folder), {}
    for name in extend:
        with suppress(InputError):  # gone: another sweep's, which held its seeds, replaced it
            curve = experiment.curve(name) if settings.trained else None
            known[name] = experiment.read(name), curve
    with Compilation() as compiled, shown(progress) as watch:
        if known:
            table, curve = _joined(settings, known.values(), watch, own)
        else:
            table, curve = _made(settings, watch, own)
        prediction = predicted(settings, own)
    metadata = {
        "settings": own.resolved(settings) if own else settings.resolved(),
        "experiment": settings.experiment,
        "command": command or f"flowlab.run({call or 'settings'})",
        "versions": versions(),
    }
    name = own.run(settings) if own else settings.run()
    path = experiment.save(name, table, prediction, metadata, curve)
    held = set(table["seed"])
    experiment.remove([name for name, (of, _) in known.items() if held.issuperset(of["seed"])])
    verdict = judge(table, prediction, settings.kept_within)
    seconds = time.perf_counter() - begun - compiled.seconds
    return FinishedRun(path, table, prediction, verdict, seconds, curve)


def _written(value: Any) -> str:
    """A keyword's value as it was written, if that is short."""
    text = repr(value)
    return text if len(text) < 100 and "\n" not in text and "<" not in text else "..."


def _made(
    settings: Settings, watch: Progress | None, own: Network | None
) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """The table of a run, and its curve if it is trained."""
    if settings.trained:
        trained = loop.train(settings, watch, network=own)
        return trained.table, trained.curve
    return ensemble.measure(settings, watch, network=own), None


def _joined(settings: Settings, known, watch: Progress | None, own: Network | None):
    """What ``_made`` gives, made only of the seeds that no known table and curve hold."""
    missing = set(range(settings.seed, settings.seed + settings.seeds))
    parts = []
    for frames in known:
        parts.append([None if of is None else of[of["seed"].isin(missing)] for of in frames])
        missing -= set(frames[0]["seed"])
    for seed in sorted(missing):
        if seed - 1 not in missing:
            count = next(n for n in range(1, settings.seeds + 1) if seed + n not in missing)
            parts.append(_made(replace(settings, seed=seed, seeds=count), watch, own))
    tables, curves = zip(*parts, strict=True)
    table, axes = pd.concat(tables, ignore_index=True), axes_of(settings, own)
    # Step by step of a training; of each, rows of layers come first, then those of time steps.
    order = table[["seed"]].assign(time=table["time"].notna(), step=0)
    if settings.trained:
        order["step"] = table["step"]
    table = table.loc[order.sort_values(["step", "time", "seed"], kind="stable").index]
    # Settings hold for all rows; older tables may lack some of their columns.
    rows, values = (
        {name: table[name].array for name in schema.names(part) if name in table}
        for part in ("row", "measured")
    )
    table = tidy(axes, rows, values, table["status"].array)
    if not settings.trained:
        return table, None
    curve = pd.concat(curves).sort_values(["step", "seed"])
    columns = [name for name in curve if name in schema.names("curve")]
    steps = {
        step: {name: rows[name].to_numpy(na_value=np.nan) for name in columns}
        for step, rows in curve.groupby("step")
    }
    return table, of_training(axes, np.unique(curve["seed"]), steps)
