"""Gradients far below the smallest number of float64, and still measured."""

from flowlab.figures import underflow
from flowlab.studies.study import Drawing, Study

STUDY = Study(
    "How small can a gradient get and still be measured?",
    "an exponent beside every cotangent; IEEE 754 for where floating point reads 0",
    (
        Drawing(
            "depths_of_underflow",
            lambda reading: underflow.finding(reading.sweep, reading.image),
            lambda reading: underflow.depths_of_underflow(reading.sweep, reading.image),
            lambda reading: underflow.caption(reading.sweep, reading.image),
        ),
    ),
    rank=68,
)
