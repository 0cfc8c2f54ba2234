"""A test of gradient flow for one's own suite: ``flowlab.assert_flow(make, ..., within=0.02)``."""

from collections.abc import Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from flowlab.analysis.statistics import by_seed, mean_interval
from flowlab.analysis.verdicts import bounds, more_seeds, more_words, view
from flowlab.errors import check_positive
from flowlab.modules.probing import Probe, probe
from flowlab.schema import DELTA

if TYPE_CHECKING:
    from flowlab.modules.feeding import Loss, Make

_SHOWN = 5


class FlowFailed(AssertionError):
    """The slope is shown to lie outside what ``assert_flow`` allows, or norms are not finite."""


class FlowInconclusive(AssertionError):
    """The seeds do not suffice to show that the slope lies within, nor that it lies outside."""


def assert_flow(
    make: "Make",
    depths: Sequence[int] = (4, 16),
    seeds: int = 8,
    batch: Any = None,
    loss: "Loss" = None,
    within: float = 0.02,
    **options: Any,
) -> Probe:
    """Assert that the gradient's norm changes by less than ``within`` decades a layer.

    Models and options are those of :func:`flowlab.probe`. It passes where two one-sided t tests at
    5 % (Schuirmann 1987) show that the slope over seeds lies in (-within, within): where the 90 %
    interval lies inside. Otherwise it raises an AssertionError with the slope, the rows that change
    most, and what to do: FlowFailed where the 95 % interval lies outside or norms are zero or not
    finite; FlowInconclusive, with the number of seeds that would probably decide, where the seeds
    do not suffice. Returns the probe. Raises InputError as ``probe`` does.
    """
    check_positive("within", within)
    found = probe(make, depths, seeds, batch, loss, **options)
    slope = found.verdict.slope
    wide = f"the slope must lie within ±{within:g} decades a layer"
    if slope.excluded:
        raise FlowFailed(
            f"failed: {slope.excluded} of {slope.excluded + slope.n} seeds have norms that are "
            f"zero, unused, below the type's range or not finite; {wide}\n{_worst(found.table)}"
        )
    if not slope.known:
        raise FlowInconclusive(
            f"inconclusive: {wide}; got {slope.mean:.3g} from one seed, which has no interval: "
            "seeds=2 at least"
        )
    low, high = bounds(slope, 0.90)
    if -within < low and high < within:
        return found
    outside = slope.low > within or slope.high < -within
    text = f"{wide}; got {slope} over {slope.n} seeds"
    if outside:
        raise FlowFailed(f"failed: {text}. {found.verdict.sentence}\n{_worst(found.table)}")
    gap = within - abs(slope.mean)  # beyond it, 95 % must show that the slope lies outside
    more = more_seeds(slope, abs(gap), 0.90 if gap > 0 else 0.95)
    advice = more_words(more) or "; no number of seeds up to 100,000 would decide"
    raise FlowInconclusive(
        f"inconclusive: {text}, 90 % interval [{low:.3g}, {high:.3g}]{advice}\n"
        f"{_worst(found.table)}"
    )


def _worst(table: pd.DataFrame) -> str:
    """The rows that are not ok, and those between which the deepest nets' norm changes most."""
    deepest = table[table["depth"] == table["depth"].max()]
    bad = deepest[deepest["status"] != "ok"].drop_duplicates("module")
    lines = [
        f"  layer {row.layer} {row.module or 'the model'} ({row.op}"
        f"{'' if pd.isna(row.parameter) else ', ' + row.parameter}): {row.status}"
        for row in bad.head(_SHOWN).itertuples()
    ]
    rows = view(deepest)[0].dropna(subset=DELTA)
    values = by_seed(rows, DELTA)
    paths = rows.drop_duplicates("layer", keep="last").set_index("layer")["module"]
    places = values.columns.to_numpy()
    with np.errstate(invalid="ignore"):
        steps = values.to_numpy()[:, :-1] - values.to_numpy()[:, 1:]
    means = [mean_interval(step) for step in steps.T]
    order = sorted(
        (k for k in range(len(means)) if isfinite(means[k].mean)),
        key=lambda k: -abs(means[k].mean),
    )
    lines += [
        f"  layer {places[k + 1]} to {places[k]} ({paths[places[k + 1]]} to "
        f"{paths[places[k]]}): {means[k]} decades"
        for k in order[:_SHOWN]
    ]
    return "Worst rows:\n" + "\n".join(lines)
