"""The edge of stability of Adam, beside that of gradient descent in ``stability``."""

from flowlab.claims.claim import Finding
from flowlab.studies.stability import drawing, hovers, runs
from flowlab.studies.study import Reading, Study, finding


@finding(
    "O7",
    "Under full-batch Adam with β1 = 0.9 the preconditioned sharpness settles at 38/η.",
    "Cohen et al. 2022",
    runs=runs("adam", 0.02),
    times=1 / 8,
)
def adam(reading: Reading) -> Finding:
    """It comes from above: at the first step P = (1 - β1)|g| makes it many times the limit."""
    return hovers(reading, "adam")


STUDY = Study(
    "How sharp does the loss become under full-batch Adam, behind its preconditioner?",
    "Cohen et al. 2022",
    (drawing("stability_adam", "adam"),),
    (adam,),
    experiment="stability",
    rank=56,
)
