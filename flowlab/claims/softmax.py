"""Softmax, seen through the gradient p − y of cross-entropy: A8, A9."""

import numpy as np

from flowlab.claims import compare
from flowlab.claims.claim import claim
from flowlab.layers import SoftmaxCrossEntropy

CLASSES = 7
_STEP = 1e-3


def probabilities(trial, z: np.ndarray) -> np.ndarray:
    """Softmax of logits (seeds, n, classes) as the loss layer's own gradient plus the label."""
    label = np.zeros(z.shape[:2], int)
    targets = {"label": label, "exponent": np.zeros(len(z), int)}
    got = trial.run(SoftmaxCrossEntropy("sum"), z, targets, np.ones(len(z)))
    return got.dx + np.eye(z.shape[2])[label]


@claim(
    "A8",
    "Softmax: J = diag(p) − ppᵀ has trace 1 − Σp², ‖J‖² = Σp² − 2Σp³ + (Σp²)², ‖J‖₂ ≤ ½, J1 = 0.",
    "differentiation",
)
def jacobian(trial):
    """J by central differences of sixth order, whose error is of order step⁶."""
    z = 2 * trial.random().standard_normal((trial.seeds, 1, CLASSES))
    p = probabilities(trial, z)[:, 0]
    moves = _STEP * np.eye(CLASSES)[None]
    J = (
        sum(
            weight * (probabilities(trial, z + k * moves) - probabilities(trial, z - k * moves))
            for k, weight in ((1, 3 / 4), (2, -3 / 20), (3, 1 / 60))
        )
        / _STEP
    )
    s2, s3 = (p**2).sum(1), (p**3).sum(1)
    spectral = np.linalg.norm(J, 2, axis=(1, 2))
    errors = [
        compare.relative(np.trace(J, axis1=1, axis2=2), 1 - s2, 1.0),
        compare.relative((J**2).sum((1, 2)), s2 - 2 * s3 + s2**2, 1.0),
        np.abs(J.sum(2)).max(1),
        np.maximum(spectral - 0.5, 0),
    ]
    # Rounding of p over the step: 1e-16/1e-3, some ten terms.
    result = compare.identity("worst error of the four", errors, 1e-11)
    return result.finding(
        f"For {len(p)} random logits the trace, the norm and the null vector are as stated to "
        f"{result.measured:.0e}, and the spectral norm reaches {spectral.max():.3f}, at most ½."
    )


@claim("A9", "At a uniform softmax over K classes ‖p − y‖² = 1 − 1/K.", "algebra")
def uniform(trial):
    """Logits all equal, K = 2 .. 10."""
    classes = range(2, 11)
    errors = []
    for k in classes:
        p = probabilities(trial, np.full((1, 1, k), 0.7))[0, 0]
        squared = ((p - np.eye(k)[0]) ** 2).sum()
        errors.append(compare.relative(squared, 1 - 1 / k))
    result = compare.identity("relative error of ‖p − y‖²", errors)
    return result.finding(
        f"With equal logits ‖p − y‖² is 1 − 1/K to {result.measured:.0e} for every K from 2 to 10."
    )
