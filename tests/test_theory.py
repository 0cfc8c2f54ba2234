"""Theory against closed forms, SciPy and simulation in plain NumPy."""

import numpy as np
import pytest
from scipy import integrate

from flowlab import theory
from flowlab.errors import InputError


@pytest.mark.parametrize(
    "sigma_b2, sigma_w2",
    [(0, 1), (1e-4, 1.08603), (0.01, 1.42421), (0.05, 1.76096), (0.1, 1.98607), (0.3, 2.50513)],
)
def test_critical_line_of_tanh(sigma_b2, sigma_w2):
    assert theory.critical_sigma_w2("tanh", sigma_b2) == pytest.approx(sigma_w2, abs=6e-6)


@pytest.mark.parametrize(
    "sigma_w2, q, chi, c, xi_q, xi_c",
    [
        (1.0, 0.1936, 0.7590, 1, 1.75, 3.63),
        (1.5, 0.4180, 0.9386, 1, 1.68, 15.8),
        (2.5, 1.0640, 1.1335, 0.447, 1.18, 11.8),
    ],
)
def test_phases_of_tanh(sigma_w2, q, chi, c, xi_q, xi_c):
    fixed = theory.q_fixed_point("tanh", sigma_w2, 0.05)
    scales = theory.depth_scales("tanh", sigma_w2, 0.05)
    assert fixed == pytest.approx(q, abs=6e-5)
    assert theory.chi("tanh", fixed, sigma_w2) == pytest.approx(chi, abs=6e-5)
    assert theory.c_fixed_point("tanh", sigma_w2, 0.05) == pytest.approx(c, abs=6e-4)
    assert scales.xi_q == pytest.approx(xi_q, abs=6e-3)
    assert scales.xi_c == pytest.approx(xi_c, abs=6e-2)
    assert -1 / scales.xi_grad == pytest.approx(np.log(chi), abs=1e-4)
