"""Folders of tables read by others: the same rows from single, compacted and mixed files."""

import duckdb
import pandas as pd
import polars as pl
import pytest

import flowlab
from flowlab.storage.experiment import Experiment
from tests.support.runs import filled, made

FOLDERS = {
    "single": lambda folder: filled(folder, 1, 2, 3),
    "compacted": lambda folder: filled(folder, 1, 2, 3).compact(),
    "mixed": lambda folder: (filled(folder, 1, 2).compact(), filled(folder, 3)),
}


def by_pandas(folder):
    return pd.read_parquet(folder)


def by_duckdb(folder):
    return duckdb.sql(f"from read_parquet('{folder}/*.parquet')").df()


def by_duckdb_named(folder):
    return duckdb.sql(f"from read_parquet('{folder}/*.parquet', union_by_name = true)").df()


def by_polars(folder):
    return pl.read_parquet(f"{folder}/*.parquet").to_pandas()


def by_polars_folder(folder):
    return pl.scan_parquet(folder).collect().to_pandas()


def by_polars_inserted(folder):
    options = {"missing_columns": "insert", "extra_columns": "ignore"}
    return pl.scan_parquet(f"{folder}/*.parquet", **options).collect().to_pandas()


PLAIN = [by_pandas, by_duckdb, by_polars, by_polars_folder]
MERGING = [by_duckdb_named, by_polars_inserted]


def assert_same(found, expected):
    """The same rows, bit for bit, in whatever types and order."""
    keys = [name for name in ("run", "seed", "layer") if name in expected]
    found, expected = (
        frame.sort_values(keys, ignore_index=True).astype(object) for frame in (found, expected)
    )
    found, expected = (frame.where(frame.notna(), None) for frame in (found, expected))
    pd.testing.assert_frame_equal(found[list(expected)], expected, check_exact=True)


@pytest.mark.parametrize("read", [*PLAIN, *MERGING])
@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_reads_the_same(folder, read, tmp_path):
    FOLDERS[folder](tmp_path)
    for part, position in (("runs", 1), ("theory", 2)):
        expected = pd.concat([made(k)[position] for k in (1, 2, 3)])
        assert_same(read(tmp_path / part), expected)


@pytest.mark.parametrize("read", MERGING)
@pytest.mark.parametrize("compacted", [False, True])
def test_files_of_unlike_columns_are_merged_by_name(compacted, read, tmp_path):
    runs = [made(1, extra=1.5), made(2), made(3)]
    experiment = Experiment(tmp_path)
    for run in runs:
        experiment.save(*run)
    if compacted:
        experiment.compact()
        assert experiment.files == 4
    expected = pd.concat([table for _, table, *_ in runs])
    assert_same(read(tmp_path / "runs"), expected)


@pytest.mark.parametrize("read", [*PLAIN, *MERGING])
def test_measured_tables_have_every_column(read, tmp_path):
    for depth in (2, 3):
        axes = {"depth": depth, "width": 4, "batch_size": 4, "seeds": 2}
        flowlab.run(**axes, experiment="x", results_dir=str(tmp_path))
    experiment = Experiment(tmp_path / "x")
    for _ in range(2):
        for part in ("runs", "theory"):
            assert_same(read(tmp_path / "x" / part), experiment.load(part=part))
        experiment.compact()
