"""Rotational equilibrium: weights before a normalization turn by an angle that η and λ set.

Where the loss does not change with the size of W, the gradient G is orthogonal to W, so that
W' = (1 - ηλ)W - ηG has ‖W'‖ cos Θ = (1 - ηλ)‖W‖, Θ being the angle between W and W'. Over any
number of steps, then, the mean of -ln cos Θ is -ln(1 - ηλ) plus the mean change of ln‖W‖: once
‖W‖ is stationary the root mean square of Θ is √(2ηλ) up to a relative O(ηλ), whatever the gradient
(derived here; Wan et al. 2021 have √(2ηλ/(1 + μ)) under assumptions on the gradient). Batch norm
makes every neuron's weights scale-invariant; that G is orthogonal to the whole of W needs no more
than their sum, so that the law holds for the angle of the whole matrix, which tables have, as for
each neuron's.

With momentum μ a gradient moves W by ηG/(1 - μ) in all, so that of independent gradients
2ηλ/(1 - μ)·‖W‖² = η²E‖G‖²/(1 - μ)², while a single step has η²E‖G‖²/(1 - μ²): Θ² = 2ηλ/(1 + μ).
AdamW's elementwise scaled gradient moves W by ηG in all, and a step has (1 - β1)/(1 + β1) of its
square: Θ² = 2ηλ(1 - β1)/(1 + β1), as far as scaling leaves G orthogonal to W (Kosson et al. 2023;
derived here).
"""

from functools import partial

import numpy as np
import pandas as pd

from flowlab.analysis.statistics import mean_interval
from flowlab.claims import compare
from flowlab.claims.claim import Finding
from flowlab.errors import InputError
from flowlab.figures.levels import over_steps
from flowlab.figures.words import number
from flowlab.studies.study import Drawing, Reading, Study, finding

SETTLED = 1 / 2  # of a training: from there on norms have had the time to settle
WINDOWS = 30  # of a training, in which squares of angles are averaged for the figure
# By how much the root mean square may miss theory: of SGD because batch norm's ε and units that die
# disturb the invariance, of AdamW because its scaled gradient is not orthogonal to W.
ALLOWED = {"sgd": 0.05, "adamw": 0.1}
ADAMW = "√(2ηλ(1 − β1)/(1 + β1))"


def equilibrium(rate, decay, momentum=0.0) -> np.ndarray:
    """The angle of a step in radians, of SGD with ``momentum`` and coupled weight ``decay``."""
    return np.sqrt(2 * rate * decay / (1 + momentum))


def adamw_equilibrium(rate, decay, beta1) -> np.ndarray:
    """The same of AdamW, whose decay is decoupled."""
    return np.sqrt(2 * rate * decay * (1 - beta1) / (1 + beta1))


def turns(reading: Reading, optimizer: str) -> pd.DataFrame:
    """Rows before a batch norm: lr, decay, line, seed, layer, step, value (radians) and level.

    Raises InputError where there are none of this optimizer with weight decay.
    """
    table = reading.table
    trained = (table["training"] == optimizer) & (table["training_weight_decay"] > 0)
    hidden = (table["norm"] == "batch") & (table["layer"] < table["depth"])
    plain = (table["network"] == "mlp") & (table["skip"] == "none")
    weights = table["op"] == "linear"
    rows = table[trained & hidden & plain & weights]
    if rows.empty:
        raise InputError(
            f"table must hold runs of training={optimizer} with weight decay and norm=batch, with "
            "the angles of steps; got none"
        )
    rate, decay = (rows[f"training_{name}"].astype(float) for name in ("lr", "weight_decay"))
    if optimizer == "sgd":
        level = equilibrium(rate, decay, rows["training_momentum"].astype(float))
    else:
        level = adamw_equilibrium(rate, decay, rows["training_beta1"].astype(float))
    names = [f"η = {number(a)}, λ = {number(b)}" for a, b in zip(rate, decay, strict=True)]
    return pd.DataFrame(
        {
            **{"lr": rate, "decay": decay, "line": names},
            **{name: rows[name] for name in ("seed", "layer", "step")},
            **{"value": rows["W_turn"].astype(float), "level": level},
        }
    )


def _formula(reading: Reading, optimizer: str) -> str:
    """What the angle of a step is in theory, without a momentum that no run has."""
    if optimizer == "adamw":
        return ADAMW
    momentum = reading.table.loc[reading.table["training"] == optimizer, "training_momentum"]
    return "√(2ηλ/(1 + μ))" if (momentum > 0).any() else "√(2ηλ)"


