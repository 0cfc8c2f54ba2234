"""Deep convolutional nets: zeros at the border lose gradient in every layer, circular padding none.

Kernels that are zero but in the middle never see the border.
"""

from math import log

import numpy as np
from matplotlib.figure import Figure

from flowlab.claims import compare
from flowlab.claims.claim import Finding
from flowlab.claims.trial import log_growth
from flowlab.figures import over
from flowlab.figures.choice import described
from flowlab.figures.words import moved
from flowlab.studies.study import Drawing, Reading, Study, finding, first_run, runs_with
from flowlab.theory import convolution
from flowlab.theory.convolution import border_rates
from flowlab.theory.finite_channels import circular_steps

ENDS = 6  # layers at each end in which the border's profile settles
AXES = {"over": "depth", "lines": "init", "panels": "padding"}
LAW = "border's cost in wide nets"


def border_by_depth(reading: Reading) -> Figure:
    """The change from output to input against depth, beside what the border costs a wide net."""
    kernel = int(reading.table["kernel_size"].iat[0])
    rates = border_rates(reading.side, kernel).set_index("padding")["rate"].to_dict()
    return over.change_over(reading.sweep, **AXES, law=rates, law_name=LAW)


def border_finding(reading: Reading) -> str:
    """What each padding costs the deepest nets of one initializer, and what theory says of it."""
    rows = reading.sweep.with_axes(*AXES.values()).rows
    deepest = rows[rows["depth"] == rows["depth"].max()]
    # The initializer on which padding has most to say.
    spread = deepest.groupby("init")["mean"].agg(lambda means: means.max() - means.min())
    of = deepest[deepest["init"] == spread.idxmax()].sort_values("mean")
    parts = []
    for _, row in of.iterrows():
        theory = f" ({row['predicted']:+z.1f} in theory)" if np.isfinite(row["predicted"]) else ""
        parts.append(f"{moved(row['mean'])} with padding={row['padding']}{theory}")
    text = f"At depth {of['depth'].iat[0]} {of['init'].iat[0]} {' and '.join(parts)}"
    return text.replace("-", "−")


@finding(
    "S9-depth",
    "Deep in a zero-padded net each layer keeps the top eigenvalue of its averaging, for 3 × 3 "
    "kernels on n × n positions (1 + 2 cos(π/(n+1)))²/9 of χ; circular padding keeps χ.",
    "second moments of independent weights; Xiao et al. 2018 for circular padding",
    runs=[
        {
            **{"depth": 22, "width": 32, "activation": "relu"},
            "network": {"name": "cnn", "padding": padding, "image": 6},
        }
        for padding in ("zeros", "circular")
    ],
)
def loss_in_depth(reading: Reading) -> Finding:
    """He ReLU nets, χ = 1, where the border's profile has settled: all but six layers at each
    end. Finite channels shift the log by half its variance, known for circular padding and of the
    same size for zeros; theory's error is all of that shift.
    """
    net = {"network": "cnn", "init": "he", "activation": "relu", "upstream": "gaussian"}
    net |= {"skip": "none", "norm": "none", "data": "gaussian", "kernel_size": 3}
    deep = reading.table[reading.table["depth"] > 2 * ENDS + 1]
    side, parts = reading.side, {}
    for mode in ("zeros", "circular"):
        rows = first_run(runs_with(deep, **net, padding=mode), "depth", "width")
        depth, channels, batch = (
            int(rows[name].iat[0]) for name in ("depth", "width", "batch_size")
        )
        steps = depth - 2 * ENDS
        _, variance = circular_steps(
            "relu", depth, shape=(batch, side, side), kernel=(1, 3, 3), channels=channels
        )
        drift = float(np.sum(variance[ENDS : depth - ENDS])) / 2
        logs = log_growth(rows[rows["layer"] <= depth - ENDS], first=ENDS)
        kept = convolution.border_rate((side, side), 3) if mode == "zeros" else 1.0
        rival = 1.0 if mode == "zeros" else np.nan
        law = steps * log(kept) - drift
        quantity = f"‖δ‖² per layer, {mode}"
        parts[mode] = compare.rate(quantity, logs, steps, law, 2 * drift, drift, rival)
    zeros, circular = parts["zeros"].measured, parts["circular"].measured
    return compare.worst(parts.values()).finding(
        f"On {side} × {side} positions each layer keeps {zeros:.3f} of ‖δ‖² with zero padding "
        f"(top eigenvalue {convolution.border_rate((side, side), 3):.3f}) and {circular:.3f} with "
        f"circular: over 100 layers zeros at the border cost {-100 * np.log10(zeros):.0f} decades."
    )


STUDY = Study(
    "What does padding cost the gradient of a deep convolutional net?",
    "Xiao et al. 2018",
    (
        Drawing(
            "border_by_depth",
            border_finding,
            border_by_depth,
            lambda reading: described(reading.sweep),
        ),
    ),
    (loss_in_depth,),
    rank=65,
)
