"""The claims on attention and recurrence read as expected, and otherwise once an error is planted.

S10, S11 and what recurrences keep exactly, A11 and A12.
"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from flowlab import claims, initializers
from flowlab.claims import attention, recurrence
from flowlab.claims.claim import FAILS, HOLDS
from flowlab.claims.sequence_examples import _HIDDEN
from flowlab.claims.trial import Trial, square
from flowlab.layers import LSTM, Recurrent

THEMES = ("attention", "recurrence")
CLAIMS = {
    id: claim
    for id, claim in claims.load().items()
    if claim.check.__module__.split(".")[-1] in THEMES
}


def check(id, seed=0):
    return CLAIMS[id].check(Trial(seed, 32))


# --- errors to plant ----------------------------------------------------------------------------


def corrupt(ending, factor=1 + 1e-6):
    """A gradient whose path ends so, or dx, is off by a factor."""

    def plant(patch):
        run = Trial.run

        def wrong(self, *args):
            got = run(self, *args)
            gradients = {
                path: g * (factor if path.endswith(ending) else 1)
                for path, g in got.gradients.items()
            }
            return replace(got, dx=got.dx * (factor if ending == "dx" else 1), gradients=gradients)

        patch.setattr(Trial, "run", wrong)

    return plant


def scheme(name, **change):
    def plant(patch):
        patch.setitem(initializers.SCHEMES, name, replace(initializers.SCHEMES[name], **change))

    return plant


def floor(name, value):
    """‖dW‖² does not fall below this."""

    def plant(patch):
        right = attention.attend

        def wrong(*args):
            got = right(*args)
            return got | {name: got[name] + value}

        patch.setattr(attention, "attend", wrong)

    return plant


def collapsed_faster(patch):
    right = attention.tokens
    patch.setattr(attention, "tokens", lambda r, n, c: right(r, n, 1 - (1 - c) ** 2))


def tilted(amount):
    """ln‖∂L/∂h_t‖² is too large by so much for each step travelled backward."""

    def plant(patch):
        right = recurrence.through_time

        def wrong(*args):
            logs, *rest = right(*args)
            return logs + amount * np.arange(logs.shape[1])[::-1], *rest

        patch.setattr(recurrence, "through_time", wrong)

    return plant


def off(layer, name):
    """A recurrent layer's gradient, or dx, is a millionth off."""

    def plant(patch):
        pullback = layer.pullback

        def wrong(self, *args):
            dx, gradients = pullback(self, *args)
            {"dx": dx, **gradients}[name][...] *= 1 + 1e-6
            return dx, gradients

        patch.setattr(layer, "pullback", wrong)

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


def stretched_orthogonal(patch):
    fill = initializers.fill_orthogonal.run

    def wrong(seeds, layer, out, gain, *rest):
        fill(seeds, layer, out, (1 + 1e-9) * gain, *rest)

    patch.setattr(initializers, "fill_orthogonal", SimpleNamespace(run=wrong))


def measured(change):
    """What the table says of ∂L/∂h_t goes through ``change(norms, times)``."""

    def plant(patch):
        measure = Trial.measure

        def wrong(self, *args, **axes):
            table = measure(self, *args, **axes)
            norms = change(table["dh_log10_norm"], table["time"].fillna(0).astype(float))
            return table.assign(dh_log10_norm=norms)

        patch.setattr(Trial, "measure", wrong)

    return plant


def forget_less(patch):
    patch.setattr(LSTM, "constants", lambda self: (self.forget_bias + 1e-6,))


def positive_inputs(patch):
    """No preactivation is negative, so that nothing sets W = 1 apart."""
    right = recurrence.draw

    def wrong(*args, **options):
        x, p, dy = right(*args, **options)
        return np.abs(x), p | {"W_ih": np.abs(p["W_ih"])}, dy

    patch.setattr(recurrence, "draw", wrong)


PLANTS = {
    "S10": [corrupt("0.0.W"), corrupt("0.1.W"), corrupt("0.2.W"), corrupt("2.W"), corrupt("dx")],
    "S10-division": [
        *(corrupt("0.0.W", 1.5), corrupt("0.1.W", 0.5), corrupt("2.W", 1.3)),
        scheme("lecun", numerator=2.0),
    ],
    "S10-collapse": [floor("Q", 1e-6), floor("K", 1e-6), collapsed_faster],
    "S11": [
        *(off(Recurrent, "W_hh"), off(Recurrent, "W_ih"), off(Recurrent, "dx")),
        *(truncated, tilted(1e-9)),
    ],
    "S11-late": [tilted(0.02), norms_of_spectrum, in_theory("late_log_rate", np.zeros_like)],
    "S11-gaussian": [scheme("lecun", numerator=1.2), norms_of_spectrum],
    "S11-bound": [
        in_theory("largest_slope", lambda s: s / 2),
        in_theory("largest_singular_value", lambda s: s / 2),
        tilted(2.0),
    ],
    "S11-range": [
        measured(lambda norms, times: norms - 1e-6 * times),
        measured(lambda norms, times: norms.where(norms > -45.2, -np.inf)),
    ],
    "A11-recurrence": [stretched_orthogonal, tilted(1e-9)],
    "A12-identity": [tilted(1e-12), positive_inputs],
    "A12-lstm": [forget_less, off(LSTM, "dx")],
}


def test_every_claim_has_a_plant():
    assert set(CLAIMS) == set(PLANTS)


@pytest.mark.parametrize("id", PLANTS)
def test_verdict(id):
    finding = check(id)
    assert finding.verdict == HOLDS and CLAIMS[id].expected == (HOLDS,)
    assert abs(finding.measured - finding.predicted) <= finding.tolerance
    assert finding.sentence.endswith(".") and "\n" not in finding.sentence


@pytest.mark.parametrize("id, plant", [(id, p) for id, plants in PLANTS.items() for p in plants])
def test_planted_error_turns_the_verdict(id, plant, monkeypatch):
    plant(monkeypatch)
    assert check(id).verdict == FAILS


@pytest.mark.parametrize("cosine", [0.0, 0.5, 0.99])
def test_tokens_have_their_cosine(cosine):
    x = attention.tokens(np.random.default_rng(0), 400, cosine)[:, 0]
    np.testing.assert_allclose(np.mean(x**2, axis=-1), 1)
    measured = np.mean(x[:, 0] * x[:, 1], axis=-1)
    assert abs(measured.mean() - cosine) < 4 * measured.std() / 20 + 2 / attention.WIDTH


def test_masks_of_examples_leave_every_query_a_key():
    assert not _HIDDEN[..., 0].any() and _HIDDEN.any(axis=(1, 2)).all()


def test_a_vanished_cotangent_keeps_its_norm():
    """Through 400 steps of radius 0.01: ln‖δ‖² falls by 1,838 each hundred, in float64's reach."""
    layer = Recurrent(4, "identity", recurrent="orthogonal", radius=0.01)
    trial = Trial(0, 2)
    x, p, dy = recurrence.draw(trial, layer, 400)
    logs, _, _ = recurrence.through_time(layer, x, p, dy)
    expected = np.log(square(dy))[:, None] + 2 * np.log(0.01) * np.arange(400)[::-1]
    np.testing.assert_allclose(logs, expected, rtol=1e-12)
