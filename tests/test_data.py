"""Data sets: what is loaded is what was written, and every bad input is one line of text."""

import gzip
import hashlib
import pickle
import re
import struct
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf

import flowlab
from flowlab.data import DataSettings, arrays, load, standardise
from flowlab.errors import InputError
from tests.support.scripts import printed

X = np.array([[0.1, -2e-7, 3.0], [1 / 3, 5.0, -6.5], [7.0, 8e30, 9.0], [0.0, 1.0, 2.0]])
Y = np.array([7, 3, 7, 11])
CODES = [1, 0, 1, 2]
DIGITS = "68aea062d35a127749050fa0e52dca09d6569ac08092c925610e0954e172dde2"


def read(path, **settings):
    settings = {"standardise": False} | settings
    return load(DataSettings("file", str(path), **settings), features=5, batch_size=2, seed=0)


def idx(array, code):
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, code, array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write_csv(folder, text, name="a.csv"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def message(call, *args, **kwargs):
    with pytest.raises(InputError) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Digits


@pytest.mark.parametrize("standardised", [False, True])
def test_digits_are_those_of_scikit_learn(standardised):
    sklearn = pytest.importorskip("sklearn.datasets")
    expected_x, expected_labels = sklearn.load_digits(return_X_y=True)
    expected_x = standardise(expected_x) if standardised else expected_x
    data = load(DataSettings(standardise=standardised), features=3, batch_size=5000, seed=1)
    np.testing.assert_array_equal(data.x, expected_x)
    np.testing.assert_array_equal(data.labels, expected_labels)
    assert (data.x.dtype, data.labels.dtype) == (np.float64, np.int64)
    assert (data.n_classes, data.name, data.standardised) == (10, "digits", standardised)


def test_digits_are_the_same_bytes_on_every_machine():
    data = load(DataSettings(standardise=False), features=1, batch_size=1, seed=0)
    pixels = np.column_stack([data.x, data.labels]).astype(np.uint8)
    assert pixels.shape == (1797, 65)
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == DIGITS


def test_digits_are_quick():
    program = (
        "import time; from flowlab.data import DataSettings, load;"
        "start = time.perf_counter();"
        "load(DataSettings(), 1, 1, 0);"
        "print(time.perf_counter() - start)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 0.5  # a tenth of that when the machine is idle


def test_digits_are_parsed_once_and_cannot_be_changed():
    first, second = (load(DataSettings(), 1, 1, seed) for seed in (0, 1))
    assert first is second
    with pytest.raises(ValueError, match="read-only"):
        first.x[0, 0] = 1


# Standardising


def test_standardised_columns_have_mean_zero_and_variance_one():
    rng = np.random.default_rng(3)
    x = rng.normal(rng.normal(size=6) * 100, 10.0 ** np.arange(-3, 3), (500, 6))
    z = standardise(x)
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose((z**2).mean(axis=0), 1, rtol=1e-12)
    np.testing.assert_allclose(np.corrcoef(x.T), np.corrcoef(z.T), atol=1e-9)


@pytest.mark.parametrize("constant", [0.0, 0.1, -1e300, 1e-300])
def test_constant_columns_become_exactly_zero(constant):
    x = np.full((7, 1), constant)
    np.testing.assert_array_equal(standardise(x), 0)


@pytest.mark.parametrize("scale", [1e-320, 1e-200, 1e200, 1.7e308])
def test_standardising_neither_overflows_nor_underflows(scale):
    z = standardise(scale * np.array([[1.0], [-1.0], [1.0], [-1.0]]))
    np.testing.assert_allclose(z[:, 0], [1, -1, 1, -1], rtol=1e-15)


def test_standardise_leaves_its_argument_alone():
    x = X.copy()
    standardise(x)
    np.testing.assert_array_equal(x, X)


# Gaussian


def gaussian(batch_size=400, seed=5, width=20, **settings):
    return load(DataSettings("gaussian", **settings), width, batch_size, seed)


def test_gaussian_inputs_are_standard_normal_and_labels_uniform():
    data = gaussian(5000, width=20, classes=4)
    assert data.x.shape == (5000, 20)
    assert abs(data.x.mean()) < 5 / np.sqrt(1e5)
    assert abs((data.x**2).mean() - 1) < 5 * np.sqrt(2 / 1e5)
    counts = np.bincount(data.labels, minlength=4)
    assert len(counts) == data.n_classes == 4
    assert (abs(counts - 1250) < 5 * np.sqrt(5000 * 0.25 * 0.75)).all()
    dependence = np.corrcoef(data.labels, data.x[:, 0])[0, 1]
    assert abs(dependence) < 5 / np.sqrt(5000)


def test_gaussian_width_is_the_callers_unless_set():
    assert gaussian(width=6).x.shape == (400, 6)
    assert gaussian(width=6, features=9).x.shape == (400, 9)


def test_gaussian_rows_depend_on_the_seed_alone():
    large = gaussian(401)
    for batch_size in (1, 2, 63, 400):
        small = gaussian(batch_size)
        np.testing.assert_array_equal(small.x, large.x[:batch_size])
        np.testing.assert_array_equal(small.labels, large.labels[:batch_size])
    other = gaussian(401, seed=6)
    assert not np.isin(other.x, large.x).any()
    assert (other.labels != large.labels).any()


def test_gaussian_batches_keep_the_prefix():
    x, labels = gaussian(400).batch(400, 5)
    small_x, small_labels = gaussian(64).batch(64, 5)
    np.testing.assert_array_equal(small_x, x[:64])
    np.testing.assert_array_equal(small_labels, labels[:64])


# Batches


def test_a_small_batch_is_a_prefix_of_a_large_one():
    data = load(DataSettings(), 1, 1, 0)
    x, labels = data.batch(128, seed=3)
    small_x, small_labels = data.batch(64, seed=3)
    np.testing.assert_array_equal(small_x, x[:64])
    np.testing.assert_array_equal(small_labels, labels[:64])
    assert not np.array_equal(data.batch(64, seed=4)[0], small_x)
    assert not np.array_equal(data.x[:64], small_x)


def test_the_full_batch_is_every_row_once_with_its_own_label(tmp_path):
    x = np.arange(50.0)
    np.savez(tmp_path / "a.npz", X=x, y=x.astype(int))
    data = read(tmp_path / "a.npz")
    batch, labels = data.batch(50, seed=9)
    np.testing.assert_array_equal(np.sort(batch[:, 0]), x)
    np.testing.assert_array_equal(batch[:, 0], labels)
    batch[:] = 0  # a batch is the caller's own
    np.testing.assert_array_equal(data.x[:, 0], x)


def test_first_rows_are_uniform_over_the_data():
    data = load(DataSettings(), 1, 1, 0)
    first = [data.batch(1, seed)[1][0] for seed in range(300)]
    share = np.bincount(data.labels) / 1797
    error = np.sqrt(300 * share * (1 - share))
    assert (abs(np.bincount(first, minlength=10) - 300 * share) < 5 * error).all()


def test_batch_sizes_and_seeds_out_of_range():
    data = load(DataSettings(), 1, 1, 0)
    line = message(data.batch, 5000, 0)
    assert line == "batch_size must be at most the 1797 rows of digits; got 5000"
    assert message(data.batch, 0, 0) == "batch_size must be at least 1; got 0"
    assert message(data.batch, 8, -1) == "seed must be at least 0; got -1"
    assert message(gaussian, 0) == "batch_size must be at least 1; got 0"
    assert message(gaussian, 8, seed=-2) == "seed must be at least 0; got -2"


# Settings


def test_settings_are_a_schema():
    schema = OmegaConf.structured(DataSettings)
    merged = OmegaConf.merge(schema, {"name": "gaussian", "features": 7, "path": None})
    assert OmegaConf.to_object(merged) == DataSettings("gaussian", features=7)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"name": "digit"}, "data.name must be one of .*; got digit; did you mean digits"),
        ({"name": "file"}, "data.path must name a file when data.name is file; got None"),
        ({"path": "a.csv"}, "data.name must be file when data.path is given; got digits"),
        ({"features": 0}, "data.features must be at least 1; got 0"),
        ({"classes": 1}, "data.classes must be at least 2; got 1"),
        ({"classes": 5}, "data.classes belongs to data=gaussian; got 5"),
        ({"features": 5}, "data.features belongs to data=gaussian; got 5"),
        ({"name": "gaussian", "target": "y"}, "data.target belongs to data=file; got y"),
        ({"name": "gaussian", "classes": 2**31}, "data.classes must be at most 2147483647; got"),
    ],
)
def test_settings_that_do_not_agree(settings, line):
    settings = DataSettings(**settings)
    with pytest.raises(InputError, match=line):
        settings.validate()
    with pytest.raises(InputError, match=line):
        load(settings, 1, 1, 0)


