"""Tables of measurements: schema, atomic writing, reading.

``results/<experiment>/runs/<run>.parquet`` holds one run; the folder reads as one tidy frame with
``pandas.read_parquet``. ``results/<experiment>/theory/`` holds each run's prediction alike.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import pandas as pd

from flowlab.errors import InputError
from flowlab.schema import REQUIRED
from flowlab.storage.files import reading, replacing

SCHEMA = 1
_PLAIN = {"bool", "int64", "int32", "float64", "float32"}  # restored from the file's types


class NewerError(InputError):
    """A file that only a newer flowlab reads; ``note`` is its line beside others."""

    def __init__(self, path: str | Path, schema: int, known: int):
        newer = f"{path} was made by a newer flowlab (schema {schema}; this one reads {known})"
        super().__init__(newer)
        self.note = f"{path} has schema {schema}; this version reads {known}"


def put(table: pd.DataFrame, metadata: dict, file: IO[bytes]) -> None:
    """Write a table of numbers and strings, with ``metadata`` as JSON; all text is ``string``.

    Thousands of such small files are opened one after the other: they hold each thing once.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    stored = pa.Table.from_pandas(table, preserve_index=False)
    types = json.loads(stored.schema.metadata[b"pandas"])
    stored = pa.table({name: _plain(stored[name]) for name in stored.column_names})
    strings = [field.name for field in stored.schema if pa.types.is_string(field.type)]
    for column in types["columns"]:
        if column["name"] in strings:
            column["numpy_type"] = "string"
    # What the file's own types do not say: nullable numbers and the like.
    types["columns"] = [c for c in types["columns"] if c["numpy_type"] not in _PLAIN]
    with pq.ParquetWriter(
        file,
        stored.schema,
        compression="lz4",  # of so few rows as small as zstd, and read in half the time
        use_dictionary=strings,
        write_statistics=False,
        store_schema=False,
    ) as writer:
        own = {"schema": SCHEMA, **metadata}
        writer.add_key_value_metadata({"pandas": json.dumps(types), "flowlab": json.dumps(own)})
        writer.write_table(stored)


def _plain(column):
    import pyarrow as pa

    return column.cast(pa.string()) if pa.types.is_large_string(column.type) else column


def write(table: pd.DataFrame, path: str | Path, metadata: dict) -> Path:
    """Write a table whole or not at all; ``metadata`` is stored as JSON in the file.

    Raises StorageError in one line where the folder or the disk refuses.
    """
    with replacing(path) as file:
        put(table, metadata, file)
    return Path(path)


def read(path: str | Path, required: Iterable[str] = REQUIRED) -> pd.DataFrame:
    """One run's table; raises InputError for a missing, damaged or foreign file."""
    path = Path(path)
    if not os.path.lexists(path):
        raise InputError(f"no table at {path}")
    import pyarrow.parquet as pq

    # pandas.read_parquet gives the same, and takes three times as long over a small file.
    with reading(path), pq.ParquetFile(path) as file:
        table = frame(file.read(use_threads=False))
    complete(path, table.columns, required)
    return table


def frame(table) -> pd.DataFrame:
    """A pyarrow.Table as a frame; all text is ``string``, which older tables do not say."""
    import pyarrow as pa

    return table.to_pandas(types_mapper={pa.string(): pd.StringDtype()}.get)


def metadata(path: str | Path) -> dict:
    """What :func:`write` stored beside the table; raises InputError for a foreign file."""
    return footer(path)[2]


def footer(path: str | Path):
    """A file's Arrow schema, number of rows and metadata, its rows unread.

    Raises InputError for a damaged or foreign file.
    """
    import pyarrow.parquet as pq

    with reading(path):
        with pq.ParquetFile(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
            stored = (file.metadata.metadata or {}).get(b"flowlab")
        found = None if stored is None else json.loads(stored)
    if not isinstance(found, dict):
        raise InputError(f"{path} is not a table of this laboratory: no metadata")
    return schema, rows, found


def readable(path: str | Path, metadata: dict, known: int = SCHEMA) -> None:
    """Raise InputError for metadata of another schema, NewerError for one of the future."""
    schema = metadata.get("schema")
    if isinstance(schema, int) and schema > known:
        raise NewerError(path, schema, known)
    if schema != known:
        raise InputError(f"{path} has schema {schema}; this version reads {known}")


def complete(path: str | Path, columns: Iterable[str], required: Iterable[str]) -> None:
    """Raise InputError where a column is missing that every such table has."""
    missing = [name for name in required if name not in columns]
    if missing:
        raise InputError(f"{path} is not a table of this laboratory: no column {missing[0]}")
