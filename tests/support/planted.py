"""Wrong tables that must turn the verdict of a study's finding."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from math import log10
from types import MappingProxyType

from flowlab.claims.claim import CLAIMS, HOLDS
from flowlab.claims.trial import Trial
from flowlab.studies.study import Study
from tests.support.tables import DELTA

SEEDS = 32


@cache
def measured(id):
    """The small sweep of a claim."""
    return CLAIMS[id].reading(Trial(0, SEEDS))


def assert_expected(claim):
    """The finding on the measured table is one of those expected, and whole."""
    finding = claim.find(measured(claim.id))
    assert finding.verdict in claim.expected
    if finding.verdict == HOLDS:
        assert abs(finding.measured - finding.predicted) <= finding.tolerance
    assert finding.low <= finding.measured <= finding.high
    assert finding.sentence.endswith(".") and "\n" not in finding.sentence


def assert_turned(study, id, plant, part="table"):
    """The finding on the table, or the curve, as ``plant`` changes it is none of those expected."""
    (claim,) = (claim for claim in study.findings if claim.id == id)
    right = measured(id)
    wrong = replace(right, **{part: plant(getattr(right, part).copy())})
    assert claim.find(wrong).verdict not in claim.expected


class Findings:
    """The tests of a study's findings; ``PLANTS`` maps each one's id to tables gone wrong,
    ``CURVES`` to curves."""

    STUDY: Study
    PLANTS: Mapping[str, list] = MappingProxyType({})
    CURVES: Mapping[str, list] = MappingProxyType({})

    def test_the_finding_is_as_expected(self, claim):
        assert_expected(claim)

    def test_a_wrong_table_or_curve_turns_the_verdict(self, id, plant, part):
        assert_turned(self.STUDY, id, plant, part)

    def test_every_finding_has_a_wrong_table_or_curve(self):
        assert {*self.PLANTS, *self.CURVES} == {claim.id for claim in self.STUDY.findings}


def tilted(factor, **where):
    """‖δ‖² is ``factor`` times too large for each layer travelled backward, in rows like these."""

    def plant(table):
        hit = (table[list(where)] == list(where.values())).all(axis=1)
        off = (table["depth"] - table["layer"]) * log10(factor) / 2
        return table.assign(**{DELTA: table[DELTA] + off.where(hit, 0.0)})

    return plant
