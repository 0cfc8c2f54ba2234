"""Backpropagation through time: the spectral radius of the recurrent map decides."""

import pandas as pd

from flowlab.figures import through_time
from flowlab.studies.study import Drawing, Reading, Study

PANELS = {"down": "activation", "across": "recurrent", "lines": "radius"}


def plain_cells(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of simple recurrent nets."""
    return table[table["network"] == "rnn"]


def _changes(reading: Reading) -> pd.DataFrame:
    kept_within = reading.kept_within
    return through_time.changes(
        reading.table, reading.prediction, **PANELS, kept_within=kept_within
    )


STUDY = Study(
    "What do the spectral radius, the activation and the recurrent map do to gradients in time?",
    "Pascanu et al. 2013; Le et al. 2015",
    (
        Drawing(
            "states_of_plain_cells",
            lambda reading: through_time.radius_finding(_changes(reading)),
            lambda r: through_time.state_gradients(r.table, r.prediction, **PANELS),
            lambda r: through_time.state_gradients_caption(_changes(r), r.table["seed"].nunique()),
            plain_cells,
        ),
    ),
    rank=5,
)
