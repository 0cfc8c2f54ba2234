"""What clipping does to every network: its layers' norms, the gradient's angle, what it reaches."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from flowlab.analysis.statistics import at_start, mean_interval, profile
from flowlab.errors import InputError
from flowlab.figures import style
from flowlab.figures.networks import COLUMNS, order
from flowlab.figures.panels import GREY, INTERVAL, LINE, legend
from flowlab.figures.shown import Shown
from flowlab.figures.words import decades, listed
from flowlab.optimizers import CLIPPINGS
from flowlab.studies.study import Drawing, Reading, Study

ROW, PANEL = 0.42, 1.45  # inches, the heights of a network's row and of a panel of profiles
AFTER = "clipped_log10_norm"
LOOKS = {
    kind: {"color": style.COLORS[place - 1], "marker": style.MARKERS[place]}
    for place, kind in enumerate(CLIPPINGS)
}  # without clipping black
WORDS = {kind: f"by {kind}" for kind in CLIPPINGS} | {"adaptive": "adaptively"}
SAME = 0.005  # decades: below, layers lose alike
LOST = {"marker": "x", "linestyle": "none", "markersize": 5}


def reached(reading: Reading) -> pd.DataFrame:
    """One row per run: network, clip, and what became of its seeds, means with 95 % intervals.

    ``first`` is the loss at initialization; ``loss`` the held-out loss at the end, geometric, of
    seeds that did not diverge, and ``diverged`` how many did; ``angle`` (degrees) is that between
    the first gradient and what clipping left of it; ``clipped`` the share of steps.
    """
    rows = []
    for _, of in reading.trained.groupby("run", sort=False):
        begin, end = (of[of["step"] == of["step"].agg(which)] for which in ("min", "max"))
        well = end[end["training_status"] == "ok"]
        loss = mean_interval(np.log(well["held_out_loss"]))
        angle = mean_interval(np.degrees(begin["clip_angle"]))
        before = of.groupby("seed")["step"].shift(fill_value=0)
        steps = of["step"] - before
        rows.append(
            {
                "network": of["network"].iat[0],
                "clip": of["training_clip"].iat[0],
                "first": float(np.exp(np.log(begin["training_loss"]).mean())),
                **{f"loss{k}": np.exp(v) for k, v in _ends(loss)},
                **{f"angle{k}": v for k, v in _ends(angle)},
                "diverged": len(end) - len(well),
                "seeds": len(end),
                "clipped": float((of["clipped"] * steps).sum() / steps.sum()),
            }
        )
    found = pd.DataFrame(rows)
    twice = found[found.duplicated(["network", "clip"])]
    if len(twice):
        named = f"network={twice['network'].iat[0]}, training.clip={twice['clip'].iat[0]}"
        raise InputError(f"table must hold one run for each network and clip; got two of {named}")
    return found.sort_values(
        ["network", "clip"],
        key=lambda of: of.map(order if of.name == "network" else CLIPPINGS.index),
        ignore_index=True,
    )


def _ends(interval) -> list[tuple[str, float]]:
    return [("", interval.mean), ("_low", interval.low), ("_high", interval.high)]


def reached_figure(reading: Reading) -> Figure:
    """Loss after training and the first step's angle: a row for each network, a mark for each clip.

    Marks are means over seeds that did not diverge, bars 95 % intervals; a cross at the edge is a
    run in which seeds diverged; the tick is the loss at initialization. Raises InputError without
    trained runs and for two runs of one network and clip.
    """
    rows = reached(reading)
    networks = list(dict.fromkeys(rows["network"]))
    kinds = [kind for kind in CLIPPINGS if kind in set(rows["clip"])]
    offsets = dict(zip(kinds, np.linspace(-0.32, 0.32, len(kinds)), strict=True))
    with style.context():
        figure = Shown(figsize=(style.WIDTH, ROW * len(networks) + 1.1))
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        left.set_xscale("log")
        edge = {"transform": left.get_yaxis_transform(), "clip_on": False}
        for kind, of in rows.groupby("clip", sort=False):
            y = of["network"].map(networks.index) + offsets[kind]
            for ax, name in ((left, "loss"), (right, "angle")):
                margins = [of[name] - of[f"{name}_low"], of[f"{name}_high"] - of[name]]
                look = {**LOOKS[kind], "linestyle": "none", "elinewidth": 0.9}
                ax.errorbar(of[name], y, xerr=np.nan_to_num(margins), label=kind, **look)
            lost = y[of["diverged"] > 0].to_numpy()
            if len(lost):
                look = {"color": LOOKS[kind]["color"], "label": f"lost: {kind}", **LOST}
                left.plot(np.ones(len(lost)), lost, **look, **edge)
        first = rows.groupby("network", sort=False)["first"].first()
        left.plot(first, range(len(first)), color=GREY, marker="|", markersize=16, linestyle="none")
        left.set_yticks(range(len(networks)), networks)
        left.set_ylim(len(networks) - 0.5, -0.5)
        left.xaxis.set_major_locator(LogLocator(numticks=6))
        left.xaxis.set_minor_formatter(NullFormatter())
        left.set_xlabel("held-out loss after training")
        right.set_xlabel("turn of the first step, degrees")
        right.set_xlim(-4, 94)
        right.set_xticks([0, 30, 60, 90])
        for ax in (left, right):
            ax.tick_params(labelsize=style.TEXT)
            ax.grid(axis="y", visible=False)
            for place in range(len(networks) - 1):
                ax.axhline(place + 0.5, color="0.9", linewidth=0.6, zorder=0)
        handles = [Line2D([], [], **LOOKS[kind], label=_named(kind)) for kind in kinds]
        handles += [
            Line2D([], [], color=GREY, marker="|", linestyle="none", label="loss at initialization")
        ]
        if rows["diverged"].any():
            handles.append(Line2D([], [], color=GREY, label="seeds diverged", **LOST))
        figure.set_figheight(figure.get_figheight() + LINE * legend(figure, handles, "lower"))
    return figure


def _named(kind: str) -> str:
    return "no clipping" if kind == "none" else f"clip={kind}"


def reached_finding(reading: Reading) -> str:
    """In which networks seeds diverge without clipping, and with it."""
    rows = reached(reading)
    without, clipped = rows[rows["clip"] == "none"], rows[rows["clip"] != "none"]
    parts = [f"{_lost(without)} without clipping"]
    for kind, of in clipped.groupby("clip", sort=False):
        if of["diverged"].any():
            parts.append(f"{_lost(of)} under clip={kind}")
    if not clipped["diverged"].any():
        parts.append("none with it")
    turned = clipped.groupby("clip", sort=False)["angle"].max()
    words = ", ".join(f"{angle:.0f}° ({kind})" for kind, angle in turned.items())
    gain = f"From weights {reading.table['gain'].iat[0]:g} times too large"
    return f"{gain} {' and '.join(parts)}; the first step turns by at most {words}"


def _lost(rows: pd.DataFrame) -> str:
    lost = rows[rows["diverged"] > 0]
    if lost.empty:
        return "no network diverges"
    counts = [
        f"{n} ({k} of {s} seeds)" for n, k, s in lost[["network", "diverged", "seeds"]].values
    ]
    return f"{listed(counts, 7)} diverge{'s' * (len(lost) == 1)}"


def reached_caption(reading: Reading) -> str:
    """The losses with and without clipping, network by network."""
    rows = reached(reading)
    parts = []
    for network, of in rows.groupby("network", sort=False):
        values = [
            f"{row['clip']} "
            + ("diverged" if row["diverged"] == row["seeds"] else f"{row['loss']:.2f}")
            for _, row in of.iterrows()
        ]
        parts.append(f"{network} {of['first'].iat[0]:.3g} → {', '.join(values)}")
    return (
        "Held-out loss, from that at initialization, by kind of clipping (seeds that did not "
        f"diverge): {'; '.join(parts)}."
    )


def factors(reading: Reading) -> pd.DataFrame:
    """Norms by layer in the first step, a row for each run and layer (``profile``).

    ``mean`` is log10 of what clipping left of ‖dW‖, the update over the learning rate, which sgd
    makes of the clipped gradient alone; ``raw`` is log10‖dW‖. Raises InputError for other
    optimizers and for weight decay.
    """
    table = at_start(reading.table)
    plain = (table["training"] == "sgd") & (table["training_weight_decay"].fillna(0) == 0)
    if not plain.all():
        raise InputError("training must be sgd without weight decay, to see what is clipped")
    rate = reading.trained.groupby("run")["learning_rate"].first()
    logs = table["update_log10_norm"] - np.log10(table["run"].map(rate).astype(float))
    rows = profile(table.assign(**{AFTER: logs}), AFTER)
    raw = profile(table, "dW_log10_norm").set_index(["run", "layer"])["mean"]
    runs = table.groupby("run")[["network", "training_clip"]].first()
    return rows.join(raw.rename("raw"), on=["run", "layer"]).join(runs, on="run")


def profiles(reading: Reading) -> Figure:
    """What each clipping leaves of ‖dW‖ in every layer in the first step, a panel per network.

    Black is the gradient itself. Lines are means over seeds with their 95 % interval.
    """
    rows = factors(reading)
    networks = sorted(rows["network"].unique(), key=order)
    kinds = [kind for kind in CLIPPINGS if kind in set(rows["training_clip"])]
    down = -(-len(networks) // COLUMNS)
    with style.context():
        figure = Shown(figsize=(style.WIDTH, down * (PANEL + 0.5) + 0.2))
        axes = figure.subplots(down, min(COLUMNS, len(networks)), squeeze=False)
        for ax in axes.flat[len(networks) :]:
            ax.set_visible(False)
        for place, (ax, network) in enumerate(zip(axes.flat, networks, strict=False)):
            _lines(ax, rows[rows["network"] == network])
            ax.set_title(network)
            if place % COLUMNS == 0:
                ax.set_ylabel("‖dW‖")
        handles = [
            Line2D([], [], **LOOKS[kind], label="before" if kind == "none" else f"clip={kind}")
            for kind in kinds
        ]
        figure.set_figheight(figure.get_figheight() + LINE * legend(figure, handles, "lower"))
    return figure


def _lines(ax: Axes, rows: pd.DataFrame) -> None:
    for kind, of in rows.groupby("training_clip"):
        look = LOOKS[kind]
        ax.fill_between(of["layer"], of["low"], of["high"], color=look["color"], **INTERVAL)
        ax.plot(of["layer"], of["mean"], label=kind, zorder=3 - (kind == "none"), **look)
    low, high = ax.dataLim.intervaly
    pad = 0.08 * max(high - low, 1)
    style.decades(ax, low - pad, high + pad)
    style.layers(ax, int(rows["layer"].min()), int(rows["layer"].max()))


def apart(reading: Reading) -> pd.DataFrame:
    """Of each network and clip the decades between the least and the most that a layer loses."""
    rows = factors(reading)
    rows["lost"] = rows["raw"] - rows["mean"]
    found = rows.groupby(["training_clip", "network"], sort=False)["lost"].agg(["min", "max"])
    return found.assign(apart=found["max"] - found["min"])


def profiles_finding(reading: Reading) -> str:
    """How unlike layers are clipped: the same factor by norm, others differ."""
    rows, same, unlike = apart(reading), [], []
    for kind in CLIPPINGS[1:]:
        if kind in rows.index:
            of = rows.loc[kind, "apart"]
            unit = " more" if not unlike else ""
            if of.max() < SAME:
                same.append(WORDS[kind])
            else:
                unlike.append(f"{WORDS[kind]} up to {decades(of.max())}{unit} ({of.idxmax()})")
    parts = [f"Clipping {listed(same, 4)} takes the same factor from every layer's ‖dW‖"] * bool(
        same
    )
    if unlike:
        parts.append(
            f"{'it' if same else 'Clipping'} takes {listed(unlike, 4)} from one layer than "
            "from another"
        )
    return "; ".join(parts)


def profiles_caption(reading: Reading) -> str:
    """What the layer that loses least and the layer that loses most lose, in every network."""
    rows, parts = apart(reading), []
    for kind in CLIPPINGS[1:]:
        if kind in rows.index:
            of = rows.loc[kind].sort_index(key=lambda names: names.map(order))
            words = [f"{n} {row['min']:z.2f} to {row['max']:z.2f}" for n, row in of.iterrows()]
            parts.append(f"by {kind} {', '.join(words)}")
    return f"Decades that layers lose in the first step, least to most: {'; '.join(parts)}."


STUDY = Study(
    "What does clipping do to every network that starts with weights too large?",
    "the text; Pascanu et al. 2013; Brock et al. 2021",
    (
        Drawing("clipping", reached_finding, reached_figure, reached_caption),
        Drawing("clipping_profiles", profiles_finding, profiles, profiles_caption),
    ),
    rank=53,
)
