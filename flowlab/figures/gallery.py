"""Which figures belong to which experiment; a new experiment is one entry."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pandas as pd
from matplotlib.figure import Figure

from flowlab.figures import (
    architectures,
    batch_norm,
    batch_size,
    over_depth,
    through_time,
    transformer,
)
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

    ``select`` keeps the rows of the table that the figure shows; ``given`` names what more it
    needs as a third argument, which the caller knows: theory's ``phase_plane``,
    ``batch_norm_rates`` or ``border_rates``, or the number of ``positions`` of images.
    """

    name: str
    title: str
    draw: Callable[..., Figure]
    caption: Callable[..., str]
    select: Callable[[pd.DataFrame], pd.DataFrame] = lambda table: table
    given: str = ""


def one_depth(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the middle one of the depths."""
    depths = sorted(table["depth"].unique())
    return table[table["depth"] == depths[len(depths) // 2]]


def first_runs(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of as many runs as one figure holds, in order of their settings."""
    axes = [axis for axis in ("init", "activation", "skip", "width", "depth") if axis in table]
    runs = table.drop_duplicates("run").sort_values([*axes, "run"])["run"].head(MOST)
    return table[table["run"].isin(runs)]


def _over_depth(
    name: str, title: str, panels: str, lines: str, near: float | None = None, given: str = ""
) -> Drawing:
    """A drawing of ``change_by_depth``, panels by one setting and lines by another."""
    axes = {"panels": panels, "lines": lines}
    draw = partial(over_depth.change_by_depth, **axes, near=near)
    return Drawing(
        name, title, draw, partial(over_depth.change_by_depth_caption, **axes), given=given
    )


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
            given="phase_plane",
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
    "cnn_extreme": (
        Drawing(
            "depths_of_underflow_of_images",
            "A convolutional net's gradient that floating point cannot hold",
            depths_of_underflow,
            underflow_caption,
            given="positions",
        ),
    ),
    "cnn_depth": (
        _over_depth(
            "border_by_depth",
            "What padding costs a convolutional net's gradient",
            *("padding", "init"),
            given="border_rates",
        ),
    ),
    "normalization": (
        _over_depth(
            "norm_by_depth", "Normalization with and without skips", *("skip", "norm"), near=2.0
        ),
    ),
    "batchnorm": (
        Drawing(
            "rate_by_batch",
            "Batch norm makes the gradients of plain nets explode",
            batch_norm.rate_by_batch,
            batch_norm.rate_by_batch_caption,
            given="batch_norm_rates",
        ),
    ),
    "rnn_time": (
        Drawing(
            "states_of_plain_cells",
            "Backpropagation through time in simple recurrent nets",
            through_time.state_gradients,
            through_time.state_gradients_caption,
            through_time.plain_cells,
        ),
        Drawing(
            "states_of_gated_cells",
            "Backpropagation through time in gated cells",
            partial(through_time.state_gradients, across="network"),
            partial(through_time.state_gradients_caption, across="network"),
            through_time.gated_cells,
        ),
    ),
    "rnn_map": (
        Drawing(
            "layer_by_time",
            "The gradient over layers and time",
            through_time.layer_by_time,
            through_time.layer_by_time_caption,
        ),
    ),
    "transformer_depth": (
        Drawing(
            "blocks_delta",
            "The gradient's norm through transformer blocks",
            transformer.blocks_delta,
            transformer.blocks_delta_caption,
            transformer.deepest,
        ),
        Drawing(
            "rank_collapse",
            "Tokens that grow alike",
            transformer.rank_collapse,
            transformer.rank_collapse_caption,
            transformer.deepest,
        ),
        Drawing(
            "attention_shares",
            "How attention divides the gradient among its weights",
            transformer.attention_shares,
            transformer.attention_shares_caption,
            transformer.deepest,
        ),
    ),
    "architectures": (
        Drawing(
            "architecture_profiles",
            "Every architecture's gradient",
            architectures.architecture_profiles,
            architectures.architecture_profiles_caption,
        ),
        Drawing(
            "architecture_rates",
            "Every architecture's rate beside theory's",
            architectures.architecture_rates,
            architectures.architecture_rates_caption,
        ),
    ),
}


def drawings(experiment: str) -> tuple[Drawing, ...]:
    """The figures of an experiment; ``profiles`` for one that has none of its own."""
    return GALLERY.get(experiment, (PROFILES,))
