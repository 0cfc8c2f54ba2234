"""Claims in one table: what does not simply hold first, like claims in one row."""

import pandas as pd

from flowlab.report import claims as report_claims
from flowlab.report import gather
from flowlab.report.document import Group, Table
from flowlab.storage import tables
from tests.support.reports import claims, section


def claim(id, statement="A layer of relu has rate 2.", **more):
    row = {"id": id, "statement": statement, "source": "s", "quantity": "q", "predicted": 1.0}
    row |= {"measured": 1.0, "low": 0.5, "high": 1.5, "tolerance": 0.1, "verdict": "holds"}
    row |= {"expected": "holds", "as_expected": True, "sentence": f"{id} does."}
    return row | more


def test_what_does_not_hold_stands_first_and_unexpected_verdicts_before_it(results):
    table = pd.concat([claims(as_expected=False), claims(id="Z2"), claims(id="Z3")[:1]])
    tables.write(table, results / "claims" / "claims.parquet", {"command": "claim it"})
    text, found = section(gather(results), "Claims").blocks
    assert text.text == "5 claims: 2 do not hold, 3 hold; 1 not as expected."
    assert [row[0] for row in found.rows[:2]] == ["Z1", "Z2"]
    assert found.rows[0][1] == "does not hold (expected: does not hold)"
    assert found.rows[0][4] == "2.5 [2.25, 2.75], predicted 1"


def test_like_claims_of_a_family_are_one_row():
    members = [claim(f"M1-{k}", f"A layer of {k} has rate 2.", measured=m) for k, m in SHARES]
    found = report_claims.table("t", [*members, claim("A1"), claim("M2-a"), claim("M2-b")])
    first, *others = found.rows
    assert first[:3] == ("M1 (3)", "holds", "A layer of … has rate 2. (s)")
    assert first[4] == "0.95 [0.5, 1.5], predicted 1"
    said = first[3]
    assert isinstance(said, Group)
    assert said.text == (
        "3 of 3: holds; furthest from its prediction: M1-gelu, by 50% of the tolerance."
    )
    assert said.members == tuple(f"M1-{name}: M1-{name} does." for name, _ in SHARES)
    assert [row[0] for row in others] == ["A1", "M2-a", "M2-b"]


SHARES = (("relu", 1.0), ("gelu", 0.95), ("tanh", 1.01))


def test_unlike_claims_stay_apart():
    names = ("one thing is so.", "another is otherwise here.", "and a third follows from both.")
    found = report_claims.table("t", [claim(f"S1-{k}", name) for k, name in enumerate(names)])
    assert len(found.rows) == 3
    half = [claim(f"S2-{k}", f"{k} {k} {k} holds.") for k in range(3)]
    assert len(report_claims.table("t", half).rows) == 3


def test_one_that_does_not_hold_leaves_its_family():
    members = [claim(f"M1-{k}", f"A layer of {k} has rate 2.") for k in "abcd"]
    members[2] |= {"verdict": "does not hold", "as_expected": False}
    found = report_claims.table("t", members)
    assert [row[0] for row in found.rows] == ["M1-c", "M1 (3)"]


def test_a_table_of_another_making_is_named(results):
    tables.write(claims().drop(columns="source"), results / "claims/claims.parquet", {})
    document = gather(results)
    assert any("is not a table of claims: no column source" in line for line in document.missing)
    assert not [s for s in document.sections if s.title == "Claims"]


def test_every_claim_stands_in_the_table(results):
    (_, found) = section(gather(results), "Claims").blocks
    assert isinstance(found, Table)
    assert {row[0] for row in found.rows} == {"Y1", "Z1"}
