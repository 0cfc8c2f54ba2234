"""Backpropagation through time: the same chain S11, its rates, and what it preserves exactly."""

from math import log

import numpy as np
from scipy.special import expit

from flowlab.claims import compare
from flowlab.claims.claim import FAILS, OPEN, claim
from flowlab.claims.trial import square
from flowlab.layer import Chain, Workspace
from flowlab.layers import LSTM, Activation, Linear, Recurrent
from flowlab.layers.recurrent import Recurrence
from flowlab.theory import recurrence as theory

WIDTH = 32
_SMALLEST_FLOAT32 = float(np.log10(np.finfo(np.float32).smallest_subnormal))


def through_time(layer: Recurrence, x, parameters, dy):
    """log ‖∂L/∂h_t‖², (seeds, steps), the gradients and dx, for dy (seeds, n, h) at the last step.

    True beyond any float range, as the layer keeps a power of two for every step.
    """
    workspace = Workspace(np.nan)
    y, tape = layer.forward(x, parameters, workspace)
    along = np.zeros_like(y)
    along[:, :, -1] = dy
    dx, gradients = layer.pullback(along, tape, workspace)
    return 2 * log(2) * tape["state_cotangent_log2_norms"], gradients, dx


def draw(trial, layer: Recurrence, steps: int, init="lecun", times=1, batch=1, **options):
    """Arguments of :func:`through_time`: inputs and a cotangent, normal."""
    shape, random = (batch, steps, 3), trial.random()
    p = trial.parameters(layer, shape, init, times, **options)
    x = random.standard_normal((times * trial.seeds, *shape))
    return x, p, random.standard_normal((times * trial.seeds, batch, layer.features))


def unrolled(layer: Recurrent, x, p, dy):
    """As :func:`through_time`, of the chain of Linear and Activation layers with tied weights.

    Inputs after the first step must be 0, so that they add nothing.
    """
    steps = x.shape[2]
    chain = Chain([Linear(layer.features), Activation(layer.activation)] * steps)
    bias = p["b_ih"] + p["b_hh"]
    first, later = {"W": p["W_ih"], "b": bias}, {"W": p["W_hh"], "b": bias}
    _, tape = chain.forward(x[:, :, 0].copy(), (first, {}, *(later, {}) * (steps - 1)), Workspace())
    logs = []

    def watch(layer, tape, dy, dx, gradients):
        if isinstance(layer, Activation):
            logs.insert(0, np.log(square(dy)))

    chain.pullback(dy, tape, Workspace(), watch)
    dx, gradients = chain.pullback(dy, tape, Workspace())
    tied = sum(own["W"] for own in gradients[2::2])
    return np.stack(logs, axis=1), {"W_ih": gradients[0]["W"], "W_hh": tied}, dx


@claim("S11", "Recurrent nets backpropagate through time by the same chain.", "the text")
def same_chain(trial):
    """∂L/∂h_t of every step, dx and the tied weights' gradients, for three activations."""
    errors, steps = [], 24
    for activation in ("identity", "relu", "tanh"):
        layer = Recurrent(WIDTH, activation)  # wide enough that no ReLU net dies
        x, p, dy = draw(trial, layer, steps, batch=2, sigma_b=0.3)
        x[:, :, 1:] = 0
        logs, gradients, dx = through_time(layer, x, p, dy)
        their_logs, theirs, their_dx = unrolled(layer, x, p, dy)
        errors.append(np.abs(logs - their_logs).max(axis=1) / steps)
        pairs = [(gradients[name], theirs[name]) for name in theirs] + [(dx[:, :, 0], their_dx)]
        errors += [np.sqrt(square(a - b) / square(b)) for a, b in pairs]
    result = compare.identity("relative difference from the unrolled chain", errors)
    return result.finding(
        f"Unrolled over {steps} steps a recurrence is a chain of linear maps with one W: the norm "
        f"of ∂L/∂h_t at every step, dX and the sum dW over steps agree to {result.measured:.0e}."
    )


