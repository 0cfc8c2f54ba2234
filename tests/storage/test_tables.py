"""Tables: written whole or not at all, read with one call, refused in one line."""

import os
import re

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import flowlab
from flowlab.errors import InputError
from flowlab.storage import tables
from flowlab.storage.files import StorageError, writable


@pytest.fixture
def table():
    return flowlab.measure(flowlab.make(depth=2, width=4, batch_size=4, seeds=2))


def test_a_folder_reads_as_one_frame(tmp_path, table):
    for name in "ab":
        tables.write(table.assign(run=name), tmp_path / "runs" / f"{name}.parquet", {"x": 1})
    (tmp_path / "runs" / ".left-over.tmp").write_bytes(b"half a fi")
    whole = pd.read_parquet(tmp_path / "runs")
    assert sorted(whole["run"].unique()) == ["a", "b"]
    assert len(whole) == 2 * len(table)
    assert tables.metadata(tmp_path / "runs" / "a.parquet") == {"schema": tables.SCHEMA, "x": 1}


@pytest.mark.parametrize(
    "step", ["os.fsync", "os.replace", "pyarrow.parquet.ParquetWriter.write_table"]
)
def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, table, monkeypatch, step):
    path = tables.write(table, tmp_path / "run.parquet", {})
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(step, full)
    with pytest.raises(StorageError, match=r"cannot write .*run\.parquet: No space left on device"):
        tables.write(table.head(1), path, {})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["run.parquet"]


def test_damaged_and_foreign_files_are_named(tmp_path, table):
    good = tables.write(table, tmp_path / "good.parquet", {})
    bad = tmp_path / "bad.parquet"
    bad.write_bytes(good.read_bytes()[:-100])
    foreign = tmp_path / "foreign.parquet"
    pq.write_table(pa.table({"a": [1]}), foreign)
    pd.testing.assert_frame_equal(tables.read(good), table)
    for path, message in (
        (bad, f"{bad} is damaged"),
        (foreign, f"{foreign} is not a table of this laboratory: no column run"),
        (tmp_path / "none.parquet", f"no table at {tmp_path / 'none.parquet'}"),
    ):
        with pytest.raises(InputError, match=f"^{re.escape(message)}.*$"):
            tables.read(path)
    with pytest.raises(InputError, match=r"foreign\.parquet is not a table .*: no metadata$"):
        tables.metadata(foreign)


def test_a_table_of_the_future_is_refused(tmp_path):
    tables.readable("a.parquet", {"schema": tables.SCHEMA})
    with pytest.raises(tables.NewerError) as error:
        tables.readable("a.parquet", {"schema": tables.SCHEMA + 1})
    assert str(error.value) == "a.parquet was made by a newer flowlab (schema 2; this one reads 1)"
    with pytest.raises(InputError, match=r"a\.parquet has schema None; this version reads 1"):
        tables.readable("a.parquet", {})


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "results").write_text("")
    with pytest.raises(InputError, match="results_dir must be a folder"):
        writable(tmp_path / "results" / "single")
