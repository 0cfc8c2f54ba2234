"""Tables of measurements: schema, atomic writing, reading.

``results/<experiment>/runs/<run>.parquet`` holds one run; the folder reads as one tidy frame with
``pandas.read_parquet``. ``results/<experiment>/theory/`` holds each run's prediction alike.
"""

import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from flowlab.errors import InputError

SCHEMA = 1
NORMS = (
    "activation_log10_norm",
    "delta_log10_norm",
    "dX_log10_norm",
    "dW_log10_norm",
    "db_log10_norm",
)
# log10 √Σ_n ‖g_n‖² over the examples' own gradients; null where examples are not independent.
EXAMPLES = ("dW_examples_log10_norm", "db_examples_log10_norm")
# Of a normalization: gradients of its gain and bias, as above.
GAINS = ("dgain_log10_norm", "dbias_log10_norm")
GAINS_EXAMPLES = ("dgain_examples_log10_norm", "dbias_examples_log10_norm")
# What some operations tell beside norms; log10 of ratios, cosines and nats.
READINGS = ("statistics_log10_gain", "token_cosine", "attention_entropy")
# Of the state at one time step: h_t, ∂L/∂z_t and ∂L/∂h_t; the last is null in all other rows.
STEPS = ("activation_log10_norm", "delta_log10_norm", "dh_log10_norm")
KEYS = ("run", "experiment", "network", "init", "data", "depth", "width", "activation", "skip")
KEYS += ("norm", "padding", "kernel_size", "steps", "recurrent", "radius", "heads", "placement")
KEYS += ("batch_size", "upstream", "reduction", "dtype", "gain", "sigma_w", "sigma_b", "seeds")
REQUIRED = ("run", "experiment", "seed", "layer", "op", *NORMS, "status")


def write(table: pd.DataFrame, path: str | Path, metadata: dict) -> Path:
    """Write a table whole or not at all; ``metadata`` is stored as JSON in the file.

    Raises InputError in one line where the folder or the disk refuses.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    arrow = pa.Table.from_pandas(table, preserve_index=False)
    own = {b"flowlab": json.dumps({"schema": SCHEMA, **metadata}).encode()}
    arrow = arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), **own})
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name that begins with a dot: readers of the folder pass over it.
        handle, temporary = tempfile.mkstemp(prefix=f".{path.stem}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            pq.write_table(arrow, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
    return path


def writable(folder: str | Path) -> None:
    """Raise InputError, before any work is done, where results could not be written."""
    folder = Path(folder).absolute()
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not existing.is_dir():
        raise InputError(f"results_dir must be a folder; {existing} is a file")
    try:
        handle, probe = tempfile.mkstemp(prefix=".probe.", dir=existing)
    except OSError as error:
        raise InputError(
            f"results_dir must be writable; {existing} is not ({error.strerror})"
        ) from None
    os.close(handle)
    os.unlink(probe)


def read(path: str | Path) -> pd.DataFrame:
    """One run's table; raises InputError for a missing, damaged or foreign file."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no table at {path}")
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged: {str(error).splitlines()[0]}") from None
    missing = [name for name in REQUIRED if name not in table.columns]
    if missing:
        raise InputError(f"{path} is not a table of this laboratory: no column {missing[0]}")
    return table


def metadata(path: str | Path) -> dict:
    """What :func:`write` stored beside the table; raises InputError for a foreign file."""
    import pyarrow.parquet as pq

    try:
        stored = (pq.read_schema(path).metadata or {}).get(b"flowlab")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged: {str(error).splitlines()[0]}") from None
    if stored is None:
        raise InputError(f"{path} is not a table of this laboratory: no metadata")
    return json.loads(stored)


def read_all(paths: Iterable[str | Path]) -> tuple[pd.DataFrame, list[str]]:
    """All readable tables as one frame, and one line for each that is not."""
    frames, problems = [], []
    for path in paths:
        try:
            frames.append(read(path))
        except InputError as error:
            problems.append(str(error))
    table = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=REQUIRED)
    return table, problems


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
