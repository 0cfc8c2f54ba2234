"""Account for the gradient: what every operation makes of its norm.

Settings are those of ``experiments.run``; ``replace=3.relu`` makes the Jacobian of that operation
the identity, measures again and compares the change with what the ledger says.
"""

import json
import shlex
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.command import at_initialization
from experiments.help import Command, Option
from flowlab.analysis.statistics import mean_interval
from flowlab.errors import InputError
from flowlab.instruments.ledger import gains, imbalance, operation
from flowlab.progress import Progress
from flowlab.settings import Settings
from flowlab.storage import tables
from flowlab.storage.files import writable
from flowlab.storage.versions import versions

COMMAND = Command(
    "ledger",
    __doc__,
    {
        "init=he depth=20 skip=identity": "where a residual net's gradient goes",
        "depth=20 replace=3.relu": "what changes without one Jacobian",
    },
    {
        "replace": Option(
            None, "an operation whose Jacobian becomes the identity", "LAYER.OP, such as 3.relu"
        )
    },
    composed=True,
)
USUAL = ("relu", "none")  # which a figure's name leaves out


def run(settings: Settings, replace: str | None = None) -> None:
    """Write one configuration's ledger and waterfall and say which operations matter."""
    from experiments.plots import describe as described
    from flowlab.figures.files import save
    from flowlab.figures.head import fixed, head
    from flowlab.figures.waterfall import caption, complete, finding, waterfall

    at_initialization(settings, "ledger")
    folder = Path(settings.results_dir) / settings.experiment
    writable(folder)
    with Progress("measuring gains") as progress:
        accounts = [gains(settings, progress=progress)]
        if replace is not None:
            progress.at(f"measuring without {replace}")
            accounts.append(gains(settings, replace, progress))
    print(
        f"{settings.seeds} {settings.network.name} nets, activation={settings.activation} "
        f"init={settings.init.name} "
        f"depth={settings.depth} width={settings.width} skip={settings.skip}, "
        f"upstream={settings.upstream}: {progress.took()}\n"
    )
    print(describe(accounts[0]))
    if replace is not None:
        print(f"\n{compare(*accounts, replace)}")
    metadata = {
        "settings": settings.resolved(),
        "experiment": settings.experiment,
        "command": shlex.join(["python", "-m", "experiments.ledger", *sys.argv[1:]]),
        "versions": versions(),
    }
    for account, replaced in zip(accounts, (None, replace), strict=False):
        name = account["run"].iat[0]
        if replaced:
            metadata |= {
                "replaced": replaced,
                "command": f"{metadata['command']} replace={replaced}",
            }
        path = tables.write(account, folder / "ledger" / f"{name}.parquet", metadata)
        print(f"\nTable:  {path}  ({len(account)} rows)")
        if len(complete(account)):
            source = f"ledger/{name}.parquet"
            stem = _stem(folder / "figures", settings, replaced, source)
            found, shared = finding(account), fixed(account)
            try:
                drawn, _ = save(head(waterfall(account), found, shared), stem)
            except OSError as error:
                raise InputError(f"cannot write the figure: {error}") from None
            description = {"finding": found, "fixed": shared, "caption": caption(account)}
            described(stem, {**description, "experiment": settings.experiment, "runs": [source]})
            print(f"Figure: {drawn}")


def _stem(folder: Path, settings: Settings, replaced: str | None, source: str) -> Path:
    """A readable name for the figure of a ledger, with its digest where another has that name."""
    parts = [settings.network.name, settings.init.name, settings.activation]
    parts += [f"depth{settings.depth}", settings.skip, settings.norm]
    parts += [f"without-{replaced.replace('.', '-')}"] if replaced else []
    stem = folder / "-".join(["ledger", *(part for part in parts if part not in USUAL)])
    try:
        shown = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))["runs"]
    except (OSError, ValueError, LookupError, TypeError):
        return stem
    return stem if shown == [source] else stem.with_name(f"{stem.name}-{settings.run()[:6]}")


def describe(account: pd.DataFrame) -> str:
    """The kinds' totals, the largest operations, and how well gains add up, in plain words."""
    from flowlab.figures.waterfall import complete, interval, largest, totals

    rows = complete(account)
    lines = []
    left_out = account["seed"].nunique() - rows["seed"].nunique()
    if left_out:
        lines.append(f"Seeds left out, as a cotangent of theirs is zero or not known: {left_out}.")
    if rows.empty:
        return "\n".join(lines)

    def add(name, row):
        lines.append(f"  {name:<26}{interval(row)}")

    seeds = rows["seed"].nunique()
    over = f"mean over {seeds} seeds [95 % interval]" if seeds > 1 else "one seed"
    lines.append(f"Gain of the cotangent's norm from output to input, in decades (log10), {over}:")
    for row in totals(rows, ["kind"]).itertuples():
        add(f"{row.kind} ({row.operations})", row)
    (whole,) = totals(rows.assign(all="all"), ["all"]).itertuples()
    add("end to end", whole)
    lines += ["", "The single operations that lose or gain most:"]
    for row in largest(rows).itertuples():
        add(f"layer {row.layer} {row.op}", row)
    inner = rows[~rows["counted"]]
    if len(inner):
        lines += ["", "Inside the branches (not added again; they make the branch's size):"]
        for row in totals(inner.assign(counted=True), ["kind"]).itertuples():
            add(f"{row.kind} ({row.operations})", row)
    lines += [
        "",
        f"Gains add up to the measured end-to-end change within {worst(rows):.1g} decades.",
    ]
    return "\n".join(lines)


def worst(account: pd.DataFrame) -> float:
    """The largest |sum of gains − end-to-end change| over seeds, in decades."""
    return float(imbalance(account).abs().max())


def compare(before: pd.DataFrame, after: pd.DataFrame, replace: str) -> str:
    """What replacing one Jacobian changed, beside what the ledger says, paired by seed."""
    layer, op = operation(replace)
    entry = before[(before["layer"] == layer) & (before["op"] == op)].set_index("seed")
    now = after[(after["layer"] == layer) & (after["op"] == op)]["log10_gain"].abs().max()
    ends = [account.groupby("seed")["log10_end_to_end"].first() for account in (before, after)]
    with np.errstate(invalid="ignore"):
        change = ends[1] - ends[0]
    lines = [
        f"With the Jacobian of {replace} replaced by the identity (its entry is now {now:g}):",
        f"  end to end changes by      {mean_interval(change):+.4f}",
        f"  minus its entry was        {mean_interval(-entry['log10_gain']):+.4f}",
    ]
    if entry["counted"].all():
        beyond = mean_interval(change + entry["log10_gain"])
        lines.append(f"  beyond the entry           {beyond:+.4f}")
        lines.append("The rest is what operations nearer the input make of the new direction.")
    else:
        lines.append("It stands in a branch: what the block loses is not its entry.")
    return "\n".join(lines)


def _replacement(arguments: list[str]) -> str | None:
    """Take ``replace=LAYER.OP`` out of the arguments, which are settings otherwise."""
    given = [text for text in arguments if text.startswith("replace=")]
    for text in given:
        arguments.remove(text)
    return given[-1].removeprefix("replace=") if given else None


if __name__ == "__main__":
    sys.exit(COMMAND.compose(partial(run, replace=_replacement(sys.argv))))
