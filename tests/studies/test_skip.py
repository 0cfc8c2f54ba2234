"""Skip connections over depth, and what their findings say of wrong tables."""

import pandas as pd
import pytest

from flowlab.studies import Reading, skip_inverse_depth
from flowlab.studies.skip import STUDY
from tests.support.drawing import assert_readable, labelled
from tests.support.planted import Findings, assert_expected, assert_turned, tilted
from tests.support.tables import sweep


@pytest.fixture
def kinds():
    scales = {"scaled": ("inverse_sqrt_depth", "inverse_depth")}
    return sweep(
        *(
            (slope, {"skip": skip, "branch_scale": scale, "depth": depth})
            for skip, slope in (("none", -0.1), ("identity", 0.3), ("scaled", 0.01))
            for scale in scales.get(skip, (None,))
            for depth in (5, 11)
        )
    )


def test_skips_are_lines_over_depth_with_theory(kinds):
    table, _ = kinds
    (drawing,) = STUDY.figures
    figure = drawing.figure(Reading(*kinds))
    assert_readable(figure)
    for kind, slope in (("identity", 0.3), ("skip=none", -0.1), ("scaled 1/L", 0.01)):
        (container,) = labelled(figure, f"mean: {kind}")
        line = container.lines[0]
        assert line.get_xdata().tolist() == [5, 11]
        assert line.get_ydata() == pytest.approx([4 * slope, 10 * slope])
        (theory,) = labelled(figure, f"theory: {kind}")
        assert theory.get_ydata() == pytest.approx([4 * slope, 10 * slope])
    ends = "identity gains 3.0 decades"
    assert drawing.finding(Reading(*kinds)).endswith(f"keep the gradient to depth 11; {ends}")
    silent = drawing.figure(Reading(table))
    assert not labelled(silent, "theory: skip=none")


def unskipped(table):
    """x + f(x) has the numbers of (x + f(x))/√2."""
    mixed = table[table["skip"] == "mix"]
    others = table[table["skip"] != "identity"]
    return pd.concat([others, mixed.assign(skip="identity", run="other")])


PLANTS = {
    "S8": [unskipped, tilted(1.5)],
    **{f"R1-{kind}": [tilted(1.1)] for kind in ("identity", "mix", "inverse_sqrt_depth")},
}


class TestFindings(Findings):
    STUDY, PLANTS = STUDY, PLANTS


def test_one_over_the_depth_is_a_study_of_its_own():
    (claim,) = skip_inverse_depth.STUDY.findings
    assert_expected(claim)
    assert_turned(skip_inverse_depth.STUDY, claim.id, tilted(1.1))
