"""A4, O1 to O5 and O10, with errors that turn the verdicts."""

from flowlab.claims import optimization
from flowlab.claims.trial import Trial
from flowlab.optimizers import TrainingSettings
from flowlab.training.updates import Updater
from tests.support.plants import corrupt
from tests.support.verdicts import Verdicts


def longer_steps(patch):
    """Every step is by a twentieth too long."""
    step = Updater.__call__
    patch.setattr(
        Updater, "__call__", lambda self, g, e, rate, *of: step(self, g, e, 1.05 * rate, *of)
    )


def steeper_hessian(patch):
    right = optimization.hessian_product
    patch.setattr(optimization, "hessian_product", lambda *args: 1.05 * right(*args))


def rule_of(power):
    """The learning rate follows another power of the batch."""

    def plant(patch):
        patch.setattr(
            TrainingSettings, "batch_factor", lambda self, size: (size / self.rule_batch) ** power
        )

    return plant


def unscaled(place):
    """One of (beta1, beta2, eps) stays as it was at the first batch size."""

    def plant(patch):
        right = TrainingSettings.adam_numbers

        def wrong(self, size):
            numbers = list(right(self, size))
            numbers[place] = (self.beta1, self.beta2, self.eps)[place]
            return tuple(numbers)

        patch.setattr(TrainingSettings, "adam_numbers", wrong)

    return plant


def nothing_normalized(patch):
    train = Trial.train
    patch.setattr(Trial, "train", lambda *args, **axes: train(*args, **axes | {"norm": "none"}))


PLANTS = {
    "A4": [corrupt("2.W"), corrupt("2.b"), longer_steps],
    "O1": [longer_steps, steeper_hessian],
    "O2": [longer_steps],
    "O3": [longer_steps, rule_of(1.0), rule_of(0.0)],
    "O4": [rule_of(1.0), unscaled(0), unscaled(2)],
    "O5": [rule_of(0.5), rule_of(1.0), rule_of(0.0)],
    "O10": [longer_steps, nothing_normalized],
}


class TestOptimization(Verdicts):
    MODULE = "optimization"
    PLANTS = PLANTS

    def seeds(self, id):
        return 64
