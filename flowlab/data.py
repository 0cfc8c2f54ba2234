"""Labelled data: digits, Gaussian noise, the user's own file or arrays, and seeded batches of them.

A label is text, a boolean or a whole number and names a class. Numbers with a fraction, or too many
different ones to be classes, are the target of a regression. Rows and columns in messages count
from 1; the header of a CSV file is not a row.
"""

import gzip
import hashlib
import json
import math
import os
import re
import struct
import warnings
import weakref
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from flowlab.errors import InputError, check_count, unknown
from flowlab.schema import setting

SOURCES = ("digits", "gaussian", "file", "arrays")
# One stream of random numbers for each use of a seed.
INPUTS, LABELS, ORDER, SPLIT, EPOCH = range(5)
# Examples that a seed draws of gaussian data to train on, those held out included, at least.
GAUSSIAN_EXAMPLES = 2048
MOST_CLASSES, ROWS_OF_A_CLASS = 20, 5  # where numbers name classes: see _measures
IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def _file(settings) -> bool:
    return settings.data.name == "file"


def _gaussian_data(settings) -> bool:
    return settings.data.name == "gaussian"


def _in_memory(settings) -> bool:
    return settings.data.name == "arrays"


@dataclass
class DataSettings:
    """What to load."""

    name: str = setting("digits", "where the examples come from", choices=SOURCES)
    path: str | None = setting(
        None, "the file: .csv, .parquet, .npz or IDX images; CSV and IDX also gzipped", where=_file
    )
    inputs: str | None = setting(None, "npz: key of the inputs, by default X", where=_file)
    target: str | None = setting(
        None, "csv, parquet: label column, by default the last; npz: key, by default y", where=_file
    )
    labels: str | None = setting(
        None, "IDX: the label file, by default guessed from the images' name", where=_file
    )
    standardise: bool = setting(
        True,
        "digits, file, arrays: whether features and targets get mean 0 and variance 1",
        where=lambda settings: settings.data.name != "gaussian",
    )
    features: int | None = setting(
        None,
        "gaussian: number of features, by default what the network takes",
        check=check_count,
        where=_gaussian_data,
    )
    classes: int = setting(
        10, "gaussian: number of classes", allowed="whole numbers from 2", where=_gaussian_data
    )
    digest: str | None = setting(
        None,
        "arrays: a digest of what they hold; in Python data=(X, y) makes it",
        where=_in_memory,
        later=True,
    )

    def __post_init__(self):
        # Not a field: settings are plain data, and keep their arrays alive.
        self._held = _HELD.get(self.digest)

    def validate(self) -> None:
        """Raise InputError unless the settings agree with one another."""
        if self.name not in SOURCES:
            raise unknown("data.name", self.name, SOURCES)
        if self.name == "file" and not self.path:
            raise InputError(f"data.path must name a file when data.name is file; got {self.path}")
        if self.name != "file" and self.path:
            raise InputError(f"data.name must be file when data.path is given; got {self.name}")
        if self.name == "arrays" and not self.digest:
            raise InputError(
                "data must be given in Python, as (X, y) or a DataFrame, when data.name is arrays; "
                "got the name alone"
            )
        if self.features is not None:
            check_count("data.features", self.features)
        if self.classes < 2:
            raise InputError(f"data.classes must be at least 2; got {self.classes}")
        check_count("data.classes", self.classes)
        defaults = DataSettings()
        for name, source in (
            *dict.fromkeys(("inputs", "target", "labels"), "file").items(),
            *dict.fromkeys(("features", "classes"), "gaussian").items(),
            ("digest", "arrays"),
        ):
            value = getattr(self, name)
            if self.name != source and value != getattr(defaults, name):
                raise InputError(f"data.{name} belongs to data={source}; got {value}")


class HeldArrays:
    """Arrays in memory: ``x`` (n, features) float64, ``labels`` (n, ...) and a digest of both.

    Equal arrays are one object, alive as long as settings name them, also where it is unpickled.
    """

    def __new__(cls, x: np.ndarray, labels: np.ndarray):
        digest = _content(x, labels)
        held = _HELD.get(digest)
        if held is None:
            held = object.__new__(cls)
            held.x, held.labels, held.digest = x, labels, digest
            x.flags.writeable = labels.flags.writeable = False
            _HELD[digest] = held
        return held

    def __reduce__(self):
        return HeldArrays, (self.x, self.labels)


_HELD: weakref.WeakValueDictionary[str, HeldArrays] = weakref.WeakValueDictionary()


