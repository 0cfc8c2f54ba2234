"""Claims are loaded in order, chosen by name, and measured a row each."""

import pandas as pd
import pytest

from flowlab import claims
from flowlab.claims import suite
from flowlab.errors import InputError
from tests.support.verdicts import CLAIMS


def test_run_gives_one_row_each():
    calls = []
    table = claims.run(seed=3, seeds=8, only="A9,A1", report=lambda *row: calls.append(row))
    assert list(table["id"]) == ["A1", "A9"] and list(table.columns) == list(suite.COLUMNS)
    assert table["as_expected"].all() and [row[1:] for row in calls] == [(1, 2), (2, 2)]
    pd.testing.assert_frame_equal(table, claims.run(seed=3, seeds=8, only="A1,A9"))


def test_families_letters_and_order():
    assert set(claims.select("A11")) == {"A11", "A11-convolution", "A11-recurrence"}
    assert {"S1", "S2", "S15"} <= set(claims.select("S"))
    ids = list(CLAIMS)
    assert ids.index("S2") < ids.index("S15") < ids.index("A1") < ids.index("A10")


def test_a_claim_is_registered_once():
    with pytest.raises(ValueError, match="S1 is registered twice"):
        claims.claim("S1", "again", "nowhere")(lambda trial: None)


def test_seeds_must_be_enough():
    with pytest.raises(InputError, match=r"^seeds must be at least 2"):
        claims.run(seeds=1)
