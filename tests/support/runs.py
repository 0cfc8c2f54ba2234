"""Runs made up for the store: name, table, prediction and metadata by number."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from flowlab import schema
from flowlab.storage import index
from flowlab.storage.experiment import Experiment


def made(number, seeds=2, depth=3, **more):
    """A run by its number: name, table, prediction and metadata, all of them its own."""
    rng = np.random.default_rng(number)
    run, rows = f"{number:016x}", seeds * depth
    settings = {"depth": depth, "seed": seeds * number, "seeds": seeds, "init": {"name": "he"}}
    table = {"run": run, "experiment": "made", "op": "linear", "status": "ok"}
    table |= {name: rng.normal(size=rows) for name in schema.NORMS}
    table |= {"seed": np.repeat(seeds * number + np.arange(seeds), depth)}
    table |= {"layer": np.tile(np.arange(1, depth + 1), seeds), **more}
    table = schema.typed(pd.DataFrame(table))
    table.loc[0, "db_log10_norm"] = -np.inf
    table["time"] = pd.array([None] * (rows - 1) + [number], dtype="Int64")
    prediction = table.head(depth).drop(columns=["seed", "experiment", "status"])
    metadata = {"settings": settings, "command": "make it", "versions": {"flowlab": "1.2"}}
    return run, table, prediction, metadata


def trained(number, seeds=2, steps=4):
    """A trained run by its number: what :func:`made` gives, and its curve."""
    run, table, prediction, metadata = made(number, seeds)
    metadata["settings"]["training"] = {"name": "sgd", "lr": 0.1}
    rows = seeds * steps
    curve = {"run": run, "experiment": "made", "training": "sgd"}
    curve |= {"seed": np.repeat(seeds * number + np.arange(seeds), steps)}
    curve |= {"step": np.tile(np.arange(1, steps + 1), seeds)}
    curve |= {"held_out_loss": np.random.default_rng(number).normal(size=rows)}
    return run, table, prediction, metadata, schema.typed(pd.DataFrame(curve))


def filled(folder, *numbers):
    experiment = Experiment(folder)
    for number in numbers:
        experiment.save(*made(number))
    return experiment


def backdate(folder):
    """Turn what is compacted into what flowlab 0.1.0 made: a manifest lies beside it."""
    for part in ("runs", "theory"):  # it trained nothing
        entries = list(Experiment(folder)._listing.packed(part).values())
        for path in (folder / part).glob(f"{index.PACK}*"):
            table = pq.read_table(path)
            own = {b"flowlab": json.dumps({"schema": 1, "compacted": True})}
            table = table.replace_schema_metadata(table.schema.metadata | own)
            pq.write_table(table, path, row_group_size=len(table))
        columns = dict(zip(index.Entry._fields, map(list, zip(*entries, strict=True)), strict=True))
        manifest = pa.table(columns).replace_schema_metadata({"flowlab": json.dumps({"schema": 1})})
        pq.write_table(manifest, folder / part / index.MANIFEST)
