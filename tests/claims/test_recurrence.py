"""S11 and what recurrences keep exactly, A11 and A12, with errors that turn the verdicts."""

import numpy as np

from flowlab.claims import recurrence
from flowlab.claims.trial import Trial, square
from flowlab.layers import LSTM, Recurrent
from tests.support.plants import measured, pullback_off, scheme, stretched_orthogonal
from tests.support.verdicts import Verdicts


def tilted_steps(amount):
    """ln‖∂L/∂h_t‖² is too large by so much for each step travelled backward."""

    def plant(patch):
        right = recurrence.through_time

        def wrong(*args):
            logs, *rest = right(*args)
            return logs + amount * np.arange(logs.shape[1])[::-1], *rest

        patch.setattr(recurrence, "through_time", wrong)

    return plant


def truncated(patch):
    right = Recurrent.__init__

    def wrong(self, *args, **options):
        right(self, *args, truncation=8, **options)

    patch.setattr(Recurrent, "__init__", wrong)


def in_theory(name, value):
    def plant(patch):
        right = getattr(recurrence.theory, name)
        patch.setattr(recurrence.theory, name, lambda *args: value(right(*args)))

    return plant


def norms_of_spectrum(patch):
    """The largest singular value in place of the spectral radius."""
    patch.setattr(recurrence.theory, "spectral_radius", recurrence.theory.largest_singular_value)


def cotangents(change):
    """What a table shows of ∂L/∂h_t goes through ``change(norms, times)``."""

    def wrong(trial, table, axes):
        norms = change(table["dh_log10_norm"], table["time"].fillna(0).astype(float))
        return table.assign(dh_log10_norm=norms)

    return measured(wrong)


def forget_less(patch):
    patch.setattr(LSTM, "constants", lambda self: (self.forget_bias + 1e-6,))


def positive_inputs(patch):
    """No preactivation is negative, so that W = 1 is like any other."""
    right = recurrence.draw

    def wrong(*args, **options):
        x, p, dy = right(*args, **options)
        return np.abs(x), p | {"W_ih": np.abs(p["W_ih"])}, dy

    patch.setattr(recurrence, "draw", wrong)


PLANTS = {
    "S11": [
        *(
            pullback_off(Recurrent, "W_hh"),
            pullback_off(Recurrent, "W_ih"),
            pullback_off(Recurrent, "dx"),
        ),
        *(truncated, tilted_steps(1e-9)),
    ],
    "S11-late": [
        tilted_steps(0.02),
        norms_of_spectrum,
        in_theory("late_log_rate", np.zeros_like),
    ],
    "S11-gaussian": [scheme("lecun", numerator=1.2), norms_of_spectrum],
    "S11-bound": [
        in_theory("largest_slope", lambda s: s / 2),
        in_theory("largest_singular_value", lambda s: s / 2),
        tilted_steps(2.0),
    ],
    "S11-range": [
        cotangents(lambda norms, times: norms - 1e-6 * times),
        cotangents(lambda norms, times: norms.where(norms > -45.2, -np.inf)),
    ],
    "A11-recurrence": [stretched_orthogonal(1 + 1e-9), tilted_steps(1e-9)],
    "A12-identity": [tilted_steps(1e-12), positive_inputs],
    "A12-lstm": [forget_less, pullback_off(LSTM)],
}


class TestRecurrence(Verdicts):
    MODULE = "recurrence"
    PLANTS = PLANTS


def test_a_vanished_cotangent_keeps_its_norm():
    """Through 400 steps of radius 0.01: ln‖δ‖² falls by 1,838 each hundred, in float64's reach."""
    layer = Recurrent(4, "identity", recurrent="orthogonal", radius=0.01)
    trial = Trial(0, 2)
    x, p, dy = recurrence.draw(trial, layer, 400)
    logs, _, _ = recurrence.through_time(layer, x, p, dy)
    expected = np.log(square(dy))[:, None] + 2 * np.log(0.01) * np.arange(400)[::-1]
    np.testing.assert_allclose(logs, expected, rtol=1e-12)
