"""Which initialization suits which activation: the change of the gradient's norm for every pair."""

from flowlab.figures import pairs
from flowlab.figures.choice import described
from flowlab.studies.study import Drawing, Study

AXES = {"down": "init", "across": "activation"}

STUDY = Study(
    "Which initializer keeps the gradient under which activation?",
    "Glorot & Bengio 2010; He et al. 2015; Klambauer et al. 2017",
    (
        Drawing(
            "activation_by_init",
            lambda reading: pairs.finding(reading.sweep, **AXES),
            lambda reading: pairs.heat_map(reading.sweep, **AXES),
            lambda reading: described(reading.sweep),
        ),
    ),
    rank=2,
)
