"""Does the gradient at initialization say whether a net trains, and where does it not?"""

import re

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flowlab.analysis.rank_correlation import rank_correlation
from flowlab.analysis.statistics import Interval, mean_interval
from flowlab.claims.claim import CONDITIONAL, FAILS, HOLDS, OPEN, Finding
from flowlab.errors import InputError
from flowlab.figures import steps, style
from flowlab.figures.panels import GREY, legend
from flowlab.figures.ratios import SYMBOL, ratios
from flowlab.figures.shown import Shown
from flowlab.figures.sweeps import sweep
from flowlab.figures.words import bare, listed
from flowlab.settings import NORMALIZATIONS, SKIPS
from flowlab.studies.study import Drawing, Reading, Study, finding

AXES = ("init", "skip", "norm", "depth")
TRAINS = 0.8  # held-out accuracy from which a net is said to train
COLORS = "viridis"  # of accuracies
HEIGHT, CELL = 3.3, 0.36  # inches: of the scatter, of a row of cells
LUMINANCE = (0.2126, 0.7152, 0.0722)  # of red, green and blue
FAMILIES = ("plain", "with a norm alone", "with a skip alone", "with both")


def outcomes(reading: Reading, *axes: str) -> pd.DataFrame:
    """One row per run: ``ratios`` at initialization, and the held-out accuracy after training.

    ``accuracy`` is the mean over seeds with its 95 % interval ``accuracy_low`` and ``_high``;
    networks that ``diverged`` (how many) name no class and count as 0. Raises InputError without
    trained runs, for targets that are no classes, and for runs that agree in all ``axes``.
    """
    curve = reading.trained
    rows = ratios(reading.table, reading.prediction, axes, reading.kept_within)
    last = curve[curve["step"] == curve.groupby("run")["step"].transform("max")]
    lost = last["training_status"] == "diverged"
    if last.loc[~lost, "held_out_accuracy"].isna().any():
        raise InputError("training must be on classes, for an accuracy; got a regression")
    accuracy = last["held_out_accuracy"].where(~lost, 0.0)
    found = {}
    for run, values in accuracy.groupby(last["run"]):
        over = mean_interval(values)
        found[run] = over.mean, over.low, over.high, int(lost[values.index].sum())
    names = ["accuracy", "accuracy_low", "accuracy_high", "diverged"]
    return rows.join(pd.DataFrame.from_dict(found, "index", columns=names), on="run")


def _nets(reading: Reading) -> pd.DataFrame:
    """``outcomes`` with each net's family, whether the mean change is ``kept`` within the threshold
    of verdicts, whether it ``trains``, and the size of its change end to end and per layer."""
    nets = outcomes(reading, *AXES).dropna(subset="mean")
    skip, norm = nets["skip"] != "none", nets["norm"] != "none"
    nets["family"] = np.array(FAMILIES)[2 * skip.to_numpy(int) + norm.to_numpy(int)]
    nets["kept"] = nets["mean"].abs() < reading.kept_within
    nets["trains"] = nets["accuracy"] >= TRAINS
    nets = nets.assign(decades=nets["mean"].abs(), rate=nets["mean"].abs() / nets["crossed"])
    ranks = {"skip": SKIPS, "norm": NORMALIZATIONS, "family": FAMILIES}
    return nets.sort_values(
        ["family", "skip", "norm", "init", "depth"],
        key=lambda of: of.map(ranks[of.name].index) if of.name in ranks else of,
        ignore_index=True,
    )


def _ordered(nets: pd.DataFrame, name: str) -> list[str]:
    """The values of a setting: what is absent first, names in alphabetical order."""
    return sorted(nets[name].unique(), key=lambda value: (value != "none", value))


def correlation(nets: pd.DataFrame, by: str = "decades") -> Interval:
    """Spearman's correlation over nets of accuracy and the gradient's change at initialization.

    The size of the change, end to end by default, ``by`` "rate" per layer.
    """
    return rank_correlation(nets[by], nets["accuracy"])


def _tally(nets: pd.DataFrame, kept: bool) -> str:
    """How many nets that keep, or that do not keep, the gradient train."""
    of = nets[nets["kept"] == kept]
    return f"{of['trains'].sum()} of {len(of)}"


