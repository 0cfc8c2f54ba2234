"""The waterfall: where along the backward pass the cotangent's norm is lost and gained."""

from math import ceil

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from flowlab.analysis.statistics import over_seeds
from flowlab.errors import InputError, unknown
from flowlab.figures import style
from flowlab.figures.shown import Shown

MOST_LAYERS = 30  # more are drawn in bins
BINS = 20
MOST_OPERATIONS = 4  # named on each side, losses and gains
HEIGHT = 5.6  # inches
HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "++++")
TOTAL = "0.25"  # the grey of the end-to-end bar
# Kinds keep their look from figure to figure; others take what is left.
KINDS = ("linear", "activation", "skip", "branch", "interference")


def waterfall(ledger: pd.DataFrame) -> Figure:
    """One run's ledger as bars that go down where norm is lost and up where it is gained.

    Above, from the output (right) to the input (left), each layer's operations by kind; layers
    are binned beyond 30, and drawn kind by kind within a bin. Below, the totals of each kind, and
    the single operations that lose or gain most. Bars are means over seeds, whiskers 95 % Student
    intervals of the bar's own gain. Only counted operations, only seeds whose gains are all finite.
    Raises InputError for a missing column, several runs, or no such seed.
    """
    rows, _ = _checked(ledger)
    kinds = list(dict.fromkeys(rows["kind"]))
    looks = _looks(kinds)
    with style.context():
        figure = Shown(figsize=(style.WIDTH, HEIGHT))
        grid = figure.add_gridspec(2, 2, height_ratios=(1.25, 1))
        _steps(figure.add_subplot(grid[0, :]), rows, kinds, looks)
        _kinds(figure.add_subplot(grid[1, 0]), rows, looks)
        _largest(figure.add_subplot(grid[1, 1]), rows, looks)
        handles = [Patch(label=kind, **looks[kind]) for kind in kinds]
        figure.legend(handles=handles, loc="outside lower left", ncols=len(handles))
    return figure


def finding(ledger: pd.DataFrame) -> str:
    """By how many decades the gradient changes from output to input, and which kinds do that.

    Raises InputError as ``waterfall`` does.
    """
    rows, _ = _checked(ledger)
    (whole,) = totals(rows.assign(all="all"), ["all"]).itertuples()
    kinds = [f"{row.kind} {row.mean:+.2f}" for row in totals(rows, ["kind"]).itertuples()]
    replaced = str(rows["run"].iat[0]).partition("-without-")[2]
    text = f"With the identity in place of the Jacobian of {replaced}, the" if replaced else "The"
    text += f" gradient changes by {whole.mean:+.2f} decades from output to input"
    text += f": {', '.join(kinds)}" if len(kinds) > 1 else ""
    return text.replace(" -", " −")


def caption(ledger: pd.DataFrame) -> str:
    """The finding in words: the change end to end, each kind's share, the largest operations.

    Raises InputError as ``waterfall`` does.
    """
    rows, left_out = _checked(ledger)
    (whole,) = totals(rows.assign(all="all"), ["all"]).itertuples()
    over = f"mean over {whole.n} seeds [95 % interval]" if whole.n > 1 else "one seed"
    parts = [f"{row.kind} {interval(row)}" for row in totals(rows, ["kind"]).itertuples()]
    single = [*largest(rows).itertuples()]
    low, high = single[0], single[-1]
    text = (
        f"From output to input log10 of the cotangent's norm changes by {interval(whole)} "
        f"({over}): {', '.join(parts)}. "
        f"Least: {low.op} of layer {low.layer}, {interval(low)}; "
        f"most: {high.op} of layer {high.layer}, {interval(high)}."
    )
    return text + (f" Seeds left out as zero or nonfinite: {left_out}." if left_out else "")


