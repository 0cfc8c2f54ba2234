"""Labelled data: bundled digits, Gaussian noise, or the user's own file, and seeded batches of it.

Rows and columns in messages count from 1; the header of a CSV file is not a row.
"""

import gzip
import importlib.util
import math
import os
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from flowlab.errors import InputError, unknown

SOURCES = ("digits", "gaussian", "file")
# One stream of random numbers for each use of a seed.
INPUTS, LABELS, ORDER = range(3)
IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


@dataclass
class DataSettings:
    """What to load; the schema of the ``data`` configuration group."""

    name: str = "digits"  # digits, gaussian or file
    path: str | None = None  # file: .csv, .parquet, .npz or IDX images, plain or gzipped
    inputs: str | None = None  # npz: key of the inputs, by default X
    target: str | None = None  # csv, parquet: label column, by default the last; npz: key, or y
    labels: str | None = None  # IDX: the label file, by default guessed from the images' name
    standardise: bool = True  # digits, file: each feature to mean 0 and variance 1
    features: int | None = None  # gaussian: number of features, by default what the network takes
    classes: int = 10  # gaussian: number of classes

    def validate(self) -> None:
        """Raise InputError unless the settings agree with one another."""
        if self.name not in SOURCES:
            raise unknown("data.name", self.name, SOURCES)
        if self.name == "file" and not self.path:
            raise InputError(f"data.path must name a file when data.name is file; got {self.path}")
        if self.name != "file" and self.path:
            raise InputError(f"data.name must be file when data.path is given; got {self.name}")
        if self.features is not None and self.features < 1:
            raise InputError(f"data.features must be at least 1; got {self.features}")
        if self.classes < 2:
            raise InputError(f"data.classes must be at least 2; got {self.classes}")


@dataclass(frozen=True, eq=False)
class Dataset:
    """``n`` examples: inputs ``x`` (n, features) float64, ``labels`` (n,) int64 in 0..K-1."""

    x: np.ndarray
    labels: np.ndarray
    n_classes: int
    name: str
    standardised: bool
    independent: bool = False  # the rows are independent draws: any order is a random order

    def batch(self, batch_size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """The first ``batch_size`` rows, as (x, labels), of one permutation drawn from ``seed``.

        Under one seed a smaller batch is a prefix of a larger one. Independent rows are taken as
        they were drawn. Raises InputError if there are fewer rows.
        """
        n = len(self.x)
        _at_least("batch_size", batch_size, 1)
        if batch_size > n:
            raise InputError(
                f"batch_size must be at most the {n} rows of {self.name}; got {batch_size}"
            )
        order = np.arange(n) if self.independent else _generator(seed, ORDER).permutation(n)
        rows = order[:batch_size]
        return self.x[rows], self.labels[rows]


def load(settings: DataSettings, features: int, batch_size: int, seed: int) -> Dataset:
    """The data set that ``settings`` describe.

    ``gaussian`` draws ``batch_size`` rows of ``features`` N(0, 1) inputs unless the settings
    say otherwise, with uniform labels; they depend on ``seed`` alone, so that fewer rows are a
    prefix of more. ``digits`` and ``file`` load every row, whatever the features, batch and seed.
    Raises InputError for settings or files that will not do.
    """
    settings.validate()
    if settings.name == "digits":
        return _digits(settings.standardise)
    if settings.name == "file":
        return _from_file(settings)
    return _gaussian(settings.features or features, settings.classes, batch_size, seed)


def standardise(x: np.ndarray) -> np.ndarray:
    """``x`` (n, features) with each column at mean 0 and variance 1; constant columns become 0."""
    # The power of two keeps squares in range; subtracting a row makes constant columns exactly 0.
    _, exponent = np.frexp(np.abs(x).max(axis=0))
    x = np.ldexp(x, -exponent)
    x -= x[0]
    x -= x.mean(axis=0)
    deviation = x.std(axis=0)
    x /= np.where(deviation > 0, deviation, 1)
    return x


def _at_least(what: str, value: int, least: int) -> None:
    if value < least:
        raise InputError(f"{what} must be at least {least}; got {value}")


def _generator(seed: int, stream: int) -> np.random.Generator:
    _at_least("seed", seed, 0)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(stream,)))


