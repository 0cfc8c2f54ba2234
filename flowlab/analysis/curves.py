"""Curves of training: bands over seeds, what a loss costs, whether curves coincide.

A curve is a frame with one row per run, seed and logged step (:mod:`flowlab.training.curve`);
``by`` names the columns that keep its runs apart. Losses fall by decades, so that their means are
taken of logs, and curves are interpolated linearly in the logs of both axes.

The cost of a loss level in steps S and in examples E = SB, over batch sizes B, is described by

    (S/S_min − 1)(E/E_min − 1) = 1,    that is    E = E_min (1 + B/B_crit),  B_crit = E_min/S_min

(McCandlish et al. 2018, eq. 2.11 and 2.12): twice the fewest examples and twice the fewest steps
at B_crit. It is derived for the best learning rate of each batch size.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import inf, isfinite, log, log1p, nan

import numpy as np
import pandas as pd
from scipy.stats import binom

from flowlab.analysis.statistics import Interval, mean_interval, over_seeds
from flowlab.errors import InputError, check_positive, unknown

LOSSES = ("training_loss", "held_out_loss")
HELD_OUT = "held_out_loss"
COINCIDE, DIFFER, UNDECIDED = "coincide", "differ", "undecided"
RESAMPLES = 2000
FEWEST = 3  # batch sizes through which a trade-off is fitted


# Values and bands


def at(
    curve: pd.DataFrame,
    examples: Iterable[float],
    column: str = HELD_OUT,
    by: str | Iterable[str] = "run",
) -> pd.Series:
    """Each seed's value at these numbers of examples, indexed by (*by, seed, examples).

    Interpolated between logged steps; NaN outside of what was logged and beside a value that is
    not finite. Raises InputError for an unknown column, and for runs that ``by`` does not keep
    apart.
    """
    wanted = np.asarray(list(examples), np.float64)
    values = _columns(curve, column, "examples", by)
    found = {
        key: np.interp(np.log(wanted), x, y, nan, nan) for key, x, y in _curves(values, column)
    }
    index = pd.MultiIndex.from_tuples(found, names=values.index.names[:-1])
    frame = pd.DataFrame(list(found.values()), index, pd.Index(wanted, name="examples"))
    return _unscaled(frame.stack(**_STACK), column).rename(column)


def bands(
    curve: pd.DataFrame,
    column: str = HELD_OUT,
    by: str | Iterable[str] = "run",
    examples: Iterable[float] | None = None,
    level: float = 0.95,
) -> pd.DataFrame:
    """The mean over seeds with Student's t interval along training, of losses that of their logs.

    One row per (*by, examples): ``mean`` (of losses the geometric one), ``low``, ``high``, the
    number ``n`` of finite seeds and of those ``excluded``. At the logged steps, or at ``examples``
    that runs are to have in common. Raises InputError as :func:`at` does.
    """
    if examples is None:
        return _over_seeds(_columns(curve, column, "examples", by), column, level)
    return _over_seeds(at(curve, examples, column, by), column, level)


def final(curve: pd.DataFrame, column: str = HELD_OUT, by: str | Iterable[str] = "run"):
    """Each seed's value at its last logged step, indexed by (*by, seed); NaN where it diverged."""
    values = _columns(curve, column, "examples", by)
    return values.groupby(level=values.index.names[:-1]).tail(1).droplevel("examples")


def final_bands(
    curve: pd.DataFrame,
    column: str = HELD_OUT,
    by: str | Iterable[str] = "run",
    level: float = 0.95,
) -> pd.DataFrame:
    """The mean over seeds of ``final``, a row per ``by``, with the columns of :func:`bands`."""
    return _over_seeds(final(curve, column, by), column, level)


# What a loss costs


def needed(
    curve: pd.DataFrame,
    loss: float,
    along: str = "examples",
    column: str = HELD_OUT,
    by: str | Iterable[str] = "run",
) -> pd.Series:
    """The ``examples`` (or another column, such as ``step``) after which each seed has this loss.

    Where its curve first falls to it, between logged steps by interpolation; a seed that has it at
    the first logged step needs no more than that. inf where it is never reached: that is known to
    need more than was logged. Raises InputError as :func:`at` does.
    """
    check_positive("loss", loss)
    values = _columns(curve, column, along, by)
    found = {}
    for key, x, y in _curves(values, column):
        y = y - log(loss)
        below = np.flatnonzero(y <= 0)
        if len(below) == 0:
            found[key] = inf
            continue
        first = below[0]
        place = x[first]
        if first and isfinite(y[first - 1]):
            share = y[first - 1] / (y[first - 1] - y[first])
            place = x[first - 1] + share * (x[first] - x[first - 1])
        found[key] = np.exp(place)
    index = pd.MultiIndex.from_tuples(found, names=values.index.names[:-1])
    return pd.Series(list(found.values()), index, float, name=along)


