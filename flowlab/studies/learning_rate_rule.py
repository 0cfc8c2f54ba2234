"""How the learning rate must follow the batch, and how large a batch pays.

Every rule is trained at each batch size for as many examples. Two things are asked of the held-out
loss: up to which batch its curve, over the examples seen, is that of a small batch; and what a loss
costs in steps and in examples, which gives the critical batch, to be compared with the noise scale
of the gradients.
"""

from collections.abc import Iterable
from functools import cached_property
from math import inf, isfinite, log

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from flowlab.analysis import curves
from flowlab.analysis.statistics import Interval
from flowlab.claims import compare
from flowlab.claims.claim import FAILS, HOLDS, OPEN, Finding
from flowlab.errors import InputError
from flowlab.figures import style, training
from flowlab.figures.labels import End, label_ends
from flowlab.figures.panels import GREY, LINE, legend
from flowlab.figures.shown import Shown
from flowlab.figures.words import listed
from flowlab.studies.study import Drawing, Reading, Study, finding

RULES = {
    "constant": "constant η",
    "linear": "η ∝ B",
    "sqrt": "η ∝ √B",
    "noise": "η ∝ B/(B + B_s)",
    "sde": "η ∝ √B, β and ε too",
}
OPTIMIZERS = {"sgd": "SGD", "adam": "Adam"}
REFERENCE = 32  # the batch size whose curves others are to have
MARGIN = 0.15
POINTS = 5  # in the second half of training, at which curves are compared
LOSSES = (1.0, 0.7, 0.5)  # whose costs are traded off
NOISE_AT = 128  # the batch size whose gradients give the noise scale
KEYS = ["training", "training_rule"]
HEIGHT = 3.6  # inches


# Which curves coincide


def verdicts(reading: Reading, reference: int = REFERENCE, margin: float = MARGIN) -> pd.DataFrame:
    """Of each optimizer, rule and batch size whether its curve is that of the reference.

    The rows of :func:`flowlab.analysis.curves.coincidences`, over the second half of training.
    Raises InputError as that does, and without trained runs.
    """
    curve = reading.trained
    examples = np.linspace(*(curve["examples"].max() / np.array([2, 1])), POINTS)
    return curves.coincidences(curve, reference, examples, margin, by=KEYS)


def reach(rows: pd.DataFrame, reference: int = REFERENCE) -> tuple[int, int]:
    """The least and the greatest batch size up to which, from the reference, curves coincide."""
    ends = []
    for side in (-1, 1):
        end = reference
        of = rows.sort_values("batch_size", ascending=side > 0)
        for row in of[side * (of["batch_size"] - reference) > 0].itertuples():
            if row.verdict != curves.COINCIDE:
                break
            end = int(row.batch_size)
        ends.append(end)
    return ends[0], ends[1]


def _rules(curve: pd.DataFrame) -> list[str]:
    there = set(curve["training_rule"])
    return [rule for rule in RULES if rule in there]


def _unbroken(rule: str) -> str:
    """A rule's name that no line break divides."""
    return RULES[rule].replace(" ", "\N{NO-BREAK SPACE}")


def bands(reading: Reading) -> Figure:
    """Loss and accuracy over the examples seen: a panel for each rule, a line for each batch."""
    curve = reading.trained
    panels = {}
    for rule in _rules(curve):
        of = curve[curve["training_rule"] == rule].sort_values("batch_size", kind="stable")
        panels[RULES[rule]] = {f"B = {size}": one for size, one in of.groupby("batch_size")}
    return training.bands(panels)


def bands_finding(reading: Reading) -> str:
    """From which to which batch size each rule keeps the curve; which seeds diverge beyond."""
    rows = verdicts(reading)
    ranges, lost = {}, []
    for rule in _rules(rows):
        of = rows[rows["training_rule"] == rule]
        ranges[rule] = reach(of)
        gone = of[(of["diverged"] > 0) & (of["batch_size"] > REFERENCE)]
        if len(gone):
            worst = gone.loc[gone["diverged"].idxmax()]
            lost.append(
                f"{worst['diverged']} of {worst['n']} seeds diverge at B = {worst['batch_size']} "
                f"with {_unbroken(rule)}"
            )
    parts = []
    for rule in sorted(ranges, key=lambda rule: ranges[rule][0] / ranges[rule][1]):
        low, high = ranges[rule]
        words = f"from B = {low} to {high}" if low < high else "at no other B"
        words = words.removeprefix("from B = ") if parts else words
        parts.append(f"{words} with {_unbroken(rule)}")
    text = (
        f"Within {MARGIN * 100:.0f} % {OPTIMIZERS[rows['training'].iat[0]]} trains as at "
        f"B = {REFERENCE} {', '.join(parts)}"
    )
    return "; ".join([text, *lost])


