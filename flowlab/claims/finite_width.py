"""Exact laws of products of random matrices at finite width: P1, P2, P3."""

from math import nan

from flowlab.claims import compare
from flowlab.claims.claim import claim
from flowlab.claims.trial import log_growth
from flowlab.theory.finite_width import chi_square_step, he_relu_step

WIDTH, DEPTH = 32, 16
STEPS = DEPTH - 1


def _step(trial, activation, init, law, rival, times):
    """Mean and variance of the log step against an exact law, told apart from a rival one."""
    table = trial.measure(times, depth=DEPTH, width=WIDTH, activation=activation, init=init)
    logs = log_growth(table)
    mean, variance = law
    other_mean, other_variance = rival
    drift = compare.mean(
        "mean of a layer's step in ln‖δ‖²",
        logs / STEPS,
        mean,
        (variance / STEPS) ** 0.5,
        against=other_mean,
    )
    spread = compare.variance("", logs, STEPS * variance, against=STEPS * other_variance)
    return drift, spread


def _told(name, drift, spread, law, constant):
    """One sentence on both moments."""
    return drift.finding(
        f"Over one {name} layer of width {WIDTH} ln‖δ‖² moves by {drift.measured:.4f} on average "
        f"(exactly {law[0]:.4f}, about −{constant}/N) with variance "
        f"{spread.measured / STEPS:.4f} (exactly {law[1]:.4f}): the typical net of depth L "
        f"loses {constant}·L/N.",
        compare.worst((drift, spread)).verdict,
    )


@claim(
    "P1",
    "In a Gaussian linear net ln‖δ‖² walks by log(χ²_N/N): mean ≈ −1/N, variance ≈ 2/N.",
    "Hanin & Nica 2018; Hanin & Rolnick 2018",
)
def linear(trial):
    """Against the ReLU law as the rival."""
    law = chi_square_step(WIDTH)
    parts = _step(trial, "identity", "lecun", law, he_relu_step(WIDTH), 8)
    return _told("linear", *parts, law, "1")


@claim(
    "P2",
    "In a He ReLU net it walks by log(2χ²_K/N), K ~ Bin(N, ½): mean ≈ −5/(2N), variance ≈ 5/N.",
    "Hanin & Nica 2018; Hanin & Rolnick 2018",
)
def he_relu(trial):
    """Against the linear law as the rival."""
    law = he_relu_step(WIDTH)
    parts = _step(trial, "relu", "he", law, chi_square_step(WIDTH), 8)
    return _told("He ReLU", *parts, law, "2.5")


@claim(
    "P3",
    "Orthogonal weights shorten the ReLU net's drift from 5/(2N) to 3/(2N) per layer.",
    "Hanin & Nica 2018; χ²_K = χ²_N·Beta(K/2, (N−K)/2)",
)
def orthogonal_relu(trial):
    """An orthogonal map keeps the norm and the mask takes a Beta share of it.

    χ²_K is the product of χ²_N and that share, independent: both cumulants of logs subtract.
    """
    gaussian, linear_step = he_relu_step(WIDTH), chi_square_step(WIDTH)
    law = (gaussian[0] - linear_step[0], gaussian[1] - linear_step[1])
    init = {"name": "orthogonal", "gain": 2**0.5}
    drift, spread = _step(trial, "relu", init, law, (gaussian[0], nan), 8)
    return _told("orthogonal ReLU", drift, spread, law, "1.5")
