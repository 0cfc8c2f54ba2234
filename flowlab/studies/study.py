"""What a study is made of: a question, figures that show the answer, findings that assert it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from flowlab.analysis.verdicts import KEPT_WITHIN
from flowlab.claims.claim import HOLDS, Claim, Finding, register
from flowlab.claims.trial import Trial
from flowlab.errors import InputError
from flowlab.figures import steps, through_time
from flowlab.figures.choice import choose, described
from flowlab.figures.head import fixed, head
from flowlab.figures.sweeps import Conditions, sweep


@dataclass(frozen=True)
class Reading:
    """A tidy table of runs, and what a study reads beside it.

    ``prediction`` holds theory's rows of the same runs, ``curve`` those of the training of trained
    ones (:mod:`flowlab.training.curve`), None where there are none; verdicts go by the threshold
    ``kept_within`` (decades); ``image`` is the side of images as the runs' metadata have it, for
    tables without such a column.
    """

    table: pd.DataFrame
    prediction: pd.DataFrame | None = None
    kept_within: float = KEPT_WITHIN
    image: int | None = None
    curve: pd.DataFrame | None = None

    def narrowed(self, select: Callable[[pd.DataFrame], pd.DataFrame]) -> "Reading":
        """The same of the runs that ``select`` keeps of the table."""
        table = select(self.table)
        runs = table["run"].unique()
        beside = {}
        for name in ("prediction", "curve"):
            frame = getattr(self, name)
            if frame is not None:
                frame = frame[frame["run"].isin(runs)]
                beside[name] = None if frame.empty else frame
        return replace(self, table=table, **beside)

    @cached_property
    def sweep(self) -> Conditions:
        """The table's runs by the settings in which they differ."""
        return sweep(self.table, self.prediction, self.kept_within, self.curve)

    @property
    def trained(self) -> pd.DataFrame:
        """The curve; raises InputError where no run was trained."""
        if self.curve is None:
            raise InputError("table must hold trained runs, with their curves; got none")
        return self.curve

    @property
    def side(self) -> int:
        """The side of the images; raises InputError where nothing says it."""
        known = self.table["image"].dropna() if "image" in self.table else pd.Series(dtype=int)
        if len(known):
            return int(known.iat[0])
        if self.image is None:
            run = next(iter(self.table["run"]), "none")
            raise InputError(f"table must say how large the images of run {run} are; it does not")
        return self.image


@dataclass(frozen=True)
class Drawing:
    """A figure of a study: its file's name, what it finds, and what draws and describes it.

    ``finding`` says in words and numbers what the figure shows, computed from what it shows: it
    stands above it. ``select`` keeps the rows of the table that are shown.
    """

    name: str
    finding: Callable[[Reading], str]
    draw: Callable[[Reading], Figure]
    caption: Callable[[Reading], str]
    select: Callable[[pd.DataFrame], pd.DataFrame] = lambda table: table
    applies: Callable[[Reading], bool] = lambda reading: True

    def shown(self, reading: Reading) -> Reading:
        """What of a reading the figure shows."""
        return reading.narrowed(self.select)

    def figure(self, reading: Reading, finding: str | None = None) -> Figure:
        """The figure of what is ``shown``, under its finding and the settings that it fixes.

        Whoever knows the ``finding`` already gives it.
        """
        finding = self.finding(reading) if finding is None else finding
        return head(self.draw(reading), finding, fixed(reading.table))


def chosen(
    name: str, select: Callable[[pd.DataFrame], pd.DataFrame] = lambda table: table
) -> Drawing:
    """The drawing whose form follows the settings that vary (:mod:`flowlab.figures.choice`)."""
    return Drawing(
        name,
        lambda reading: choose(reading.sweep).finding(),
        lambda reading: choose(reading.sweep).figure(),
        lambda reading: choose(reading.sweep).caption(),
        select,
    )


def by_step(name: str) -> Drawing:
    """The drawing of gradients by layer and step, of trained runs of which :func:`chosen` shows the
    curves."""
    return Drawing(
        name,
        lambda reading: steps.finding(reading.sweep),
        lambda reading: steps.layer_by_step(reading.sweep),
        lambda reading: described(reading.sweep),
        applies=lambda reading: reading.curve is not None and steps.fits(reading.sweep),
    )


