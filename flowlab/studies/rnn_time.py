"""Backpropagation through time: the spectral radius of the recurrent map decides."""

import pandas as pd

from flowlab.figures import through_time
from flowlab.studies.study import Study, through_steps


def plain_cells(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of simple recurrent nets."""
    return table[table["network"] == "rnn"]


STUDY = Study(
    "What do the spectral radius, the activation and the recurrent map do to gradients in time?",
    "Pascanu et al. 2013; Le et al. 2015",
    (through_steps("states_of_plain_cells", "radius", through_time.radius_finding, plain_cells),),
    rank=5,
)
