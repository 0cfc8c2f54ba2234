"""Which figures belong to which experiment; a new experiment is one entry."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pandas as pd
from matplotlib.figure import Figure

from flowlab.figures import batch_size
from flowlab.figures.by_init import small_multiples, small_multiples_caption
from flowlab.figures.by_layer import caption, profiles
from flowlab.figures.extreme import depths_of_underflow, underflow_caption
from flowlab.figures.finite_width import variance_caption, variance_collapse
from flowlab.figures.heat_map import heat_map, heat_map_caption
from flowlab.figures.phase import phase_caption, phase_diagram
from flowlab.figures.runs import MOST
from flowlab.figures.skips import skip_caption, skip_depth


@dataclass(frozen=True)
class Drawing:
    """A figure and the caption that states its finding, both from (table, prediction).

    ``select`` keeps the rows of the table that the figure shows; ``plane`` asks for theory's phase
    plane as a third table.
    """

    name: str
    title: str
    draw: Callable[..., Figure]
    caption: Callable[..., str]
    select: Callable[[pd.DataFrame], pd.DataFrame] = lambda table: table
    plane: bool = False


def one_depth(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the middle one of the depths."""
    depths = sorted(table["depth"].unique())
    return table[table["depth"] == depths[len(depths) // 2]]


def first_runs(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of as many runs as one figure holds, in order of their settings."""
    axes = [axis for axis in ("init", "activation", "skip", "width", "depth") if axis in table]
    runs = table.drop_duplicates("run").sort_values([*axes, "run"])["run"].head(MOST)
    return table[table["run"].isin(runs)]


PROFILES = Drawing("profiles", "Norms against layer", profiles, caption, first_runs)

GALLERY = {
    "depth": (
        Drawing(
            "profiles_by_init",
            "The gradient's norm against layer under each initializer",
            small_multiples,
            small_multiples_caption,
            one_depth,
        ),
        Drawing(
            "depth_by_init",
            "What depth does to the gradient under each initializer",
            partial(heat_map, across="depth"),
            partial(heat_map_caption, across="depth"),
        ),
    ),
    "initialization": (
        Drawing(
            "activation_by_init",
            "Which initializer suits which activation",
            partial(heat_map, across="activation"),
            partial(heat_map_caption, across="activation"),
        ),
    ),
    "skip": (Drawing("skip_by_depth", "Skip connections against depth", skip_depth, skip_caption),),
    "finite_width": (
        Drawing(
            "variance_collapse",
            "Fluctuations from net to net depend on L/N",
            variance_collapse,
            variance_caption,
        ),
    ),
    "phase": (
        Drawing(
            "phase_diagram",
            "Order and chaos: where gradients vanish and explode",
            phase_diagram,
            phase_caption,
            plane=True,
        ),
    ),
    "batch_size": (
        Drawing(
            "norm_by_batch",
            "The gradient's norm against batch size",
            batch_size.norm_by_batch,
            batch_size.norm_by_batch_caption,
            batch_size.one_family,
        ),
        Drawing(
            "noise_by_layer",
            "The noise scales of weights and biases",
            batch_size.noise_by_layer,
            batch_size.noise_by_layer_caption,
            batch_size.largest_batch,
        ),
    ),
    "extreme": (
        Drawing(
            "depths_of_underflow",
            "A gradient that floating point cannot hold",
            depths_of_underflow,
            underflow_caption,
        ),
    ),
}


def drawings(experiment: str) -> tuple[Drawing, ...]:
    """The figures of an experiment; ``profiles`` for one that has none of its own."""
    return GALLERY.get(experiment, (PROFILES,))