@dataclass(frozen=True)
class TradeOff:
    """A fit of E = E_min (1 + B/B_crit) over batch sizes, with intervals from resampled seeds.

    ``batch`` is B_crit, ``examples`` E_min and ``steps`` S_min = E_min/B_crit, ``loss`` the level.
    ``points`` has a row for each batch size: the geometric mean of ``examples`` over seeds with
    ``low``, ``high``, and ``steps``. ``left_out`` are batch sizes at which not every seed has the
    loss. ``misfit`` is the root mean square of the points' distances from the fit, in ln E.
    """

    batch: Interval
    examples: Interval
    steps: Interval
    points: pd.DataFrame
    left_out: tuple[int, ...]
    misfit: float


def trade_off(needed: pd.Series, resamples: int = RESAMPLES, level: float = 0.95) -> TradeOff:
    """The trade-off of steps and examples from what seeds need, indexed by (batch_size, seed).

    Least squares in ln E. Seeds are drawn anew, whole, so that what the batch sizes of a seed have
    in common stays; the interval is that between quantiles of the fits. B_crit is 0 or inf where
    the batch sizes do not bend the curve. Raises InputError for fewer than three batch sizes at
    which every seed has the loss.
    """
    wide = needed.unstack("seed")
    reached = np.isfinite(wide).all(axis=1)
    left_out = tuple(int(size) for size in wide.index[~reached])
    wide = np.log(wide[reached])
    sizes = wide.index.to_numpy(float)
    if len(sizes) < FEWEST:
        raise InputError(
            f"curve must reach the loss in every seed of at least {FEWEST} batch sizes; "
            f"got {len(sizes)}"
        )
    random = np.random.default_rng(0)
    seeds = wide.shape[1]
    chosen = random.integers(seeds, size=(resamples, seeds))
    means = np.vstack([wide.mean(axis=1), wide.to_numpy()[:, chosen].mean(axis=2).T])
    batch, least, steps, misfit = _fits(sizes, means)
    tails = (1 - level) / 2, (1 + level) / 2

    def interval(values: np.ndarray) -> Interval:
        low, high = np.quantile(values[1:], tails, method="nearest")
        with np.errstate(invalid="ignore"):
            se = float(np.std(values[1:]))
        return Interval(float(values[0]), float(low), float(high), se, seeds, level)

    index = ["batch_size"]
    points = _over_seeds(wide.stack(**_STACK), None, level).sort_values(index, ignore_index=True)
    points[["mean", "low", "high"]] = np.exp(points[["mean", "low", "high"]])
    points = points.rename(columns={"mean": "examples"})
    points["steps"] = points["examples"] / points["batch_size"]
    return TradeOff(
        interval(batch), interval(least), interval(steps), points, left_out, float(misfit[0])
    )


def noise_scales(
    curve: pd.DataFrame, by: str | Iterable[str] = "run", level: float = 0.95
) -> pd.DataFrame:
    """The median over seeds of the noise scale at each logged step, with an interval by ranks.

    One row per (*by, examples): ``noise_scale``, ``low``, ``high``. A seed without a noise scale
    beside others that have one showed no mean gradient in its batch: its noise scale is taken as
    inf, so that small estimates of |G|² are not left out. Rows of diverged seeds are. Raises
    InputError where no run has a noise scale.
    """
    curve = curve[curve["training_status"] == "ok"] if "training_status" in curve else curve
    values = _columns(curve, "noise_scale", "examples", by)
    rows = []
    for key, of in values.groupby(level=[n for n in values.index.names if n != "seed"]):
        if of.notna().any():
            rows.append((*key, *_median(of.fillna(inf), level)))
    if not rows:
        raise InputError("curve must hold a noise scale; got none: its layers couple examples")
    names = [*_names(by), "examples", "noise_scale", "low", "high"]
    return pd.DataFrame(rows, columns=names).infer_objects()


