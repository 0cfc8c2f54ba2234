"""How the gradient's norm depends on the batch size: the exact law, and its noise scales."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from flowlab.analysis import batch_law, curves
from flowlab.analysis.statistics import mean_interval
from flowlab.claims import compare
from flowlab.claims.claim import CONDITIONAL, FAILS, HOLDS, OPEN, Finding
from flowlab.errors import InputError
from flowlab.figures import style
from flowlab.figures.batch_law import batch_law as norm_by_batch
from flowlab.figures.batch_law import caption as norm_by_batch_caption
from flowlab.figures.batch_law import family
from flowlab.figures.batch_law import finding as finding_of_batches
from flowlab.figures.labels import End, label_ends
from flowlab.figures.panels import GREY
from flowlab.figures.shown import Shown
from flowlab.studies.learning_rate_rule import MARGIN
from flowlab.studies.study import Drawing, Reading, Study, finding, runs_with

HEIGHT = 3.3  # inches


def largest_batch(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of runs at the largest batch size, of one reduction: their law is the same."""
    table = table[table["batch_size"] == table["batch_size"].max()]
    return table[table["reduction"] == table["reduction"].max()]


def noise_by_layer(reading: Reading) -> Figure:
    """B_s of W and of b against layer, a panel for each data set, a colour for each initializer.

    ``table`` holds runs at one batch size (see ``largest_batch``); bands are 95 % intervals over
    seeds, open upward where |G|² may be 0. Raises InputError as
    :func:`flowlab.analysis.batch_law.law`.
    """
    table = reading.table
    scales = _scales(table)
    data = sorted(scales["data"].unique())
    finite = scales[["noise_scale", "low"]].to_numpy()
    finite = finite[np.isfinite(finite) & (finite > 0)]
    if len(finite) == 0:
        raise InputError("table must hold a finite noise scale; got none")
    top = 10 ** (np.ceil(2 * np.log10(finite.max())) / 2 + 0.25)
    with style.context():
        figure = Shown(figsize=(style.WIDTH, HEIGHT))
        axes = figure.subplots(1, len(data), sharey=True, squeeze=False)[0]
        ends = {}
        for ax, name in zip(axes, data, strict=True):
            ax.set_title(name)
            ax.set_yscale("log")
            groups = scales[scales["data"] == name].groupby(["init", "parameter"])
            inits = sorted(scales["init"].unique())
            ends[ax] = []
            for (init, parameter), rows in groups:
                place = inits.index(init)
                color, filled = style.COLORS[place % len(style.COLORS)], parameter == "W"
                look = {"color": color, "marker": style.MARKERS[place % len(style.MARKERS)]}
                look |= {"linestyle": "-" if filled else (0, (4, 1.5))}
                look |= {"markerfacecolor": color if filled else "white"}
                x, y = rows["layer"], rows["noise_scale"].clip(upper=top)
                ax.fill_between(
                    x, rows["low"], rows["high"].clip(upper=top), color=color, alpha=0.15, lw=0
                )
                ax.plot(x, y, label=f"{init}, {parameter}", **look)
                ends[ax].append(End(x.iat[-1], y.iat[-1], f"{init}, {parameter}", color))
            ax.set_ylim(finite.min() / 1.5, top)
            style.layers(ax, int(scales["layer"].min()), int(scales["layer"].max()))
        axes[0].set_ylabel("noise scale $B_s$")
        weights = {"color": GREY, "marker": "o"}
        biases = {**weights, "markerfacecolor": "white", "linestyle": (0, (4, 1.5))}
        handles = [
            Line2D([], [], **weights, label="weights"),
            Line2D([], [], **biases, label="biases"),
            Patch(facecolor=GREY, alpha=0.15, label="95 % interval"),
        ]
        figure.legend(handles=handles, loc="outside lower left", ncols=3)
        label_ends(figure, ends)
    return figure


def noise_by_layer_finding(reading: Reading) -> str:
    """In how many layers the bias has the smaller noise scale, and by what factor in the median."""
    wide = _paired(reading.table)
    smaller, ratio = int((wide["b"] < wide["W"]).sum()), (wide["b"] / wide["W"]).median()
    count = f"{smaller} of {len(wide)}"
    return (
        f"The bias has the smaller noise scale in {count} layers; in the median layer it is "
        f"{ratio:.2g} times that of the weights"
    )


