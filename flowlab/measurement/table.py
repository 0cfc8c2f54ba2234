"""The table: what was measured, beside what was set and where in the network it stands.

:func:`tidy` makes it for anyone who has the settings of a run as a dictionary, the rows and the
values; :func:`of_pass` for a pass over an ensemble.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from flowlab import schema
from flowlab.errors import unknown
from flowlab.measurement.rounding import NONFINITE, OK
from flowlab.networks import Network
from flowlab.numerics.scale import LOG10_2
from flowlab.settings import AXES, Settings

_STATUS = np.array(["ok", "lost", "nonfinite"])


def tidy(
    axes: Mapping[str, Any],
    rows: Mapping[str, ArrayLike],
    values: Mapping[str, ArrayLike],
    status: ArrayLike,
    parts: Sequence[str] = (),
) -> pd.DataFrame:
    """A table of n rows with every column of the schema, in its order.

    ``axes`` are the run's name and its settings by column, one value each; ``rows`` say of each row
    where it belongs (seed, layer, op, ...; (n,) each); ``values`` are what was measured there, in
    the units of the schema ((n,) each, log10 of norms), and ``status`` (n,) whether that is known.
    Settings and values that are not given are null, in their column's type. ``parts`` are those of
    the schema that the table has, by default those of a laboratory's own. Raises InputError for a
    name that they do not have: register it first.
    """
    given = {**axes, **rows, **values, "status": status}
    columns = schema.columns(*parts)
    for name in given:
        if name not in columns:
            raise unknown("column", name, columns)
    n = len(np.asarray(rows["seed"]))
    constant = schema.columns("run", "setting")
    found = {}
    for name, column in columns.items():
        if name in constant:
            found[name] = _repeated_value(given.get(name), column.dtype, n)
        elif name in given:
            text = column.dtype == "string"
            found[name] = pd.array(given[name], dtype="string") if text else given[name]
        elif column.dtype == "float64":
            found[name] = np.full(n, np.nan)
        elif column.dtype in ("Int64", "string"):
            found[name] = _repeated_value(None, column.dtype, n)
    return pd.DataFrame(found, copy=False)


def _repeated_value(value: Any, dtype: str, n: int) -> pd.api.extensions.ExtensionArray:
    single = _single(value, dtype)
    if not isinstance(single, pd.arrays.ArrowStringArray):
        return single.repeat(n)
    # As ``repeat`` does it, but not by looking up one string n times.
    texts = pa.repeat(pa.scalar(value, pa.large_string()), n)
    return pd.arrays.ArrowStringArray(texts, dtype=single.dtype)


@lru_cache
def _single(value: Any, dtype: str) -> pd.api.extensions.ExtensionArray:
    return pd.array([value], dtype=dtype)


def axes_of(settings: Settings, own: Network | None = None) -> dict[str, Any]:
    """A run's name and settings by column; of a network of a user's ``own`` a name that is its own,
    the network's name and depth, and no settings of an architecture.
    """
    axes = settings.axes()
    if own is None:
        return {"run": settings.run(), **axes}
    nulls = {axis.column.name: None for axis in AXES if axis.of_architecture}
    of_network = {"network": own.name, "depth": len(own.blocks)}
    return {"run": own.run(settings), **axes, **nulls, **of_network}


def of_pass(
    axes: Mapping[str, Any],
    rows: Sequence[Sequence[Any]],
    seeds: NDArray[np.int64],
    measured: Sequence[str],
    values: NDArray[np.float64],
    found: NDArray[np.int8],
    times: NDArray[np.float64],
    times_found: NDArray[np.int8],
    step: int | None = None,
) -> pd.DataFrame:
    """One row for each seed (S) and row of a block, then one for each step of a recurrent layer.

    ``rows`` are the blocks' rows, R in all; ``values`` (S, R, C) are the columns ``measured`` and
    ``found`` (S, R) what is known of them; ``times`` (S, layers, steps, 3) are the log2 norms of
    states, with ``times_found`` alike; ``step`` is the step of training that all belong to.
    """
    of_step = {} if step is None else {"step": step}
    flat = [(layer, row) for layer, block in enumerate(rows, 1) for row in block]
    whole = {
        "seed": np.repeat(seeds, len(flat)),
        "layer": np.tile([layer for layer, _ in flat], len(seeds)),
        **{
            name: np.tile([getattr(row, name) for _, row in flat], len(seeds))
            for name in ("op", "fan_in", "fan_out")
        },
    }
    by_column = dict(zip(measured, values.reshape(-1, len(measured)).T, strict=True))
    whole |= _repeated(of_step, len(whole["seed"]))
    table = tidy(axes, whole, by_column, status_of(values, found).ravel())
    if not times.size:
        return table
    _, layers, steps, norms = times.shape
    count = len(seeds) * layers * steps
    # A state has as many units as its layer.
    width = next(row.fan_out for block in rows for row in block)
    single = {
        "seed": np.repeat(seeds, layers * steps),
        "layer": np.tile(np.repeat(np.arange(1, layers + 1), steps), len(seeds)),
        **dict(op=["state"] * count, fan_in=np.full(count, width), fan_out=np.full(count, width)),
        "time": pd.array(np.tile(np.arange(1, steps + 1), len(seeds) * layers), dtype="Int64"),
    }
    single |= _repeated(of_step, count)
    by_column = dict(zip(schema.STATE_NORMS, LOG10_2 * times.reshape(count, norms).T, strict=True))
    states = tidy(axes, single, by_column, status_of(times, times_found).ravel())
    return pd.concat([table, states], ignore_index=True)


def _repeated(values: Mapping[str, int], count: int) -> dict[str, Any]:
    return {name: _single(value, "Int64").repeat(count) for name, value in values.items()}


def status_of(values: NDArray[np.float64], found: NDArray[np.int8]) -> NDArray[np.str_]:
    """The word for each row (...) of values (..., columns): what was found, or an exact zero."""
    found = np.where(np.isposinf(values).any(axis=-1), NONFINITE, found)
    zero = np.isneginf(values).any(axis=-1) & (found == OK)
    return np.where(zero, "zero", _STATUS[found])
