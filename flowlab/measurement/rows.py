"""The rows of a network: which operations have one, and what stands in it."""

from collections.abc import Iterator
from dataclasses import dataclass

from flowlab.layer import Shape
from flowlab.measurement.quantities import of_operation
from flowlab.networks import Network
from flowlab.networks.network import CountedLayer

# A parameter's role: the columns of its gradient's norm and of its examples'.
GRADIENTS = {
    "weight": ("dW_log10_norm", "dW_examples_log10_norm"),
    "scale": ("dW_log10_norm", "dW_examples_log10_norm"),
    "bias": ("db_log10_norm", "db_examples_log10_norm"),
    "gain": ("dgain_log10_norm", "dgain_examples_log10_norm"),
    "shift": ("dbias_log10_norm", "dbias_examples_log10_norm"),
}


@dataclass(frozen=True)
class Row:
    """One row of a block: the operation's name and fans, and the columns that it fills.

    ``operation`` counts the block's operations that have rows; ``gradients`` are (number of the
    gradient, its column, its examples' column).
    """

    op: str
    fan_in: int
    fan_out: int
    operation: int
    has_delta: bool
    has_dx: bool
    gradients: tuple[tuple[int, str, str], ...]
    readings: tuple[str, ...]


def layout(network: Network, shape: Shape) -> list[list[Row]]:
    """The rows of every block for a batch of ``shape``, in forward order.

    The last row of a block carries what belongs to the block: the norm of its output, and for a
    residual block the gradient of the sum rather than of the branch. A normalization has no delta:
    its input's is the map's before it.
    """
    rows, kinds = [], {}
    for place in network.walk(shape):
        kind = place.block, place.shape
        if kind not in kinds:
            kinds[kind] = list(_rows(place))
        rows.append(kinds[kind])
    return rows


def _rows(place: CountedLayer) -> Iterator[Row]:
    """The rows of one block; weights W_a and W_b of one operation have rows of their own."""
    shown = [(layer, own) for layer, own in place.operations if layer.has_rows]
    names = [layer.name for layer, _ in shown]
    for k, (layer, own) in enumerate(shown):
        repeated = names.count(layer.name) > 1
        name = layer.name + (f"_{names[: k + 1].count(layer.name)}" if repeated else "")
        gradients = [(i, n, p) for i, (n, p) in enumerate(own.items()) if p.role != "target"]
        normalizes = any(p.role == "gain" for _, _, p in gradients)
        suffixes = list(dict.fromkeys(n.partition("_")[2] for _, n, _ in gradients)) or [""]
        for suffix in suffixes:
            mine = [(i, p) for i, n, p in gradients if n.partition("_")[2] == suffix]
            fans = (mine[0][1].fan_in, mine[0][1].fan_out) if mine else (1, 1)
            columns = []
            for i, p in mine:
                role = "shift" if normalizes and p.role == "bias" else p.role
                columns.append((i, *GRADIENTS[role]))
            yield Row(
                name + (f"_{suffix}" if suffix else ""),
                *fans,
                operation=k,
                has_delta=any(p.role in ("weight", "scale") for _, p in mine),
                gradients=tuple(columns),
                readings=(*layer.readings, *of_operation(layer)),
                has_dx=suffix == suffixes[0],  # the others' input is the layer's own state
            )
