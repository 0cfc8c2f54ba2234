"""A family of models measured over depth and seeds: ``flowlab.probe(make, depths, seeds, ...)``."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from flowlab.analysis.statistics import Interval, by_seed, mean_interval
from flowlab.analysis.verdicts import KEPT_WITHIN, Verdict, judge, view
from flowlab.errors import InputError, check_count, check_positive
from flowlab.modules.keeping import keep
from flowlab.modules.torch_needed import torch_needed
from flowlab.progress import shown
from flowlab.schema import DELTA

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from flowlab.modules.choosing import Choice
    from flowlab.modules.feeding import Loss, Make


@dataclass(frozen=True)
class DepthVerdict:
    """What depths and seeds say together of a family of models.

    ``slope`` is the change of log10‖δ‖ a block going backward, in decades, over seeds: of each seed
    the least-squares slope that its nets of all depths share, levels their own. ``by_depth`` are
    the verdicts on each depth over its blocks, and ``trend`` that of the deepest.
    """

    slope: Interval
    by_depth: dict[int, Verdict]

    @property
    def deepest(self) -> Verdict:
        return self.by_depth[max(self.by_depth)]

    @property
    def trend(self) -> str:
        return self.deepest.trend

    @property
    def sentence(self) -> str:
        """The trend with slope and interval, what shallower nets do, and theory."""
        slope, words = self.slope, self.deepest.trend_words()
        depths = ", ".join(map(str, self.by_depth))
        text = f"{words[:1].upper()}{words[1:]}."
        if slope.n:
            over = f"{slope.n} seed{'s' * (slope.n > 1)}, depth{'s' * (len(self.by_depth) > 1)}"
            text += f" Slope: {slope} decades a layer going backward ({over} {depths})."
        else:
            text += f" No slope: {slope.note}."
        others: dict[str, list[str]] = {}
        for depth, verdict in self.by_depth.items():
            if verdict.trend != self.trend:
                others.setdefault(verdict.trend, []).append(str(depth))
        if others:
            parts = [f"{trend} at {', '.join(of)}" for trend, of in others.items()]
            text += f" Other depths: {'; '.join(parts)}."
        theory = self.deepest.theory_words()
        return f"{text} {theory[:1].upper()}{theory[1:]}."

    def __str__(self) -> str:
        return self.sentence

    def _repr_html_(self) -> str:
        return self.deepest._repr_html_()


@dataclass(frozen=True)
class Probe:
    """What :func:`probe` measured: rows of all depths and seeds, one run a depth.

    ``prediction`` has theory's rows where it knows the models, else the reason why not.
    """

    table: pd.DataFrame
    prediction: pd.DataFrame
    kept_within: float = KEPT_WITHIN

    @property
    def verdict(self) -> DepthVerdict:
        return verdict_of(self.table, self.prediction, self.kept_within)

    def plot(self, path: str | Path | None = None) -> "Figure":
        """The change over the depths, or of one depth norms against layer; also to ``path``."""
        from flowlab import figures

        figure = figures.draw(self.table, self.prediction, self.kept_within)
        if path is not None:
            figures.save(figure, path)
        return figure

    def save(self, results_dir: str | Path = "results", experiment: str = "own") -> Path:
        """Keep a run for each depth in ``results_dir/experiment``, for ``make report``."""
        return keep(
            self.table,
            self.prediction,
            results_dir=results_dir,
            experiment=experiment,
            command=f"flowlab.probe(make, ...)  # {self.table['network'].iat[0]}",
        )

    def __repr__(self) -> str:
        return self.verdict.sentence

    def _repr_html_(self) -> str:
        return self.verdict._repr_html_()


def probe(
    make: "Make",
    depths: Sequence[int] = (4, 8, 16, 32),
    seeds: int = 8,
    batch: Any = None,
    loss: "Loss" = None,
    *,
    seed: int = 0,
    modules: "Choice" = None,
    blocks: str | None = None,
    exponents: bool = False,
    name: str | None = None,
    settings: Mapping[str, Any] | None = None,
    kept_within: float = KEPT_WITHIN,
    progress: Callable[[int, int], None] | bool | None = None,
) -> Probe:
    """Measure ``make(depth)`` for every depth and seed, and judge the gradient over its blocks.

    ::

        probe = flowlab.probe(make, depths=(4, 8, 16, 32), seeds=8, batch=(x, y), loss=criterion)
        print(probe.verdict.sentence)

    ``make(depth)`` returns a new module, its parameters drawn from PyTorch's global stream, which
    stands at each of the seeds ``seed``, ``seed + 1``, ... and is put back afterwards; it may take
    ``seed``, too, to draw in a way of its own. ``batch`` is (inputs, target), a dictionary of
    keywords, inputs alone, or a function of the seed that returns one; inputs that are a tuple or a
    dictionary are arguments or keywords. ``loss(output, target)`` returns a single number; without
    it the output's own ``loss`` is taken. ``blocks`` is a pattern of the repeated modules' paths,
    by default found as :func:`flowlab.modules.blocks.repeated` says; other options are those of
    :func:`flowlab.attach`. ``kept_within`` is the threshold of verdicts, in decades.

    Raises InputError for bad counts, for models without a repeated block, and as ``attach`` does.
    """
    torch_needed()
    from flowlab.modules.family import measured

    depths = _checked(depths, seeds, seed)
    check_positive("kept_within", kept_within)
    if batch is None:
        raise InputError(
            "batch must be (inputs, target), a dictionary, inputs or a function of "
            "the seed; got None"
        )
    choice = {"modules": modules, "blocks": blocks, "exponents": exponents}
    axes = {"seeds": seeds, **(settings or {})}
    with shown(progress) as watch:
        tables, predictions = measured(
            make, depths, range(seed, seed + seeds), batch, loss, name, axes, watch, **choice
        )
    table = pd.concat(tables.values(), ignore_index=True)
    runs = table.groupby("depth")["run"].first()
    foreseen = [
        of.assign(run=pd.array([runs[d]] * len(of), "string")) for d, of in predictions.items()
    ]
    return Probe(table, pd.concat(foreseen, ignore_index=True), kept_within)


def _checked(depths: Sequence[int], seeds: int, seed: int) -> list[int]:
    depths = [depths] if isinstance(depths, int) else list(depths)
    if not depths or len(set(depths)) < len(depths):
        raise InputError(f"depths must be different numbers, at least one; got {depths}")
    for depth in depths:
        check_count("depth", depth)
    check_count("seeds", seeds)
    if seed < 0:
        raise InputError(f"seed must be at least 0; got {seed}")
    return sorted(depths)


def verdict_of(
    table: pd.DataFrame, prediction: pd.DataFrame | None = None, kept_within: float = KEPT_WITHIN
) -> DepthVerdict:
    """The verdict on the table of a probe; raises InputError as ``judge`` does."""
    runs = dict(iter(table.groupby("depth")))
    foreseen = {} if prediction is None else dict(iter(prediction.groupby("run")))
    by_depth = {
        int(depth): judge(of, foreseen.get(of["run"].iat[0]), kept_within)
        for depth, of in runs.items()
    }
    return DepthVerdict(slope_of(table), by_depth)


def slope_of(table: pd.DataFrame) -> Interval:
    """The change of log10‖δ‖ a block going backward, over seeds, from the table of a probe.

    One slope a seed: that which its nets of all depths share, fitted by least squares with a level
    for each. Seeds with a norm that is zero or not known are left out, and counted.
    """
    depths = [by_seed(view(of)[0], DELTA) for _, of in table.groupby("depth")]
    moments, squares = [], 0.0
    for norms in depths:
        places = norms.columns.to_numpy(float)
        places = places - places.mean()
        finite = np.isfinite(norms).all(axis=1)
        moments.append((norms.where(finite, nan) @ places).where(finite, nan))
        squares += float(places @ places)
    if not squares:
        return Interval(nan, nan, nan, nan, 0, note="one block has no slope")
    return mean_interval(-pd.concat(moments, axis=1).sum(axis=1, skipna=False) / squares)