def arrays(X, y=None, *, target: str | None = None, standardise: bool = True) -> DataSettings:
    """Settings of data in memory, for ``flowlab.make(data=...)``; ``data=(X, y)`` is short for it.

    X: (n, ...) numbers, an array, nested lists or a DataFrame; axes behind the first are flattened.
    y: (n,) classes or targets, or targets (n, K). Without ``y``, X is a DataFrame with the labels
    in the column ``target``, by default the last. Rows belong together by their position. Both are
    copied, and follow the rules of files: text in X is read as numbers where it can be, labels are
    classes or, under loss=squared_error, may be the targets of a regression.

    Settings hold a digest of the numbers, so that equal arrays are the same run in any process.
    They can be pickled with their arrays; where settings are read without them, from the metadata
    of a table say, the arrays must be given anew to measure. Raises InputError for an X that is not
    finite numbers, a y that is neither classes nor targets, and lengths that differ.
    """
    columns = None
    if y is None:
        if not isinstance(X, pd.DataFrame):
            raise InputError(f"data without y must be a DataFrame; got {type(X).__name__}")
        names = _columns(_plain_names(X), target, _MEMORY)
        x, labels, columns = _split(X.set_axis(names, axis=1), target, _MEMORY)
    elif target is not None:
        raise InputError(f"target must be left out where y is given; got {target}")
    else:
        labels = _array(y, "labels")
        if isinstance(X, pd.DataFrame) and X.shape[1]:
            x, columns = _matrix(X, _MEMORY), _plain_names(X)
        else:
            x = _array(X, "inputs")
    x = _inputs(x, columns, _MEMORY)
    _target(labels, len(x), _MEMORY, regression=True)
    labels = labels[:, 0] if labels.shape[1:] == (1,) else labels
    held = HeldArrays(x, labels.copy())
    return DataSettings("arrays", standardise=standardise, digest=held.digest)


_MEMORY = "data"  # as messages call what has no file


def _array(values, what: str) -> np.ndarray:
    """An array of what a caller has; of a list of unlike things, of objects."""
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise InputError(f"{what} of data must have a value everywhere; got a masked array")
    if isinstance(values, list | tuple) and values and np.ndim(values[0]) == 0:
        values = pd.Series(list(values), dtype=object)
    if isinstance(values, pd.Series):
        return values.infer_objects().to_numpy()
    try:
        return np.asarray(values)
    except ValueError:
        raise InputError(f"{what} of data must be an array; got unequal rows") from None


def _content(x: np.ndarray, labels: np.ndarray) -> str:
    """A digest of the numbers and words, whatever types held them."""
    kind = labels.dtype.kind
    if kind in "OUS":
        words = [str(label) for label in labels.ravel()]
        content = json.dumps(words).encode()
    else:
        types = {"b": "u1", "i": "<i8", "f": "<f8"}
        content = labels.astype(types.get(kind, labels.dtype)).tobytes()
    digest = hashlib.sha256(repr((x.shape, labels.shape, kind in "OUS" or kind)).encode())
    digest.update(x.astype("<f8").tobytes())
    digest.update(content)
    return digest.hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class Dataset:
    """``n`` examples: inputs ``x`` (n, features) float64 and their ``labels``.

    These are classes, (n,) int64 in 0..K-1, or the targets of a regression, (n, K) float64; K is
    ``n_classes``, the number of outputs that a loss compares with them.
    """

    x: np.ndarray
    labels: np.ndarray
    n_classes: int
    name: str
    standardised: bool
    independent: bool = False  # the rows are independent draws: any order is a random order

    @cached_property
    def target_square(self) -> float:
        """Mean over the examples of ‖target‖²: 1 for classes, whose targets are one-hot."""
        if self.labels.ndim == 1:
            return 1.0
        return float(np.square(self.labels).sum(axis=1).mean())

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
        rows = slice(batch_size)
        if not self.independent:
            rows = _generator(seed, ORDER).permutation(n)[rows]
        return self.x[rows], self.labels[rows]

    def split(self, share: float) -> tuple["Dataset", "Dataset"]:
        """(what is trained on, the ``share`` that is held out): the same under every seed.

        Raises InputError where a side would have no example.
        """
        n = len(self.x)
        held = round(share * n)
        if not 0 < held < n:
            raise InputError(
                f"training.held_out must leave an example on either side of the {n} rows of "
                f"{self.name}; got {share:g}"
            )
        order = _generator(0, SPLIT).permutation(n)
        parts = np.sort(order[held:]), np.sort(order[:held])
        training, held_out = (replace(self, x=self.x[p], labels=self.labels[p]) for p in parts)
        return training, held_out

    def shuffled(self, epoch: int, seed: int) -> np.ndarray:
        """The order (n,) in which an epoch, from 0, goes through all rows under a seed."""
        return _generator(seed, EPOCH, epoch).permutation(len(self.x))


