"""A branch scaled by one over the depth, beside the skip connections of ``skip``."""

from flowlab.studies.skip import block_claim
from flowlab.studies.study import Study

STUDY = Study(
    "Does a branch of skip=scaled with a = 1/L leave the gradient as it is?",
    "Hanin & Rolnick 2018; second moments of one block",
    findings=(
        block_claim(
            "inverse_depth",
            "x + f(x)/L",
            "(1 + 1/L²)^L",
            lambda L: f"(1 + 1/L²)^L = {(1 + L**-2) ** L:.3f}",
        ),
    ),
    experiment="skip",
)
