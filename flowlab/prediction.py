"""What theory predicts for a run: the settings' network put into the theory's terms."""

import math

import numpy as np
import pandas as pd

from flowlab import theory
from flowlab.initializers import Initializer
from flowlab.measure import Batches, layout
from flowlab.networks import build
from flowlab.settings import Settings
from flowlab.tables import NORMS

_BLOCK = ("activation_log10_norm", "delta_log10_norm")
_BACKWARD = ("delta_log10_norm", "dX_log10_norm", "dW_log10_norm", "db_log10_norm")
_MOST_BATCHES = 16


def predict(settings: Settings) -> pd.DataFrame:
    """Predicted mean over seeds of every measured norm, with the spread of one seed.

    One row per (layer, op) with the table's columns, each norm also with suffix ``_sd``, and
    ``delta_log10_norm_infinite``, the curve of infinite width. Where theory is silent: NaN.
    """
    settings.validate()
    batches = Batches(settings)
    outputs = batches.classes if settings.upstream == "loss" else None
    network = build(settings, outputs)
    rows = layout(network, batches.shape)
    if settings.network.name != "mlp" or settings.norm != "none":
        return _silent(rows, settings)
    initializer = Initializer(settings.init)
    fans = [(block[-1].fan_in, block[-1].fan_out) for block in rows]
    if settings.skip == "rezero":  # the last row of a block is its scale: the map comes before
        fans = [(block[0].fan_in, block[0].fan_out) for block in rows]
    q, c = input_moments(batches, settings)
    curve = theory.predict(
        fan_in=[i for i, _ in fans],
        fan_out=[o for _, o in fans],
        sigma_w2=[i * initializer.weight_variance(i, o) for i, o in fans],
        sigma_b2=[initializer.bias_variance(i) for i, _ in fans],
        activation=settings.activation,
        skip=settings.skip,
        branch_scale=network.a,
        branch_maps=settings.branch_maps,
        readout=outputs is not None and settings.skip != "none" and settings.depth > 1,
        orthogonal=initializer.orthogonal,
        batch_size=settings.batch_size,
        upstream=settings.upstream,
        n_classes=outputs,
        reduction=settings.reduction,
        input_q=q,
        input_c=c,
    )
    if settings.upstream == "loss" and settings.loss == "squared_error":
        _shift_to_squared_error(curve, settings, outputs)
    return _by_operation(curve, rows, settings)


def _silent(rows, settings: Settings) -> pd.DataFrame:
    """The rows without a prediction."""
    named = [
        {"run": settings.run(), "layer": layer, "op": row.op}
        for layer, block in enumerate(rows, 1)
        for row in block
    ]
    columns = [column for name in NORMS for column in (name, f"{name}_sd")]
    unknown = {c: math.nan for c in (*columns, "delta_log10_norm_infinite", "q", "chi")}
    return pd.DataFrame(named).assign(**unknown)


def input_moments(batches: Batches, settings: Settings) -> tuple[float, float]:
    """Mean of ‖x‖²/features over examples, and mean cosine of two examples of a batch."""
    seeds = range(settings.seed, settings.seed + min(settings.seeds, _MOST_BATCHES))
    x, _ = batches(seeds)
    x = x.reshape(len(x), settings.batch_size, -1)
    squares = np.square(x, dtype=np.float64).sum(axis=2)
    q = float(squares.mean() / x.shape[2])
    n = settings.batch_size
    if n == 1:
        return q, 0.0
    unit = x / np.sqrt(np.where(squares > 0, squares, 1.0))[:, :, None]
    total = np.square(unit.sum(axis=1)).sum(axis=1)
    return q, float(np.mean((total - n) / (n * (n - 1))))


def _shift_to_squared_error(curve: pd.DataFrame, settings: Settings, outputs: int) -> None:
    """Move the backward columns to E‖2(z - onehot)‖² = 4 B (K q_L + 1), z zero-mean."""
    squared = 4.0 * settings.batch_size * (outputs * curve["q"].iloc[-1] + 1.0)
    if settings.reduction == "mean":
        squared /= (settings.batch_size * outputs) ** 2
    moved = 0.5 * math.log10(squared) - curve["delta_log10_norm"].iloc[-1]
    for name in (*_BACKWARD, "delta_log10_norm_infinite"):
        curve[name] += moved


def _by_operation(curve: pd.DataFrame, rows, settings: Settings) -> pd.DataFrame:
    """Give each layer's prediction to its rows: block norms to the last, others to the last map."""
    frames = []
    for layer, block in enumerate(rows):
        maps = [k for k, row in enumerate(block) if row.op != "scale"]
        for k, row in enumerate(block):
            line = {"run": settings.run(), "layer": layer + 1, "op": row.op}
            for name in NORMS:
                mine = len(block) - 1 if name in _BLOCK else maps[-1]
                for column in (name, f"{name}_sd"):
                    line[column] = curve[column].iat[layer] if k == mine else math.nan
            last = k == len(block) - 1
            for column in ("delta_log10_norm_infinite", "q", "chi"):
                line[column] = curve[column].iat[layer] if last else math.nan
            frames.append(line)
    return pd.DataFrame(frames)