def totals(ledger: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Counted gains summed within ``by``, their mean over seeds with interval, lowest first.

    Columns ``by``..., those of ``over_seeds``, and ``operations``: how many were summed.
    """
    rows = ledger[ledger["counted"]]
    per_seed = rows.groupby([*by, "seed"], observed=True)["log10_gain"].agg(["sum", "size"])
    summary = over_seeds(per_seed["sum"])
    size = per_seed["size"].groupby(by).first().rename("operations")
    return summary.join(size, on=by).sort_values("mean", ignore_index=True, kind="stable")


def largest(ledger: pd.DataFrame, most: int = MOST_OPERATIONS) -> pd.DataFrame:
    """Up to ``most`` operations that lose most and as many that gain most, lowest first."""
    single = totals(ledger, ["layer", "position", "op", "kind"])
    losses, gains = single[single["mean"] < 0], single[single["mean"] > 0]
    picked = pd.concat([losses.head(most), gains.tail(most)])
    return picked if len(picked) else single.head(1)


def complete(ledger: pd.DataFrame) -> pd.DataFrame:
    """The rows of seeds whose counted gains are all finite."""
    known = np.isfinite(ledger["log10_gain"]) | ~ledger["counted"]
    return ledger[known.groupby(ledger["seed"]).transform("all")]


def interval(row) -> str:
    """``mean [low, high]`` of a row of ``totals`` (a named tuple); the mean alone of one seed."""
    if not np.isfinite(row.low):
        return f"{row.mean:+.3f}"
    return f"{row.mean:+.3f} [{row.low:+.3f}, {row.high:+.3f}]"


def _checked(ledger: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Counted rows of complete seeds, in order of position, and the number of other seeds."""
    for name in ("run", "seed", "layer", "position", "op", "kind", "counted", "log10_gain"):
        if name not in ledger:
            raise unknown("column", name, ledger.columns)
    if ledger["run"].nunique() != 1:
        raise InputError(f"ledger must hold one run; got {ledger['run'].nunique()}")
    rows = complete(ledger)
    if rows.empty:
        raise InputError("ledger must hold a seed whose gains are all finite; got none")
    left_out = ledger["seed"].nunique() - rows["seed"].nunique()
    return rows[rows["counted"]].sort_values(["seed", "position"]), left_out


def _looks(kinds: list[str]) -> dict[str, dict]:
    order = [*KINDS, *(kind for kind in kinds if kind not in KINDS)]
    return {
        kind: {
            "facecolor": style.COLORS[place % len(style.COLORS)],
            "hatch": HATCHES[place % len(HATCHES)],
            "edgecolor": "white",
            "linewidth": 0,
        }
        for place, kind in enumerate(order)
    }


def _steps(ax: Axes, rows: pd.DataFrame, kinds: list[str], looks) -> None:
    """Floating bars from right (output) to left: each starts where the one before it ended."""
    first, last = int(rows["layer"].min()), int(rows["layer"].max())
    depth = last - first + 1
    size = 1 if depth <= MOST_LAYERS else ceil(depth / BINS)
    summary = totals(rows.assign(bin=(rows["layer"] - first) // size), ["bin", "kind"])
    summary["rank"] = summary["kind"].map(kinds.index)
    summary = summary.sort_values(["bin", "rank"], ascending=[False, True])
    end = summary["mean"].cumsum().to_numpy()
    start = np.concatenate([[0.0], end[:-1]])
    within = summary.groupby("bin").cumcount().to_numpy()
    count = summary.groupby("bin")["rank"].transform("size").to_numpy()
    slot = 0.86 * size / count
    centre = first + size * (summary["bin"].to_numpy() + 0.5) - 0.5
    x = centre + 0.43 * size - (within + 0.5) * slot
    error = (summary["high"] - summary["mean"]).to_numpy()

    for kind in kinds:
        mine = (summary["kind"] == kind).to_numpy()
        ax.bar(x[mine], (end - start)[mine], slot[mine], start[mine], **looks[kind])
    whisker = {"fmt": "none", "ecolor": "black", "elinewidth": 0.8, "zorder": 3}
    if np.isfinite(error).any():
        ax.errorbar(x, end, error, **whisker)
    ax.hlines(end[:-1], (x - slot / 2)[1:], (x + slot / 2)[:-1], color="0.25", linewidth=0.6)
    ax.axhline(0, color="0.25", linewidth=0.8)

    reach = np.concatenate([[0.0], end + np.nan_to_num(error), end - np.nan_to_num(error)])
    pad = 0.06 * max(np.ptp(reach), 0.5)
    style.decades(ax, reach.min() - pad, reach.max() + pad)
    style.layers(ax, first, last)
    ax.set_xlim(first - 0.5 - 0.01 * depth, first + size * (summary["bin"].max() + 1) - 0.5)
    ax.set_ylabel("‖cotangent‖ / ‖upstream‖")
    binned = f", {size} layers to a group" if size > 1 else ""
    ax.set_title(f"from the output to the input{binned}")


def _kinds(ax: Axes, rows: pd.DataFrame, looks) -> None:
    summary = totals(rows, ["kind"])
    whole = totals(rows.assign(kind="end to end"), ["kind"])
    names = [f"{row.kind} ({row.operations})" for row in summary.itertuples()] + ["end to end"]
    summary = pd.concat([summary, whole], ignore_index=True)
    faces = looks | {"end to end": {"facecolor": TOTAL}}
    _bars(ax, summary, names, [faces[kind] for kind in summary["kind"]])
    ax.set_title("total of each kind")


def _largest(ax: Axes, rows: pd.DataFrame, looks) -> None:
    summary = largest(rows)
    names = [f"{row.op}, layer {row.layer}" for row in summary.itertuples()]
    _bars(ax, summary, names, [looks[kind] for kind in summary["kind"]])
    ax.set_title("largest losses and gains")


def _bars(ax: Axes, summary: pd.DataFrame, names: list[str], looks: list[dict]) -> None:
    """Horizontal bars with whiskers, named on the left, the first on top."""
    y = np.arange(len(summary))
    mean, error = summary["mean"].to_numpy(), (summary["high"] - summary["mean"]).to_numpy()
    for place, look in enumerate(looks):
        ax.barh(y[place], mean[place], 0.72, **look)
    if np.isfinite(error).any():
        ax.errorbar(mean, y, xerr=error, fmt="none", ecolor="black", elinewidth=0.8, zorder=3)
    ax.axvline(0, color="0.25", linewidth=0.8)
    ax.set_yticks(y, names, fontsize=style.TEXT)
    ax.tick_params(axis="y", length=0)
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.set_xlabel("gain in decades (log10)")