def bands_caption(reading: Reading) -> str:
    """The furthest ratio of each curve to that of the reference, with its interval."""
    rows, parts = verdicts(reading), []
    for rule in _rules(rows):
        found = []
        for row in rows[rows["training_rule"] == rule].itertuples():
            if row.diverged:
                words = f"{row.diverged} of {row.n} seeds diverge"
            else:
                words = f"{row.ratio:.2f} [{row.low:.2f}, {row.high:.2f}] {row.verdict}"
            found.append(f"B = {row.batch_size} {words}")
        parts.append(f"{RULES[rule]}: {', '.join(found)}")
    return (
        f"Held-out loss over that of B = {REFERENCE} at as many examples, in the second half of "
        f"training where it is furthest from 1, geometric mean over {rows['n'].max()} paired seeds "
        "[90 % interval], and whether the curves coincide within "
        f"{MARGIN * 100:.0f} % by two one-sided tests at 5 %. {'; '.join(parts)}."
    )


def finals(reading: Reading) -> Figure:
    """The loss at the end against the batch size, a line for each rule."""
    curve = reading.trained
    panels = {}
    for optimizer, name in OPTIMIZERS.items():
        of = curve[curve["training"] == optimizer]
        if len(of):
            lines = {rule: of[of["training_rule"] == rule] for rule in _rules(of)}
            panels[name] = {RULES[rule]: one for rule, one in lines.items()}
    return training.finals(panels, "batch_size", "batch size $B$")


def _ends(reading: Reading) -> pd.DataFrame:
    rows = curves.final_bands(reading.trained, by=[*KEYS, "batch_size"])
    return rows[rows["excluded"] == 0]


def finals_finding(reading: Reading) -> str:
    """The rule with the least loss at the largest batch, and by how much it is above the least."""
    ends, parts = _ends(reading), []
    for optimizer in OPTIMIZERS:
        of = ends[ends["training"] == optimizer]
        if of.empty:
            continue
        least, largest = of["mean"].min(), of["batch_size"].max()
        at = of[of["batch_size"] == largest].nsmallest(1, "mean").iloc[0]
        parts.append(
            f"{OPTIMIZERS[optimizer]}'s best rule at B = {largest}, "
            f"{_unbroken(at['training_rule'])}, "
            f"ends at {at['mean'] / least:.1f} times the least loss of all"
        )
    return f"No rule pays for every batch: {'; '.join(parts)}"


