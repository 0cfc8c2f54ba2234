"""The edge of stability: sharpness rises until descent is about to diverge, and stays there."""

from functools import partial

import pandas as pd

from flowlab.analysis.statistics import mean_interval
from flowlab.claims import compare
from flowlab.claims.claim import Finding
from flowlab.errors import InputError
from flowlab.figures.levels import over_steps
from flowlab.figures.words import number
from flowlab.studies.study import Drawing, Reading, Study, finding
from flowlab.training.sharpness import stability_limit

HOVERING = 2 / 3  # of a training: from there on sharpness has had the time to rise
NEAR = 0.1  # how near to the limit it hovers: an observation, for which no law is known
NAMES = {"sgd": "sharpness", "adam": "preconditioned sharpness"}
SMALL = {"depth": 3, "width": 32, "activation": "tanh", "init": "torch_default"}
SMALL |= {"loss": "squared_error", "batch_size": 180}


def sharpnesses(reading: Reading, optimizer: str) -> pd.DataFrame:
    """Of the full-batch runs of an optimizer: lr, line, seed, step, value, level.

    ``level`` is the limit of stability: 2/η of the sharpness, (2 + 2β1)/((1 - β1) η) of Adam's
    preconditioned one. Raises InputError where there are no such runs.
    """
    curve = reading.trained
    full = (curve["examples"] / curve["epoch"]).round() == curve["batch_size"]
    column = NAMES[optimizer].replace(" ", "_")
    known = curve["run"].isin(curve.loc[curve[column].notna(), "run"])
    rows = curve[full & known & (curve["training"] == optimizer)]
    if optimizer == "sgd":
        rows = rows[rows["training_momentum"] == 0]
    if rows.empty:
        raise InputError(
            f"table must hold full-batch runs of training={optimizer} with their sharpness; "
            "got none"
        )
    beta1 = rows["training_beta1"].fillna(0.0) if optimizer == "adam" else 0.0
    return pd.DataFrame(
        {
            "lr": rows["training_lr"],
            "line": [f"η = {number(lr)}" for lr in rows["training_lr"]],
            **{name: rows[name] for name in ("seed", "step")},
            "value": rows[column].astype(float),
            "level": stability_limit(rows["training_lr"].astype(float), beta1),
        }
    )


def hovering(values: pd.DataFrame) -> pd.Series:
    """Each seed's mean of value over level in the last third of training, by lr and seed.

    NaN where a value is not known: of a network that diverged, say.
    """
    late = values[values["step"] >= HOVERING * values["step"].max()]
    ratio = (late["value"] / late["level"]).groupby([late["lr"], late["seed"]])
    return ratio.agg(lambda of: of.mean(skipna=False)).rename("ratio")


def _limit(optimizer: str, values: pd.DataFrame) -> str:
    """2/η, or 38/η for Adam's usual β1."""
    factor = float((values["level"] * values["lr"]).iloc[0])
    return f"{number(factor)}/η"


def stability_finding(reading: Reading, optimizer: str) -> str:
    """Where the sharpness stands at first and at the end, in units of the limit."""
    values = sharpnesses(reading, optimizer)
    ratio = (values["value"] / values["level"]).groupby([values["step"], values["lr"]]).mean()
    below = ratio.groupby("lr").min().max() < 1 - NEAR
    came = "rises to" if below else "stays near"
    if (ratio.groupby("lr").first() > 1 + NEAR).all():
        came = "falls, then rises to" if below else "falls to"
    ends = hovering(values).groupby("lr").agg(mean_interval)
    low, high = (f"{end([e.mean for e in ends]):.2f}" for end in (min, max))
    at = low if low == high else f"{low} to {high}"
    where = f"{len(ends)} learning rates" if len(ends) > 1 else f"η = {number(ends.index[0])}"
    return (
        f"{NAMES[optimizer].capitalize()} {came} {_limit(optimizer, values)} and hovers there: in "
        f"the last third of training it is {at} times that at {where}"
    )


def _begin(values: pd.DataFrame) -> pd.Series:
    """The mean over seeds of value over level at the first step, by lr."""
    first = values[values["step"] == values["step"].min()]
    return (first["value"] / first["level"]).groupby(first["lr"]).mean()


def stability_caption(reading: Reading, optimizer: str) -> str:
    """Each learning rate's ratio to the limit at first and at the end, with its interval."""
    values = sharpnesses(reading, optimizer)
    begin = _begin(values)
    parts = [
        f"{begin[lr]:.2f} at the first step and {mean_interval(of):.3f} in the last third at "
        f"η = {number(lr)}"
        for lr, of in hovering(values).groupby("lr")
    ]
    return (
        f"{NAMES[optimizer].capitalize()} over {_limit(optimizer, values)}, mean over seeds "
        f"[95 % interval]: {'; '.join(parts)}."
    )


def _draw(reading: Reading, optimizer: str):
    values = sharpnesses(reading, optimizer)
    hessian = "Hessian" if optimizer == "sgd" else "preconditioned Hessian"
    label = f"largest eigenvalue of the\n{hessian}"
    limit = f"limit of stability, {_limit(optimizer, values)}"
    return over_steps(values, label, limit, HOVERING * values["step"].max())


def drawing(name: str, optimizer: str) -> Drawing:
    """The figure of one optimizer's sharpness over steps."""
    return Drawing(
        name,
        partial(stability_finding, optimizer=optimizer),
        partial(_draw, optimizer=optimizer),
        partial(stability_caption, optimizer=optimizer),
        lambda table: table[table["training"] == optimizer],
    )


def hovers(reading: Reading, optimizer: str) -> Finding:
    """The mean over the last third, over the limit, of each learning rate; what it was at first
    is the rival."""
    values = sharpnesses(reading, optimizer)
    begin = _begin(values)
    parts = {
        lr: compare.mean(
            f"{NAMES[optimizer]} over {_limit(optimizer, values)}, η = {number(lr)}",
            *(of.to_numpy(), 1.0),
            **{"allowance": NEAR, "against": begin[lr]},
        )
        for lr, of in hovering(values).groupby("lr")
    }
    shown = " and ".join(f"{part.measured:.3f} at η = {number(lr)}" for lr, part in parts.items())
    return compare.worst(parts.values()).finding(
        f"In the last third of training the {NAMES[optimizer]} is, over {_limit(optimizer, values)}"
        f", {shown}."
    )


def runs(name: str, *rates: float) -> list[dict]:
    """The small sweep of an optimizer."""
    training = {"name": name, "held_out": 0.9, "log": 50, "sharpness": True, "steps": 300}
    return [{**SMALL, "training": {**training, "lr": rate}} for rate in rates]


@finding(
    "O6",
    "Under full-batch gradient descent sharpness rises to 2/η and hovers there.",
    "Cohen et al. 2021",
    runs=runs("sgd", 3.0),
    times=1 / 8,
)
def gradient_descent(reading: Reading) -> Finding:
    """Tanh nets under squared error on 180 digits."""
    return hovers(reading, "sgd")


STUDY = Study(
    "How sharp does the loss become under full-batch gradient descent?",
    "Cohen et al. 2021",
    (drawing("stability", "sgd"),),
    (gradient_descent,),
    rank=55,
)
