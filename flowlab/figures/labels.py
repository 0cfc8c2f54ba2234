"""Lines labelled where they end, the labels apart from one another."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from flowlab.figures import style

MOST = 8  # lines of one panel
LETTERS = 26  # of a line of a label
ROW = 0.15  # inches, the height of a line of a label
GAP = 0.18  # inches between the end of a line and its label


@dataclass(frozen=True)
class End:
    """Where a line ends, in data coordinates, and what is written there.

    An infinite ``y`` stands for the edge of the axis.
    """

    x: float
    y: float
    text: str
    color: str


def label_ends(
    figure: Figure, ends: Mapping[Axes, Sequence[End]], side: str = "right", letters: int = LETTERS
) -> None:
    """Write each line's text at its end, joined by a thin line where it has to give way.

    On the ``right`` texts stand outside of the axes, on the ``left``, where the ticks are, within:
    the x axis is made longer there. Texts are broken after ``letters`` letters. Limits of y must be
    final, legends in their place.
    """
    figure.draw_without_rendering()
    named = {ax: [end for end in of if end.text and not np.isnan(end.y)] for ax, of in ends.items()}
    named = {ax: of for ax, of in named.items() if of}
    texts = {ax: [_broken(end.text, letters) for end in of] for ax, of in named.items()}
    if side == "left" and named:
        _make_room(named, max(map(_longest, texts.values())))
    for ax, of in named.items():
        _label(ax, of, texts[ax], side)


def spread(places: Sequence[float], sizes: Sequence[float], low: float, high: float) -> np.ndarray:
    """Middles of intervals of these sizes, as near to ``places`` as they can be without overlap.

    All within ``low`` to ``high`` where there is room; in the order of ``places``.
    """
    order = np.argsort(places, kind="stable")
    sizes = np.asarray(sizes, float)[order]
    # Where the middles would be, stood they shoulder to shoulder.
    offsets = np.cumsum(sizes) - sizes / 2
    wanted = np.asarray(places, float)[order] - offsets
    blocks: list[list[float]] = []  # mean, count: neighbours that touch move as one
    for value in wanted:
        blocks.append([value, 1])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            mean, count = blocks.pop()
            blocks[-1][0] = (blocks[-1][0] * blocks[-1][1] + mean * count) / (blocks[-1][1] + count)
            blocks[-1][1] += count
    shifts = np.repeat([b[0] for b in blocks], [int(b[1]) for b in blocks])
    shifts = np.clip(shifts, low, max(low, high - sizes.sum()))
    found = np.empty(len(order))
    found[order] = shifts + offsets
    return found


def _broken(text: str, letters: int) -> str:
    return fill(text, letters, break_long_words=False, break_on_hyphens=False)


def _longest(texts: list[str]) -> int:
    return max(len(line) for text in texts for line in text.split("\n"))


def _make_room(axes: Iterable[Axes], longest: int) -> None:
    """Move the left limits of panels, which may share them, so that texts fit beside the lines."""
    limits = {ax: ax.get_xlim() for ax in axes}
    for ax, (low, high) in limits.items():
        width = ax.get_window_extent().width / ax.figure.dpi
        room = min(0.58 * longest * style.TEXT / 72 + GAP, 0.6 * width)
        ax.set_xlim(low - (high - low) * room / (width - room), high)


def _label(ax: Axes, ends: list[End], texts: list[str], side: str) -> None:
    box = ax.get_window_extent()
    width, height = box.width / ax.figure.dpi, box.height / ax.figure.dpi
    middle = -GAP / width if side == "left" else 1 + GAP / width
    at = [ax.transData.transform((end.x, end.y if np.isfinite(end.y) else 0)) for end in ends]
    heights = ax.transAxes.inverted().transform(at)[:, 1]
    for place, end in enumerate(ends):
        if not np.isfinite(end.y):
            heights[place] = 0.02 if end.y < 0 else 0.98
    heights = np.clip(heights, 0, 1)
    sizes = [ROW * (text.count("\n") + 1) for text in texts]
    middles = spread(heights * height, sizes, -ROW / 2, height) / height
    for end, text, own, y in zip(ends, texts, heights, middles, strict=True):
        x_end = ax.transAxes.inverted().transform(ax.transData.transform((end.x, 0)))[0]
        x = x_end + middle if side == "left" else max(middle, x_end + GAP / width)
        color = tuple(0.8 * np.array(to_rgb(end.color)))
        ax.annotate(
            text,
            **{"xy": (x_end, own), "xycoords": "axes fraction"},
            **{"xytext": (x, y), "textcoords": "axes fraction"},
            **{"ha": "right" if side == "left" else "left", "va": "center", "color": color},
            **{"fontsize": style.TEXT, "linespacing": 0.95, "annotation_clip": False},
            arrowprops={
                **{"arrowstyle": "-", "color": color, "linewidth": 0.7, "shrinkA": 1},
                **{"shrinkB": 2, "relpos": (1 if side == "left" else 0, 0.5)},
            },
        )