# Files: what is read is what was written


def assert_read(data, name):
    np.testing.assert_array_equal(data.x, X)
    np.testing.assert_array_equal(data.labels, CODES)
    assert (data.x.dtype, data.labels.dtype) == (np.float64, np.int64)
    assert data.x.flags.c_contiguous
    assert (data.n_classes, data.name, data.standardised) == (3, name, False)


@pytest.fixture
def frame():
    return pd.DataFrame(X, columns=["a", "b", "c"]).assign(label=Y)


@pytest.mark.parametrize("target", [None, "label"])
def test_csv(tmp_path, frame, target):
    frame.to_csv(tmp_path / "a.csv", index=False)
    assert_read(read(tmp_path / "a.csv", target=target), "a.csv")


@pytest.mark.parametrize("target", [None, "label"])
def test_parquet(tmp_path, frame, target):
    frame.to_parquet(tmp_path / "a.parquet")
    assert_read(read(tmp_path / "a.parquet", target=target), "a.parquet")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_target_in_the_middle(tmp_path, frame, suffix):
    frame = frame[["a", "label", "b", "c"]]
    path = tmp_path / f"a.{suffix}"
    frame.to_csv(path, index=False) if suffix == "csv" else frame.to_parquet(path)
    assert_read(read(path, target="label"), path.name)


def test_npz(tmp_path):
    np.savez(tmp_path / "a.npz", X=X, y=Y)
    assert_read(read(tmp_path / "a.npz"), "a.npz")
    np.savez_compressed(tmp_path / "b.npz", inputs=X[:, None, :], kind=Y[:, None], X=0, y=0)
    assert_read(read(tmp_path / "b.npz", inputs="inputs", target="kind"), "b.npz")


@pytest.mark.parametrize(
    "name",
    ["t-images-idx3-ubyte", "t-images-idx3-ubyte.gz", "t-images.idx3-ubyte", "images.idx3"],
)
@pytest.mark.parametrize("guess", [True, False])
def test_idx(tmp_path, name, guess):
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 3)).astype(np.uint8)
    labels = np.array([9, 0, 4, 4, 9, 0], np.uint8)
    pack = gzip.compress if name.endswith("gz") else bytes
    (tmp_path / name).write_bytes(pack(idx(images, 8)))
    label_name = name.replace("images", "labels").replace("idx3", "idx1") if guess else "other"
    (tmp_path / label_name).write_bytes(pack(idx(labels, 8)))
    data = read(tmp_path / name, labels=None if guess else str(tmp_path / "other"))
    np.testing.assert_array_equal(data.x, images.reshape(6, 12))
    np.testing.assert_array_equal(data.labels, [2, 0, 1, 1, 2, 0])


