"""Normalizations with and without skip connections, over depth."""

from flowlab.figures.over_depth import change_by_depth, change_by_depth_caption
from flowlab.studies.study import Drawing, Study

AXES = {"panels": "skip", "lines": "norm"}

STUDY = Study(
    "Which normalization keeps the gradient, with a skip connection and without one?",
    "Ioffe & Szegedy 2015; Ba et al. 2016; Yang et al. 2019; De & Smith 2020",
    (
        Drawing(
            "norm_by_depth",
            lambda reading: "Normalization with and without skips",
            lambda r: change_by_depth(r.table, r.prediction, **AXES, near=2.0),
            lambda r: change_by_depth_caption(r.table, r.prediction, **AXES),
        ),
    ),
    rank=60,
)
