"""The verdict on a run: how far the gradient's norm changes, in what shape, and as theory says?

*The body.* A run is judged by log10‖δ‖ over its body: layers 1 to L without the read-out, the last
layer under ``upstream=loss``, whose map to the classes has another shape and is reported apart. A
recurrent net is judged by ‖∂L/∂h_t‖ over the steps of its last recurrent layer; a trained run by
the first step of its training, which is at initialization. Changes are in
decades (powers of ten) going backward, from the body's last place to its first: negative where the
norm shrinks on its way to the input.

*Trend.* With the threshold T = ``kept_within`` (1 decade, a factor of ten) and the 95 % interval of
the change over seeds: ``vanishing`` below −T, ``exploding`` above T, ``kept`` inside (−T, T), and
``undecided`` where the interval holds −T or T.

*Shape.* log10‖δ_l‖ = a + b l is exponential, a + x log10 l a power of depth (through time of the
steps travelled). Both are fitted to every seed; the one that leaves less is named where the 95 %
interval of the paired log-ratio of what they leave excludes 0.

*Agreement.* D is the measured change minus the predicted one, over the places that theory covers,
and m the margin: a tenth of the predicted change, at least 0.1 decades. Theory ``agrees`` where
both one-sided tests at 5 % show |D| < m, that is where the 90 % interval of D lies inside (−m, m);
it ``differs`` where the 95 % interval lies beyond ±(m + e), e theory's own error; else the matter
is ``undecided``. Theory's error never makes an agreement.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import ceil, inf, isfinite, isnan, nan, sqrt

import numpy as np
import pandas as pd
from scipy.special import ndtri, stdtrit

from flowlab import notebook
from flowlab.analysis.statistics import (
    Interval,
    at_start,
    by_block,
    by_seed,
    format_of,
    mean_interval,
)
from flowlab.errors import InputError, check_positive
from flowlab.schema import COTANGENT, DELTA

KEPT_WITHIN = 1.0  # decades, end to end
RELATIVE_MARGIN, LEAST_MARGIN = 0.1, 0.1  # of the predicted change; decades
TRENDS = ("vanishing", "kept", "exploding", "undecided")
AGREEMENTS = ("agrees", "differs", "undecided", "no theory")
_LEAST_PLACES = 5  # for a shape
_MOST_SEEDS = 100_000
# The columns of a table that a verdict reads.
READ = ("run", "step", "seed", "layer", "time", "op", "module", "parameter", "block", "status")
READ += ("upstream", DELTA, COTANGENT)


@dataclass(frozen=True)
class Verdict:
    """What one run says of gradient flow, and whether theory foresaw it.

    ``trend`` is one of TRENDS, ``agreement`` one of AGREEMENTS; see the module's text for the
    rules. ``change`` (decades) and ``slope`` (decades per layer or step) belong to the body, which
    goes from ``first`` to ``last``; with one seed their interval is built from the spread that
    theory predicts, if any. ``shape`` is exponential, power or "" where neither is shown;
    ``exponent`` belongs to the power. ``difference`` is the measured change minus ``predicted``,
    both over the places ``covered``; ``predicted_sd`` is theory's sd of one seed's change,
    ``margin`` and ``theory_error`` are m and e. ``readout`` is the change across the read-out, None
    without one. ``zeros`` counts the seeds whose norm is
    exactly zero at ``first``. ``because`` says why there is no prediction.
    """

    trend: str
    agreement: str
    change: Interval
    slope: Interval
    first: int
    last: int
    kept_within: float = KEPT_WITHIN
    shape: str = ""
    exponent: Interval | None = None
    predicted: float = nan
    predicted_sd: float = nan
    difference: Interval | None = None
    covered: tuple[int, int] | None = None
    margin: float = nan
    theory_error: float = 0.0
    readout: Interval | None = None
    zeros: int = 0
    quantity: str = "log10‖δ‖"
    along: str = "layer"
    because: str = ""

    @property
    def crossed(self) -> int:
        """Layers or steps between the two ends of the body."""
        return self.last - self.first

    @property
    def whole(self) -> bool:
        """Whether theory covers the whole body."""
        return self.covered == (self.first, self.last)

    @property
    def sentence(self) -> str:
        """Trend, size, rate and agreement in plain words."""
        parts = [self.trend_words(), self.theory_words()]
        return ". ".join(part[:1].upper() + part[1:] for part in parts if part) + "."

    def _repr_html_(self) -> str:
        return notebook.of_verdict(self)

    def trend_words(self) -> str:
        """The trend with the change of the body, its interval and its rate."""
        change, ends = self.change, f"from {self.along} {self.last} to {self.first}"
        if change.n == 0:
            if self.zeros:
                return f"{self.trend}: δ is exactly zero in {self.along} {self.first} in every seed"
            return f"{self.trend}: {self.quantity} has no change to judge ({change.note})"
        text = f"{self.trend}: {self.quantity} changes by {_decades(change)} decades {ends}"
        text += f" ({_seeds(change)})" if change.known else ""
        if change.excluded:
            text += f", {_count(change.excluded, 'seed')} excluded: zero or non-finite norms"
        text += f"; {self.rate_words()}" if self.trend in ("vanishing", "exploding") else ""
        if self.trend == "kept":
            text += f", within ±{self.kept_within:g}"
        if self.trend == "undecided":
            text += f"; the threshold is ±{self.kept_within:g}" + more_words(self.seeds_to_decide())
        if self.readout is not None and self.readout.n:
            text += f"; the read-out adds {_decades(self.readout)}"
        return text

    def rate_words(self) -> str:
        """The rate with its law: "it loses a decade every 65 layers (exponential, ...)"."""
        if self.shape == "power":
            return f"as a power of {self._travelled}, exponent {self.exponent:z.2f}"
        words = f"it {self.pace_words()}"
        if self.shape == "exponential":
            spec = format_of(self.slope.mean, (self.slope.high - self.slope.low) / 2, 3)
            return f"{words} (exponential, {self.slope.mean:{spec}} a {self.along})"
        return words

    def pace_words(self) -> str:
        """The rate as a person would say it: "loses a decade every 65 layers"; "" if unknown."""
        if self.shape == "power":
            return f"as a power of {self._travelled}, exponent {self.exponent.mean:z.2f}"
        rate = abs(self.change.mean)
        if not rate > 0:
            return ""
        verb, each = "loses" if self.change.mean < 0 else "gains", self.crossed / rate
        if each >= 1:
            count = f"{each:.0f}" if each >= 10 else f"{each:.1f}"
            return f"{verb} a decade every {count} {self.along}s"
        return f"{verb} {1 / each:.1f} decades a {self.along}"

    @property
    def _travelled(self) -> str:
        return "depth" if self.along == "layer" else "the steps travelled"

    def theory_words(self) -> str:
        """Theory's number and whether the measurement agrees, with what decided it."""
        if self.agreement == "no theory":
            return "no prediction" + (f": {self.because}" if self.because else "")
        difference = self.difference
        text = f"theory predicts {self.predicted:z.2f}"
        if not self.whole:
            text += f" from {self.along} {self.covered[1]} to {self.covered[0]}"
        if self.theory_error >= 0.005:
            text += f" (its own error ±{self.theory_error:.2f})"
        tolerance = f"tolerance {self.margin:.2g}"
        if not difference.known:
            return f"{text}: undecided ({difference.note or 'one seed has no interval'})"
        if self.agreement == "agrees":
            low, high = bounds(difference, 0.90)
            return f"{text}: agrees, within {max(-low, high):z.2f} decades ({tolerance})"
        if self.agreement == "differs":
            return f"{text}: differs by {_decades(difference)} ({tolerance})"
        text += f": undecided, the difference is {_decades(difference)} ({tolerance})"
        size = abs(difference.mean)
        if self.margin <= size <= self.margin + self.theory_error:
            return f"{text}; theory is not sharp enough to decide"
        return text + more_words(self.seeds_to_agree())

    def seeds_to_decide(self) -> float:
        """How many more seeds would decide the trend, should the change stay what it is."""
        return more_seeds(self.change, abs(abs(self.change.mean) - self.kept_within), 0.95)

    def seeds_to_agree(self) -> float:
        """How many more seeds would decide the agreement, should the difference stay."""
        size = abs(self.difference.mean)
        if size < self.margin:
            return more_seeds(self.difference, self.margin - size, 0.90)
        return more_seeds(self.difference, size - self.margin - self.theory_error, 0.95)