@pytest.mark.parametrize(
    ("code", "dtype"), [(9, "i1"), (11, "i2"), (12, "i4"), (13, "f4"), (14, "f8")]
)
def test_idx_types(tmp_path, code, dtype):
    x = np.array([[1, -2, 3], [100, 5, -6]], dtype)
    (tmp_path / "a-images-idx2-ubyte").write_bytes(idx(x, code))
    (tmp_path / "a-labels-idx1-ubyte").write_bytes(idx(np.array([-1, 1], "i2"), 11))
    data = read(tmp_path / "a-images-idx2-ubyte")
    np.testing.assert_array_equal(data.x, x)
    np.testing.assert_array_equal(data.labels, [0, 1])


def test_files_are_standardised_unless_told_otherwise(tmp_path):
    np.savez(tmp_path / "a.npz", X=X[:, [0, 2]], y=Y)
    x = read(tmp_path / "a.npz", standardise=True).x
    np.testing.assert_allclose(x, (X - X.mean(0))[:, [0, 2]] / X.std(0)[[0, 2]], rtol=1e-12)


def test_relative_paths_start_at_the_working_directory(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", X=X, y=Y)
    monkeypatch.chdir(tmp_path)
    assert_read(read("a.npz"), "a.npz")


@pytest.mark.parametrize(
    "text",
    [
        "a,b,label\n1,2,x\n3,4,y\n",
        "a,b,label\r\n1,2,x\r\n3,4,y\r\n",
        "\ufeffa,b,label\n1,2,x\n3,4,y",
        '\ufeff"a","b","label"\r\n"1","2","x"\r\n"3","4","y"\r\n',
        'a, b, "label"\n 1, 2, "x"\n3 , 4, y\n\n',
        "0,1,label\n1,2,x\n3,4,y\n",
        "1990,2000,2010\n1,2,5\n3,4,6\n",
    ],
)
def test_csv_dialects(tmp_path, text):
    data = read(write_csv(tmp_path, text))
    np.testing.assert_array_equal(data.x, [[1, 2], [3, 4]])
    np.testing.assert_array_equal(data.labels, [0, 1])
    if "label" in text:
        np.testing.assert_array_equal(read(tmp_path / "a.csv", target="label").labels, data.labels)


# The header: no first row is lost


@pytest.mark.parametrize(
    "text",
    [
        "5,3,1,0,oak\n4,2,9,1,elm\n6,3,5,2,oak\n7,1,4,8,elm\n",
        "1,2,oak\n3,4,elm\n5,9,oak\n",  # evenly spaced, but oak is a class
        "1,2,oak\n3,4,elm\n5,9,ash\n",  # counted from 1 and like what stands below
        "1,2,3\n4,5,6\n7,8,9\n",
        "0,1\n1,0\n0,0\n1,1\n",
        "0,1,2\n1,0,2\n0,0,1\n",
        "4,2,9,9\n1,2,3,4\n",  # 9 twice is no pair of names
        "3,2,1\n9,8,7\n6,5,4\n",
        "nan,1,x\n2,3,y\n",
        "inf,1,x\n2,3,y\n",
        "1e3,1,x\n2,3,y\n",
        "-1,1,x\n2,3,y\n",
        '"5","3","oak"\n"1","2","elm"\n"3","4","oak"\n',
    ],
)
def test_a_file_without_a_header_loses_no_row(tmp_path, text):
    line = message(read, write_csv(tmp_path, text))
    assert "a.csv must name every column in its first line; got [" in line


@pytest.mark.parametrize(
    ("header", "rows"),
    [
        ("0,1,2,3,4", ["1,0,2,3,0", "5,4,3,2,1"]),  # DataFrame(array).to_csv(index=False)
        ("0,1,2", ["0.5,1,0", "1,2,1"]),
        ("1,2,3", ["0.5,1,0", "1,2,1"]),
        ("0,1,kind", ["1,0,x", "0,1,y"]),
        ("2019,2020,kind", ["1,0,x", "0,1,y"]),
        ("x1,x 2,kind", ["1,0,x", "0,1,y"]),
    ],
)
def test_names_of_columns_may_be_numbers(tmp_path, header, rows):
    data = read(write_csv(tmp_path, "\n".join([header, *rows])))
    np.testing.assert_array_equal(data.x, [list(map(float, r.split(",")[:-1])) for r in rows])
    assert len(data.labels) == len(rows)


@pytest.mark.parametrize("text", ["a,a,y\n1,2,0\n3,4,1\n", "a b,a  b,y\n1,2,0\n3,4,1\n"])
def test_two_columns_of_one_name(tmp_path, text):
    line = message(read, write_csv(tmp_path, text))
    assert re.search("a.csv must give its columns different names; got (a, a, y|a b, a b, y)", line)


# Labels: a class is what is written


@pytest.mark.parametrize(
    ("labels", "codes"),
    [
        (["EU", "NA", "AS", "NA", "EU", "AS"], [1, 2, 0, 2, 1, 0]),
        (["None", "nan", "null", "N/A"], [1, 2, 3, 0]),
        (["NA", "x", "1", "2"], [2, 3, 0, 1]),
        ([" b ", "b", "a", "a  "], [1, 1, 0, 0]),
        (["10", "9", "-1", "9"], [2, 1, 0, 1]),
        (["007", "010", "100", "010"], [0, 1, 2, 1]),
        (["9007199254740993", "9007199254740992", "0", "0"], [2, 1, 0, 0]),
        (["99999999999999999999", "99999999999999999998", "0", "0"], [2, 1, 0, 0]),
        (["1e1", "2", "2", "3"], [2, 0, 0, 1]),
    ],
)
def test_classes_are_as_they_are_written(tmp_path, labels, codes):
    rows = "".join(f'{k},{k * k},"{label}"\n' for k, label in enumerate(labels))
    data = read(write_csv(tmp_path, f"a,b,region\n{rows}"))
    assert len(data.x) == len(labels)
    assert data.labels.tolist() == codes
    assert data.n_classes == len(set(codes))


@pytest.mark.parametrize(
    ("labels", "line"),
    [
        ("1e1 10 01 1", "must write each class in one way; got 1e1 and 10"),
        ("2 01 1 3", "must write each class in one way; got 01 and 1"),
        ("0 -0 1 1", "must write each class in one way; got 0 and -0"),
        ("1 1.0 2 2", "must write each class in one way; got 1 and 1.0"),
        ("a 1 01 b", "must write each class in one way; got 1 and 01"),
        ("True TRUE False False", "must write each class in one way; got True and TRUE"),
        ("0 1 NA 1", "must be whole numbers, text or booleans; got nan in row 3"),
        ("0 1 None 1", "must be whole numbers, text or booleans; got nan in row 3"),
    ],
)
def test_labels_that_may_be_one_class_or_two(tmp_path, labels, line):
    rows = "".join(f"{k},{label}\n" for k, label in enumerate(labels.split()))
    assert line in message(read, write_csv(tmp_path, f"a,y\n{rows}"))


def test_settings_of_other_kinds_of_files_are_refused(tmp_path, frame):
    csv, npz, images = tmp_path / "a.csv", tmp_path / "a.npz", tmp_path / "a-images-idx2-ubyte"
    frame.to_csv(csv, index=False)
    np.savez(npz, X=X, y=Y)
    images.write_bytes(idx(X, 14))
    assert message(read, csv, labels="l") == f"data.labels belongs to IDX files; got l for {csv}"
    assert message(read, npz, labels="l") == f"data.labels belongs to IDX files; got l for {npz}"
    assert message(read, csv, inputs="a") == f"data.inputs belongs to npz files; got a for {csv}"
    line = message(read, images, target="y")
    assert line == f"data.target belongs to csv and parquet and npz files; got y for {images}"


# Gzipped files are what their names say


def test_gzipped_csv(tmp_path, frame):
    for name in ("a.csv.gz", "A.CSV.GZ"):
        (tmp_path / name).write_bytes(gzip.compress(frame.to_csv(index=False).encode()))
        assert_read(read(tmp_path / name), name)
    plain = write_csv(tmp_path, frame.to_csv(index=False), "b.csv.gz")
    assert "b.csv.gz must be a readable csv file; got: Not a gzipped file" in message(read, plain)


def test_other_gzipped_files(tmp_path):
    (tmp_path / "labels").write_bytes(idx(Y.astype(np.uint8), 8))
    (tmp_path / "images.gz").write_bytes(gzip.compress(idx(X, 14)))
    assert_read(read(tmp_path / "images.gz", labels=str(tmp_path / "labels")), "images.gz")
    for name in ("a.tsv.gz", "a.parquet.gz", "a.npz.gz", "a.gz"):
        path = write_csv(tmp_path, gzip.compress(b"a\tb\n1\t2\n"), name)
        line = f"data.path must be a .csv, .parquet, .npz or IDX file; got {path}"
        assert message(read, path) == line


# Regression


def regression(path, **settings):
    settings = {"standardise": False} | settings
    return load(DataSettings("file", str(path), **settings), 5, 2, 0, regression=True)


def written(folder, suffix, target):
    """A file whose target stands in the last column, or under ``y``."""
    path, x = folder / f"a.{suffix}", np.arange(float(len(target)))
    frame = pd.DataFrame({"x": x, "y": target})
    if suffix == "npz":
        np.savez(path, X=x, y=target)
    elif suffix == "idx":
        path = folder / "a-images-idx1-ubyte"
        path.write_bytes(idx(x, 14))
        (folder / "a-labels-idx1-ubyte").write_bytes(idx(np.asarray(target, float), 14))
    else:
        frame.to_csv(path, index=False) if suffix == "csv" else frame.to_parquet(path)
    return path


@pytest.mark.parametrize("suffix", ["csv", "parquet", "npz", "idx"])
@pytest.mark.parametrize("kind", [float, int])
def test_many_numbers_are_a_target(tmp_path, suffix, kind):
    """As in scikit-learn's diabetes data: 214 different whole numbers in 442 rows."""
    target = np.random.default_rng(0).permutation(np.arange(0, 1326, 3) % 642).astype(kind)
    classes = len(np.unique(target))
    path = written(tmp_path, suffix, target)
    assert classes == 214
    assert message(read, path) == (
        f"labels of {path.with_name(path.name)} must name classes; got 214 different numbers in "
        "442 rows; a regression takes loss=squared_error"
    )
    data = regression(path)
    assert (data.n_classes, data.labels.shape, data.labels.dtype) == (1, (442, 1), np.float64)
    np.testing.assert_array_equal(data.labels[:, 0], target)
    assert data.target_square == pytest.approx(np.mean(np.square(target, dtype=float)), rel=1e-14)
    data = regression(path, standardise=True)
    expected = (target - target.mean()) / target.std()
    np.testing.assert_allclose(data.labels[:, 0], expected, rtol=1e-12, atol=1e-13)
    assert data.target_square == pytest.approx(1, rel=1e-13)


@pytest.mark.parametrize("suffix", ["csv", "parquet", "npz", "idx"])
def test_fractions_are_a_target(tmp_path, suffix):
    path = written(tmp_path, suffix, [0.5, 1.0, -2.0, 1.0])
    assert "got 0.5 in row 1; a regression takes loss=squared_error" in message(read, path)
    np.testing.assert_array_equal(regression(path).labels, [[0.5], [1.0], [-2.0], [1.0]])


@pytest.mark.parametrize(
    "labels", [np.arange(50), np.arange(50.0) - 3, np.arange(60) % 20 * 7, [-1.0, 1.0] * 3]
)
def test_few_numbers_and_counted_ones_are_classes(tmp_path, labels):
    path = written(tmp_path, "npz", labels)
    for data in (read(path), regression(path)):
        assert data.labels.dtype == np.int64 and data.target_square == 1
        assert data.n_classes == len(np.unique(labels))


def test_several_targets(tmp_path):
    np.savez(tmp_path / "a.npz", X=X, y=X[:, [0, 2]])
    np.testing.assert_array_equal(regression(tmp_path / "a.npz").labels, X[:, [0, 2]])
    assert regression(tmp_path / "a.npz").n_classes == 2
    assert "one for each of the 4 rows; got shape (4, 2)" in message(read, tmp_path / "a.npz")


@pytest.mark.parametrize(
    ("target", "line"),
    [
        ([0.5, np.nan, 1.0], "labels of .*a.npz must be finite; got nan in row 2"),
        ([0.5, 0.25, np.inf], "labels of .*a.npz must be finite; got inf in row 3"),
        ([0.5, 0.5, 0.5], "labels of .*a.npz must differ, as targets of a regression"),
    ],
)
def test_bad_targets(tmp_path, target, line):
    with pytest.raises(InputError, match=line):
        regression(written(tmp_path, "npz", target))


@pytest.mark.parametrize(
    "labels",
    [
        ["dog", "ant", "cat", "ant"],
        [True, False, True, True],
        [-5, 300, -5, 2**40],
        [3.0, 1.0, 2.0, 1.0],
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "parquet", "npz"])
def test_labels_become_ranks(tmp_path, labels, suffix):
    path = tmp_path / f"a.{suffix}"
    frame = pd.DataFrame({"x": np.arange(4.0), "label": labels})
    if suffix == "npz":
        np.savez(path, X=np.arange(4), y=np.array(labels))
    else:
        frame.to_csv(path, index=False) if suffix == "csv" else frame.to_parquet(path)
    data = read(path)
    assert data.labels.tolist() == [sorted(set(labels)).index(label) for label in labels]
    assert data.n_classes == len(set(labels))


def test_parquet_types(tmp_path):
    frame = pd.DataFrame(
        {
            "a": pd.array([1, 2, 3], "Int64"),
            "b": [True, False, True],
            "c": np.array([1, 2, 3], np.float32),
            "kind of thing": pd.Categorical(["u", "v", "u"]),
        }
    )
    frame.to_parquet(tmp_path / "a.parquet")
    data = read(tmp_path / "a.parquet", target="kind of thing")
    np.testing.assert_array_equal(data.x, [[1, 1, 1], [2, 0, 2], [3, 1, 3]])
    np.testing.assert_array_equal(data.labels, [0, 1, 0])


# Files that will not do


@pytest.mark.parametrize("name", ["none.csv", "none.npz", "none-images-idx3-ubyte.gz"])
def test_missing_files_and_directories(tmp_path, name):
    path = tmp_path / name
    assert message(read, path) == f"data.path must name a file; got {path} (no such file)"
    path.mkdir()
    assert message(read, path) == f"data.path must name a file; got {path} (a directory)"


def test_unknown_suffix(tmp_path):
    line = message(read, write_csv(tmp_path, "a,b\n1,2\n", "a.txt"))
    assert line == f"data.path must be a .csv, .parquet, .npz or IDX file; got {tmp_path / 'a.txt'}"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "a.csv must be a readable csv file; got: No columns"),
        ("a,b,y\n", r"a.csv must hold a row .* got 0 rows and 3 columns \(a, b, y\)"),
        ("y\n1\n2\n", r"a.csv must hold a row and two columns .* got 2 rows and 1 columns \(y\)"),
        ("a;b;y\n1;2;0\n3;4;1\n", r"two columns at least.*got 2 rows and 1 columns \(a;b;y\)"),
        ("a,b,y\n1,2,0\n3,4\n", "labels of .*a.csv .* got nan in row 2"),
        ("a,b,y\n1,2,0\n3,4,1,9\n", "a.csv must be a readable csv file; got: .*Expected 3"),
        ("a,b,y\n1,2,0,8\n3,4,1,9\n", "a.csv must be a readable csv file; got: .*loss of data"),
        (b"a,b\n1,\xff\n", "a.csv must be a readable csv file; got: .*decode"),
        (
            "a,b,y\n1,2,0\n1,1e5x,1\n",
            "a.csv must be numbers; got 1e5x in row 2, column b",
        ),
        ("a,b,y\n1,2,0\n\n1_000,3,1\n", "must be numbers; got 1_000 in row 2, column a"),
        ('a,b,y\n1,"2\n3",0\n1,3,1\n', "must be numbers; got 2 3 in row 1, column b"),
        ("a,b,y\n1,,0\n1,3,1\n", "inputs of .*a.csv must be finite; got nan in row 1, column b"),
        ("a,b,y\n1,2,0\n1,-inf,1\n", "must be finite; got -inf in row 2, column b"),
        ("a,b,y\n1,2,0\n1,1e999,1\n", "must be finite; got inf in row 2, column b"),
        ("a,b,y\n1,2,x\n1,3,\n", "labels of .*a.csv must be whole .* got nan in row 2"),
        ("a,b,y\n1,2,0\n1,3,0.5\n", "must be whole numbers, text or .* got 0.5 in row 2"),
        ("a,b,y\n1,2,0\n1,3,inf\n", "must be whole numbers, text or .* got inf in row 2"),
        ("a,b,y\n1,2,x\n1,3,x\n", "labels of .*a.csv must be of at least 2 classes; got only x"),
        ("5.1,3.5,setosa\n1,2,virginica\n", "a.csv must name every column in its first line"),
        ("7,0,0,0\n1,2,3,4\n", "a.csv must name every column in its first line"),
        ("7,5,2\n1,2,3\n", "a.csv must name every column in its first line"),
        (",a,y\n0,5,1\n1,6,0\n", "a.csv must name every column in its first line"),
    ],
)
def test_bad_csv(tmp_path, text, line):
    path = write_csv(tmp_path, text)
    with pytest.raises(InputError, match=line):
        read(path)
    assert str(path) in message(read, path)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_unknown_column(tmp_path, frame, suffix):
    path = tmp_path / f"a.{suffix}"
    frame.to_csv(path, index=False) if suffix == "csv" else frame.to_parquet(path)
    assert message(read, path, target="lable") == (
        f"data.target, a column of {path}, must be one of a, b, c, label; got lable; "
        "did you mean label?"
    )


