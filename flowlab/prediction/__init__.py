"""What theory predicts for a run: the settings' network put into the theory's terms.

One module for each family of networks: ``predict(given)`` returns the rows or, where its
assumptions fail, one sentence that says which fails and which setting has a prediction.
"""

import pandas as pd

from flowlab.measurement.setup import prepare
from flowlab.networks import Network
from flowlab.numerics.blas import one_thread
from flowlab.prediction import (
    attention,
    convolution,
    feedforward,
    normalization,
    recurrence,
)
from flowlab.prediction.inputs import Inputs
from flowlab.prediction.rows import OWN, silent
from flowlab.schema import typed
from flowlab.settings import Settings

__all__ = ["predict"]


def predict(settings: Settings, network: Network | None = None) -> pd.DataFrame:
    """Predicted mean over seeds of the measured norms, with the spread of one seed.

    One row per (layer, op) with the table's columns, of recurrent nets also one per step; each norm
    also with suffix ``_sd``, and ``delta_log10_norm_infinite``, the curve of infinite width.
    ``slope_error`` is theory's own error of the slope, in decades per layer or step.
    Where theory is silent: NaN, and ``silent_because`` says why in a sentence; it is null where
    there is a prediction, be it for some rows alone; for a ``network`` that replaces the settings'
    own there is none.
    """
    setup = prepare(settings, network=network, ensemble=False)
    given = Inputs(setup.settings, setup.batches, setup.network, setup.own)
    if given.own:
        return silent(given, OWN)
    because = None if settings.network.name == "mlp" else given.out_of_range()
    with one_thread():
        prediction = because or _family(settings)(given)
    return typed(silent(given, prediction) if isinstance(prediction, str) else prediction)


def _family(settings: Settings):
    match settings.network.name:
        case "rnn" | "lstm" | "gru":
            return recurrence.predict
        case "transformer":
            return attention.predict
        case "mlp":
            return feedforward.predict if settings.norm == "none" else normalization.predict
        case _:
            return convolution.predict