def judge(
    table: pd.DataFrame, prediction: pd.DataFrame | None = None, kept_within: float = KEPT_WITHIN
) -> Verdict:
    """The verdict on one run from its table and its prediction, by the rules of this module.

    Theory's own error of the change is its ``slope_error`` times the places crossed. A prediction
    of another run than the table's is none. Raises InputError for a table of several runs, without
    δ, or a threshold that is not above 0.
    """
    check_positive("kept_within", kept_within)
    if table.empty:
        raise InputError("table must hold at least one row; got none")
    rows, column, along = view(table[[name for name in READ if name in table]])
    words = {"quantity": "log10‖δ‖", "along": "layer"}
    if along == "time":
        words = {"quantity": "log10‖∂L/∂h_t‖", "along": "step"}
    norms = by_seed(rows, column, along=along)
    places, readout = norms.columns.to_numpy(), None
    if along == "layer" and has_readout(rows) and len(places) > 1:
        readout = mean_interval(_difference(norms, places[-2], places[-1]))
        norms, places = norms[places[:-1]], places[:-1]
    if len(places) == 0:
        empty = Interval(nan, nan, nan, nan, 0, note=f"the table has no {column}")
        return Verdict("undecided", "no theory", empty, empty, 0, 0, kept_within, **words)
    first, last = int(places[0]), int(places[-1])
    curve, because = _curve(rows, prediction, column, along, places)
    sd = _spread(curve, column, first, last) if len(curve) else nan
    if len(places) < 2:
        note = f"the body has one {words['along']}"
        change = slope = Interval(nan, nan, nan, nan, 0, note=note)
    else:
        change = _over(_difference(norms, first, last), sd)
        slope = mean_interval(_slopes(norms))
    zeros = int(np.isneginf(norms[first]).sum()) if len(places) > 1 else 0
    shape, exponent = _shape(norms, change, along)
    found = {"readout": readout, "zeros": zeros, "shape": shape, "exponent": exponent, **words}
    trend = _trend(change, kept_within)
    if change.n == 0 and zeros and zeros == len(norms):
        trend = "vanishing"
    ends = (change, slope, first, last, kept_within)
    if len(places) < 2:
        because = change.note
    if len(curve) < 2:
        return Verdict(trend, "no theory", *ends, because=because, **found)
    covered = int(curve.index[0]), int(curve.index[-1])
    predicted = _change(curve[column])
    error = _theory_error(curve) * (covered[1] - covered[0])
    spread = _spread(curve, column, *covered)
    difference = _over(_difference(norms, *covered) - predicted, spread)
    margin = max(LEAST_MARGIN, RELATIVE_MARGIN * abs(predicted))
    agreement = _agreement(difference, margin, error)
    found |= {"predicted": predicted, "predicted_sd": spread}
    found |= {"difference": difference, "covered": covered}
    return Verdict(trend, agreement, *ends, margin=margin, theory_error=error, **found)