@claim(
    "S11-late",
    "Weights are tied, so ln‖∂L/∂h_t‖² comes to change by 2 ln ρ per step, ρ the spectral radius.",
    "powers of one matrix; see flowlab.theory.recurrence",
)
def late_rate(trial):
    """Each linear net against its own ρ; complex eigenvalues turn, which n steps see as O(1)/n.

    The rival is the rate g² = 1 of weights drawn afresh.
    """
    steps, first, layer = 512, 128, Recurrent(WIDTH, "identity")
    x, p, dy = draw(trial, layer, steps)
    logs, _, _ = through_time(layer, x, p, dy)
    span = steps - first
    rates, laws = (logs[:, 0] - logs[:, span]) / span, theory.late_log_rate(p["W_hh"])
    rival = float(-np.mean(laws))
    result = compare.mean("ln ‖δ‖² per step, less 2 ln ρ", rates - laws, 0.0, 0.0, 2 / span, rival)
    return result.finding(
        f"From {first} to {steps} steps back ln‖∂L/∂h_t‖² of {len(rates)} linear nets of width "
        f"{WIDTH} grew by {rates.mean():.4f} per step, where their 2 ln ρ is {np.mean(laws):.4f}: "
        "untied weights of the same variance would have a mean of 0."
    )


@claim(
    "S11-gaussian",
    "Of a Gaussian W with g = 1 that late rate E 2 ln ρ is above 0: by 0.08 to 0.12 for widths of "
    "16 to 256.",
    "Rider & Sinclair 2014; see flowlab.theory.recurrence",
)
def gaussian_radius(trial):
    """The weights as they are drawn; theory's stated error is 1/N. Against infinite width's 0."""
    _, p, _ = draw(trial, Recurrent(WIDTH), 1, times=16)
    law = theory.gaussian_late_log_rate(WIDTH)
    rates = theory.late_log_rate(p["W_hh"])
    result = compare.mean("2 ln ρ", rates, law, 0.0, 1 / WIDTH, 0.0)
    return result.finding(
        f"{len(rates)} recurrent matrices of width {WIDTH} with g = 1 have a mean 2 ln ρ of "
        f"{result.measured:.3f}; the law of the largest eigenvalue says {law:.3f}, low by about "
        "1/N, and infinite width 0: such nets explode slowly."
    )


@claim(
    "S11-bound",
    "Gradients must vanish through time if σ_max < 1/γ, γ the largest slope; beyond it they may.",
    "Pascanu et al. 2013, section 2.1",
)
def pascanu(trial):
    """Tanh nets: every step of every net against (σ_max γ)², with σ_max = 0.9 and Gaussian."""
    steps, layer = 64, Recurrent(WIDTH)
    x, p, dy = draw(trial, layer, steps)
    p["W_hh"] *= 0.9 / theory.largest_singular_value(p["W_hh"])[:, None, None]
    bounds = np.log(theory.rate_bound(p["W_hh"], "tanh"))
    logs, _, _ = through_time(layer, x, p, dy)
    excess = np.maximum(logs[:, :-1] - logs[:, 1:] - bounds[:, None], 0)
    result = compare.identity("ln ‖δ‖² per step beyond the bound", excess)
    x, p, dy = draw(trial, layer, steps, gain=0.8)
    sigma = theory.largest_singular_value(p["W_hh"])
    other, _, _ = through_time(layer, x, p, dy)
    fallen, also = ((a[:, 0] - a[:, -1]) / log(10) for a in (logs, other))
    vanished = (fallen < -1).all() and (also < -1).all()
    return result.finding(
        f"With σ_max = 0.9 no step of {len(x)} tanh nets exceeded the bound, and ‖∂L/∂h_t‖² fell "
        f"by {-fallen.mean():.0f} decades over {steps} steps; with σ_max between {sigma.min():.2f} "
        f"and {sigma.max():.2f} it fell by {-also.mean():.0f} all the same: σ_max < 1/γ is "
        "sufficient for vanishing, not necessary.",
        result.verdict if vanished and (sigma > 1).all() else FAILS,
    )


@claim(
    "S11-range",
    "A cotangent beside an exponent for each step keeps true norms where float32 reads 0.",
    "floating point; orthogonal recurrences as the oracle",
)
def beyond_float32(trial):
    """2,048 steps in float32 at radius 0.9, whose norms fall by exactly 0.9 per step.

    Every step rounds once, relative to the norm.
    """
    steps, radius = 2048, 0.9
    network = {"name": "rnn", "steps": steps, "recurrent": "orthogonal", "radius": radius}
    table = trial.measure(depth=2, width=16, activation="identity", network=network)
    rows = table[table["time"].notna()].sort_values(["seed", "time"])
    norms = rows["dh_log10_norm"].to_numpy().reshape(-1, steps)
    fallen = norms[:, :1] - norms[:, -1:]
    law = (steps - 1) * np.log10(radius)
    rounding = steps * float(np.finfo(np.float32).eps) / log(10)
    result = compare.identity("decades of ‖∂L/∂h_1‖, less theory", fallen - law, rounding)
    read = int((norms > _SMALLEST_FLOAT32).sum(axis=1).min())
    return result.finding(
        f"Through {steps} steps of radius {radius} ‖∂L/∂h_t‖ falls by {-fallen.mean():.3f} decades "
        f"({-law:.3f} by theory), off by {result.measured:.0e} at most; float32 by itself reads 0 "
        f"before the last {read} steps.",
        result.verdict if norms.min() < _SMALLEST_FLOAT32 else OPEN,
    )