def mean_noise_scale(curve: pd.DataFrame, loss: float, level: float = 0.95) -> Interval:
    """The noise scale of one run on its way to a loss: what B_crit is to be compared with.

    Its mean over the steps that noiseless gradients would have taken, of which a step with noise
    scale b is 1/(1 + b/B) (McCandlish et al. 2018, eq. 2.12, where S and E are sums over
    steps). The way ends at the geometric mean of what seeds need; the interval is as wide as if all
    steps erred alike. Raises InputError as :func:`noise_scales` does, and where a seed does not
    reach the loss.
    """
    sizes = curve["batch_size"].unique()
    if len(sizes) != 1:
        raise InputError(f"curve must be of one batch size; got {len(sizes)}")
    end = np.log(needed(curve, loss, "step", by="batch_size")).mean()
    if not isfinite(end):
        raise InputError(f"curve must reach the loss {loss:g} in every seed; it does not")
    scales = noise_scales(curve, "batch_size", level)
    size = float(sizes[0])
    steps = scales["examples"].to_numpy(float) / size
    # A logged step stands for those up to the next one.
    ends = np.minimum(np.append(steps[1:], steps[-1] + 1), np.exp(end) + 1)
    length = np.maximum(ends - steps, 0)
    found = []
    for name in ("noise_scale", "low", "high"):
        scale = scales[name].to_numpy(float)
        with np.errstate(divide="ignore"):
            examples, quiet = length / (1 / scale + 1 / size), length / (1 + scale / size)
            found.append(float(examples.sum() / quiet.sum()))
    seeds = curve["seed"].nunique()
    return Interval(found[0], found[1], found[2], nan, seeds, level)


# Whether curves coincide


def coincidences(
    curve: pd.DataFrame,
    reference: float,
    examples: Iterable[float],
    margin: float,
    axis: str = "batch_size",
    by: str | Iterable[str] = (),
    column: str = HELD_OUT,
    alpha: float = 0.05,
) -> pd.DataFrame:
    """Whether the curves of each value of ``axis`` coincide with those of ``reference``.

    Two one-sided tests (Schuirmann 1987) of the mean over paired seeds of ln(value/reference), at
    each of ``examples``: within the ``margin`` m, from 1/(1 + m) to 1 + m, where the interval of
    1 − 2α lies in it. Curves *coincide* where it does at every one of ``examples``, which needs no
    correction for their number; they *differ* where at one of them the interval lies outside,
    corrected for their number, or where a seed diverged that did not at the reference; else it is
    *undecided*.

    One row per (*by, axis), the reference left out: ``verdict``; ``ratio``, the geometric mean
    where it is furthest from 1, with ``low``, ``high`` of 1 − 2α, at ``examples``; ``n`` pairs,
    ``diverged`` ones among them. Raises InputError as :func:`at` does, where no run is the
    reference, and for ``examples`` that a run did not log.
    """
    check_positive("margin", margin)
    keys, examples = [*_names(by), axis], list(examples)
    _check_logged(curve, examples, keys)
    logs = _scaled(at(curve, examples, column, keys), column).unstack("examples")
    curves = {key: of.droplevel(keys) for key, of in logs.groupby(level=keys)}
    rows = []
    for key, own in curves.items():
        if key[-1] == reference:
            continue
        beside = curves.get((*key[:-1], reference))
        if beside is None:
            known = sorted({f"{value}" for value in curve[axis]})
            raise unknown(axis, f"{reference}", known)
        beside = beside.dropna()
        shared = own.index.intersection(beside.index)
        if shared.empty:
            raise InputError(f"curves of {axis}={key[-1]} and {reference} must share a seed")
        difference = own.loc[shared] - beside.loc[shared]
        rows.append({**dict(zip(keys, key, strict=True)), **_compared(difference, margin, alpha)})
    return pd.DataFrame(rows)


def _compared(differences: pd.DataFrame, margin: float, alpha: float) -> dict:
    """What differences of logs (seeds, examples) say; all seeds' references are finite."""
    diverged = int(differences.isna().any(axis=1).sum())
    limit, inside, outside, known = log1p(margin), [], [], []
    for examples, values in differences.items():
        found = mean_interval(values, 1 - 2 * alpha)
        wide = mean_interval(values, 1 - 2 * alpha / differences.shape[1])
        inside.append(-limit < found.low and found.high < limit)
        outside.append(wide.low > limit or wide.high < -limit)
        if found.n:
            known.append((abs(found.mean), examples, found))
    verdict = COINCIDE if all(inside) else DIFFER if any(outside) else UNDECIDED
    row = {"verdict": DIFFER if diverged else verdict}
    _, examples, worst = max(known, default=(nan, nan, mean_interval([])))
    for name, value in (("ratio", worst.mean), ("low", worst.low), ("high", worst.high)):
        row[name] = float(np.exp(value))
    return {**row, "examples": examples, "n": len(differences), "diverged": diverged}