def noise_by_layer_caption(reading: Reading) -> str:
    """In how many layers the bias has the smaller noise scale, and why."""
    table = reading.table
    wide = _paired(table)
    smaller = int((wide["b"] < wide["W"]).sum())
    return (
        f"The bias has the smaller noise scale in {smaller} of {len(wide)} layers (of all runs): "
        "its gradients lack the factor x_i·x_j that sets the weights' gradients of two examples "
        "apart. It has the larger one where classes balance and their gradients nearly cancel, "
        "which the inputs, alike within a class, prevent for the weights. From batches of "
        f"{int(table['batch_size'].iat[0])} examples, {table['seed'].nunique()} seeds."
    )


def _paired(table: pd.DataFrame) -> pd.DataFrame:
    """Noise scales of W and b side by side, a row for each layer of each run that has both."""
    wide = _scales(table).pivot_table(
        "noise_scale", ["run", "layer", "op"], "parameter", aggfunc="first", dropna=False
    )
    return wide.dropna()


def _scales(table: pd.DataFrame) -> pd.DataFrame:
    names = table.drop_duplicates("run")[["run", "init", "data"]]
    return batch_law.noise_scales(batch_law.law(table)).merge(names)


NET = {"depth": 4, "width": 24, "activation": "relu", "init": "he", "upstream": "loss"}
QUICK = [
    {**NET, "reduction": reduction, "dtype": "float64", "batch_size": size}
    for reduction in batch_law.REDUCTIONS
    for size in (1, 4, 16, 64, 256)
]

# Of a sum the rate 0.1/32 is that of a mean of 32 examples, 0.1.
TRAINED = [
    {
        **{"depth": 3, "width": 32, "reduction": reduction, "batch_size": size},
        "training": {"name": "sgd", "lr": rate, "examples": 6144},
    }
    for reduction, rate in (("sum", 0.1 / 32), ("mean", 0.1))
    for size in (32, 128, 1024)
]


def _families(table: pd.DataFrame) -> dict[str, tuple[pd.Series, pd.Series]]:
    """By reduction ‖g_B‖² of runs over the law of the largest batch, and log10 of the law's norm.

    Of He ReLU nets on gaussian data, both by (layer, parameter, batch_size, seed), for all batch
    sizes but the largest. Raises InputError where one of the reductions or all smaller batches
    are absent, and where batch sizes repeat.
    """
    found = {}
    for reduction in batch_law.REDUCTIONS:
        net = {"activation": "relu", "init": "he", "data": "gaussian", "reduction": reduction}
        rows = runs_with(table, **net, upstream="loss", skip="none", norm="none")
        *sizes, largest = (int(size) for size in sorted(rows["batch_size"].unique()))
        runs = rows.groupby("batch_size")["run"].nunique()
        if not sizes or runs.max() > 1:
            raise InputError(
                f"table must hold one run for each of several batch sizes under {reduction}; got "
                f"{', '.join(f'{n} of {size}' for size, n in runs.items())}"
            )
        law = batch_law.law(rows[rows["batch_size"] == largest])
        exact = batch_law.log10_norms(law, sizes, reduction).droplevel(["run", "op"])
        norms = [
            rows.set_index(["layer", "batch_size", "seed"])[f"d{parameter}_log10_norm"]
            for parameter in batch_law.PARAMETERS
        ]
        measured = pd.concat(norms, keys=batch_law.PARAMETERS, names=["parameter"])
        measured = measured.reorder_levels(exact.index.names).reindex(exact.index)
        found[reduction] = 10.0 ** (2 * (measured - exact)), exact
    return found


def _sizes(exact: pd.Series) -> list[int]:
    return sorted(exact.index.get_level_values("batch_size").unique())


@finding(
    "B1",
    "E‖Σg‖² = B²|G|² + B·trΣ over random batches, divided by B² under mean: the log-log slope "
    "rises from ½ through ¾ at B = trΣ/|G|² to 1.",
    "McCandlish et al. 2018, appendix A",
    runs=QUICK,
)
def law_of_batches(reading: Reading) -> Finding:
    """Runs at several batch sizes, whose examples are subsets of the largest run's."""
    parts, families = [], _families(reading.table)
    for reduction, (ratios, _) in families.items():
        groups = ratios.groupby(["layer", "parameter", "batch_size"])
        for (layer, parameter, size), values in groups:
            name = f"‖d{parameter}‖² over the law (layer {layer}, B = {size}, {reduction})"
            parts.append(compare.mean(name, values, 1.0))
    worst = compare.worst(parts)
    largest = int(reading.table["batch_size"].max())
    return worst.finding(
        f"The law computed from {largest} examples gives the mean squared norms at B = "
        f"{', '.join(map(str, _sizes(families['sum'][1])))} in all {len(parts)} cases (layers, W "
        f"and b, reductions); the furthest is {worst.measured:.3f} of it."
        if worst.verdict == HOLDS
        else f"Of the law computed from {largest} examples the furthest mean squared norm, "
        f"{worst.quantity}, is {worst.measured:.3f}."
    )


