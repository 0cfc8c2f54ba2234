"""Which recurrent nets each study of time shows, and what it finds."""

import pytest

from flowlab import studies
from flowlab.studies import Reading
from tests.support.tables import recurrent, together


@pytest.fixture
def kept():
    lstm = {"network": "lstm", "radius": None}
    return together(
        recurrent("plain", -0.2, radius=1.0, forget_bias=None),
        recurrent("wide", -0.1, radius=1.1, forget_bias=None),
        recurrent("forgetful", -0.3, forget_bias=0.0, **lstm),
        recurrent("mindful", -0.01, forget_bias=4.0, **lstm),
    )[0]


@pytest.mark.parametrize(
    ("name", "runs", "words"),
    [
        ("rnn_time", {"plain", "wide"}, "in 0 of 2 runs with tanh"),
        ("rnn_time_gates", {"plain", "forgetful"}, "−5.7 decades (lstm), −3.8 (rnn)"),
        ("rnn_forget", {"forgetful", "mindful"}, "−5.7 decades (bias 0), −0.2 (bias 4)"),
    ],
)
def test_each_study_shows_its_own_cells(kept, name, runs, words):
    (drawing,) = studies.load()[name].figures
    shown = drawing.shown(Reading(kept))
    assert set(shown.table["run"]) == runs
    assert words in drawing.finding(shown)