def finals_caption(reading: Reading) -> str:
    """Every rule's loss at the smallest, the middle and the largest batch."""
    ends, parts = _ends(reading), []
    for (optimizer, rule), of in ends.groupby(KEYS, sort=False):
        chosen = of.iloc[np.unique([0, len(of) // 2, len(of) - 1])]
        words = ", ".join(
            f"{row.mean:.3f} [{row.low:.3f}, {row.high:.3f}] at {row.batch_size}"
            for row in chosen.itertuples()
        )
        parts.append(f"{OPTIMIZERS[optimizer]}, {RULES[rule]}: {words}")
    return (
        "Held-out loss at the end of training, geometric mean over seeds [95 % interval], of "
        f"batches at which no seed diverges. {'; '.join(parts)}."
    )


# What a loss costs


class Costs:
    """What losses cost at each batch size at the best of the learning rates that were tried.

    The curves are those of runs of one optimizer whose rates stay as they are, whatever rule gave
    them. Only losses that every seed of three batch sizes reaches are among ``fits``.
    """

    def __init__(self, curve: pd.DataFrame, losses: Iterable[float] = LOSSES):
        self.curve = curve.drop_duplicates(["batch_size", "learning_rate", "seed", "step"])
        self.losses = tuple(losses)

    @cached_property
    def rates(self) -> dict[float, pd.Series]:
        """At each loss the rate that needs the fewest examples, by batch size."""
        found = {}
        for loss, needed in self._needed.items():
            means = np.log(needed).groupby(level=["batch_size", "learning_rate"]).mean()
            best = means[np.isfinite(means)].groupby(level="batch_size").idxmin()
            found[loss] = best.map(lambda key: key[1])
        return found

    @cached_property
    def _needed(self) -> dict[float, pd.Series]:
        keys = ["batch_size", "learning_rate"]
        return {loss: curves.needed(self.curve, loss, by=keys) for loss in self.losses}

    @cached_property
    def fits(self) -> dict[float, curves.TradeOff]:
        """The trade-off at each loss; raises InputError where there is none."""
        found = {}
        for loss, needed in self._needed.items():
            best = pd.MultiIndex.from_arrays([self.rates[loss].index, self.rates[loss]])
            chosen = needed[needed.index.droplevel("seed").isin(best)]
            try:
                found[loss] = curves.trade_off(chosen.droplevel("learning_rate"))
            except InputError as error:
                lacking = error
        if not found:
            raise lacking
        return found

    @cached_property
    def noise(self) -> dict[float, Interval]:
        """The noise scale on the way to each of these losses, where gradients have one."""
        found = {}
        for loss in self.fits:
            rates = self.rates[loss]
            size = rates.index[np.abs(np.log(rates.index / NOISE_AT)).argmin()]
            of = self.curve[self.curve["batch_size"] == size]
            try:
                found[loss] = curves.mean_noise_scale(of[of["learning_rate"] == rates[size]], loss)
            except InputError:
                continue
        return found


def costs(reading: Reading) -> Costs:
    """The costs of the reading's runs, of one optimizer."""
    return Costs(reading.trained)


def trade_off(reading: Reading) -> Figure:
    """Examples against steps to some losses: batch sizes, the fitted hyperbola, the noise scale.

    A diagonal is a batch size, E = SB; where the noise scale's crosses the hyperbola, both cost
    twice the least if it is the critical batch. Raises InputError where no loss is reached at three
    batch sizes.
    """
    found = costs(reading)
    with style.context():
        figure = Shown(figsize=(style.WIDTH, HEIGHT))
        ax = figure.subplots()
        ends = []
        for place, (loss, fit) in enumerate(found.fits.items()):
            color = style.COLORS[place]
            _hyperbola(ax, fit, color, style.MARKERS[place])
            if loss in found.noise:
                _noise(ax, fit, found.noise[loss], color)
            last = fit.points.sort_values("steps").iloc[-1]
            ends.append(End(last["steps"], last["examples"], f"loss {loss:g}", color))
        for axis in (ax.xaxis, ax.yaxis):
            getattr(ax, f"set_{axis.axis_name}scale")("log")
            axis.set_major_locator(LogLocator(10, (1, 2, 5)))
            axis.set_major_formatter(lambda value, _: f"{value:,.0f}".replace(",", "\u2009"))
            axis.set_minor_locator(NullLocator())
        ax.set_xlabel("steps $S$")
        ax.set_ylabel("examples $E$")
        ax.tick_params(labelsize=style.TEXT)
        grey = {"color": GREY}
        handles = [
            Line2D(
                [], [], marker="o", linestyle="none", **grey, label="batch sizes, 95 % interval"
            ),
            Line2D([], [], **grey, label="$(S/S_{min} − 1)(E/E_{min} − 1) = 1$"),
            Line2D([], [], marker="*", markersize=10, linestyle="none", **grey, label=CORNER),
            Line2D([], [], linewidth=5, alpha=0.35, **grey, label="noise scale of the gradients"),
        ]
        figure.set_figheight(HEIGHT + LINE * legend(figure, handles, "lower"))
        label_ends(figure, {ax: ends})
    return figure


CORNER = "critical batch $E_{min}/S_{min}$: twice the least of both"


def _hyperbola(ax: Axes, fit: curves.TradeOff, color: str, marker: str) -> None:
    points = fit.points
    margins = [points["examples"] - points["low"], points["high"] - points["examples"]]
    look = {"color": color, "marker": marker, "linestyle": "none", "capsize": 2, "elinewidth": 1}
    ax.errorbar(points["steps"], points["examples"], np.nan_to_num(margins), **look)
    if not (0 < fit.batch.mean < inf):
        return
    sizes = np.geomspace(points["batch_size"].min(), points["batch_size"].max(), 100)
    examples = fit.examples.mean * (1 + sizes / fit.batch.mean)
    ax.plot(examples / sizes, examples, color=color, linewidth=1.2)
    corner = 2 * fit.steps.mean, 2 * fit.examples.mean
    ax.plot(*corner, color=color, marker="*", markersize=10, markeredgecolor="white", zorder=5)


def _noise(ax: Axes, fit: curves.TradeOff, noise: Interval, color: str) -> None:
    """The stretch of the hyperbola between the ends of the noise scale's interval."""
    low, high = (end if isfinite(end) else noise.mean for end in (noise.low, noise.high))
    if not (0 < fit.batch.mean < inf and isfinite(high)):
        return
    sizes = np.geomspace(low, high, 50)
    examples = fit.examples.mean * (1 + sizes / fit.batch.mean)
    ax.plot(examples / sizes, examples, color=color, linewidth=5, alpha=0.35)


def _whole(value: Interval) -> str:
    """A number of examples with its interval, whole."""
    text = f"{value.mean:.0f}"
    return f"{text} [{value.low:.0f}, {value.high:.0f}]" if value.known else text


def trade_off_finding(reading: Reading) -> str:
    """The critical batch from training beside the noise scale from gradients, at each loss."""
    found = costs(reading)
    fitted = listed(_whole(fit.batch) for fit in found.fits.values())
    text = f"Training to loss {listed(f'{loss:g}' for loss in found.fits)} has the critical batch "
    text += fitted
    if found.noise:
        scales = listed(_whole(scale) for scale in found.noise.values())
        text += f"; gradients on the way have the noise scale {scales}"
    return text


def trade_off_caption(reading: Reading) -> str:
    """What each fit says, which batch sizes it lacks, and how the noise scale is taken."""
    found, parts = costs(reading), []
    for loss, fit in found.fits.items():
        text = (
            f"loss {loss:g}: E_min = {_whole(fit.examples)}, S_min = {fit.steps.mean:.1f} "
            f"[{fit.steps.low:.1f}, {fit.steps.high:.1f}], points off by {100 * fit.misfit:.1f} %"
        )
        short = sorted(set(found.curve["batch_size"]) - set(fit.points["batch_size"]))
        if short:
            text += f", without B = {listed(map(str, short))}, where a seed falls short"
        parts.append(text)
    return (
        "What the losses cost at each batch size at the learning rate that needs the fewest "
        "examples, of those that the rules give; geometric mean over seeds; intervals of fits from "
        "seeds drawn anew. "
        f"{'; '.join(parts)}. The noise scale is the median over seeds of single batches near "
        f"B = {NOISE_AT}, averaged over the way to the loss."
    )


RATES = [
    {
        **{"depth": 3, "width": 32, "batch_size": size},
        "training": {"name": "sgd", "lr": rate, "examples": 1536},
    }
    for size in (16, 32, 64, 128, 256)
    for rate in (0.1, 0.2, 0.4, 0.8)
]


@finding(
    "B5",
    "The critical batch of training, E_min/S_min, is the noise scale of the gradients, within a "
    "factor of three.",
    "McCandlish et al. 2018, eq. 2.11 and 2.12",
    runs=RATES,
    times=0.375,
)
def critical_batch(reading: Reading) -> Finding:
    """At the greatest loss with a fit; the errors of both are taken as independent."""
    curve = reading.trained
    found = Costs(curve[curve["training"] == "sgd"])
    loss, fit = next(iter(found.fits.items()))
    if loss not in found.noise:
        raise InputError("curve must hold a noise scale; got none: its layers couple examples")
    noise = found.noise[loss]
    with np.errstate(divide="ignore", invalid="ignore"):
        mean, low, high = (
            np.log([getattr(fit.batch, end), getattr(noise, end)])
            for end in ("mean", "low", "high")
        )
        ratio = float(mean[0] - mean[1])
        ends = ratio - np.hypot(*(mean - low)), ratio + np.hypot(*(high - mean))
    result = compare.Comparison("ln(B_crit/B_s)", 0.0, ratio, log(3), *map(float, ends))
    inside = isfinite(ratio) and max(-result.low, result.high) <= log(3)
    outside = result.low > log(3) or result.high < -log(3)
    return result.finding(
        f"Down to a loss of {loss:g} the cost in steps and examples bends at a batch of "
        f"{_whole(fit.batch)}; the gradients on the way have the noise scale {_whole(noise)}: the "
        f"ratio is {np.exp(ratio):.2f} [{np.exp(result.low):.2f}, {np.exp(result.high):.2f}].",
        HOLDS if inside else FAILS if outside else OPEN,
    )


def of_optimizer(optimizer: str):
    """What keeps the rows of an optimizer's runs."""

    def select(table: pd.DataFrame) -> pd.DataFrame:
        return table[table["training"] == optimizer]

    return select


STUDY = Study(
    "How must the learning rate follow the batch, and how large a batch pays?",
    "Goyal et al. 2017; McCandlish et al. 2018; Malladi et al. 2022",
    (
        Drawing("rules_of_sgd", bands_finding, bands, bands_caption, of_optimizer("sgd")),
        Drawing("rules_of_adam", bands_finding, bands, bands_caption, of_optimizer("adam")),
        Drawing("loss_by_batch", finals_finding, finals, finals_caption),
        Drawing(
            *("steps_and_examples", trade_off_finding, trade_off, trade_off_caption),
            of_optimizer("sgd"),
        ),
    ),
    (critical_batch,),
    rank=52,
)