def load(
    settings: DataSettings, features: int, batch_size: int, seed: int, regression: bool = False
) -> Dataset:
    """The data set that ``settings`` describe.

    ``gaussian`` draws ``batch_size`` rows of ``features`` N(0, 1) inputs unless the settings
    say otherwise, with uniform labels; they depend on ``seed`` alone, so that fewer rows are a
    prefix of more. The others load every row, whatever the features, batch and seed. The numbers of
    a file or an array that name no classes are taken as targets if it may be a ``regression``, and
    refused otherwise. Raises InputError for settings or files that will not do, and for arrays that
    are not in memory.
    """
    settings.validate()
    if settings.name == "digits":
        return _digits(settings.standardise)
    if settings.name == "file":
        return _from_file(settings, regression)
    if settings.name == "arrays":
        return _from_memory(settings, regression)
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


def _generator(seed: int, *stream: int) -> np.random.Generator:
    _at_least("seed", seed, 0)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=stream))


def _gaussian(features: int, classes: int, batch_size: int, seed: int) -> Dataset:
    _at_least("batch_size", batch_size, 1)
    x = _generator(seed, INPUTS).standard_normal((batch_size, features))
    labels = _generator(seed, LABELS).integers(classes, size=batch_size)
    return Dataset(x, labels, classes, "gaussian", standardised=False, independent=True)


@lru_cache
def _digits(standardised: bool) -> Dataset:
    """The 1797 digits of 8x8 pixels, 0 to 16, of the test half of UCI's Optical Recognition of
    Handwritten Digits (Alpaydin and Kaynak 1998, doi.org/10.24432/C50P49, CC BY 4.0).
    """
    path = Path(__file__).with_name("digits.csv.gz")
    table = np.loadtxt(path, delimiter=",", dtype=np.int64)
    x, labels = table[:, :-1].astype(np.float64), table[:, -1].copy()
    x = standardise(x) if standardised else x
    x.flags.writeable = labels.flags.writeable = False  # every caller shares them
    return Dataset(x, labels, 10, "digits", standardised)


def _from_file(settings: DataSettings, regression: bool) -> Dataset:
    path = _existing("data.path", settings.path)
    kind, columns = _kind(path), None
    for name, kinds in _READ_BY.items():
        if getattr(settings, name) is not None and kind not in kinds:
            raise InputError(
                f"data.{name} belongs to {' and '.join(kinds)} files; got "
                f"{getattr(settings, name)} for {path}"
            )
    if kind in ("csv", "parquet"):
        x, labels, columns = _table(path, kind, settings.target)
    elif kind == "npz":
        x, labels = _npz(path, settings.inputs or "X", settings.target or "y")
    else:
        x = _idx(path)
        labels = _idx(_existing("data.labels", settings.labels or _idx_labels(path)))
    x = _inputs(x, columns, path)
    labels, n_classes = _target(labels, len(x), path, regression)
    return _dataset(x, labels, n_classes, path.name, settings.standardise)


def _from_memory(settings: DataSettings, regression: bool) -> Dataset:
    held = settings._held
    if held is None:
        raise InputError(
            "data must be given anew, as data=(X, y), in a process that does not hold it; "
            f"got the digest {settings.digest} alone"
        )
    labels, n_classes = _target(held.labels, len(held.x), _MEMORY, regression)
    return _dataset(held.x, labels, n_classes, _MEMORY, settings.standardise)


def _dataset(x, labels, n_classes: int, name: str, standardised: bool) -> Dataset:
    if standardised:
        x = standardise(x)
        labels = standardise(labels) if labels.ndim == 2 else labels
    return Dataset(x, labels, n_classes, name, standardised)


# The kinds of files that read a setting.
_READ_BY = {"inputs": ("npz",), "target": ("csv", "parquet", "npz"), "labels": ("IDX",)}


def _kind(path: Path) -> str:
    """csv, parquet, npz or IDX, by the file's name; a file that ends in .gz may show what it is."""
    name = path.name.lower()
    packed = name.endswith(".gz")
    kind = Path(name.removesuffix(".gz")).suffix
    if kind == ".csv" or (kind in (".parquet", ".npz") and not packed):
        return kind[1:]
    if kind.startswith(".idx") or "ubyte" in name or (packed and _head(path).startswith(b"\0\0")):
        return "IDX"
    raise InputError(f"data.path must be a .csv, .parquet, .npz or IDX file; got {path}")