def _gaussian(features: int, classes: int, batch_size: int, seed: int) -> Dataset:
    _at_least("batch_size", batch_size, 1)
    x = _generator(seed, INPUTS).standard_normal((batch_size, features))
    labels = _generator(seed, LABELS).integers(classes, size=batch_size)
    return Dataset(x, labels, classes, "gaussian", standardised=False, independent=True)


@lru_cache
def _digits(standardised: bool) -> Dataset:
    """The 1797 8x8 digits bundled with scikit-learn, whose import alone would take a second."""
    package = importlib.util.find_spec("sklearn")
    if package is None:
        raise InputError("data.name=digits needs scikit-learn; got no such package")
    path = Path(package.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
    table = np.loadtxt(path, delimiter=",", dtype=np.int64)
    x, labels = table[:, :-1].astype(np.float64), table[:, -1].copy()
    x = standardise(x) if standardised else x
    x.flags.writeable = labels.flags.writeable = False  # every caller shares them
    return Dataset(x, labels, 10, "digits", standardised)


def _from_file(settings: DataSettings) -> Dataset:
    path = _existing("data.path", settings.path)
    kind = path.suffix.lower()
    if kind in (".csv", ".parquet"):
        x, labels, columns = _table(path, settings.target)
    elif kind == ".npz":
        x, labels = _npz(path, settings.inputs or "X", settings.target or "y")
        columns = None
    elif kind == ".gz" or kind.startswith(".idx") or "ubyte" in path.name.lower():
        x = _idx(path)
        labels = _idx(_existing("data.labels", settings.labels or _idx_labels(path)))
        columns = None
    else:
        raise InputError(f"data.path must be a .csv, .parquet, .npz or IDX file; got {path}")
    x = _inputs(x, columns, path)
    labels, n_classes = _codes(labels, len(x), path)
    x = standardise(x) if settings.standardise else x
    return Dataset(x, labels, n_classes, path.name, settings.standardise)


def _brief(value: object) -> str:
    return " ".join(str(value).split())[:40]


def _existing(what: str, name: str) -> Path:
    if not os.path.isfile(name):
        found = "a directory" if os.path.isdir(name) else "no such file"
        raise InputError(f"{what} must name a file; got {name} ({found})")
    return Path(name)


@contextmanager
def _reading(path: Path, kind: str) -> Iterator[None]:
    """Tell whatever a file's reader raises, of any type, in one line."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} must be a readable {kind} file; got: {reason}") from error


def _table(path: Path, target: str | None) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Inputs, labels and the inputs' column names of a CSV or Parquet file."""
    if path.suffix.lower() == ".csv":
        frame = _csv(path)
    else:
        with _reading(path, "parquet"):
            frame = pd.read_parquet(path)
    frame.columns = [" ".join(str(name).split()) for name in frame.columns]
    names = list(frame.columns)
    if len(set(names)) < len(names):
        raise InputError(f"{path} must give its columns different names; got {', '.join(names)}")
    if target is not None and target not in names:
        raise unknown(f"data.target, a column of {path},", target, names)
    if len(frame) < 1 or len(names) < 2:
        raise InputError(
            f"{path} must hold a row and two columns at least, inputs and labels; "
            f"got {len(frame)} rows and {len(names)} columns ({', '.join(names)})"
        )
    labels = frame.pop(names[-1] if target is None else target)
    x = np.column_stack([_numbers(column, path) for _, column in frame.items()])
    return x, labels.infer_objects().to_numpy(), list(frame.columns)


def _csv(path: Path) -> pd.DataFrame:
    with _reading(path, "csv"), warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)  # surplus fields are not dropped
        frame = pd.read_csv(
            path, index_col=False, skipinitialspace=True, low_memory=False, encoding="utf-8-sig"
        )
    # A file without a header would silently lose its first row: pandas names columns after it,
    # telling equal ones apart by a decimal (0, 0.1, 0.2) and empty ones by "Unnamed".
    names = list(frame.columns)
    numbers = [name for name in names if re.fullmatch(r"[-+]?\d*\.?\d+(e[-+]?\d+)?", name, re.I)]
    whole = [float(name) for name in numbers if name.isdecimal()]
    rising = whole == sorted(set(whole))
    if (
        any(name.startswith("Unnamed: ") for name in names)
        or len(whole) < len(numbers)
        or (len(whole) == len(names) and not rising)
    ):
        raise InputError(f"{path} must name every column in its first line; got {names[:8]}")
    return frame


