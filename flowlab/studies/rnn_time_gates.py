"""Backpropagation through time in gated cells, whose state has a path of its own."""

import pandas as pd

from flowlab.figures import through_time
from flowlab.studies.study import Study, through_steps


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


STUDY = Study(
    "Do gates keep the gradient through time, where simple recurrent nets lose it?",
    "Hochreiter & Schmidhuber 1997; Cho et al. 2014",
    (through_steps("states_of_gated_cells", "network", through_time.steps_finding, cells),),
    experiment="rnn_time",
    rank=61,
)
