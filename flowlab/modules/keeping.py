"""A table of a user's model is kept as the laboratory keeps its own, and read as these are.

One file for each run, in the folder of an experiment: ``flowlab.load``, ``compare``, the figures
and the report take it from there, beside runs of the laboratory or alone.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from flowlab import schema
from flowlab.errors import InputError
from flowlab.modules.table import KEY, named, silent
from flowlab.settings import make
from flowlab.storage.experiment import Experiment
from flowlab.storage.files import writable
from flowlab.storage.versions import versions

SILENT = "theory knows the laboratory's own networks, and this model was not matched to one"
PACKAGES = ("torch", "jax")  # that users' models are made with


def keep(
    table: pd.DataFrame,
    prediction: pd.DataFrame | None = None,
    results_dir: str | Path = "results",
    experiment: str = "own",
    command: str = "",
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Keep a table of a user's model, one run or several; the folder, for ``flowlab.load``.

    A run is what has one name and agrees in its settings; it is named by its contents, so that the
    same table is the same file and another one another. ``prediction`` has theory's rows by the
    table's runs; a run without any is kept with the sentence that theory does not know it.
    ``settings`` become columns, numbers or text; ``command`` is how the table was made. Raises
    InputError for what is no such table, for a name of an experiment that is no plain folder's, and
    where the disk refuses.
    """
    made = make(experiment=experiment, results_dir=str(results_dir))
    folder = Path(made.results_dir) / made.experiment
    table = _checked(table, settings or {})
    if prediction is not None:
        _check_columns("prediction", prediction, schema.PREDICTED)
    writable(folder)
    kept = Experiment(folder)
    constant = _constant(table)
    for (run, *_), rows in table.groupby(["run", *constant], dropna=False, sort=False):
        rows = named(rows).assign(experiment=pd.array([experiment] * len(rows), dtype="string"))
        name = rows["run"].iloc[0]
        of = None if prediction is None else _of_run(prediction, run, name)
        of = silent(rows, SILENT) if of is None or of.empty else of
        columns = {name: rows[name].iloc[0] for name in constant}
        metadata = {
            "settings": _resolved(rows, columns),
            "experiment": experiment,
            "command": command,
            "versions": versions(*PACKAGES),
        }
        kept.save(name, rows, of, metadata)
    return folder


def _resolved(rows: pd.DataFrame, columns: dict[str, Any]) -> dict[str, Any]:
    """A run's settings as its file has them.

    No network of the laboratory has ``modules``, so that nobody takes them for its settings.
    """
    plain = {name: _plain(value) for name, value in columns.items() if pd.notna(value)}
    network = {"name": plain.get("network"), "modules": rows["module"].nunique()}
    seeds = rows["seed"].unique()
    of_seeds = {"seed": int(seeds.min()), "seeds": len(seeds)}
    return {"network": network, "columns": plain, **of_seeds}


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _of_run(prediction: pd.DataFrame, run: Any, name: str) -> pd.DataFrame:
    """The predicted rows of a run, under the name that it is kept by."""
    of = prediction["run"]
    rows = prediction[of.isna() if pd.isna(run) else of.eq(run).fillna(False)]
    return rows.assign(run=pd.array([name] * len(rows), dtype="string"))


def _constant(table: pd.DataFrame) -> list[str]:
    """The settings: the schema's, and a user's columns that have one value in every run."""
    known = schema.columns(*schema.OF_MODULES)
    own = [name for name in table if name not in known]
    runs = table.groupby("run", dropna=False)
    own = [name for name in own if runs[name].nunique(dropna=False).max() == 1]
    return [name for name in schema.names("setting") if name in table and name != "seeds"] + own


def _checked(table: Any, settings: Mapping[str, Any]) -> pd.DataFrame:
    """The table with ``settings`` as columns, all in the types of the schema."""
    _check_columns("table", table, (*schema.REQUIRED, *KEY))
    if table.empty:
        raise InputError("table must hold at least one row; got none")
    if table["module"].isna().any():
        raise InputError("table must hold rows of modules alone; got some without a module")
    others = schema.columns(*(part for part in schema.OF_MODULES if part != "setting"))
    for name, value in settings.items():
        if not isinstance(name, str) or name in others:
            raise InputError(f"settings must have names of their own; got {name!r}")
        if not isinstance(value, str | int | float | bool):
            raise InputError(f"settings must be numbers or text; got {name}={value!r}")
    table = table.assign(**settings).reset_index(drop=True)
    for name in table:
        if not isinstance(name, str):
            raise InputError(f"table must have names of columns; got {name!r}")
        try:
            column = schema.typed(table[[name]])[name]
        except (TypeError, ValueError) as error:
            raise InputError(f"column {name} must be as the schema has it: {error}") from None
        if column.dtype == object:
            column = _text(name, column)
        table[name] = column
    return table


def _text(name: str, column: pd.Series) -> pd.Series:
    """A column of objects, all of which are text or missing."""
    if not column.map(lambda value: value is None or isinstance(value, str)).all():
        raise InputError(f"column {name} must hold numbers or text; got others")
    return column.astype("string")


def _check_columns(what: str, frame: Any, needed: tuple[str, ...]) -> None:
    if not isinstance(frame, pd.DataFrame):
        raise InputError(f"{what} must be a DataFrame; got {type(frame).__name__}")
    for name in needed:
        if name not in frame:
            raise InputError(f"{what} must be of modules, as flowlab makes it; no column {name}")