def foresee(
    prediction: pd.DataFrame,
    upstream: str = "loss",
    seeds: int = 1,
    kept_within: float = KEPT_WITHIN,
) -> Verdict:
    """The verdict that a prediction gives on a run of ``seeds`` networks that nobody measured.

    ``change`` is the predicted one, its interval what 95 % of such ensembles would show by theory's
    spread, widened by theory's own error. Where theory knows no spread there is no interval, and
    the trend is that of the mean; where it is silent the trend is undecided. Raises InputError as
    :func:`judge` does.
    """
    rows = prediction.assign(seed=0, status="ok", upstream=upstream)
    found = judge(rows, prediction, kept_within)
    if not found.whole:
        because = next(iter(prediction["silent_because"].dropna()), "theory covers a part of it")
        return replace(found, trend="undecided", agreement="no theory", because=because)
    spread = found.predicted_sd / sqrt(seeds)
    half = float(ndtri(0.975)) * spread + found.theory_error
    ends = found.predicted - half, found.predicted + half
    change = Interval(found.predicted, *ends, spread, seeds, note="as theory predicts")
    known = change
    if isnan(spread):
        error = found.theory_error
        known = replace(change, low=found.predicted - error, high=found.predicted + error)
    return replace(found, change=change, trend=_trend(known, kept_within), difference=None)


def judge_all(
    table: pd.DataFrame,
    prediction: pd.DataFrame | None = None,
    kept_within: float = KEPT_WITHIN,
) -> dict[object, Verdict]:
    """The verdict on every run of ``table``, by its ``run``. Raises InputError as ``judge``."""
    of = {}
    if prediction is not None and len(prediction):
        of = dict(iter(prediction.groupby("run", observed=True)))
    return {
        run: judge(rows, of.get(run), kept_within)
        for run, rows in table.groupby("run", observed=True)
    }


