"""Ten thousand convolutions whose borders lose gradient, in the figure of ``extreme``."""

from flowlab.studies.study import Study

STUDY = Study(
    "How far does the loss at the border take a very deep convolutional net?",
    "Xiao et al. 2018 for nets that keep the gradient; IEEE 754 for where floating point reads 0",
    experiment="extreme",
)
