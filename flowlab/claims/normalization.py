"""What normalization takes out of a cotangent, A6 and A7, and batch norm's transpose S12."""

import numpy as np

from flowlab.claims import compare
from flowlab.claims.claim import FAILS, HOLDS, claim
from flowlab.claims.trial import square
from flowlab.layers import BatchNorm, LayerNorm, Linear

BATCH, D1, D2 = 16, 12, 10


@claim(
    "A6",
    "Batch norm (ε = 0): Σ dz = 0, so the bias before it has db ≡ 0; Σ dz·x̂ = 0; ⟨w, dw⟩ = 0 for "
    "every unit before it.",
    "Ioffe and Szegedy 2015, section 3",
)
def removed_directions(trial):
    """A linear layer and batch norm, of random gains; relative to the norms of what is summed."""
    layer, x, p, dy = trial.draw([Linear(D2), BatchNorm(eps=0.0)], (BATCH, D1))
    p[1]["gain"][...] = trial.random().uniform(0.5, 2.0, p[1]["gain"].shape)
    got = trial.run(layer, x, p, dy)
    W, dW, db = p[0]["W"], got.gradients["0.W"], got.gradients["0.b"]
    z = x @ W
    dz = trial.run(layer.layers[1], z, p[1], dy).dx
    normalized = (z - z.mean(1, keepdims=True)) / z.std(1, keepdims=True)
    size = np.linalg.norm(dz, axis=1)
    errors = [
        db / size,
        dz.sum(1) / size,
        (dz * normalized).sum(1) / size,
        (W * dW).sum(1) / (np.linalg.norm(W, axis=1) * np.linalg.norm(dW, axis=1)),
    ]
    result = compare.identity("largest of the four, relative", errors)
    return result.finding(
        f"Before batch norm of {BATCH} examples the bias's gradient, the sums Σ dz and Σ dz·x̂ and "
        f"the part of dw along w are all zero to {result.measured:.0e}."
        if result.verdict == HOLDS
        else f"Before batch norm something that should be zero is {result.measured:.0e}."
    )


@claim(
    "A7",
    "For an independent Gaussian dy, E σ²‖dz‖²/‖dy‖² is (B − 2)/B in batch norm and (d − 2)/d in "
    "layer norm (ε = 0).",
    "a projection onto all but two dimensions",
)
def passing_share(trial):
    """Against (m − 1)/m, which a pullback that forgot one of the two statistics would give."""
    parts = []
    for layer, axis, letter in ((BatchNorm(eps=0.0), 1, "B"), (LayerNorm(eps=0.0), 2, "d")):
        chain, z, p, dy = trial.draw([layer], (BATCH, D1))
        dz = trial.run(chain, z, p, dy).dx
        ratios = z.var(axis) * (dz**2).sum(axis) / (dy**2).sum(axis)
        m, vectors = z.shape[axis], ratios.shape[1]
        # For each vector the ratio is Beta((m − 2)/2, 1), whose mean is (m − 2)/m.
        sd = np.sqrt(2 * (m - 2) / (m * m * (m / 2 + 1)) / vectors)
        name = f"σ²‖dz‖²/‖dy‖² ({layer.name}, {letter} = {m})"
        parts.append(
            compare.mean(name, ratios.mean(1), (m - 2) / m, sd=float(sd), against=(m - 1) / m)
        )
    worst = compare.worst(parts)
    return worst.finding(
        "Of an independent cotangent there passes "
        + " and ".join(f"{part.measured:.4f} ({part.predicted:.4f} predicted)" for part in parts)
        + f", in batch norm with B = {BATCH} and layer norm with d = {D1}."
    )


@claim(
    "S12",
    "Batch normalization's transpose handles statistics separately.",
    "the text; Ioffe and Szegedy 2015, section 3",
)
def statistics_separately(trial):
    """dz = gain/σ (dy − mean dy − x̂ mean dy·x̂): one term for each path, in NumPy."""
    layer, z, p, dy = trial.draw([BatchNorm(eps=0.0)], (BATCH, D1))
    p[0]["gain"][...] = trial.random().uniform(0.5, 2.0, p[0]["gain"].shape)
    dz = trial.run(layer, z, p, dy).dx
    deviation = z.std(1, keepdims=True)
    normalized = (z - z.mean(1, keepdims=True)) / deviation
    slope = p[0]["gain"][:, None] / deviation
    direct, of_mean = slope * dy, -slope * dy.mean(1, keepdims=True)
    of_variance = -slope * normalized * (dy * normalized).mean(1, keepdims=True)

    def off(law):
        return np.sqrt(square(dz - law) / square(dz))

    result = compare.identity("relative difference of dZ", off(direct + of_mean + of_variance))
    without = [off(direct + of_variance).mean(), off(direct + of_mean).mean()]
    return result.finding(
        "dZ is the sum of three terms, what passes at fixed statistics, what goes through the mean "
        f"and what goes through the variance, to {result.measured:.0e}; without the mean's it "
        f"would be off by {without[0]:.0%} of its norm, without the variance's by {without[1]:.0%}"
        f", with {BATCH} examples.",
        result.verdict if min(without) > 0.05 else FAILS,
    )


NET = {"depth": 2, "width": 256, "activation": "identity", "init": "he", "norm": "batch"}


@claim(
    "S12-removed",
    "Of an iid cotangent the terms of batch norm's two statistics remove 2/B of ‖dZ‖².",
    "a projection onto all but two dimensions",
)
def removed_share(trial):
    """What the table reads at a net's one norm; (B − 1)/B would be one statistic's."""
    parts = []
    for batch in (8, 16, 64):
        # Fluctuations are small, so a quarter of the seeds do.
        table = trial.measure(1 / 4, batch_size=batch, **NET)
        rows = table[table["op"] == "batch_norm"]
        gains = 10 ** (2 * rows["statistics_log10_gain"].to_numpy(float))
        rival = (batch - 1) / batch
        quantity = f"‖dZ‖² over that at fixed statistics, B = {batch}"
        parts.append(compare.mean(quantity, gains, (batch - 2) / batch, against=rival))
    shown = ", ".join(f"{part.measured:.4f} ({part.predicted:.4f})" for part in parts)
    return compare.worst(parts).finding(
        f"With 8, 16 and 64 examples the norm before the last layer passes {shown} of the ‖dZ‖² "
        "that fixed statistics would pass."
    )
