"""Rotational equilibrium of AdamW, beside that of SGD in ``rotation``."""

from flowlab.claims.claim import Finding
from flowlab.studies.rotation import drawing, runs, turn
from flowlab.studies.study import Reading, Study, finding


@finding(
    "O9",
    "In equilibrium a step of AdamW turns weights before a normalization by "
    "√(2ηλ(1 − β1)/(1 + β1)).",
    "Kosson et al. 2023; derived from independent gradients",
    runs=runs("adamw", (0.02, 0.5), (0.02, 1.0)),
    times=1 / 8,
)
def adamw(reading: Reading) -> Finding:
    """ReLU nets with batch norm on digits."""
    return turn(reading, "adamw")


STUDY = Study(
    "How far does a step of AdamW turn weights whose size does not matter?",
    "Kosson et al. 2023",
    (drawing("rotation_adamw", "adamw"),),
    (adamw,),
    experiment="rotation",
    rank=58,
)
