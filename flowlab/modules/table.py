"""Rows of modules and parameters become a table with the columns of ``flowlab.measure``.

Beside these it has those of :data:`flowlab.schema.OF_MODULES`: which module, call, output and
parameter a row belongs to. A row is a dictionary of columns; what it lacks is null.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from flowlab import schema
from flowlab.errors import InputError
from flowlab.measurement.table import tidy

# The columns that identify a row within a run, seed and step.
KEY = ("module", "use", "output", "parameter")


def of_rows(
    rows: Sequence[Mapping[str, Any]],
    *,
    seed: int = 0,
    step: int | None = None,
    axes: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """The table of one network at one step: ``rows`` with ``layer``, ``op``, ``status`` and more.

    ``axes`` are the run's settings by column. The run has no name before :func:`named`. Raises
    InputError for a column that the schema does not have.
    """
    columns = schema.columns(*schema.OF_MODULES)
    given = {name for row in rows for name in row}
    named = {name: [row.get(name) for row in rows] for name in given | {"fan_in", "fan_out"}}
    for name in ("fan_in", "fan_out"):
        named[name] = [1 if value is None else value for value in named[name]]
    constant = {"seed": [seed] * len(rows), "step": [step] * len(rows)}
    named = constant | named  # rows of several steps have their own
    typed = {
        name: pd.array(values, dtype=columns[name].dtype) if name in columns else values
        for name, values in named.items()
    }
    typed = {
        name: values.to_numpy() if isinstance(values, pd.arrays.NumpyExtensionArray) else values
        for name, values in typed.items()
    }
    status = typed.pop("status")
    return tidy(axes or {}, typed, {}, status, schema.OF_MODULES)


def named(table: pd.DataFrame) -> pd.DataFrame:
    """The table with ``run``, a digest of its settings and rows: equal for equal contents."""
    contents = table.drop(columns=["run", "experiment"], errors="ignore")
    rows = pd.util.hash_pandas_object(contents, index=False).to_numpy()
    digest = hashlib.sha256(
        json.dumps(list(contents)).encode() + np.ascontiguousarray(rows).tobytes()
    )
    run = pd.array([digest.hexdigest()[:16]], dtype="string").repeat(len(table))
    return table.assign(run=run)


def joined(tables: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Tables of one model at several seeds or steps as that of one run, with its name.

    Raises InputError where there is none, and for a seed and step that two of them hold.
    """
    tables = list(tables)
    if not tables:
        raise InputError("tables must hold at least one table; got none")
    known: set[tuple] = set()
    for table in tables:
        own = set(table[["seed", "step"]].fillna({"step": 0}).itertuples(index=False, name=None))
        if twice := known & own:
            seed, step = min(twice)
            at = f"seed {seed}" + f", step {step}" * bool(step)
            raise InputError(f"tables must differ in seed or step; got {at} twice")
        known |= own
    return named(pd.concat(tables, ignore_index=True))


def silent(table: pd.DataFrame, because: str) -> pd.DataFrame:
    """The prediction of a run without one: its rows once, NaN, and the sentence why."""
    first = table[table["seed"] == table["seed"].iloc[0]]
    rows = first.drop_duplicates([*KEY, "layer"])[["run", "layer", "op", *KEY]]
    norms = [name for norm in schema.NORMS for name in (norm, f"{norm}_sd")]
    nothing = pd.DataFrame(np.nan, rows.index, norms)
    sentence = pd.array([because], dtype="string").repeat(len(rows))
    return pd.concat([rows, nothing], axis=1).assign(silent_because=sentence).reset_index(drop=True)