def scatter(reading: Reading) -> Figure:
    """Accuracy after training against the gradient's change at initialization, a mark for each net.

    Means over seeds; bars are their 95 % intervals. Colours are normalizations, marks skips;
    the dotted line is where nets are said to train. Raises InputError without trained runs.
    """
    nets = _nets(reading)
    norms, skips = (_ordered(nets, name) for name in ("norm", "skip"))
    with style.context():
        figure = Shown(figsize=(style.WIDTH, HEIGHT))
        ax = figure.subplots()
        for (norm, skip), of in nets.groupby(["norm", "skip"], sort=False):
            color = style.COLORS[norms.index(norm)]
            y = of["accuracy"].to_numpy()
            margins = [y - of["accuracy_low"].clip(lower=0), of["accuracy_high"].clip(upper=1) - y]
            look = {"marker": style.MARKERS[skips.index(skip)], "linestyle": "none"}
            look |= {"markeredgecolor": "white", "markeredgewidth": 0.4, "elinewidth": 0.7}
            look["markersize"] = 6
            label = f"norm={norm}, skip={skip}"
            ax.errorbar(of["mean"], y, np.nan_to_num(margins), color=color, label=label, **look)
        ax.axhline(TRAINS, color=GREY, linewidth=0.8, linestyle=":", zorder=0)
        style.changes(ax.xaxis, nets["mean"].min(), nets["mean"].max())
        ax.set_ylim(-0.03, 1.03)
        ax.set_xlabel(f"{SYMBOL} over the body at initialization, decades")
        ax.set_ylabel("held-out accuracy")
        ax.tick_params(labelsize=style.TEXT)
        handles = [
            Line2D([], [], color=style.COLORS[place], label=f"norm={norm}")
            for place, norm in enumerate(norms)
        ]
        handles += [
            Line2D([], [], color=GREY, marker=style.MARKERS[place], linestyle="none", label=name)
            for place, name in enumerate(f"skip={skip}" for skip in skips)
        ]
        legend(figure, handles, "lower")
    return figure


def scatter_finding(reading: Reading) -> str:
    """The rank correlation, and how many nets that keep the gradient train, and of the others."""
    nets = _nets(reading)
    found = correlation(nets)
    answer = "does not say" if not found.high < 0 else "says in part"
    if found.high < 0 and not len(_exceptions(nets)):
        answer = "says"
    return (
        f"What the gradient does at initialization {answer} whether a net trains: "
        f"{_tally(nets, True)} that keep it do and {_tally(nets, False)} others; Spearman's ρ of "
        f"|decades| and accuracy is {_minus(f'{found:z.2f}')}"
    )


def scatter_caption(reading: Reading) -> str:
    """The correlation by family and per layer, and the nets that go against the rule."""
    nets = _nets(reading)
    parts = [f"{name} {correlation(of):z.2f}" for name, of in nets.groupby("family", sort=False)]
    text = (
        "Spearman's ρ of |decades at initialization| and accuracy, over nets [95 % interval]: all "
        f"{correlation(nets):z.2f}, {', '.join(parts)}; of |decades per layer| and accuracy "
        f"{correlation(nets, 'rate'):z.2f}."
    )
    exceptions = _exceptions(nets)
    for trains, words in ((True, "train though they change"), (False, "do not though they keep")):
        of = exceptions[exceptions["trains"] == trains]
        if len(of):
            text += f" Nets that {words} it: {listed(_names(of), 4)}."
    return _minus(text)


def _exceptions(nets: pd.DataFrame) -> pd.DataFrame:
    """Nets that change the gradient and train, and those that keep it and do not."""
    return nets[nets["kept"] != nets["trains"]]


def grid(reading: Reading) -> Figure:
    """Accuracy of every net, in percent; under it the gradient's change at initialization, decades.

    A panel for each norm (to the right) and skip (down), in it inits down and depths to the right.
    Colours are accuracies. Raises InputError without trained runs.
    """
    nets = _nets(reading)
    values = {name: _ordered(nets, name) for name in ("norm", "skip", "init")}
    depths = sorted(nets["depth"].unique())
    cells = nets.set_index(list(AXES))
    with style.context():
        shape = len(values["skip"]), len(values["norm"])
        height = shape[0] * (CELL * len(values["init"]) + 0.3) + 0.4
        figure = Shown(figsize=(style.WIDTH, height))
        axes = figure.subplots(*shape, squeeze=False, sharex=True, sharey=True)
        for (row, column), ax in np.ndenumerate(axes):
            skip, norm = values["skip"][row], values["norm"][column]
            keys = [[(init, skip, norm, depth) for depth in depths] for init in values["init"]]
            mesh = _cells(ax, cells, keys)
            ax.set_title(f"skip={skip}, norm={norm}", fontsize=style.TEXT)
            ax.set_xticks(range(len(depths)), depths)
            ax.set_yticks(range(len(keys)), values["init"])
            ax.tick_params(labelsize=style.TEXT, length=0)
            ax.grid(False)
        for ax in axes[-1]:
            ax.set_xlabel("depth")
        bar = figure.colorbar(mesh, ax=axes, pad=0.02, aspect=30)
        bar.set_label("held-out accuracy")
        bar.ax.tick_params(labelsize=style.TEXT)
    return figure