def has_readout(rows: pd.DataFrame) -> bool:
    """Does the last layer of these rows map to the classes of a loss?"""
    if "upstream" not in rows or rows.empty:
        return False
    return bool((rows["upstream"] == "loss").fillna(False).all())


def view(table: pd.DataFrame) -> tuple[pd.DataFrame, str, str]:
    """What a run is judged by: its rows, the column and the axis.

    Layers and δ; of a recurrent net the steps of its last recurrent layer and ∂L/∂h_t; of a user's
    model that repeats a block these in the place of layers. Of a trained run the rows are those of
    the first step of training.
    """
    table = by_block(at_start(table))
    if "time" in table and table["time"].notna().any():
        steps = table[table["time"].notna()]
        return steps[steps["layer"] == steps["layer"].max()], COTANGENT, "time"
    return table, DELTA, "layer"


def _curve(rows, prediction, column, along, places) -> tuple[pd.DataFrame, str]:
    """The predicted rows at ``places``, indexed by place, and why there are none."""
    nothing = pd.DataFrame()
    if prediction is None or prediction.empty:
        return nothing, ""
    if "run" in prediction and "run" in rows and prediction["run"].iat[0] != rows["run"].iat[0]:
        return nothing, "the table is of another network or other settings than the prediction"
    because = ""
    if "silent_because" in prediction:
        because = next(iter(prediction["silent_because"].dropna()), "")
    prediction = by_block(prediction)
    if column not in prediction:
        return nothing, because
    values = prediction[column].to_numpy(dtype=np.float64, na_value=nan)
    known = ~np.isnan(values)
    if "time" in prediction:
        known &= prediction["time"].notna().to_numpy() == (along == "time")
    at = prediction[along].to_numpy(dtype=np.float64, na_value=nan)
    known &= np.isin(at, places)
    # Of several operations in a layer the last counts.
    index, last = np.unique(at[known][::-1], return_index=True)
    rows = np.flatnonzero(known)[::-1][last]
    kept = {column: values[rows]}
    for name in (f"{column}_sd", "slope_error"):
        if name in prediction:
            kept[name] = prediction[name].to_numpy(dtype=np.float64, na_value=nan)[rows]
    return pd.DataFrame(kept, index.astype(np.int64)), because


def _difference(norms: pd.DataFrame, first: int, last: int) -> np.ndarray:
    """Each seed's change from place ``last`` to ``first``; NaN where either is not finite."""
    with np.errstate(invalid="ignore"):
        change = norms[first].to_numpy() - norms[last].to_numpy()
    return np.where(np.isfinite(change), change, nan)


def _over(values: np.ndarray, sd: float) -> Interval:
    """The interval over seeds; of one seed by theory's spread ``sd`` of a single seed."""
    interval = mean_interval(values)
    if interval.n != 1 or not sd >= 0:
        return interval
    half = sd * float(ndtri((1 + interval.level) / 2))
    mean, note = interval.mean, "one seed, with the spread that theory predicts"
    return Interval(mean, mean - half, mean + half, sd, 1, interval.level, interval.excluded, note)


def bounds(interval: Interval, level: float) -> tuple[float, float]:
    """The same estimate's interval at another level."""
    half = interval.se * _quantile(level, interval.n)
    return interval.mean - half, interval.mean + half


def _quantile(level: float, n: int) -> float:
    """Student's two-sided quantile over n seeds; the normal one for a known spread (one seed)."""
    tail = (1 + level) / 2
    return float(stdtrit(n - 1, tail)) if n > 1 else float(ndtri(tail))


def _trend(change: Interval, kept_within: float) -> str:
    if not change.known:
        return "undecided"
    if change.high < -kept_within:
        return "vanishing"
    if change.low > kept_within:
        return "exploding"
    inside = -kept_within < change.low and change.high < kept_within
    return "kept" if inside else "undecided"


def _agreement(difference: Interval, margin: float, error: float) -> str:
    if not difference.known:
        return "undecided"
    low, high = bounds(difference, 0.90)
    if -margin < low and high < margin:
        return "agrees"
    beyond = margin + error
    return "differs" if difference.low > beyond or difference.high < -beyond else "undecided"


