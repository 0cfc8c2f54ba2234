"""Recurrent nets beside the other architectures, in whose figures they are drawn."""

from flowlab.studies.study import Study

STUDY = Study(
    "What is the rate of recurrent nets, per step, beside the other architectures' per layer?",
    "Pascanu et al. 2013; Hochreiter & Schmidhuber 1997; Cho et al. 2014",
    experiment="architectures",
)