@claim(
    "A11-recurrence",
    "An orthogonal linear recurrence preserves ‖∂L/∂h_t‖ exactly.",
    "Saxe et al. 2013",
)
def orthogonal_recurrence(trial):
    """256 steps in float64: each may round once."""
    steps, layer = 256, Recurrent(16, "identity", recurrent="orthogonal")
    logs, _, _ = through_time(layer, *draw(trial, layer, steps))
    result = compare.identity("|ln ‖δ_1‖²/‖δ_T‖²|", logs[:, 0] - logs[:, -1], steps * 1e-12)
    return result.finding(
        f"Through {steps} steps of an orthogonal recurrence ‖∂L/∂h_t‖² changed by a factor within "
        f"{result.measured:.0e} of 1."
    )


@claim(
    "A12-identity",
    "A ReLU recurrence with W = 1 and positive preactivations has ratio 1.",
    "Le et al. 2015",
)
def identity_recurrence(trial):
    """Inputs and their map made positive; then as they are drawn."""
    steps, layer = 256, Recurrent(16, "relu", recurrent="identity")
    x, p, dy = draw(trial, layer, steps)
    kept, _, _ = through_time(layer, np.abs(x), p | {"W_ih": np.abs(p["W_ih"])}, dy)
    lost, _, _ = through_time(layer, x, p, dy)
    lost = (lost[:, 0] - lost[:, -1]).clip(min=-99).mean() / log(10)
    result = compare.identity("|ln ‖δ_t‖²/‖δ_T‖²|", kept - kept[:, -1:], 0.0)
    return result.finding(
        f"Through {steps} steps ‖∂L/∂h_t‖ kept every bit; with preactivations of both signs "
        f"‖∂L/∂h_t‖² fell by {-lost:.1f} decades."
        if not result.measured
        else f"Through {steps} steps ln ‖∂L/∂h_t‖² changed by {result.measured:.0e}.",
        result.verdict if lost < -0.1 else FAILS,
    )


@claim(
    "A12-lstm",
    "With the h-path cut an LSTM's cell passes ∂L/∂c_1 = Π f_t ∂L/∂c_T.",
    "Hochreiter & Schmidhuber 1997",
)
def cell_path(trial):
    """dx of the first step against the gates by hand, with W_hh = 0."""
    steps, layer = 64, LSTM(WIDTH, forget_bias=3.0)
    x, p, dy = draw(trial, layer, steps)
    p["W_hh"][...] = 0
    _, _, dx = through_time(layer, x, p, dy)
    i, f, g, o = np.split((x @ p["W_ih"][:, None])[:, 0], 4, axis=-1)
    i, f, g, o = expit(i), expit(f + layer.forget_bias), np.tanh(g), expit(o)
    cell = np.zeros_like(dy[:, 0])
    for t in range(steps):
        cell = f[:, t] * cell + i[:, t] * g[:, t]
    path = f[:, 1:].prod(axis=1)
    dc = path * dy[:, 0] * o[:, -1] * (1 - np.tanh(cell) ** 2)
    i, g = i[:, 0], g[:, 0]
    dz = np.concatenate([dc * g * i * (1 - i), 0 * dc, dc * i * (1 - g**2), 0 * dc], axis=1)
    law = np.einsum("sg,sig->si", dz, p["W_ih"])
    result = compare.identity(
        "relative difference of dx_1", np.sqrt(square(dx[:, 0, 0] - law) / square(law))
    )
    return result.finding(
        f"With W_hh = 0 the gradient reaches the first of {steps} steps through Π f_t alone, "
        f"{np.exp(np.log(path).mean()):.2f} in the geometric mean with forget bias "
        f"{layer.forget_bias:g}, and dx_1 is what the formula gives to {result.measured:.0e}."
    )