def _slopes(norms: pd.DataFrame) -> np.ndarray:
    """Each seed's least-squares slope per place going backward."""
    places = norms.columns.to_numpy(dtype=np.float64)
    values = norms.to_numpy(dtype=np.float64)
    centred = places - places.mean()
    finite = np.isfinite(values).all(axis=1)
    slopes = np.full(len(values), nan)
    slopes[finite] = -(values[finite] @ centred) / (centred @ centred)
    return slopes


def _shape(norms: pd.DataFrame, change: Interval, along: str) -> tuple[str, Interval | None]:
    """The law that the seeds follow, and the exponent of a power."""
    places = norms.columns.to_numpy(dtype=np.float64)
    values = norms.to_numpy(dtype=np.float64)
    values = values[np.isfinite(values).all(axis=1)]
    moved = change.known and (change.low > 0 or change.high < 0)
    if not moved or len(places) < _LEAST_PLACES or len(values) < 2:
        return "", None
    travelled = places if along == "layer" else places[-1] - places + 1
    fits = [_fit(values, x) for x in (places, np.log10(travelled))]
    (_, straight), (exponents, power) = fits
    total = values.var(axis=1).mean() * len(places)
    floor = 1e-12 * total  # an exact law leaves rounding, which has no shape
    apart = mean_interval(np.log((straight + floor) / (power + floor)))
    if apart.low > 0:
        return "power", mean_interval(exponents)
    return ("exponential", None) if apart.high < 0 else ("", None)


def _fit(values: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each seed's slope on ``x`` and the squares that the fitted line leaves."""
    centred, moved = x - x.mean(), values - values.mean(axis=1, keepdims=True)
    slopes = moved @ centred / (centred @ centred)
    left = moved - slopes[:, None] * centred
    return slopes, np.square(left).sum(axis=1)


def _change(curve: pd.Series) -> float:
    return float(curve.iloc[0] - curve.iloc[-1])


def _spread(curve: pd.DataFrame, column: str, first: int, last: int) -> float:
    """The sd of one seed's change: the log-norm is a random walk going backward."""
    name = f"{column}_sd"
    if name not in curve or first not in curve.index or last not in curve.index:
        return nan
    near, far = curve[name].loc[first], curve[name].loc[last]
    return sqrt(max(near**2 - far**2, 0.0)) if isfinite(near) and isfinite(far) else nan


def _theory_error(curve: pd.DataFrame) -> float:
    """Theory's own error of the slope, 0 where a prediction states none."""
    slope = float(curve["slope_error"].max()) if "slope_error" in curve else 0.0
    return 0.0 if isnan(slope) else slope


def more_seeds(interval: Interval, gap: float, level: float) -> float:
    """Seeds beyond the present ones until the half-width at ``level`` is below ``gap``."""
    if not (gap > 0 and interval.known and interval.n > 1):
        return inf
    sd = interval.se * sqrt(interval.n)
    n = interval.n + 1
    while n < _MOST_SEEDS and _quantile(level, n) * sd / sqrt(n) >= gap:
        n += max(1, n // 20)
    return inf if n >= _MOST_SEEDS else n - interval.n


def more_words(seeds: float) -> str:
    """How many more seeds would decide, in words; nothing where no number is known."""
    if not isfinite(seeds):
        return ""
    digits = 10 ** max(0, len(str(int(seeds))) - 2)
    return f"; about {_count(ceil(seeds / digits) * digits, 'more seed')} would decide"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _decades(interval: Interval) -> str:
    if not interval.known:
        return f"{interval.mean:z.2f} (one seed: no interval)"
    spec = format_of(interval.mean, (interval.high - interval.low) / 2, 2)
    return f"{interval.mean:{spec}} [{interval.low:{spec}}, {interval.high:{spec}}]"


def _seeds(interval: Interval) -> str:
    if interval.n == 1:
        return interval.note
    return f"{100 * interval.level:g} % interval over {interval.n} seeds"


def tally(words: Iterable[str], order: tuple[str, ...]) -> dict[str, int]:
    """How often each word of ``order`` occurs, in that order; none that does not."""
    words = list(words)
    return {word: words.count(word) for word in order if word in words}


def counted(trends: Iterable[str], kept_within: float) -> str:
    """How many runs have each trend: "3 vanishing, 2 kept (within ±1 decade)"."""
    found = tally(trends, TRENDS)
    if not found:
        return "none can be judged"
    limit = f" (within ±{kept_within:g} decade{'s' * (kept_within != 1)})"
    return ", ".join(f"{n} {word}{limit * (word == 'kept')}" for word, n in found.items())