# Internals

_STACK = {"future_stack": True}


def _columns(curve: pd.DataFrame, column: str, along: str, by: str | Iterable[str]) -> pd.Series:
    """One value per (*by, seed, along), in order; raises InputError where there are several."""
    by = _names(by)
    for name in (column, along, "seed", *by):
        if name not in curve:
            raise unknown("column", name, curve.columns)
    keys = [*by, "seed", along]
    if curve.duplicated(keys).any():
        runs = curve["run"].nunique() if "run" in curve else "several"
        raise InputError(f"by must keep {runs} runs apart; got {', '.join(by) or 'nothing'}")
    values = curve.set_index(keys)[column].astype(float)
    return values.sort_index(level=along, kind="stable", sort_remaining=False)


def _curves(values: pd.Series, column: str) -> Iterator[tuple[tuple, np.ndarray, np.ndarray]]:
    """Each seed's key, logs along training and values as they are interpolated."""
    x, y = values.index.get_level_values(-1).to_numpy(float), _scaled(values, column).to_numpy()
    groups = values.groupby(level=values.index.names[:-1], sort=False)
    for key, where in groups.indices.items():
        yield key if isinstance(key, tuple) else (key,), np.log(x[where]), y[where]


def _names(by: str | Iterable[str]) -> list[str]:
    return [by] if isinstance(by, str) else list(by)


def _check_logged(curve: pd.DataFrame, examples: list[float], by: list[str]) -> None:
    """Raise InputError unless every run was logged from the first to the last of ``examples``."""
    logged = curve.groupby(by)["examples"].agg(["min", "max"])
    first, last = logged["min"].max(), logged["max"].min()
    if not first <= min(examples) <= max(examples) <= last:
        raise InputError(
            f"examples must lie in what all runs logged, {first} to {last}; "
            f"got {min(examples):g} to {max(examples):g}"
        )


def _scaled(values: pd.Series, column: str | None):
    """Logs of losses, other values as they are; NaN for what is not finite."""
    if column in LOSSES:
        with np.errstate(divide="ignore", invalid="ignore"):
            values = np.log(values)
    return values.where(np.isfinite(values))


def _unscaled(values, column: str | None):
    return np.exp(values) if column in LOSSES else values


def _over_seeds(values: pd.Series, column: str | None, level: float) -> pd.DataFrame:
    """:func:`over_seeds`, of losses by their logs."""
    found = over_seeds(_scaled(values, column), level)
    ends = ["mean", "low", "high"]
    found[ends] = _unscaled(found[ends], column)
    return found[[name for name in values.index.names if name != "seed"] + [*ends, "n", "excluded"]]


def _fits(sizes: np.ndarray, means: np.ndarray) -> tuple[np.ndarray, ...]:
    """B_crit, E_min, S_min and misfit of each row of ``means`` (fits, sizes) of ln E."""
    grid = np.linspace(*np.log([sizes.min() / 100, sizes.max() * 100]), 801)
    bend = np.log1p(sizes / np.exp(grid)[:, None])
    bend -= bend.mean(axis=1, keepdims=True)
    centred = means - means.mean(axis=1, keepdims=True)
    squares = (bend**2).sum(axis=1) - 2 * centred @ bend.T
    best = squares.argmin(axis=1)
    # The parabola through the least square and its neighbours.
    inner = np.clip(best, 1, len(grid) - 2)
    before, middle, after = (squares[np.arange(len(best)), inner + k] for k in (-1, 0, 1))
    shift = (before - after) / (2 * (before - 2 * middle + after))
    batch = np.exp(grid[inner] + np.clip(shift, -1, 1) * (grid[1] - grid[0]))
    bend = np.log1p(sizes / batch[:, None])
    level = (means - bend).mean(axis=1)
    misfit = np.sqrt(((means - bend - level[:, None]) ** 2).mean(axis=1))
    ends = [best == 0, best == len(grid) - 1]
    return np.select(ends, [0.0, inf], batch), np.exp(level), np.exp(level) / batch, misfit


def _median(values: pd.Series, level: float) -> tuple[float, float, float]:
    """The median of values, one per seed, and its interval between two of them by rank."""
    ordered = np.sort(values.to_numpy(float))
    n = len(ordered)
    middle = float(np.median(ordered)) if isfinite(ordered[n // 2]) else inf
    below = int(binom.ppf((1 - level) / 2, n, 0.5))  # ranks that the median seldom lies beneath
    if below == 0:
        return middle, nan, nan
    return middle, float(ordered[below - 1]), float(ordered[n - below])
