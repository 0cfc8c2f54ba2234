"""Normalizations with and without skip connections, over depth."""

from flowlab.studies.study import Study, chosen

STUDY = Study(
    "Which normalization keeps the gradient, with a skip connection and without one?",
    "Ioffe & Szegedy 2015; Ba et al. 2016; Yang et al. 2019; De & Smith 2020",
    (chosen("norm_by_depth"),),
    rank=60,
)
