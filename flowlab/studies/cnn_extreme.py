"""Ten thousand convolutions whose borders lose gradient: norms that float32 cannot hold."""

from flowlab.figures.underflow import depths_of_underflow, underflow_caption
from flowlab.studies.study import Drawing, Study

STUDY = Study(
    "How far does the loss at the border take a very deep convolutional net?",
    "Xiao et al. 2018 for nets that keep the gradient; IEEE 754 for where floating point reads 0",
    (
        Drawing(
            "depths_of_underflow_of_images",
            lambda reading: "A convolutional net's gradient that floating point cannot hold",
            lambda r: depths_of_underflow(r.table, r.prediction, r.side**2),
            lambda r: underflow_caption(r.table, r.prediction, r.side**2),
        ),
    ),
    rank=69,
)