def _cells(ax: Axes, cells: pd.DataFrame, keys: list[list[tuple]]):
    values = [[cells["accuracy"].get(key, np.nan) for key in row] for row in keys]
    image = ax.imshow(values, cmap=COLORS, vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(np.array(values, float)):
        if np.isfinite(value):
            change = cells["mean"].get(keys[row][column])
            text = _minus(f"{100 * value:.0f}\n{change:+z.1f}")
            look = {"color": black_or_white(image.to_rgba(value)), "fontsize": 8}
            ax.text(column, row, text, ha="center", va="center", linespacing=0.95, **look)
    return image


def black_or_white(color) -> str:
    """What is legible on a colour (red, green, blue, ...)."""
    return "w" if np.dot(color[:3], LUMINANCE) < 0.5 else "k"


def grid_finding(reading: Reading) -> str:
    """How many nets of each family train."""
    nets = _nets(reading)
    parts = [
        f"{of['trains'].sum()} of {len(of)} {name}"
        for name, of in nets.groupby("family", sort=False)
    ]
    return f"{100 * TRAINS:.0f} % of the held-out examples are reached by {listed(parts, 4)}"


def grid_caption(reading: Reading) -> str:
    """The most accurate and the least, and how many nets diverged."""
    nets = _nets(reading).sort_values("accuracy")
    best, worst = (
        f"{name} ({100 * nets['accuracy'].iat[end]:.0f} %, {nets['mean'].iat[end]:+z.1f} decades)"
        for name, end in zip(_names(nets.iloc[[-1, 0]]), (-1, 0), strict=True)
    )
    return _minus(
        f"Upper number: percent of held-out examples; lower: decades at initialization, end to "
        f"end. Best {best}, worst {worst}; in {(nets['diverged'] > 0).sum()} of {len(nets)} "
        "conditions networks diverged."
    )


def _minus(text: str) -> str:
    """True minus signs before numbers."""
    return re.sub(r"-(?=\d)", "−", text)


def _names(nets: pd.DataFrame) -> list[str]:
    return [
        f"{bare(row['init'])} with skip={row['skip']}, norm={row['norm']} at depth {row['depth']}"
        for _, row in nets.iterrows()
    ]


def telling(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the deepest nets under one initialization, without or with batch norm."""
    deep = table[(table["depth"] == table["depth"].max()) & table["norm"].isin(["none", "batch"])]
    return deep[deep["init"] == max(deep["init"], default="")]


SMALL = {"width": 32, "batch_size": 32, "activation": "relu"}
SMALL_TRAINING = {"name": "sgd", "lr": 0.1, "steps": 60, "log": 60}


@finding(
    "S17",
    "Understanding gradient flow is essential for designing nets that train smoothly.",
    "the text",
    CONDITIONAL,
    runs=[
        {**SMALL, "init": init, "skip": skip, "norm": norm, "depth": depth}
        | {"training": SMALL_TRAINING}
        for init in ("he", "xavier")
        for skip in ("none", "identity")
        for norm in ("none", "batch")
        for depth in (3, 24)
    ],
    times=1 / 16,
)
def trains_smoothly(reading: Reading) -> Finding:
    """Nets that change the gradient less reach more; the condition is that some go against it."""
    nets = _nets(reading)
    found, against = correlation(nets), _exceptions(nets)
    verdict = OPEN
    if found.high < 0:
        verdict = CONDITIONAL if len(against) else HOLDS
    elif found.low > 0:
        verdict = FAILS
    text = (
        f"Over {found.n} nets Spearman's ρ of |decades at initialization| and accuracy is "
        f"{found:z.2f}: {_tally(nets, True)} that keep the gradient train and "
        f"{_tally(nets, False)} of the others"
    )
    if len(against):
        text += f"; against the rule go {listed(_names(against), 2)}"
    quantity = "Spearman's ρ of |decades at initialization| and accuracy"
    return Finding(quantity, -1.0, found.mean, 1.0, verdict, f"{text}.", found.low, found.high)


STUDY = Study(
    "Does what the gradient does at initialization say whether a net trains?",
    "the text; Schoenholz et al. 2017; Yang et al. 2019",
    (
        Drawing("trainability", scatter_finding, scatter, scatter_caption),
        Drawing("trainability_grid", grid_finding, grid, grid_caption),
        Drawing(
            "trainability_steps",
            lambda reading: steps.finding(sweep(reading.table)),
            lambda reading: steps.layer_by_step(sweep(reading.table)),
            lambda reading: steps.finding(sweep(reading.table)) + ".",
            telling,
        ),
    ),
    (trains_smoothly,),
    rank=51,
)
