"""The rule of the noise scale beside those of :mod:`flowlab.studies.learning_rate_rule`."""

from flowlab.studies.study import Study

STUDY = Study(
    "Does the noise scale say how the learning rate follows the batch?",
    "McCandlish et al. 2018",
    experiment="learning_rate_rule",
)