def _numbers(column: pd.Series, path: Path) -> np.ndarray:
    """The column as float64, missing values as NaN."""
    if pd.api.types.is_numeric_dtype(column):
        return column.to_numpy(np.float64, na_value=np.nan)
    text = column.astype(object).map(str, na_action="ignore")
    numbers = pd.to_numeric(text, errors="coerce").to_numpy(np.float64)
    bad = np.isnan(numbers) & text.notna().to_numpy()
    if bad.any():
        row = int(bad.argmax())
        raise InputError(
            f"inputs of {path} must be numbers; "
            f"got {_brief(text.iloc[row])} in row {row + 1}, column {column.name}"
        )
    return numbers


def _npz(path: Path, inputs: str, target: str) -> tuple[np.ndarray, np.ndarray]:
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path} must be a readable npz file; got no zip archive")
    with path.open("rb") as file:
        with _reading(path, "npz"):
            archive = np.load(file, allow_pickle=False)
        for what, key in (("data.inputs", inputs), ("data.target", target)):
            if key not in archive.files:
                raise unknown(f"{what}, an array of {path},", key, archive.files)
        with _reading(path, "npz"):
            return np.asarray(archive[inputs]), np.asarray(archive[target])


def _idx_labels(path: Path) -> str:
    name = re.sub(r"images(.)idx\d", r"labels\1idx1", path.name)
    if name == path.name:
        raise InputError(f"data.labels must name the IDX label file of {path}; got none")
    return str(path.with_name(name))


def _idx(path: Path) -> np.ndarray:
    """The array of an IDX file, plain or gzipped.

    Two zero bytes, the element type, the number of dimensions; each dimension as a big-endian
    32-bit integer; the elements, big-endian, in C order (the format of the MNIST files).
    """
    with _reading(path, "IDX"):
        raw = path.read_bytes()
        if raw.startswith(b"\x1f\x8b"):
            raw = gzip.decompress(raw)
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in IDX_TYPES or not 1 <= raw[3] <= 64:
        raise InputError(f"{path} must be an IDX file; got magic number 0x{raw[:4].hex()}")
    dtype, start = np.dtype(IDX_TYPES[raw[2]]), 4 + 4 * raw[3]
    if len(raw) < start:
        raise InputError(f"{path} must hold {start} bytes of IDX header; got {len(raw)}")
    shape = struct.unpack(f">{raw[3]}I", raw[4:start])
    size = start + dtype.itemsize * math.prod(shape)
    if len(raw) != size:
        raise InputError(f"{path} must hold {size} bytes for its shape {shape}; got {len(raw)}")
    return np.ndarray(shape, dtype, raw, start)


def _inputs(x: np.ndarray, columns: list[str] | None, path: Path) -> np.ndarray:
    """``x`` (n, ...) as finite float64 (n, features); ``columns`` are the names to report."""
    if x.dtype.kind not in "biuf":
        raise InputError(f"inputs of {path} must be numbers; got {x.dtype}")
    if x.ndim == 0 or x.size == 0:
        raise InputError(f"inputs of {path} must have a row and a column; got shape {x.shape}")
    x = x.reshape(len(x), -1).astype(np.float64)
    finite = np.isfinite(x)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        name = columns[column] if columns else column + 1
        raise InputError(
            f"inputs of {path} must be finite; got {x[row, column]} in row {row + 1}, column {name}"
        )
    return x


def _codes(labels: np.ndarray, n: int, path: Path) -> tuple[np.ndarray, int]:
    """``n`` labels as (ranks among the sorted distinct labels, how many are distinct)."""
    rule = f"labels of {path} must be"
    if labels.shape not in ((n,), (n, 1)):
        raise InputError(f"{rule} one for each of the {n} rows; got shape {labels.shape}")
    labels = labels.reshape(n)
    if labels.dtype.kind == "f":
        good = np.isfinite(labels) & (labels == np.floor(labels))
    elif labels.dtype.kind == "O":
        good = np.array([isinstance(label, str) for label in labels])
    else:
        good = np.full(n, labels.dtype.kind in "biuUS")
    if not good.all():
        row = int(good.argmin())
        raise InputError(
            f"{rule} whole numbers, text or booleans; got {_brief(labels[row])} in row {row + 1}"
        )
    classes, codes = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise InputError(f"{rule} of at least 2 classes; got only {_brief(classes[0])}")
    return codes.astype(np.int64), len(classes)
