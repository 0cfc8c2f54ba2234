"""Which initialization suits which activation: the change of the gradient's norm for every pair."""

from flowlab.figures.heat_map import heat_map, heat_map_caption
from flowlab.studies.study import Drawing, Study

STUDY = Study(
    "Which initializer keeps the gradient under which activation?",
    "Glorot & Bengio 2010; He et al. 2015; Klambauer et al. 2017",
    (
        Drawing(
            "activation_by_init",
            lambda reading: "Which initializer suits which activation",
            lambda r: heat_map(r.table, across="activation"),
            lambda r: heat_map_caption(r.table, r.prediction, "activation", r.kept_within),
        ),
    ),
    rank=2,
)