def settled(values: pd.DataFrame) -> pd.Series:
    """Each seed's root mean square of value over level in the last half, by line and seed.

    NaN where an angle is not known: of a network that diverged, say.
    """
    late = values[values["step"] > SETTLED * values["step"].max()]
    squares = ((late["value"] / late["level"]) ** 2).groupby([late["line"], late["seed"]])
    return np.sqrt(squares.agg(lambda of: of.mean(skipna=False))).rename("ratio")


def rotation_finding(reading: Reading, optimizer: str) -> str:
    """How near the angles come to theory, and over which range of angles."""
    values = turns(reading, optimizer)
    ends = settled(values).groupby("line").agg(mean_interval)
    ratio, angle = (
        _span([end(of) for end in (min, max)], spec)
        for of, spec in (([e.mean for e in ends], ".2f"), (values["level"], ".2g"))
    )
    where = f"{len(ends)} settings" if len(ends) > 1 else ends.index[0]
    return (
        f"Weights before batch norm come to turn by {_formula(reading, optimizer)} a step: by "
        f"{ratio} times that at {where}, of {angle} radians"
    )


def _span(ends: list[float], spec: str) -> str:
    """ "low to high", or one number where both are written alike."""
    low, high = (f"{end:{spec}}" for end in ends)
    return low if low == high else f"{low} to {high}"


def rotation_caption(reading: Reading, optimizer: str) -> str:
    """Each setting's ratio to theory with its interval."""
    values = turns(reading, optimizer)
    parts = [f"{mean_interval(of):.3f} at {line}" for line, of in settled(values).groupby("line")]
    return (
        "Root mean square of the angle between W before and after a step over "
        f"{_formula(reading, optimizer)}, in the last half of training, hidden layers together, "
        f"mean over seeds [95 % interval]: {'; '.join(parts)}."
    )


def _draw(reading: Reading, optimizer: str):
    values = turns(reading, optimizer)
    last = values["step"].max()
    width = last / WINDOWS
    window = (np.ceil(values["step"] / width) - 0.5) * width
    keys = [values["line"], values["seed"], window.rename("step")]
    shown = (values["value"] ** 2).groupby(keys).mean().pow(0.5).rename("value").reset_index()
    shown["level"] = shown["line"].map(values.groupby("line")["level"].first())
    label = "angle of a step in W, radians"
    return over_steps(shown, label, _formula(reading, optimizer), SETTLED * last)


def drawing(name: str, optimizer: str) -> Drawing:
    """The figure of one optimizer's angles over steps."""
    return Drawing(
        name,
        partial(rotation_finding, optimizer=optimizer),
        partial(_draw, optimizer=optimizer),
        partial(rotation_caption, optimizer=optimizer),
        lambda table: table[table["training"] == optimizer],
    )


def turn(reading: Reading, optimizer: str) -> Finding:
    """The root mean square angle of every setting over theory's.

    The rival is an angle that does not depend on η and λ: the smallest of the sweep at all.
    """
    values = turns(reading, optimizer)
    levels = values.groupby("line")["level"].first()
    parts = {}
    for line, of in settled(values).groupby("line"):
        rival = levels.min() / levels[line]
        parts[line] = compare.mean(
            f"angle of a step over {_formula(reading, optimizer)}, {line}",
            *(of.to_numpy(), 1.0),
            **{"allowance": ALLOWED[optimizer], "against": rival if rival < 1 else np.nan},
        )
    shown = "; ".join(
        f"{part.measured:.3f} times {levels[line]:.3g} at {line}" for line, part in parts.items()
    )
    return compare.worst(parts.values()).finding(
        f"In the last half of training a step turns weights before batch norm by {shown} (radians, "
        "root mean square)."
    )


def runs(name: str, *pairs: tuple[float, float], **more) -> list[dict]:
    """The small sweep of an optimizer over (η, λ)."""
    net = {"depth": 3, "width": 32, "norm": "batch", "batch_size": 32}
    training = {"name": name, "steps": 500, "log": 10, **more}
    return [{**net, "training": {**training, "lr": a, "weight_decay": b}} for a, b in pairs]


@finding(
    "O8",
    "In equilibrium a step of SGD turns weights before a normalization by √(2ηλ).",
    "Wan et al. 2021; derived from ‖W'‖ cos Θ = (1 − ηλ)‖W‖",
    runs=runs("sgd", (0.5, 0.02), (1.0, 0.02)),
    times=1 / 8,
)
def sgd(reading: Reading) -> Finding:
    """ReLU nets with batch norm on digits."""
    return turn(reading, "sgd")


STUDY = Study(
    "How far does a step of SGD turn weights whose size does not matter?",
    "Wan et al. 2021; Kosson et al. 2023",
    (drawing("rotation", "sgd"),),
    (sgd,),
    rank=57,
)
