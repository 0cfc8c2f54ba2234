"""Networks of different kinds: a panel for each, since their layers cannot be compared."""

from math import ceil

import pandas as pd
from matplotlib.figure import Figure

from flowlab.figures import style
from flowlab.figures.labels import label_ends
from flowlab.figures.one_axis import lines, named, silent
from flowlab.figures.panels import LINE, key, legend, share_y
from flowlab.figures.runs import NamedRun
from flowlab.figures.sentences import crossed, kept_and_most
from flowlab.figures.shown import Shown
from flowlab.figures.sweeps import Conditions
from flowlab.figures.words import bare, said

PANEL = 1.75  # inches, the height of a panel
COLUMNS = 4
ABSENT = NamedRun(None, "", "", 0)
ORDER = ("mlp", "cnn", "resnet", "transformer", "rnn", "lstm", "gru")


def network_panels(sweep: Conditions) -> Figure:
    """‖δ‖ against layer, of recurrent nets ‖∂L/∂h_t‖ against step; a panel for each network.

    Panels of a row share their y axis. Lines are means over seeds with their 95 % interval, dashes
    theory.
    """
    names = sorted(sweep.values("network"), key=order)
    timed = set(sweep.rows.loc[sweep.rows["along"] == "step", "network"])
    rows = [
        part
        for of in ([n for n in names if n not in timed], [n for n in names if n in timed])
        for part in _split(of)
    ]
    columns = max(map(len, rows))
    with style.context():
        figure = Shown(figsize=(style.WIDTH, 1))
        axes = figure.subplots(len(rows), columns, squeeze=False)
        drawn, ends = set(), {}
        looks = _lines(sweep)
        for row, of in enumerate(rows):
            for column, ax in enumerate(axes[row]):
                if column >= len(of):
                    ax.set_visible(False)
                    continue
                mine = sweep.rows[sweep.rows["network"] == of[column]]
                table = sweep.table[sweep.table["run"].isin(mine["run"])]
                runs = {run.name: run for run in named(mine, looks[mine.index])}
                # A line has the colour of its place in all panels, also where it is absent.
                same = [runs.get(name, ABSENT) for name in dict.fromkeys(looks)]
                shown, ends[ax] = lines(ax, table, sweep.prediction, same)
                drawn |= shown
                ax.set_title(of[column])
                if column:
                    ax.set_ylabel("")
            share_y(axes[row][: len(of)])
        handles = [handle for name, handle in key().items() if name in drawn]
        height = legend(figure, handles, "lower", title=silent(sweep))
        figure.set_figheight(len(rows) * (PANEL + 0.45) + 0.2 + LINE * height)
        label_ends(figure, ends, "left")
    return figure


def finding(sweep: Conditions) -> str:
    """How many networks keep the gradient, and the two ends."""
    return kept_and_most(sweep.rows, sweep.kept_within, f"over {crossed(sweep.rows)}")


def _lines(sweep: Conditions) -> pd.Series:
    """What names a run within its panel: all settings but the network."""
    axes = [axis for axis in sweep.axes if axis != "network"]
    return sweep.rows.apply(lambda row: ", ".join(said(a, row[a]) for a in axes), axis=1)


def _split(names: list[str]) -> list[list[str]]:
    """Rows of up to four panels, as even as can be."""
    if not names:
        return []
    size = ceil(len(names) / ceil(len(names) / COLUMNS))
    return [names[start : start + size] for start in range(0, len(names), size)]


def order(name: object) -> tuple[int, str]:
    """Where a network stands among others: feedforward ones before recurrent ones."""
    first = bare(name).split(" ")[0]
    return (ORDER.index(first) if first in ORDER else len(ORDER), bare(name))
