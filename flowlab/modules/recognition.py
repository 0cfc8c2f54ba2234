"""Theory's prediction for a user's models, where they are plain chains that it knows."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from flowlab import schema, theory
from flowlab.modules.chains import Draw, MapInChain, draw_of
from flowlab.modules.feeding import Loss, first_of, inputs_of
from flowlab.modules.images import of_images
from flowlab.modules.parameters import fans_of
from flowlab.numerics.blas import one_thread
from flowlab.prediction.inputs import cosines, log_squares
from flowlab.schema import DELTA, NORMS

_MOST_MODELS = 16  # whose batches are read
_GIVEN = ("layer", "op", "module", "output", "parameter", "block", "depth")


def predicted(
    links: list[MapInChain] | str,
    drawn: Sequence[tuple[nn.Module, Any]],
    table: pd.DataFrame,
    loss: Loss,
) -> pd.DataFrame:
    """Theory's rows for the models of one depth with their batches, beside those of ``table``.

    ``links`` are what :func:`flowlab.modules.chains.chain_of` makes of the first of them.
    Columns are those of :func:`flowlab.predict` and ``module``, ``parameter`` and ``block``. Where
    the loss is not the cross-entropy, the level is the measured one at the output, and theory adds
    how it changes from there. ``silent_because`` says why there is no prediction.
    """
    rows = table.drop_duplicates(["module", "use", "output", "parameter"])
    rows = rows[list(_GIVEN)].reset_index(drop=True)
    because, found = _foreseen(links, drawn, table, loss)
    columns = [name for norm in NORMS for name in (norm, f"{norm}_sd")]
    columns += [f"{DELTA}_infinite", "q", "chi", "slope_error"]
    places = list(zip(rows["module"], rows["parameter"].fillna(""), strict=True))
    values = pd.DataFrame([found.get(place, {}) for place in places], rows.index)
    rows[columns] = values.reindex(columns=columns).astype(float)
    return schema.typed(rows.assign(silent_because=pd.array([because] * len(rows), dtype="string")))


def _foreseen(links, drawn, table: pd.DataFrame, loss: Loss) -> tuple[str | None, dict]:
    """(why there is no prediction, the predicted columns by module and parameter)."""
    models = [model for model, _ in drawn]
    if isinstance(links, str):
        return links, {}
    if len(links) < 2:
        return "a net of one map has no step between layers", {}
    draw = draw_of(models, links)
    if isinstance(draw, str):
        return draw, {}
    maps = [models[0].get_submodule(link.path) for link in links]
    if any(isinstance(one, nn.Conv2d) for one in maps):
        curve = of_images(drawn[0][1], links, maps, draw)
        if isinstance(curve, str):
            return curve, {}
        sharp = _is_cross_entropy(loss) and links[-1].pooled
    else:
        curve, sharp = _curve(drawn, links, draw, loss)
    if not sharp:
        top = table[table["module"].eq(links[-1].path) & table["parameter"].isna()][DELTA].mean()
        moved = top - curve[DELTA].iat[-1]
        for name in (DELTA, f"{DELTA}_infinite", "dX_log10_norm"):
            curve[name] += moved
        # How a loss of another kind correlates with the inputs is not known.
        curve[["dW_log10_norm", "db_log10_norm"]] = np.nan
    return None, _by_module(links, curve)


def _curve(drawn, links: list[MapInChain], draw: Draw, loss: Loss) -> tuple[pd.DataFrame, bool]:
    """Theory's norms by map, and whether it knows the loss."""
    fans = [fans_of(drawn[0][0].get_submodule(link.path).weight) for link in links]
    batches = [inputs_of(batch) for _, batch in drawn[:_MOST_MODELS]]
    first = [first_of(inputs) for inputs in batches]
    x = np.stack([b.detach().double().reshape(-1, fans[0][0]).cpu().numpy() for b in first])
    c, c2 = cosines(x)
    sharp = _is_cross_entropy(loss)
    with one_thread():
        curve = theory.norms_by_layer(
            fan_in=[i for i, _ in fans],
            fan_out=[o for _, o in fans],
            sigma_w2=draw.sigma_w2,
            sigma_b2=draw.sigma_b2,
            activation=links[0].activation,
            orthogonal=draw.orthogonal,
            batch_size=x.shape[1],
            upstream="loss" if sharp else "gaussian",
            n_classes=fans[-1][1],
            input_log_q=log_squares(x),
            input_c=c,
            input_c2=c2,
        )
    return curve, sharp


def _is_cross_entropy(loss: Loss) -> bool:
    """Whether the loss is the mean cross-entropy of classes."""
    if loss is torch.nn.functional.cross_entropy:
        return True
    return (
        isinstance(loss, nn.CrossEntropyLoss)
        and loss.reduction == "mean"
        and loss.weight is None
        and loss.label_smoothing == 0.0
    )


def _by_module(links: list[MapInChain], curve: pd.DataFrame) -> dict:
    """Each norm to the row that measures it: of maps, of activations, of parameters."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    shared = [DELTA, f"{DELTA}_sd", f"{DELTA}_infinite", "dX_log10_norm", "dX_log10_norm_sd"]
    shared += ["q", "chi", "slope_error"]
    output = ["activation_log10_norm", "activation_log10_norm_sd"]
    for number, link in enumerate(links):
        row = curve.iloc[number]
        last = number == len(links) - 1
        found[link.path, ""] = {name: row[name] for name in shared + (output if last else [])}
        if link.activation_path is not None:
            found[link.activation_path, ""] = {name: row[name] for name in output}
        for parameter, name in (("weight", "dW_log10_norm"), ("bias", "db_log10_norm")):
            found[link.path, parameter] = {of: row[of] for of in (name, f"{name}_sd")}
    return found