def _head(path: Path) -> bytes:
    """The first bytes of a gzipped file; none where it is damaged."""
    try:
        with gzip.open(path) as file:
            return file.read(4)
    except (OSError, EOFError, zlib.error):
        return b""


def _brief(value: object) -> str:
    return " ".join(str(value).split())[:40]


def _existing(what: str, name: str) -> Path:
    if not os.path.isfile(name):
        found = "a directory" if os.path.isdir(name) else "no such file"
        raise InputError(f"{what} must name a file; got {name} ({found})")
    return Path(name)


@contextmanager
def _reading(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever a file's reader raises, of any type, into one line of InputError."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path} must be a readable {kind} file; got: {reason}") from error


def _table(path: Path, kind: str, target: str | None) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Inputs, labels and the inputs' column names of a CSV or Parquet file."""
    if kind == "parquet":
        with _reading(path, "parquet"):
            frame = pd.read_parquet(path)
        frame.columns = _plain_names(frame)
        names = _columns(frame.columns, target, path)
    else:
        names = _columns(_header(path), target, path)
        frame = _csv(path, names, target or names[-1])
    return _split(frame, target, path, csv=kind == "csv")


def _split(
    frame: pd.DataFrame, target: str | None, source: Path | str, csv: bool = False
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Inputs, labels and the inputs' column names of a frame."""
    names = list(frame.columns)
    if len(frame) < 1 or len(names) < 2:
        raise InputError(
            f"{source} must hold a row and two columns at least, inputs and labels; "
            f"got {len(frame)} rows and {len(names)} columns ({', '.join(names)})"
            + ("; commas separate columns" if csv and len(names) == 1 else "")
        )
    target = target or names[-1]
    labels = frame[target]
    labels = _read_labels(labels, source) if csv else labels.infer_objects().to_numpy()
    inputs = frame.drop(columns=target)
    return _matrix(inputs, source), labels, list(inputs.columns)


def _matrix(frame: pd.DataFrame, source: Path | str) -> np.ndarray:
    return np.column_stack([_numbers(column, source) for _, column in frame.items()])


def _plain_names(frame: pd.DataFrame) -> list[str]:
    return [" ".join(str(name).split()) for name in frame.columns]


def _columns(names: Iterable[str], target: str | None, path: Path | str) -> list[str]:
    """The names, all different, with the target among them."""
    names = list(names)
    if len(set(names)) < len(names):
        raise InputError(f"{path} must give its columns different names; got {', '.join(names)}")
    if target is not None and target not in names:
        raise unknown(f"data.target, a column of {path},", target, names)
    return names


_CSV = {"index_col": False, "skipinitialspace": True, "encoding": "utf-8-sig"}


def _header(path: Path) -> list[str]:
    """The cells of the first line as they are written, if all can be names."""
    with _reading(path, "csv"):
        first = pd.read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False, **_CSV)
    names = [" ".join(cell.split()) for cell in first.iloc[0]]
    numbers = [name for name in names if _decimal(name) is not None]
    if "" in names or not all(map(str.isdecimal, numbers)) or len(set(numbers)) < len(numbers):
        raise _headerless(path, names)
    return names


def _csv(path: Path, names: list[str], target: str) -> pd.DataFrame:
    """The rows below the header; the target's cells as they are written."""
    known = {"header": 0, "names": names, **_CSV}
    with _reading(path, "csv"), warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)  # surplus fields are not dropped
        frame = pd.read_csv(path, low_memory=False, **known)
        texts = pd.read_csv(path, usecols=[target], dtype=str, keep_default_na=False, **known)
    frame[target] = texts[target].fillna("").str.strip()
    if len(frame) and not _heads(frame):
        raise _headerless(path, names)
    return frame


def _heads(frame: pd.DataFrame) -> bool:
    """Is the first line a header, rather than a row that would be lost?

    A word that stands in its own column too is a class. Numbers are names where they are evenly
    spaced and unlike what stands below them: they count from 0, beside a word or in five columns at
    least, or there are fractions below, or all lie beyond the numbers below.
    """
    words = [name for name in frame if not name.isdecimal()]
    texts = [name for name in words if not pd.api.types.is_numeric_dtype(frame[name])]
    if any((frame[name].astype(str) == name).any() for name in texts):
        return False
    names = [name for name in frame if name.isdecimal()]
    numbers = [int(name) for name in names]
    steps = {after - before for before, after in pairwise(numbers)}
    if not numbers or len(steps) > 1 or min(steps, default=1) < 1:
        return not numbers
    below = frame[names].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    counted = numbers == list(range(len(numbers))) and (words or len(numbers) >= 5)
    return bool(
        counted
        or (below != np.floor(below))[np.isfinite(below)].any()
        or (np.array(numbers, np.float64) > np.nanmax(np.abs(below), axis=0, initial=0)).all()
    )


