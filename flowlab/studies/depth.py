"""How depth and initialization decide between vanishing, kept and exploding gradients."""

import pandas as pd

from flowlab.figures import pairs
from flowlab.figures.choice import described
from flowlab.studies.study import Drawing, Study, chosen

AXES = {"down": "init", "across": "depth"}


def one_depth(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the middle one of the depths."""
    depths = sorted(table["depth"].unique())
    return table[table["depth"] == depths[len(depths) // 2]]


STUDY = Study(
    "Which initializers keep the gradient as nets get deeper?",
    "Glorot & Bengio 2010; He et al. 2015",
    (
        Drawing(
            "depth_by_init",
            lambda reading: pairs.finding(reading.sweep, **AXES),
            lambda reading: pairs.heat_map(reading.sweep, **AXES),
            lambda reading: described(reading.sweep),
        ),
        chosen("profiles_by_init", one_depth),
    ),
    rank=1,
)
