"""Backpropagation through time: the spectral radius of the recurrent map decides."""

import pandas as pd

from flowlab.figures.through_time import state_gradients, state_gradients_caption
from flowlab.studies.study import Drawing, Study

AXES = {"down": "activation", "across": "recurrent"}


def plain_cells(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of simple recurrent nets."""
    return table[table["network"] == "rnn"]


STUDY = Study(
    "What do the spectral radius, the activation and the recurrent map do to gradients in time?",
    "Pascanu et al. 2013; Le et al. 2015",
    (
        Drawing(
            "states_of_plain_cells",
            lambda reading: "Backpropagation through time in simple recurrent nets",
            lambda r: state_gradients(r.table, r.prediction, **AXES),
            lambda r: state_gradients_caption(
                r.table, r.prediction, **AXES, kept_within=r.kept_within
            ),
            plain_cells,
        ),
    ),
    rank=5,
)