@pytest.mark.parametrize(
    ("column", "line"),
    [
        (["1.5", "2", "x"], "must be numbers; got x in row 3, column a"),
        ([[1.0], [2.0], [3.0]], r"must be numbers; got \[1.\] in row 1, column a"),
        (
            pd.to_datetime(["2001-02-03"] * 3),
            "must be numbers; got 2001-02-03.* row 1, column a",
        ),
        (pd.array([1, None, 3], "Int64"), "must be finite; got nan in row 2, column a"),
        ([1.0, 2.0, -np.inf], "must be finite; got -inf in row 3, column a"),
    ],
)
def test_bad_parquet_inputs(tmp_path, column, line):
    pd.DataFrame({"a": column, "y": [0, 1, 2]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(InputError, match=f"inputs of .*a.parquet {line}"):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("column", "line"),
    [
        (["u", None, "v"], "got (nan|None) in row 2"),
        (pd.array([0, 1, None], "Int64"), "got (nan|<NA>) in row 3"),
        (pd.to_datetime(["2001-02-03"] * 3), "got 2001-02-03.* in row 1"),
        ([[1.0], [2.0], [3.0]], r"got \[1.\] in row 1"),
    ],
)
def test_bad_parquet_labels(tmp_path, column, line):
    pd.DataFrame({"a": [0, 1, 2], "y": column}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(InputError, match=f"labels of .*a.parquet must be whole .*; {line}"):
        read(tmp_path / "a.parquet")


def test_empty_parquet(tmp_path):
    pd.DataFrame().to_parquet(tmp_path / "a.parquet")
    assert "got 0 rows and 0 columns" in message(read, tmp_path / "a.parquet")


def test_equal_column_names(tmp_path):
    pd.DataFrame({"a b": [1], "a  b": [2], "y": [0]}).to_parquet(tmp_path / "a.parquet")
    assert "different names; got a b, a b, y" in message(read, tmp_path / "a.parquet")


@pytest.mark.parametrize(
    ("arrays", "line"),
    [
        ({"X": X}, "data.target, an array of .*, must be one of X; got y"),
        ({"Xs": X, "y": Y}, "data.inputs, an array of .*, must be one of Xs, y; got X; did you"),
        ({"X": X[:3], "y": Y}, r"labels of .* one for each of the 3 rows; got shape \(4,\)"),
        ({"X": X[:2], "y": Y.reshape(2, 2)}, r"each of the 2 rows; got shape \(2, 2\)"),
        ({"X": X, "y": np.array(1)}, r"each of the 4 rows; got shape \(\)"),
        ({"X": X[:0], "y": Y[:0]}, r"inputs of .* a row and a column; got shape \(0, 3\)"),
        ({"X": X[:, :0], "y": Y}, r"inputs of .* a row and a column; got shape \(4, 0\)"),
        ({"X": np.array(1.0), "y": Y}, r"inputs of .* a row and a column; got shape \(\)"),
        ({"X": X + 1j, "y": Y}, "inputs of .* must be numbers; got complex128"),
        ({"X": X.astype(str), "y": Y}, "inputs of .* must be numbers; got <U"),
        ({"X": np.where(X == 9, np.nan, X), "y": Y}, "finite; got nan in row 3, column 3"),
        ({"X": X, "y": np.array([0, 1, np.nan, 1])}, "labels of .* got nan in row 3"),
        ({"X": X, "y": Y * 1j}, "labels of .* must be whole numbers"),
        ({"X": X, "y": 0 * Y}, "labels of .* must be of at least 2 classes; got only 0"),
    ],
)
def test_bad_npz(tmp_path, arrays, line):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(InputError, match=line):
        read(tmp_path / "a.npz")
    assert "a.npz" in message(read, tmp_path / "a.npz")


class Trap:
    def __reduce__(self):
        return pytest.fail, ("a pickle was opened",)


def test_pickles_stay_shut(tmp_path):
    np.savez(tmp_path / "a.npz", X=np.array([Trap(), Trap()]), y=[0, 1])
    assert "a.npz must be a readable npz file; got: Object" in message(read, tmp_path / "a.npz")
    for name in ("b.npz", "b.parquet", "b.csv", "b-ubyte.gz"):
        (tmp_path / name).write_bytes(pickle.dumps(Trap()))
        labels = {"labels": str(tmp_path / name)} if "ubyte" in name else {}
        message(read, tmp_path / name, **labels)


@pytest.mark.parametrize("suffix", ["npz", "parquet", "gz"])
def test_damaged_files(tmp_path, frame, suffix):
    path = tmp_path / f"a-images-idx2-ubyte.{suffix}"
    labels = tmp_path / "labels"
    labels.write_bytes(idx(Y.astype(np.uint8), 8))
    if suffix == "npz":
        np.savez_compressed(path, X=X, y=Y)
    elif suffix == "parquet":
        frame.to_parquet(path)
    else:
        path.write_bytes(gzip.compress(idx(X, 14)))
    whole, axes = path.read_bytes(), {"labels": str(labels)} if suffix == "gz" else {}
    read(path, **axes)
    for cut in (0, 1, 3, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert str(path) in message(read, path, **axes)
    # One flipped byte may go unnoticed, but may never end in anything but an InputError.
    line = 0
    for place in range(0, len(whole), max(1, len(whole) // 150)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            read(path, **axes)
        except InputError:
            line += 1
    assert line > 5


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        (b"", "must be an IDX file; got magic number 0x$"),
        (b"\0\0\x08", "must be an IDX file; got magic number 0x000008"),
        (b"\x89PNG....", "must be an IDX file; got magic number 0x89504e47"),
        (b"\0\0\x07\x01\0\0\0\0", "must be an IDX file; got magic number 0x00000701"),
        (b"\0\0\x08\0", "must be an IDX file; got magic number 0x00000800"),
        (b"\0\0\x08\xff" + bytes(2000), "must be an IDX file; got magic number 0x000008ff"),
        (b"\0\0\x08\x02\0\0\0\x01", "must hold 12 bytes of IDX header; got 8"),
        (idx(X, 14)[:-1], r"must hold 108 bytes for its shape \(4, 3\); got 107"),
        (idx(X, 14) + b"\0", r"must hold 108 bytes for its shape \(4, 3\); got 109"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "must hold .* bytes for its shape"),
        (idx(X[:0], 14), r"inputs of .* a row and a column; got shape \(0, 3\)"),
        (idx(X[:3], 14), r"labels of .* one for each of the 3 rows; got shape \(4,\)"),
    ],
)
def test_bad_idx(tmp_path, raw, line):
    path, labels = tmp_path / "a.idx", tmp_path / "labels"
    labels.write_bytes(idx(Y.astype(np.uint8), 8))
    for packed in (raw, gzip.compress(raw)):
        path.write_bytes(packed)
        with pytest.raises(InputError, match=line):
            read(path, labels=str(labels))


def test_idx_label_file_must_be_known_and_there(tmp_path):
    path = tmp_path / "a-images-idx2-ubyte"
    path.write_bytes(idx(X, 14))
    missing = tmp_path / "a-labels-idx1-ubyte"
    assert message(read, path) == f"data.labels must name a file; got {missing} (no such file)"
    path = path.rename(tmp_path / "plain-ubyte")
    line = message(read, path)
    assert line == f"data.labels must name the IDX label file of {path}; got none"


# Arrays in memory

OWN_X = np.arange(24.0).reshape(6, 4) ** 1.5
OWN_Y = [2, 0, 2, 5, 0, 5]
SMALL = {"depth": 3, "width": 4, "batch_size": 4, "seeds": 1}


def held(settings, regression=False):
    return load(settings, features=5, batch_size=2, seed=0, regression=regression)


def test_arrays_are_what_the_same_numbers_in_a_file_are(tmp_path):
    np.savez(tmp_path / "own.npz", X=OWN_X, y=OWN_Y)
    for standardised in (True, False):
        mine = held(arrays(OWN_X, OWN_Y, standardise=standardised))
        theirs = read(tmp_path / "own.npz", standardise=standardised)
        np.testing.assert_array_equal(mine.x, theirs.x)
        np.testing.assert_array_equal(mine.labels, theirs.labels)
        assert (mine.n_classes, mine.standardised) == (3, standardised)
        axes = {"name": "file", "path": str(tmp_path / "own.npz"), "standardise": standardised}
        table = flowlab.measure(data=arrays(OWN_X, OWN_Y, standardise=standardised), **SMALL)
        columns = flowlab.schema.names("row", "measured")
        assert table[columns].equals(flowlab.measure(data=axes, **SMALL)[columns])


def test_equal_arrays_are_one_run_however_they_are_given():
    frame = pd.DataFrame(OWN_X, columns=list("abcd")).assign(label=OWN_Y)
    given = [
        (OWN_X, OWN_Y),
        (OWN_X.tolist(), np.array(OWN_Y, np.int16)),
        (OWN_X.reshape(6, 2, 2), np.array(OWN_Y)[:, None]),
        (frame[list("abcd")], frame["label"]),
        frame,
        arrays(frame[["label", *"abcd"]], target="label"),
    ]
    assert {flowlab.make(data=data).run() for data in given} == {flowlab.make(data=frame).run()}
    words = frame.assign(label=["c", "a", "c", "f", "a", "f"])
    others = [
        (OWN_X + 1e-9, OWN_Y),
        (OWN_X, OWN_Y[::-1]),
        (OWN_X, np.array(OWN_Y, float)),
        (OWN_X[:, ::-1], OWN_Y),
        words,
        arrays(frame, standardise=False),
    ]
    assert len({flowlab.make(data=data).run() for data in [frame, *others]}) == 7
    np.testing.assert_array_equal(held(arrays(words)).labels, held(arrays(frame)).labels)


def test_a_regression_takes_its_targets():
    y = OWN_X @ [[1.0, 2], [0, 1], [1, 0], [3, 1]]
    data = held(arrays(OWN_X, y, standardise=False), regression=True)
    np.testing.assert_array_equal(data.labels, y)
    table = flowlab.measure(data=(OWN_X, y), loss="squared_error", **SMALL)
    assert table["status"].eq("ok").all() and set(table["loss"]) == {"squared_error"}
    with pytest.raises(InputError, match=r"^labels of data must be one for each of the 6 rows"):
        flowlab.measure(data=(OWN_X, y), **SMALL)


def test_arrays_are_copied_and_live_as_long_as_settings():
    x, y = OWN_X.copy(), np.array(OWN_Y)
    settings = flowlab.make(data=(x, y), **SMALL)
    before = flowlab.measure(settings)
    x[:], y[:] = 0, 1
    assert flowlab.measure(settings).equals(before)
    stored = settings.resolved()
    again = flowlab.settings.from_plain(stored)
    assert again.run() == settings.run() and flowlab.measure(again).equals(before)
    copy = pickle.loads(pickle.dumps(settings))
    assert copy == settings and flowlab.measure(copy).equals(before)
    del settings, again, copy
    gone = flowlab.settings.from_plain(stored)
    assert gone.axes()["data_digest"] == stored["data"]["digest"] == before["data_digest"].iat[0]
    with pytest.raises(InputError, match=r"^data must be given anew, as data=\(X, y\), in a pro"):
        flowlab.measure(gone)


def test_the_digest_of_arrays_is_that_of_every_process(tmp_path):
    program = (
        "import numpy as np, pickle, flowlab;"
        "x = np.arange(24.0).reshape(6, 4) ** 1.5;"
        "settings = flowlab.make(data=(x, [2, 0, 2, 5, 0, 5]), depth=3, width=4, batch_size=4);"
        "open('settings', 'wb').write(pickle.dumps(settings)); print(settings.run())"
    )
    run = printed(tmp_path, "-c", program).strip()
    settings = pickle.loads((tmp_path / "settings").read_bytes())
    assert run == settings.run() == flowlab.make(data=(OWN_X, OWN_Y), **SMALL | {"seeds": 16}).run()
    np.testing.assert_array_equal(settings.data._held.x, OWN_X)


MISSING = OWN_X.copy()
MISSING[3, 1] = np.nan
BAD_ARRAYS = [
    ((OWN_X, OWN_Y[:5]), "labels of data must be one for each of the 6 rows; got shape (5,)"),
    ((MISSING, OWN_Y), "inputs of data must be finite; got nan in row 4, column 2"),
    ((OWN_X.astype(object), OWN_Y), "inputs of data must be numbers; got object"),
    ((OWN_X * 1j, OWN_Y), "inputs of data must be numbers; got complex128"),
    (([[1, 2], [3]], [0, 1]), "inputs of data must be an array; got unequal rows"),
    (([], []), "inputs of data must have a row and a column; got shape (0,)"),
    ((OWN_X[:0], []), "inputs of data must have a row and a column; got shape (0, 4)"),
    ((3, 4), "inputs of data must have a row and a column; got shape ()"),
    (
        (np.ma.masked_greater(OWN_X, 9), OWN_Y),
        "inputs of data must have a value everywhere; got a masked array",
    ),
    ((OWN_X, [1] * 6), "labels of data must be of at least 2 classes; got only 1"),
    (
        (OWN_X, ["a", 1] * 3),
        "labels of data must be whole numbers, text or booleans; got 1 in row 2",
    ),
    (
        (OWN_X, [None] * 6),
        "labels of data must be whole numbers, text or booleans; got None in row 1",
    ),
    ((OWN_X, [0.5, np.nan, 1, 2, 3, 4]), "labels of data must be finite; got nan in row 2"),
    ((OWN_X, None), "data without y must be a DataFrame; got ndarray"),
    (
        OWN_X,
        "data must be a name, a dictionary of settings, (X, y) or a DataFrame; got ndarray",
    ),
    (
        pd.DataFrame(),
        "data must hold a row and two columns at least, inputs and labels; "
        "got 0 rows and 0 columns ()",
    ),
    (
        (pd.DataFrame({"a": ["x"] * 6}), OWN_Y),
        "inputs of data must be numbers; got x in row 1, column a",
    ),
    (
        "arrays",
        "data must be given in Python, as (X, y) or a DataFrame, when data.name is arrays; "
        "got the name alone",
    ),
    ({"name": "digits", "digest": "x"}, "data.digest belongs to data=arrays; got x"),
]


@pytest.mark.parametrize("data, expected", BAD_ARRAYS)
def test_bad_arrays_are_refused_when_settings_are_made(data, expected):
    assert message(flowlab.make, data=data) == expected


def test_a_column_of_a_frame_is_named():
    frame = pd.DataFrame(MISSING, columns=list("abcd")).assign(label=OWN_Y)
    assert message(arrays, frame).endswith("got nan in row 4, column b")
    assert "got lable; did you mean label?" in message(arrays, frame, target="lable")
    assert message(arrays, OWN_X, OWN_Y, target="a") == (
        "target must be left out where y is given; got a"
    )
    few = flowlab.make(data=(OWN_X, OWN_Y))
    assert message(flowlab.measure, few) == "batch_size must be at most the 6 rows of data; got 128"
