"""Draw the tables under a results folder and print what its studies find.

Writes results/<experiment>/figures/<figure>.png, .svg and .json (finding, settings, caption, the
runs shown),
and prints what the experiment's studies find in its table.
"""

import json
import sys
from pathlib import Path

import pandas as pd

from experiments.command import note
from experiments.help import EXPERIMENT, RESULTS_DIR, Command, Option
from flowlab import schema, studies
from flowlab.analysis.verdicts import KEPT_WITHIN
from flowlab.errors import InputError, check_positive, unknown
from flowlab.figures.files import save
from flowlab.figures.head import fixed
from flowlab.progress import Progress
from flowlab.storage.experiment import Experiment, find
from flowlab.storage.files import write
from flowlab.studies.study import Drawing, Reading, Study

COMMAND = Command(
    "plots",
    __doc__,
    {"": "every experiment", "experiment=depth": "one"},
    {
        "results_dir": RESULTS_DIR,
        "experiment": EXPERIMENT,
        "kept_within": Option(
            KEPT_WITHIN,
            "end to end, a gradient that changes by less is called kept (decades)",
            "numbers above 0",
        ),
    },
)


def main(arguments: list[str]) -> int:
    """Draw what the arguments (key=value) ask for; the exit code."""
    return COMMAND.start(arguments, plots)


def plots(results_dir: str, experiment: str = "", kept_within: float = KEPT_WITHIN) -> None:
    """Draw every experiment under ``results_dir``, or one; verdicts by ``kept_within`` decades.

    Tables that cannot be used are named in one line each and left out. Raises InputError where
    there is no table at all, or none that can be drawn.
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
    parts = {"runs": schema.REQUIRED, "theory": schema.PREDICTED, "curves": ("run",)}
    for part, least in parts.items():
        try:
            frame = kept.load(part=part)
        except InputError as error:
            problems.append(str(error))
            unreadable.add(part)
            frame = pd.DataFrame()
        frames.append(frame if len(frame.columns) else pd.DataFrame(columns=least))
        problems += kept.problems
    table, prediction, curve = frames
    silent = set(table["run"]) - set(prediction["run"])
    if silent and "theory" not in unreadable:
        problems.append(f"{folder / 'theory'} lacks {len(silent)} of {table['run'].nunique()} runs")
    with progress.aside():
        for problem in dict.fromkeys(problems):
            note(problem)
    if table.empty:
        return 0
    image = _image(kept, table)
    prediction, curve = (None if frame.empty else frame for frame in (prediction, curve))
    reading = Reading(table, prediction, kept_within, image, curve)
    return sum(_study(study, reading, folder, progress) for study in studies.of(folder.name))


def _study(study: Study, reading: Reading, folder: Path, progress: Progress) -> int:
    """Draw a study's figures and print its findings; how many figures were drawn."""
    drawn = 0
    for drawing in study.figures:
        if not drawing.applies(reading):
            continue
        progress.at(f"drawing {folder.name}/{drawing.name}")
        try:
            paths = draw(drawing, reading, folder)
        except InputError as error:
            with progress.aside():
                note(f"{folder.name}/{drawing.name} is not drawn: {error}")
        else:
            drawn += 1
            with progress.aside():
                print(paths[0])
    found, lacking = study.read(reading)
    with progress.aside():
        for claim, finding in found:
            print(f"{claim.id} {finding.verdict}: {finding.sentence}")
        print(*lacking, sep="\n", end="\n" * bool(lacking))
    return drawn


def draw(drawing: Drawing, reading: Reading, folder: Path) -> tuple[Path, ...]:
    """Write one figure and its description under ``folder``; the paths written."""
    shown = drawing.shown(reading)
    runs = sorted(shown.table["run"].unique())
    stem = folder / "figures" / drawing.name
    finding = drawing.finding(shown)
    paths = save(drawing.figure(shown, finding), stem)
    description = {
        "finding": finding,
        "fixed": fixed(shown.table),
        "caption": drawing.caption(shown),
        "experiment": folder.name,
        "runs": [f"runs/{run}.parquet" for run in runs],
    }
    described = describe(stem, description)
    return (*paths, described)


def describe(stem: Path, description: dict) -> Path:
    """Write what a figure finds, fixes and shows beside it, for the report."""
    text = json.dumps(description, ensure_ascii=False, indent=2) + "\n"
    return write(text, stem.with_suffix(".json"))


def _image(kept: Experiment, table: pd.DataFrame) -> int | None:
    """The side of images as the metadata of the first run has it; None where it does not."""
    try:
        return int(kept.metadata(table["run"].iat[0])["settings"]["network"]["image"])
    except (InputError, LookupError, TypeError, ValueError):
        return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
