"""Backpropagation through time in gated cells, whose state has a path of its own."""

import pandas as pd

from flowlab.figures import through_time
from flowlab.studies.study import Drawing, Reading, Study

PANELS = {"down": "activation", "across": "recurrent", "lines": "network"}


def cells(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of LSTM and GRU nets, and beside them simple tanh nets of radius 1.

    Of LSTMs those of the least forget bias, of simple nets those whose recurrent maps gated cells
    have too.
    """
    gated = table[table["network"].isin(["lstm", "gru"])]
    bias = gated["forget_bias"]
    gated = gated[bias.isna() | (bias == bias.min())]
    plain = table[(table["network"] == "rnn") & (table["activation"] == "tanh")]
    plain = plain[(plain["radius"] == 1) & plain["recurrent"].isin(gated["recurrent"])]
    return pd.concat([gated, plain])


def _changes(reading: Reading) -> pd.DataFrame:
    kept_within = reading.kept_within
    return through_time.changes(
        reading.table, reading.prediction, **PANELS, kept_within=kept_within
    )


def finding(reading: Reading) -> str:
    """By how much the gradient of each cell changes over all steps."""
    rows = _changes(reading)
    steps, words = rows["crossed"].max(), through_time.by_line(rows)
    return f"Over {steps} steps back the gradient changes by {words}"


STUDY = Study(
    "Do gates keep the gradient through time, where simple recurrent nets lose it?",
    "Hochreiter & Schmidhuber 1997; Cho et al. 2014",
    (
        Drawing(
            "states_of_gated_cells",
            finding,
            lambda r: through_time.state_gradients(r.table, r.prediction, **PANELS),
            lambda r: through_time.state_gradients_caption(_changes(r), r.table["seed"].nunique()),
            cells,
        ),
    ),
    experiment="rnn_time",
    rank=61,
)