@finding(
    "S4",
    "dW sums over the n examples, so larger batches give larger gradients and the learning rate "
    "must scale with the batch.",
    "the text",
    CONDITIONAL,
    runs=[*QUICK, *TRAINED],
)
def larger_batches(reading: Reading) -> Finding:
    """The slope of log ‖dW‖ from the least to the largest of the batch sizes, and the law's.

    Where runs were trained at a constant learning rate their curves must agree with it: those of a
    sum coincide up to some batch and overshoot beyond, those of a mean fall behind.
    """
    slopes, predicted = {}, {}
    for reduction, (ratios, exact) in _families(reading.table).items():
        sizes = _sizes(exact)
        logs = exact + np.log10(ratios) / 2
        for found, values in ((slopes, logs), (predicted, exact)):
            ends = values.xs("W", level="parameter").groupby(["seed", "batch_size"]).mean()
            ends = ends.unstack()
            found[reduction] = (ends[sizes[-1]] - ends[sizes[0]]) / np.log10(sizes[-1] / sizes[0])
    # The mean of log ‖dW‖ at B = 1 lies below the log of its mean square, the more so the more
    # examples differ: the law is for the latter, and the allowance for the difference.
    measured = {reduction: mean_interval(values) for reduction, values in slopes.items()}
    law = mean_interval(predicted["sum"]).mean
    result = compare.mean("slope of log‖dW‖ in log B, sum", slopes["sum"], law, allowance=0.1)
    grows, shrinks = measured["sum"].low > 0.5 - 0.1, measured["mean"].high < 0
    asked, sentence = _asked_of_the_rate(reading.curve)
    agreed = result.verdict == HOLDS and grows and shrinks and asked
    return result.finding(
        f"Under sum ‖dW‖ grows as B^{measured['sum'].mean:.2f} up to B = {sizes[-1]}; under mean, "
        f"the usual choice, it shrinks as B^{measured['mean'].mean:.2f} towards |G|. {sentence}",
        FAILS if result.verdict == FAILS else CONDITIONAL if agreed else OPEN,
    )


def _asked_of_the_rate(curve: pd.DataFrame | None) -> tuple[bool, str]:
    """Whether curves ask of the learning rate what the norms do, and a sentence that says so."""
    if curve is None:
        return True, "What that asks of the learning rate is not measured here."
    curve = curve[(curve["training"] == "sgd") & (curve["training_rule"] == "constant")]
    examples = curve["examples"].max() * np.array([0.5, 0.75, 1])
    least = int(curve["batch_size"].min())
    rows = curves.coincidences(curve, least, examples, MARGIN, by="reduction")
    if set(rows["reduction"]) != set(batch_law.REDUCTIONS):
        raise InputError("curve must hold trainings under sum and under mean; it does not")
    total, mean = (rows[rows["reduction"] == reduction] for reduction in ("sum", "mean"))
    near, far, behind = total.iloc[0], total.iloc[-1], mean.iloc[0]
    kept = near["verdict"] == curves.COINCIDE
    over = far["verdict"] == curves.DIFFER and (far["diverged"] > 0 or far["low"] > 1)
    fallen = behind["verdict"] == curves.DIFFER and behind["low"] > 1
    lost = f" and {far['diverged']} of {far['n']} seeds diverge" if far["diverged"] else ""
    return kept and over and fallen, (
        f"After as many digits at one learning rate the loss at B = {near['batch_size']} is "
        f"{_ratio(near)} times that at B = {least} under sum, {_ratio(behind)} under mean: of a "
        "sum, whose constant rate is the linear rule of a mean, it need not be scaled, of a mean "
        f"it must grow as B, and neither holds for every batch: at B = {far['batch_size']} the sum "
        f"overshoots to {_ratio(far)} times the loss{lost}."
    )


def _ratio(row: pd.Series) -> str:
    return f"{row['ratio']:.3g} [{row['low']:.3g}, {row['high']:.3g}]"


STUDY = Study(
    "How does the gradient's norm grow with the batch, and do biases differ from weights?",
    "McCandlish et al. 2018",
    (
        Drawing(
            "norm_by_batch",
            lambda reading: finding_of_batches(reading.table),
            lambda reading: norm_by_batch(reading.table),
            lambda reading: norm_by_batch_caption(reading.table),
            family,
        ),
        Drawing(
            "noise_by_layer",
            noise_by_layer_finding,
            noise_by_layer,
            noise_by_layer_caption,
            largest_batch,
        ),
    ),
    (law_of_batches, larger_batches),
    rank=6,
)