def _headerless(path: Path, names: list[str]) -> InputError:
    return InputError(f"{path} must name every column in its first line; got {names[:8]}")


def _decimal(text: str) -> Decimal | None:
    """The exact number that a text writes, or None."""
    try:
        return None if "_" in text else Decimal(text)
    except InvalidOperation:
        return None


_ABSENT = {
    *("", "NA", "N/A", "n/a", "#N/A", "<NA>", "null", "NULL", "Null"),
    *("NaN", "nan", "NAN", "-nan", "-NaN", "None", "none"),
}


def _read_labels(texts: pd.Series, path: Path | str) -> np.ndarray:
    """The labels of a CSV file: whole numbers or numbers if they all are, else text.

    Among numbers NA and None are absent labels, NaN; among words they are words, and only an empty
    cell is absent. Raises InputError where one class is written in two ways, such as 01 and 1:
    those may as well be two codes.
    """
    numbers = {text: _decimal(text) for text in texts.unique()}
    absent = numbers.keys() & _ABSENT
    known = [numbers[text] for text in numbers.keys() - absent]
    whole = all(n is not None and n.is_finite() and n == n.to_integral_value() for n in known)
    if not known or None in known or (whole and any(abs(n) >= 2**63 for n in known)):
        labels = texts.astype(object).where(texts != "", np.nan).to_numpy()
    else:
        kind = int if whole and not absent else float
        values = {text: np.nan if text in absent else kind(n) for text, n in numbers.items()}
        labels = texts.map(values).to_numpy(np.dtype(kind))
    if not _measures(labels):
        written: dict = {}
        for text, number in numbers.items():
            same = text.lower() if text.lower() in ("true", "false") else number or text
            if number == 0:
                same = number
            if written.setdefault(same, text) != text:
                raise InputError(
                    f"labels of {path} must write each class in one way; "
                    f"got {_brief(written[same])} and {_brief(text)}"
                )
    return labels


def _numbers(column: pd.Series, path: Path | str) -> np.ndarray:
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


def _inputs(x: np.ndarray, columns: list[str] | None, path: Path | str) -> np.ndarray:
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


def _measures(labels: np.ndarray) -> bool:
    """Do these labels measure something, rather than name classes?

    Numbers do if one has a fraction; if each example has several; or if more than 20 are different,
    each in fewer than five rows, unless they are codes without a gap, as 0 to 99.
    """
    if labels.dtype.kind not in "iuf" or labels.size == 0:
        return False
    if labels.ndim > 1 and labels[0].size > 1:
        return True
    finite = labels[np.isfinite(labels)]
    different = np.unique(finite)
    if (different != np.floor(different)).any():
        return True
    few = len(finite) < ROWS_OF_A_CLASS * len(different)
    if not few or len(different) <= MOST_CLASSES:
        return False
    return int(different[-1]) - int(different[0]) >= len(different)


def _target(
    labels: np.ndarray, n: int, path: Path | str, regression: bool
) -> tuple[np.ndarray, int]:
    """``n`` labels as classes or, in a ``regression``, as targets (n, K); and K."""
    rule, measured = f"labels of {path} must", _measures(labels)
    if not (regression and measured):
        codes = _codes(labels, n, path)
        if measured:
            raise InputError(
                f"{rule} name classes; got {codes[1]} different numbers in {n} rows{_REGRESSION}"
            )
        return codes
    if labels.ndim > 2 or len(labels) != n:
        raise InputError(f"{rule} be one for each of the {n} rows; got shape {labels.shape}")
    labels = labels.reshape(n, -1).astype(np.float64)
    finite = np.isfinite(labels)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        raise InputError(f"{rule} be finite; got {labels[row, column]} in row {row + 1}")
    if (labels == labels[0]).all(axis=0).any():
        raise InputError(f"{rule} differ, as targets of a regression; got one value in all rows")
    return labels, labels.shape[1]


_REGRESSION = "; a regression takes loss=squared_error"


def _codes(labels: np.ndarray, n: int, path: Path | str) -> tuple[np.ndarray, int]:
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
            + (_REGRESSION if _measures(labels) else "")
        )
    classes, codes = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise InputError(f"{rule} of at least 2 classes; got only {_brief(classes[0])}")
    return codes.astype(np.int64), len(classes)
