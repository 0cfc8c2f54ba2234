"""Gradients far below the smallest number of float64, and still measured."""

from flowlab.figures.underflow import depths_of_underflow, underflow_caption
from flowlab.studies.study import Drawing, Study

STUDY = Study(
    "How small can a gradient get and still be measured?",
    "an exponent beside every cotangent; IEEE 754 for where floating point reads 0",
    (
        Drawing(
            "depths_of_underflow",
            lambda reading: "A gradient that floating point cannot hold",
            lambda r: depths_of_underflow(r.table, r.prediction),
            lambda r: underflow_caption(r.table, r.prediction),
        ),
    ),
    rank=68,
)
