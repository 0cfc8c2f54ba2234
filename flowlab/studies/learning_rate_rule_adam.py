"""Rules for Adam beside those of :mod:`flowlab.studies.learning_rate_rule`."""

from flowlab.studies.study import Study

STUDY = Study(
    "How must Adam's learning rate follow the batch?",
    "Malladi et al. 2022",
    experiment="learning_rate_rule",
)