def through_steps(
    name: str,
    lines: str,
    finding: Callable[[pd.DataFrame], str],
    select: Callable[[pd.DataFrame], pd.DataFrame],
) -> Drawing:
    """The drawing of gradients through time, a line for each value of ``lines``.

    A panel stands for each activation and recurrent map; ``finding`` takes the frame of
    :func:`flowlab.figures.through_time.changes`.
    """
    axes = {"down": "activation", "across": "recurrent", "lines": lines}

    def changes(reading: Reading) -> pd.DataFrame:
        within = {"kept_within": reading.kept_within}
        return through_time.changes(reading.table, reading.prediction, **axes, **within)

    return Drawing(
        name,
        lambda reading: finding(changes(reading)),
        lambda r: through_time.state_gradients(r.table, r.prediction, **axes),
        lambda r: through_time.state_gradients_caption(changes(r), r.table["seed"].nunique()),
        select,
    )


Find = Callable[[Reading], Finding]


@dataclass(frozen=True)
class TableClaim(Claim):
    """A claim whose finding is read from a table: of runs made for it, or of those that are kept.

    ``find`` raises InputError where the table does not hold what it needs; ``runs`` are the
    settings of the small sweep, each with ``times`` as many networks as a trial has seeds. Those
    that name an optimizer are trained.
    """

    find: Find
    runs: tuple[dict, ...]
    times: float = 1

    def reading(self, trial: Trial) -> Reading:
        """The small sweep, measured and trained."""
        image = self.runs[0].get("network", {}).get("image")
        table, curve = trial.sweep(self.runs, self.times)
        return Reading(table, image=image, curve=curve)


def finding(
    id: str,
    statement: str,
    source: str,
    *expected: str,
    runs: Sequence[dict],
    times: float = 1,
) -> Callable[[Find], TableClaim]:
    """Register the decorated function of a reading as a claim, expected to hold by default.

    ``runs`` and ``times`` are those of :class:`TableClaim`, settings in the terms of
    ``Trial.measure`` or, with ``training``, of ``Trial.train``.
    """

    def decorate(find: Find) -> TableClaim:
        def check(trial: Trial) -> Finding:
            return find(claim.reading(trial))

        verdicts = expected or (HOLDS,)
        claim = TableClaim(id, statement, source, check, verdicts, find, tuple(runs), times)
        register(claim)
        return claim

    return decorate


@dataclass(frozen=True)
class Study:
    """One question, where it comes from, and what answers it.

    ``experiment`` names the experiment whose tables the study's runs join, by default one of the
    study's own name. What its first figure finds is its answer; ``rank`` is its place among the
    answers, the lowest first.
    """

    question: str
    source: str
    figures: tuple[Drawing, ...] = ()
    findings: tuple[TableClaim, ...] = ()
    experiment: str = ""
    rank: int = 50

    def answer(self, reading: Reading) -> str:
        """The study's answer in a sentence: the finding of its first figure."""
        first = self.figures[0]
        return first.finding(first.shown(reading))

    def read(self, reading: Reading) -> tuple[list[tuple[TableClaim, Finding]], list[str]]:
        """Each claim with its finding on a table; a line for each that the table cannot answer."""
        found, lacking = [], []
        for claim in self.findings:
            try:
                found.append((claim, claim.find(reading)))
            except InputError as error:
                lacking.append(f"{claim.id} cannot be read from this table: {error}")
        return found, lacking


def runs_with(table: pd.DataFrame, **settings) -> pd.DataFrame:
    """The rows of runs with these settings; raises InputError where there are none."""
    rows = table
    for name, value in settings.items():
        column = rows[name] if name in rows else pd.Series(None, rows.index, object)
        if isinstance(value, float):
            close = np.isclose(column.astype(float), value, rtol=1e-9)
            rows = rows[close]
        else:
            rows = rows[(column == value).fillna(False).astype(bool)]
    if rows.empty:
        named = ", ".join(
            f"{name}={value:.6g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in settings.items()
        )
        raise InputError(f"table must hold a run of {named}; got none")
    return rows


def first_run(rows: pd.DataFrame, *axes: str) -> pd.DataFrame:
    """The rows of one run: that with the greatest value of the first of ``axes``, then the next."""
    runs = rows.drop_duplicates("run").sort_values([*axes, "run"], ascending=False)
    return rows[rows["run"] == runs["run"].iat[0]]
