"""A whole results folder: runs, figure, claims, benchmark."""

import shutil

import pandas as pd
import pytest

import flowlab
from experiments import plots
from flowlab.storage import tables
from tests.support.reports import FOLDER, WILD, claims, store


@pytest.fixture(scope="session")
def runs():
    """Three tiny runs: (table, prediction, settings)."""
    made = {}
    # Names sort in another order than settings.
    for name, init, depth in (("c", "he", 3), ("b", "he", 4), ("a", "xavier", 4)):
        settings = flowlab.make(init=init, depth=depth, width=6, batch_size=4, seeds=3)
        table, prediction = flowlab.measure(settings), flowlab.predict(settings).assign(run=name)
        made[name] = table.assign(run=name), prediction, settings.resolved()
    return made


@pytest.fixture(scope="session")
def drawn(runs, tmp_path_factory):
    root = tmp_path_factory.mktemp("report") / "results"
    for name, made in runs.items():
        store(root / FOLDER, name, *made)
    plots.plots(str(root))
    tables.write(claims(), root / "claims" / "claims.parquet", {"command": "claim it"})
    ratios = pd.DataFrame({"form": [WILD], "ratio": [2.125], "first_s": [float("nan")]})
    tables.write(ratios, root / "benchmark" / "probe.parquet", {"command": "rounds=3"})
    return root


@pytest.fixture
def results(drawn, tmp_path):
    return shutil.copytree(drawn, tmp_path / "results")
