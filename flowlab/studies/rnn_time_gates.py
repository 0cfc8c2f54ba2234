"""Backpropagation through time in gated cells, whose state has a path of its own."""

import pandas as pd

from flowlab.figures.through_time import state_gradients, state_gradients_caption
from flowlab.studies.study import Drawing, Study

AXES = {"down": "activation", "across": "network"}


def gated_cells(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of LSTM and GRU nets."""
    return table[table["network"].isin(["lstm", "gru"])]


STUDY = Study(
    "Do gates keep the gradient through time, where simple recurrent nets lose it?",
    "Hochreiter & Schmidhuber 1997; Cho et al. 2014",
    (
        Drawing(
            "states_of_gated_cells",
            lambda reading: "Backpropagation through time in gated cells",
            lambda r: state_gradients(r.table, r.prediction, **AXES),
            lambda r: state_gradients_caption(
                r.table, r.prediction, **AXES, kept_within=r.kept_within
            ),
            gated_cells,
        ),
    ),
    experiment="rnn_time",
    rank=61,
)
