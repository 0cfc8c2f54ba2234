"""What is measured besides norms: small functions, each registered with its column.

A quantity of every operation is one function::

    @operation_quantity(Column("delta_zeros", "share", "share of exact zeros in delta"))
    def delta_zeros(tape, dy, dx, gradients):
        ...

It returns one number for each network, float64 (seeds,), and is made by kernels alone: a layer's
pass is recorded, and whatever happens outside kernels would be missing from the recording. Where
the column's name holds ``log10`` it returns log2. What one layer knows (``attention_entropy``)
stands on the layer, as :attr:`flowlab.layer.Layer.readings`.
"""

from collections.abc import Callable, Hashable
from typing import NamedTuple

import numpy as np

from flowlab import schema
from flowlab.layer import Arrays, Layer, Measured, Primitive
from flowlab.layers.attention import token_cosine
from flowlab.networks import Network
from flowlab.schema import COTANGENT, Column

OfOperation = Callable[[Arrays, np.ndarray, np.ndarray, Arrays], np.ndarray]
OfOutput = Callable[[np.ndarray], np.ndarray]
_OPERATIONS: dict[str, tuple[OfOperation, Callable[[Layer], bool]]] = {}
_OUTPUTS: dict[str, tuple[OfOutput, Callable[[Network, np.ndarray], bool]]] = {}


class Report(NamedTuple):
    """What is shown of an operation: :class:`~flowlab.layer.Measured` and readings."""

    norms: np.ndarray
    examples: np.ndarray | tuple
    of_dx: np.ndarray | tuple
    of_gradients: np.ndarray | tuple
    readings: tuple[np.ndarray, ...]


def columns() -> tuple[str, ...]:
    """The columns that operations and blocks fill, in the order of the table."""
    return tuple(name for name in schema.names("measured") if name != COTANGENT)


def operation_quantity(
    column: Column, where: Callable[[Layer], bool] = lambda layer: True
) -> Callable[[OfOperation], OfOperation]:
    """Register a function of (tape, dy, dx, gradients), for operations ``where`` that is true.

    Raises InputError for a column whose name already means something else.
    """

    def register(function: OfOperation) -> OfOperation:
        schema.register(column)
        _OPERATIONS[column.name] = function, where
        return function

    return register


def output_quantity(
    column: Column, where: Callable[[Network, np.ndarray], bool]
) -> Callable[[OfOutput], OfOutput]:
    """Register a function of a block's output (seeds, batch, ...), for networks and outputs
    ``where`` that is true; it stands in the block's last row.

    Raises InputError for a column whose name already means something else.
    """

    def register(function: OfOutput) -> OfOutput:
        schema.register(column)
        _OUTPUTS[column.name] = function, where
        return function

    return register


def registered() -> Hashable:
    """What is registered: equal as long as the same functions are."""
    return tuple(_OPERATIONS.items()), tuple(_OUTPUTS.items())


def of_operation(layer: Layer) -> tuple[str, ...]:
    """The registered columns that an operation fills."""
    return tuple(column for column, (_, where) in _OPERATIONS.items() if where(layer))


def of_output(network: Network, y: np.ndarray) -> dict[str, np.ndarray]:
    """The registered quantities of a block's output, by column, each (seeds,)."""
    return {c: function(y) for c, (function, where) in _OUTPUTS.items() if where(network, y)}


def report(
    layer: Primitive, tape: Arrays, dy: np.ndarray, dx: np.ndarray, gradients: Arrays
) -> Report:
    """What is shown of an operation that has rows, as a nest of arrays."""
    found = report_of(layer, tape, dx, layer.measured(tape, dy, dx, gradients))
    own = tuple(_OPERATIONS[c][0](tape, dy, dx, gradients) for c in of_operation(layer))
    return found._replace(readings=found.readings + own)


def report_of(layer: Primitive, tape: Arrays, dx: np.ndarray, measured: Measured) -> Report:
    """The same where the norms are known and no registered quantity asks for gradients."""
    of_dx = None if isinstance(measured.of_dx, tuple) else measured.of_dx
    readings = tuple(layer.read(tape, dx, of_dx)) if layer.readings else ()
    return Report(*measured, readings)


output_quantity(
    Column("token_cosine", "", "mean cosine between two tokens of an example, in the output"),
    where=lambda network, y: network.tokens and y.ndim == 4,
)(token_cosine)
