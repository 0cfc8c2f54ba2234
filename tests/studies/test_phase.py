"""The plane of order and chaos: points, theory's map, critical points and fixed points."""

import numpy as np
import pytest

from flowlab.studies import Reading, phase
from flowlab.studies.phase import STUDY, phase_caption, phase_diagram, phase_finding
from tests.support.drawing import assert_readable, labelled
from tests.support.planted import Findings, tilted
from tests.support.tables import shift, sweep


@pytest.fixture
def plane():
    """tanh without bias: σ_w² is χ below 1; measured points on both sides of it."""
    return sweep(
        (-0.3, {"sigma_w": 0.8}), (0.3, {"sigma_w": 1.4}), (0.0, {"sigma_w": 1.0, "noise": 0.1})
    )


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    """Theory's plane at few points, which takes no time."""
    monkeypatch.setattr(phase, "POINTS", 9)


def test_points_of_the_phase_plane_lie_where_they_were_measured(plane):
    figure = phase_diagram(Reading(*plane))
    assert_readable(figure)
    for kind, x in (("vanishing", 0.64), ("exploding", 1.96), ("kept", 1.0)):
        (points,) = labelled(figure, f"measured: {kind}")
        assert points.get_xdata() == pytest.approx([x]) and points.get_ydata() == pytest.approx([0])
    critical = figure.axes[0].collections[-1].get_paths()
    line = np.concatenate([path.vertices for path in critical])
    at = line[np.argmin(abs(line[:, 1] - 0.05))]
    assert at[0] == pytest.approx(1.76096, rel=0.01)  # THEORY: σ_b² = 0.05


def test_the_caption_of_the_phase_plane_judges_sides_and_rates(plane):
    table, prediction = plane
    text = phase_caption(Reading(*plane))
    assert "Of 3 points, going backward: 1 vanishing, 1 kept (within ±1 decade), 1 explod" in text
    assert "2 of the 2 vanishing or exploding ones lie in that phase" in text
    assert "at most 0.0%" in text
    assert phase_finding(Reading(*plane)) == (
        "Of 3 runs the gradient vanishes in 1, explodes in 1, is kept in 1; all 2 that vanish or "
        "explode do so on theory's side of the critical line"
    )
    turned = phase_finding(Reading(shift(table, "run0", 0.6), prediction))
    assert "explodes in 2" in turned and "; 1 of the 2 that" in turned
    text = phase_caption(Reading(shift(table, "run0", 0.6), prediction))  # -0.3 becomes 0.3
    assert "2 exploding" in text and "1 of the 2" in text
    assert "at χ = 0.640" in text and f"at most {10**1.2 - 1:.1%}" in text
    wide = phase_caption(Reading(*plane, kept_within=5))
    assert "3 kept (within ±5 decades)" in wide and "in that phase" not in wide


def test_the_plane_holds_the_measured_points(plane):
    found = phase.plane(plane[0])
    assert {0.64, 1.0} < set(found["sigma_w2"].round(9)) and len(found) > 80
    at = found[np.isclose(found["sigma_w2"], 0.64) & (found["sigma_b2"] == 0)]
    assert at["chi"].to_numpy() == pytest.approx([0.64])


PLANTS = {claim.id: [tilted(1.1)] for claim in STUDY.findings}


class TestFindings(Findings):
    STUDY, PLANTS = STUDY, PLANTS
