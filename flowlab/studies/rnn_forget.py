"""How long an LSTM remembers: the bias of its forget gates sets what is kept in each step."""

import pandas as pd

from flowlab.figures import through_time
from flowlab.studies.study import Drawing, Reading, Study

PANELS = {"down": "activation", "across": "recurrent", "lines": "forget_bias"}


def lstms(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of LSTM nets."""
    return table[table["network"] == "lstm"]


def _changes(reading: Reading) -> pd.DataFrame:
    kept_within = reading.kept_within
    return through_time.changes(
        reading.table, reading.prediction, **PANELS, kept_within=kept_within
    )


def finding(reading: Reading) -> str:
    """By how much the gradient changes over all steps at each forget bias."""
    rows = _changes(reading)
    steps, words = rows["crossed"].max(), through_time.by_line(rows)
    return f"Over {steps} steps back the gradient changes by {words}"


STUDY = Study(
    "What does the bias of its forget gates do to an LSTM's memory?",
    "Gers et al. 2000; Jozefowicz et al. 2015",
    (
        Drawing(
            "forget_bias",
            finding,
            lambda r: through_time.state_gradients(r.table, r.prediction, **PANELS),
            lambda r: through_time.state_gradients_caption(_changes(r), r.table["seed"].nunique()),
            lstms,
        ),
    ),
    experiment="rnn_time",
)
