"""What theory predicts for a run: the settings' network put into the theory's terms.

One module for each family of networks. Theory is silent (NaN) where its assumptions fail; each
module says where. Deterministic weights (``init=identity``) are silent but where maps are linear.
"""

import pandas as pd

from flowlab.measure import Batches, affordable, layout
from flowlab.networks import build
from flowlab.prediction import images, normalized, plain, through_time, tokens
from flowlab.prediction.curve import silent
from flowlab.prediction.inputs import Run
from flowlab.settings import Settings

__all__ = ["predict"]


def predict(settings: Settings) -> pd.DataFrame:
    """Predicted mean over seeds of the measured norms, with the spread of one seed.

    One row per (layer, op) with the table's columns, of recurrent nets also one per step; each norm
    also with suffix ``_sd``, and ``delta_log10_norm_infinite``, the curve of infinite width.
    ``slope_error`` is theory's own error of the slope, in decades per layer or step, beyond what
    `flowlab.judge` grants. Where theory is silent: NaN.
    """
    settings.validate()
    batches = Batches(settings)
    affordable(settings, batches, ensemble=False)
    outputs = batches.classes if settings.upstream == "loss" else None
    network = build(settings, outputs)
    run = Run(settings, network, layout(network, batches.shape), batches, outputs)
    prediction = _family(settings)(run)
    return silent(run) if prediction is None else prediction


def _family(settings: Settings):
    match settings.network.name:
        case "rnn" | "lstm" | "gru":
            return through_time.predict
        case "transformer":
            return tokens.predict
        case _ if settings.norm != "none":
            return normalized.predict
        case "mlp":
            return plain.predict
        case _:
            return images.predict
