"""The figure of any sweep: its form follows the settings that vary."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from flowlab.analysis.verdicts import AGREEMENTS, KEPT_WITHIN, counted, tally
from flowlab.figures import (
    batch_law,
    networks,
    one_axis,
    over,
    over_batch,
    pairs,
    ranks,
    sentences,
    steps,
    training,
)
from flowlab.figures.head import fixed, head
from flowlab.figures.labels import MOST
from flowlab.figures.layer_profiles import profiles
from flowlab.figures.sweeps import SIZES, Conditions, sweep

MOST_PANELS = 4
MOST_IN_PANEL = 4  # runs of one network
MOST_CELLS = (28, 14)  # down, across


@dataclass(frozen=True)
class Form:
    """One way to show a sweep: what draws it, the sentence that it shows, and its caption."""

    figure: Callable[[], Figure]
    finding: Callable[[], str]
    caption: Callable[[], str]


def draw(
    table: pd.DataFrame,
    prediction: pd.DataFrame | None = None,
    kept_within: float = KEPT_WITHIN,
    curve: pd.DataFrame | None = None,
) -> Figure:
    """The figure of a tidy table (one row per run, seed, layer), whatever its runs vary.

    Trained runs with their ``curve``, of one or two settings: loss and accuracy over the examples
    seen; without it, up to eight runs: ‖dW‖ by layer and step. Else what is at
    initialization. One run: norms against layer, of a recurrent net against step. Up to eight runs:
    their lines on one axis. Depth, or the steps of a sequence, varies: the change from output to
    input against it. The batch size: the batch law. The network: a panel for each. Two settings: a
    map of pairs.
    More, or too many values: runs ranked. Above it stand the finding, verdicts by ``kept_within``
    decades, and the settings that all runs share. Raises InputError for an empty table and a
    missing column.
    """
    form = choose(sweep(table, prediction, kept_within, curve))
    return head(form.figure(), form.finding(), fixed(table))


def choose(of: Conditions) -> Form:
    """The form of a sweep; what it cannot show legibly is ranked."""
    if training.fits(of):
        drawn, found = partial(training.training, of), partial(training.finding, of)
        return Form(drawn, found, partial(training.caption, of))
    if not training.complete(of) and steps.fits(of):
        return _form(steps.layer_by_step, steps.finding, of)
    if len(of.points) == 1:
        return Form(
            lambda: profiles(of.table, of.prediction),
            lambda: sentences.alone(of.rows.iloc[0]),
            partial(described, of),
        )
    if of.axes == ["batch_size"] and "reduction" in of.table:
        return Form(
            lambda: batch_law.batch_law(of.table),
            lambda: batch_law.finding(of.table),
            partial(described, of),
        )
    if over_batch.fits(of):
        return _form(over_batch.norms_by_batch, over_batch.finding, of)
    grown = next((axis for axis in SIZES if axis in of.axes), None)
    if "network" in of.axes and (grown is None or of.rows["along"].nunique() > 1):
        return _networks(of, grown)
    if grown is None and len(of.points) <= MOST:
        return _form(one_axis.curves, one_axis.finding, of)
    numbers = [axis for axis in of.axes if of.numeric(axis)]
    if grown is None and len(of.axes) != 2 and numbers:
        grown = max(numbers, key=lambda axis: len(of.values(axis)))
    if grown:
        lines, panels = _others(of, grown)
        if _legible(of, lines, panels):
            options = {"over": grown, "lines": lines, "panels": panels}
            return _form(over.change_over, over.finding, of, **options)
    if len(of.axes) == 2 and not of.points.isna().any(axis=None):
        down, across = _map_axes(of)
        if len(of.values(down)) <= MOST_CELLS[0] and len(of.values(across)) <= MOST_CELLS[1]:
            return _form(pairs.heat_map, pairs.finding, of, down=down, across=across)
    return _form(ranks.ranking, ranks.finding, of)


def caption(
    table: pd.DataFrame,
    prediction: pd.DataFrame | None = None,
    kept_within: float = KEPT_WITHIN,
    curve: pd.DataFrame | None = None,
) -> str:
    """What the figure of a table shows, in words: each run's change, or of many how many there are.

    Changes are of log10 of the gradient's norm over the body going backward, in decades; numbers
    and words are those of the verdict. Of trained runs with their ``curve``, what they have learnt
    at the end. Raises InputError as ``draw`` does.
    """
    return choose(sweep(table, prediction, kept_within, curve)).caption()


def described(of: Conditions) -> str:
    """How far each run's gradient changes, or of many how many do."""
    rows = of.rows
    if len(rows) <= MOST:
        text = "Change of the gradient's log10 norm over the body going backward, decades, mean "
        text += "[95 % interval]: "
        text += "; ".join(_words(row, of) for _, row in rows.iterrows()) + "."
    else:
        text = f"Of {len(rows)} runs: {counted(rows['trend'], of.kept_within)}."
        known = rows.dropna(subset="mean")
        if len(known):
            ends = (known.loc[known["mean"].agg(how)] for how in ("idxmin", "idxmax"))
            low, high = (f"{row['label']} ({row['mean']:z.2f} decades)" for row in ends)
            text += f" Extremes: {low} and {high}."
    if of.prediction is not None and len(rows) > 1:
        tallied = tally(rows["agreement"], AGREEMENTS)
        text += f" Theory: {', '.join(f'{word} {n}' for word, n in tallied.items())}."
        compared = rows.dropna(subset="difference")
        if len(compared):
            miss = compared["difference"].abs()
            text += (
                f" It is off by {miss.median():.2g} decades in the median run and by at most "
                f"{miss.max():.2g} ({compared.loc[miss.idxmax(), 'label']})."
            )
    seeds = rows["seeds"]
    low, high = int(seeds.min()), int(seeds.max())
    count = f"{low}" if low == high else f"{low} to {high}"
    return f"{text} {count} seed{'s' * (high > 1)} each."


