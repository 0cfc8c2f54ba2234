"""How long an LSTM remembers: the bias of its forget gates sets what is kept in each step."""

import pandas as pd

from flowlab.figures import through_time
from flowlab.studies.study import Study, through_steps


def lstms(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of LSTM nets."""
    return table[table["network"] == "lstm"]


STUDY = Study(
    "What does the bias of its forget gates do to an LSTM's memory?",
    "Gers et al. 2000; Jozefowicz et al. 2015",
    (through_steps("forget_bias", "forget_bias", through_time.steps_finding, lstms),),
    experiment="rnn_time",
)
