"""Draw the tables under a results folder: ``python -m experiments.plots``; ``experiment=depth``.

Writes results/<experiment>/figures/<figure>.png, .svg and .json (title, caption, the runs shown).
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from inspect import signature
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.command import guarded, note, options
from experiments.progress import Progress
from flowlab import schema
from flowlab.analysis.verdicts import KEPT_WITHIN
from flowlab.errors import InputError, check_positive, unknown
from flowlab.figures.files import save
from flowlab.figures.gallery import Drawing, drawings
from flowlab.storage.experiment import Experiment, find
from flowlab.storage.files import write
from flowlab.theory.plane import phase_plane
from flowlab.theory.rates import batch_norm_rates, border_rates

DEFAULTS = {"results_dir": "results", "experiment": "", "kept_within": KEPT_WITHIN}
POINTS = 41  # theory's phase plane, along each side


def main(arguments: list[str]) -> int:
    """Draw what the arguments (key=value) ask for; the exit code."""
    return guarded(lambda: plots(**options(arguments, DEFAULTS)))


def plots(results_dir: str, experiment: str = "", kept_within: float = KEPT_WITHIN) -> None:
    """Draw every experiment under ``results_dir``, or one; verdicts by ``kept_within`` decades.

    Tables that cannot be used are told in one line each and left out. Raises InputError where there
    is no table at all, or none that can be drawn.
    """
    check_positive("kept_within", kept_within)
    problems: list[str] = []
    found = find(results_dir, ("runs", ".old-runs"), problems)
    for problem in problems:
        note(problem)
    if not found:
        raise InputError(
            f"results_dir must hold <experiment>/runs/*.parquet; got none in {results_dir}"
        )
    if experiment and experiment not in found:
        raise unknown("experiment", experiment, found)
    with Progress() as progress:
        chosen = [found[experiment]] if experiment else found.values()
        drawn = sum(_experiment(folder, kept_within, progress) for folder in chosen)
    if not drawn:
        raise InputError(
            f"results_dir must hold a table that can be drawn; got none in {results_dir}"
        )


def _experiment(folder: Path, kept_within: float, progress: Progress) -> int:
    """Draw one experiment's figures; how many were drawn."""
    kept = Experiment(folder)
    frames, problems, unreadable = [], [], set()
    progress.at(f"reading {folder.name}")
    for part, least in (("runs", schema.REQUIRED), ("theory", schema.PREDICTED)):
        try:
            frame = kept.load(part=part)
        except InputError as error:
            problems.append(str(error))
            unreadable.add(part)
            frame = pd.DataFrame()
        frames.append(frame if len(frame.columns) else pd.DataFrame(columns=least))
        problems += kept.problems
    table, prediction = frames
    silent = set(table["run"]) - set(prediction["run"])
    if silent and "theory" not in unreadable:
        problems.append(f"{folder / 'theory'} lacks {len(silent)} of {table['run'].nunique()} runs")
    with progress.aside():
        for problem in dict.fromkeys(problems):
            note(problem)
    if table.empty:
        return 0
    drawn = 0
    for drawing in drawings(folder.name):
        progress.at(f"drawing {folder.name}/{drawing.name}")
        try:
            paths = draw(drawing, table, prediction, folder, kept_within)
        except InputError as error:
            with progress.aside():
                note(f"{folder.name}/{drawing.name} is not drawn: {error}")
        else:
            drawn += 1
            with progress.aside():
                print(paths[0])
    return drawn


def draw(
    drawing: Drawing,
    table: pd.DataFrame,
    prediction: pd.DataFrame,
    folder: Path,
    kept_within: float = KEPT_WITHIN,
) -> tuple[Path, ...]:
    """Write one figure and its description under ``folder``; the paths written."""
    shown = drawing.select(table)
    runs = sorted(shown["run"].unique())
    left_out = table["run"].nunique() - len(runs)
    told = prediction[prediction["run"].isin(runs)]
    given = (shown, None if told.empty else told)
    if drawing.given:
        given += (GIVEN[drawing.given](shown, folder),)
    stem = folder / "figures" / drawing.name
    paths = save(judging(drawing.draw, kept_within)(*given), stem)
    description = {
        "title": drawing.title,
        "caption": judging(drawing.caption, kept_within)(*given),
        "experiment": folder.name,
        "runs": [f"runs/{run}.parquet" for run in runs],
    }
    described = describe(stem, description)
    if left_out and drawing.name == "profiles":
        note(
            f"{folder.name}/profiles shows {len(runs)} of {len(runs) + left_out} runs; for others "
            "filter the table: flowlab.figures.profiles(table.query('depth == 50'))"
        )
    return (*paths, described)


def judging(function: Callable, kept_within: float) -> Callable:
    """``function`` with the threshold of verdicts, if it gives any."""
    judges = "kept_within" in signature(function).parameters
    return partial(function, kept_within=kept_within) if judges else function


def describe(stem: Path, description: dict) -> Path:
    """Write title, caption, experiment and runs of a figure beside it, for the report."""
    text = json.dumps(description, ensure_ascii=False, indent=2) + "\n"
    return write(text, stem.with_suffix(".json"))


def _plane(table: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Theory's phase plane around the measured points, which it contains."""
    sides = []
    for name in ("sigma_w", "sigma_b"):
        squares = np.unique(table[name] ** 2)
        margin = 0.05 * np.ptp(squares) or 0.05
        ends = max(squares[0] - margin, 0), squares[-1] + margin
        sides.append(np.union1d(np.linspace(*ends, POINTS), squares))
    return phase_plane(table["activation"].iat[0], *sides)


def _batch_norm_rates(table: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """At every batch size between the measured ones, fewer of the large."""
    sizes = table["batch_size"].unique()
    fine = np.geomspace(sizes.min(), sizes.max(), POINTS).round().astype(int)
    return batch_norm_rates(table["activation"].unique(), np.union1d(fine, sizes).tolist())


def _border_rates(table: pd.DataFrame, folder: Path) -> pd.DataFrame:
    return border_rates(_side(table, folder), int(table["kernel_size"].iat[0]))


def _positions(table: pd.DataFrame, folder: Path) -> int:
    return _side(table, folder) ** 2


def _side(table: pd.DataFrame, folder: Path) -> int:
    """The side of the images that a run's settings name."""
    run = table["run"].iat[0]
    try:
        return int(Experiment(folder).metadata(run)["settings"]["network"]["image"])
    except (LookupError, TypeError):
        raise InputError(f"run {run} of {folder} does not say how large its images are") from None


# What figures need beside tables, from the rows shown and the experiment's folder.
GIVEN = {
    "phase_plane": _plane,
    "batch_norm_rates": _batch_norm_rates,
    "border_rates": _border_rates,
    "positions": _positions,
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