def _words(row: pd.Series, of: Conditions) -> str:
    text = "" if len(of.rows) == 1 else f"{row['label']} "
    text += "no finite seed" if np.isnan(row["mean"]) else f"{row['mean']:z.2f}"
    if np.isfinite(row["low"]):
        text += f" [{row['low']:z.2f}, {row['high']:z.2f}]"
    if row["excluded"] and np.isfinite(row["mean"]):
        text += f", {row['excluded']} of {row['seeds']} seeds left out as zero or nonfinite"
    text += f", {row['trend']}"
    if of.prediction is not None:
        silent = row["agreement"] == "no theory"
        predicted = row["predicted"]
        known = "" if np.isnan(predicted) else f" {predicted:z.2f}"
        text += ", no prediction" if silent else f", theory{known} ({row['agreement']})"
    return text


def _form(figure: Callable, finding: Callable, of: Conditions, **options) -> Form:
    parts = (partial(figure, of, **options), partial(finding, of, **options))
    return Form(*parts, partial(described, of))


def _networks(of: Conditions, grown: str | None) -> Form:
    each = of.points.groupby("network").size()
    few = len(each) <= 2 * MOST_PANELS and each.max() <= MOST_IN_PANEL
    if few and grown is None:
        return _form(networks.network_panels, networks.finding, of)
    return _form(ranks.ranking, ranks.finding, of)


def _others(of: Conditions, grown: str) -> tuple[str | None, str | None]:
    """Of the other settings that with most values for lines, the other for panels."""
    others = [axis for axis in of.axes if axis != grown]
    others.sort(key=lambda axis: -len(of.values(axis)))
    return (*others, None, None)[:2] if len(others) < 3 else (None, None)


def _legible(of: Conditions, lines: str | None, panels: str | None) -> bool:
    """Whether lines and panels hold every run, and are few enough to be labelled."""
    if len(of.axes) != 1 + (lines is not None) + (panels is not None):
        return False
    if of.points.isna().any(axis=None):  # a run to which one of them does not apply has no place
        return False
    few = lines is None or len(of.values(lines)) <= MOST
    return few and (panels is None or len(of.values(panels)) <= MOST_PANELS)


def _map_axes(of: Conditions) -> tuple[str, str]:
    """Numbers go across, else the setting with fewer long names."""
    first, second = of.axes
    if of.numeric(first) != of.numeric(second):
        return (second, first) if of.numeric(first) else (first, second)
    fewer = len(of.values(first)) < len(of.values(second))
    return (second, first) if fewer else (first, second)
